"""Runs whose classes are balanced by a released histogram: asked once, the same for all rounds, paid within epsilon."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import private_study, write_npz

from client import app as client_app
from client import chain, ledger
from client import secure as site_side
from common import wire
from common.accounting import epsilon_of
from common.errors import RunError
from common.event import Event
from common.study import Study
from server.events import read
from simulations.comparison import unprotected
from simulations.experiment import Request, run
from simulations.plan import plan

BALANCED = {"class_balance": "weighted", "class_prior": "released"}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    site_side._runs.clear()
    client_app._datasets.clear()
    client_app._models.clear()


def counting(*, secure: bool = False, balance: str = "weighted", **sections: dict[str, Any]) -> Study:
    sections.setdefault("study", {})
    sections["study"] = {"min_sites": 3, **sections["study"]}
    how = {"aggregation": {"secure": True}} if secure else {}
    return private_study(training={**BALANCED, "class_balance": balance}, **how, **sections)


def request(folder: Path, study: Study, *, script: list[dict[str, Any]] | None = None, images: int = 48) -> Request:
    folder.mkdir(exist_ok=True)
    data = write_npz(folder / "data.npz", images=images, seed=0, official=True)
    file = folder / "script.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in script or []), encoding="utf-8")
    return Request(study=study, data=f"medmnist:{data}", sites=4, out=folder / "out", script=file)


def charged(out: Path, site: str) -> list[int]:
    """The rounds that the site's ledger was charged for; the histogram is round 0."""
    entries = chain.read(out / "sites" / site / ledger.FOLDER, ledger.NAME).entries
    return [entry.body["round"] for entry in entries if entry.kind == "reserve"]


def priors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[float, ...]]]:
    """Kind, round and shares of every order for a vector from now on."""
    seen: list[tuple[str, int, tuple[float, ...]]] = []
    inner = client_app.vector

    def noted(site: Any, study: Study, order: wire.Order, message: Any) -> Any:
        seen.append((order.kind, order.round, order.prior))
        return inner(site, study, order, message)

    monkeypatch.setattr(client_app, "vector", noted)
    return seen


def counted(out: Path) -> list[dict[str, Any]]:
    return [event for event in read(out / "events.jsonl") if event["event"] == "counted"]


@pytest.mark.e2e
@pytest.mark.parametrize(("secure", "balance"), [(False, "weighted"), (True, "weighted"), (False, "sampler")])
def test_one_histogram_before_round_1_balances_every_round_and_is_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool, balance: str
) -> None:
    seen = priors(monkeypatch)
    asked = request(tmp_path / "run", counting(secure=secure, balance=balance))
    summary = run(asked, jobs=1)
    (event,) = counted(asked.out)
    assert event["participants"] == ["site-0", "site-1", "site-2", "site-3"] and event["round"] == 0
    assert event["noise"] == pytest.approx(20.0)  # multiplier 10, four sites
    # 48 patients, half of each class, under noise of 20: what comes is those sums floored at the noise, as shares.
    floored = np.maximum(list(event["classes"].values()), event["noise"])
    assert event["prior"] == pytest.approx(floored / floored.sum())
    assert sum(event["classes"].values()) == pytest.approx(48, abs=6 * 20 * 2**0.5)
    prior = tuple(event["prior"])
    assert seen == [("count", 0, ())] * 4 + [("update", 1, prior)] * 4 + [("update", 2, prior)] * 4
    for site, found in summary["privacy"].items():
        assert charged(asked.out, site) == [0, 1, 2]
        assert found["histogram"] == {"noise_multiplier": 10.0, "planned": 2, "charged": 1}
        steps = Event(sample_rate=0.25, noise_multiplier=found["noise_multiplier"], steps=2, pool="train")
        once = Event(sample_rate=1.0, noise_multiplier=10.0, steps=1, pool="train")
        assert (
            found["epsilon_charged"] == pytest.approx(epsilon_of([steps, once], delta=1e-5)) and found["epsilon"] == 8
        )
    assert summary["class_counts"]["prior"] == event["prior"]
    page = (asked.out / "report.html").read_text(encoding="utf-8")
    for said in (
        "by a released histogram of the classes",
        "Training patients by class, as released before round 1",
        "2 histograms of",
    ):
        assert said in page
    assert f"{event['classes']['dark']:.1f}" in page and f"{event['prior'][1]:.1%}" in page


