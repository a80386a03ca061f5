"""The coordinator's report: what the events say, in words that a reader can check against them."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError
from common.page import Section
from common.study import parse
from server import participation, performance, report
from server.events import EventLog, summary

CLASSES = {
    "classification": ["normal", "pneumonia"],
    "segmentation": ["nucleus"],
    "detection": ["RBC", "<b>WBC</b>"],
}
MODELS = {"classification": "cnn", "segmentation": "unet", "detection": "retinanet"}


def metrics(task: str, value: float | None) -> dict[str, Any]:
    names = CLASSES[task]
    if task == "classification":
        per = {"sensitivity": value, "specificity": value, "auc": value}
        point = {"class": names[1], "threshold": 0.31, "sensitivity": 0.95, "specificity": 0.8}
        per_class = {name: {**per, "support": support} for name, support in zip(names, (300, 100), strict=True)}
        found = {"auc": value, "accuracy": value, "balanced_accuracy": value, "operating_point": point}
    elif task == "segmentation":
        per_class = {name: {"dice": value, "iou": value, "support": 7} for name in names}
        found = {"dice": value, "iou": value, "dice_pooled": value}
    else:
        per_class = {name: {"ap50": value, "ap": value, "support": 7} for name in names}
        found = {"map50": value, "map": value}
    return {**found, "per_class": per_class, "loss": value, "images": 400}


def a_study(task: str, **changes: Any) -> dict[str, Any]:
    agreement = {"schema": 1, "name": "a-study", "task": task, "classes": CLASSES[task], "rounds": 4, **changes}
    model = {"name": MODELS[task], "image_size": [32, 32]}
    return parse(
        {"study": agreement, "model": model, "training": {"local_epochs": 1}, "preprocessing": {}, "aggregation": {}},
        where="test",
    ).model_dump(mode="json", by_alias=True)


def a_run(
    task: str = "classification", *, sites: int = 3, rounds: int = 4, backend: str = "deployment", **changes: Any
) -> list[dict[str, Any]]:
    """Site-1 is offline in rounds 2 and 3 and late in 4; round 3 has no metrics; test value 0.75."""
    names = [f"site-{i}" for i in range(sites)]
    events: list[dict[str, Any]] = [
        {"event": "started", "time": 0.0, "run": "r", "study": a_study(task, **changes), "study_hash": "c0ffee",
         "backend": backend, "sites": names},
        {"event": "retry", "time": 1.0, "round": 1, "attempt": 1, "absent": {"site-0": "failed", "site-1": "offline"}},
    ]  # fmt: skip
    for number in range(1, rounds + 1):
        absent = {"site-1": "late" if number == 4 else "offline"} if number >= 2 else {}
        present = [name for name in names if name not in absent]
        events.append(
            {"event": "round", "time": 10.0 * number, "round": number, "attempt": 1, "participants": present,
             "absent": absent, "metrics": {"val": {} if number == 3 else metrics(task, 0.5 + number / 100)},
             "bytes_up": dict.fromkeys(present, 1_000_000), "bytes_down": dict.fromkeys(names, 2_000_000),
             "seconds": {"train": 5.0, "sites": dict.fromkeys(present, 5.0)}}
        )  # fmt: skip
    final = {"event": "final", "time": 50.0, "val": metrics(task, 0.7), "test": metrics(task, 0.75)}
    return [*events, final, {"event": "finished", "time": 60.0}]


class Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def written(out: Path, events: list[dict[str, Any]], extra: tuple[Section, ...] = ()) -> Words:
    with EventLog(out / "events.jsonl") as log:
        for event in events:
            log.append(event)
    report.write(out, extra)
    words = Words((out / "report.html").read_text(encoding="utf-8"))
    words.text = " ".join(words.text.replace("\u202f", " ").split())
    return words


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_the_headline_of_each_task_is_the_final_model_s_on_test_patients(task: str, tmp_path: Path) -> None:
    name = {"classification": "AUC", "segmentation": "Dice", "detection": "mAP@50"}[task]
    words = written(tmp_path, a_run(task))
    assert f"{name} on test patients 0.750 400 images" in words.text
    assert "Rounds 4 of 4 in 1 min 0 s" in words.text
    assert all(name in words.text for name in CLASSES[task])
    assert {"b", "script"}.isdisjoint(words.tags)


def test_every_absence_is_named_with_its_reason(tmp_path: Path) -> None:
    text = written(tmp_path, a_run()).text
    assert "2 of 3 sites took part in all 4 rounds." in text
    assert "site-1 took part in 1 of 4 rounds: offline in rounds 2–3; too late with its answer in round 4." in text
    assert "Round 1, attempt 1 missed the quorum and was repeated: 1 training failed there, 1 offline." in text


def test_the_operating_point_is_told_in_natural_frequencies(tmp_path: Path) -> None:
    text = written(tmp_path, a_run()).text
    # 100 with, 300 without: 95 true and 60 false flags, 95 / 155 = 61 of 100.
    assert (
        "At a threshold of 0.31 the model finds 95 of 100 images that show “pneumonia” and wrongly flags 20 of 100 "
        "that do not. Of 100 images that it flags, 61 really show it where, as here, 25 of 100 images do" in text
    )


@pytest.mark.parametrize(
    "point", [None, [], {"class": "pneumonia", "threshold": None, "sensitivity": 1, "specificity": 1}]
)
def test_an_absent_operating_point_is_no_sentence(point: Any, tmp_path: Path) -> None:
    events = a_run()
    events[-2]["test"]["operating_point"] = point
    assert "At a threshold" not in written(tmp_path, events).text


def test_bytes_are_summed_over_sites_and_rounds(tmp_path: Path) -> None:
    text = written(tmp_path, a_run()).text
    assert "site-1 1 8.0 MB 1.0 MB 5.0 s" in text
    assert "All sites 24.0 MB 9.0 MB" in text


def test_absent_numbers_are_dashes_and_never_zero(tmp_path: Path) -> None:
    events = a_run()
    events[-2]["test"] = metrics("classification", None)
    text = written(tmp_path, events).text
    assert "AUC on test patients – 400 images" in text
    assert "pneumonia 100 – – –" in text
    assert "0.000" not in text


def test_a_curve_s_point_is_the_round_after_which_the_weights_were_so() -> None:
    events = a_run()
    after, values = performance._values(summary(events), "auc")
    assert after == [0, 1, 2, 3]
    assert values[0] == pytest.approx(0.51)
    assert values[2] != values[2]  # round 3 had no metrics: a gap


def test_a_stopped_and_an_unfinished_run_say_so(tmp_path: Path) -> None:
    events = a_run()[:-2]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert "has not finished" in written(tmp_path / "a", events).text
    stopped = {"event": "stopped", "time": 55.0, "reason": "round 5: too few sites"}
    assert "The run stopped early: round 5: too few sites" in written(tmp_path / "b", [*events, stopped]).text
    assert "Rounds 0 of 4" in written(tmp_path / "c", events[:1]).text


def test_time_in_which_a_stopped_run_lay_still_is_not_counted(tmp_path: Path) -> None:
    events = a_run()[:-2]
    events += [{"event": "resumed", "time": 90_040.0, "round": 4}, *a_run()[-2:]]
    events[-2]["time"], events[-1]["time"] = 90_050.0, 90_060.0
    assert "in 1 min 0 s" in written(tmp_path, events).text


def test_what_protects_nobody_is_said_plainly(tmp_path: Path) -> None:
    text = written(tmp_path, a_run()).text
    for sentence in (
        "No differential privacy was used.",
        "No secure aggregation was used.",
        "each site's update in the clear",
    ):
        assert sentence in text
    assert "simulation" not in text
    (tmp_path / "s").mkdir()
    assert "This was a simulation" in written(tmp_path / "s", a_run(backend="ray")).text


def test_extra_sections_come_before_who_took_part_and_the_limits_are_last(tmp_path: Path) -> None:
    text = written(tmp_path, a_run(), (Section(title="Extra title", lead="l", blocks=()),)).text
    body = text[text.rindex("At a glance") :]
    places = [
        body.index(t) for t in ("Round by round", "Extra title", "Who took part", "What this report does not say")
    ]
    assert places == sorted(places)


def test_a_summary_beside_the_events_is_what_is_shown(tmp_path: Path) -> None:
    events = a_run()
    (tmp_path / "summary.json").write_text(
        __import__("json").dumps({**summary(events), "final": {"test": metrics("classification", 0.875)}})
    )
    assert "AUC on test patients 0.875" in written(tmp_path, events).text


def test_a_damaged_summary_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json: can't be read"):
        written(tmp_path, a_run())


def test_equal_events_give_an_equal_page(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, a_run())
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_report_that_can_t_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, a_run())
    before = (tmp_path / "report.html").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.checkpoint.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        report.write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_many_sites_and_rounds_stay_one_small_page(tmp_path: Path) -> None:
    events = a_run(sites=200, rounds=300)
    for number, event in enumerate(e for e in events if e["event"] == "round"):
        event["absent"] = {f"site-{(number * 7 + k) % 200}": "offline" for k in range(20)}
        event["participants"] = sorted({f"site-{k}" for k in range(200)} - set(event["absent"]))
    text = written(tmp_path, events).text
    assert "one column per 3 rounds" in text
    assert "All absences in words (" in text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("numbers", "words"), [([4], "round 4"), ([7, 1, 2], "rounds 1–2 and 7"), ([1, 3, 5], "rounds 1, 3 and 5")]
)
def test_rounds_are_told_in_spans(numbers: list[int], words: str) -> None:
    assert participation._spans(numbers) == words
