"""Drop-outs and laggards: repeatable, and only where they were asked for."""

from pathlib import Path

import pytest

from common.errors import StudyError
from simulations.faults import Fault, load


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "faults.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_script_strikes_the_first_attempt_of_its_round_alone(tmp_path: Path) -> None:
    lines = '{"round":2,"site":"site-1","do":"drop"}\n\n{"round":3,"site":"site-0","do":"late","seconds":30}\n'
    faults = load(script(tmp_path, lines), drop=0.0, seed=1)
    assert faults.of("site-1", round=2, attempt=1) == Fault(do="drop")
    assert faults.of("site-1", round=2, attempt=2) is None
    assert faults.of("site-0", round=2, attempt=1) is None
    assert faults.of("site-0", round=3, attempt=1) == Fault(do="late", seconds=30.0)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"round":1}',
        '{"round":"1","site":"a","do":"drop"}',
        '{"round":1,"site":"a","do":"explode"}',
        '{"round":1,"site":"a","do":"late"}',
        '{"round":1,"site":"a","do":"late","seconds":-1}',
        '{"round":1,"site":"a","do":"late","seconds":NaN}',
        '{"round":true,"site":"a","do":"drop"}',
        '{"round":0,"site":"a","do":"drop"}',
        '{"round":1,"site":"a","do":"drop","seconds":3}',
        '{"round":1,"site":"a","do":"drop","more":1}',
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    good = '{"round":1,"site":"a","do":"drop"}'
    with pytest.raises(StudyError, match="line 2") as caught:
        load(script(tmp_path, f"{good}\n{line}\n"), drop=0.0, seed=1)
    assert "\n" not in str(caught.value)


def test_a_missing_script_and_a_wrong_probability_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--script"):
        load(tmp_path / "absent", drop=0.0, seed=1)
    for drop in (1.0, -0.1, float("nan")):
        with pytest.raises(StudyError, match="--drop"):
            load(None, drop=drop, seed=1)


def test_drop_outs_are_independent_over_sites_rounds_and_attempts_with_their_probability() -> None:
    faults = load(None, drop=0.3, seed=1)
    drawn = [
        faults.of(f"site-{site}", round=round, attempt=attempt) is not None
        for site in range(10)
        for round in range(100)
        for attempt in (1, 2)
    ]
    # 2,000 draws: standard deviation 20; a probability off by a fifth is off by 120
    assert abs(sum(drawn) - 600) < 80
    again = load(None, drop=0.3, seed=1)
    assert again.of("site-0", round=5, attempt=1) == faults.of("site-0", round=5, attempt=1)
    assert [load(None, drop=0.3, seed=2).of("site-0", round=r, attempt=1) for r in range(40)] != [
        faults.of("site-0", round=r, attempt=1) for r in range(40)
    ]