@pytest.mark.parametrize(
    ("secure", "moment"),
    [
        (False, "round"),
        pytest.param(True, "round", marks=pytest.mark.e2e),
        pytest.param(False, "counted", marks=pytest.mark.e2e),
        pytest.param(True, "counted", marks=pytest.mark.e2e),
    ],
)
def test_a_resumed_run_balances_by_the_same_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool, moment: str
) -> None:
    """Stopped when the histogram was in the log and its checkpoint not yet, or in round 1, with a checkpoint of it."""
    asked = request(tmp_path / "run", counting(secure=secure))

    def stop(_name: str, event: Any) -> None:
        if event["event"] == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, jobs=1, watch=stop)
    seen = priors(monkeypatch)
    run(asked, resume=True, jobs=1)
    events = counted(asked.out)
    prior = tuple(events[-1]["prior"])
    updates = [shares for kind, _, shares in seen if kind == "update"]
    assert updates and set(updates) == {prior}
    if moment == "round":
        assert len(events) == 1 and all(kind == "update" for kind, _, _ in seen)
    else:  # no checkpoint: the run begins anew, with the same bytes, or after an opened sum with the spare histogram
        assert len(events) == 2 and (events[0]["classes"] == events[1]["classes"]) != secure
    for site in ("site-0", "site-3"):
        assert charged(asked.out, site).count(0) == (2 if secure and moment == "counted" else 1)


@pytest.mark.e2e
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("do", [{"do": "drop"}, {"do": "late", "seconds": 1e6}, {"do": "crash"}])
def test_a_site_that_misses_the_histogram_trains_by_it_all_the_same(
    tmp_path: Path, secure: bool, do: dict[str, Any]
) -> None:
    script = [{"round": 0, "site": "site-1", "at": "count", **do}]
    asked = request(tmp_path / "run", counting(secure=secure), script=script)
    summary = run(asked, jobs=1)
    (event,) = counted(asked.out)
    assert event["participants"] == ["site-0", "site-2", "site-3"] and set(event["absent"]) == {"site-1"}
    assert event["noise"] == pytest.approx(10 * 3**0.5)
    assert "site-1" in summary["rounds"][-1]["participants"]
    assert charged(asked.out, "site-0") == [0, 1, 2]


@pytest.mark.e2e
@pytest.mark.parametrize("secure", [False, True])
def test_a_histogram_without_a_quorum_is_tried_again_at_no_charge(tmp_path: Path, secure: bool) -> None:
    script = [{"round": 0, "site": site, "do": "drop", "at": "count"} for site in ("site-1", "site-2")]
    asked = request(tmp_path / "run", counting(secure=secure), script=script)
    run(asked, jobs=1)
    retries = [event for event in read(asked.out / "events.jsonl") if event["event"] == "retry"]
    assert [event["round"] for event in retries] == [0]
    assert counted(asked.out)[0]["attempt"] == 2
    assert [charged(asked.out, site) for site in ("site-0", "site-1")] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.e2e
def test_a_run_whose_histogram_never_comes_stops_and_says_so(tmp_path: Path) -> None:
    study = counting(study={"round_retries": 0})
    script = [{"round": 0, "site": site, "do": "drop", "at": "count"} for site in ("site-1", "site-2")]
    with pytest.raises(RunError, match="the class histogram: fewer than 3 sites answered"):
        run(request(tmp_path / "run", study, script=script), jobs=1)


def test_the_plan_counts_the_histograms() -> None:
    study = counting(study={"rounds": 20})
    bare = private_study(study={"rounds": 20})
    found, without = (plan(one, images=200, sites=3, threads=1).privacy for one in (study, bare))
    assert found is not None and without is not None
    assert found.statement["histogram"]["planned"] == 2 and "histogram" not in without.statement
    assert found.statement["noise_multiplier"] > without.statement["noise_multiplier"] and found.mu < without.mu


def test_what_such_a_study_is_compared_with_counts_for_itself() -> None:
    same = unprotected(counting(secure=True), images=40)
    assert (same.training.class_balance, same.training.class_prior, same.privacy) == ("weighted", (), None)
