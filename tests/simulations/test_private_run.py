"""A private study from the command to the report: what a simulation may know, and what a deployment would see."""

import json
from pathlib import Path
from typing import Any

import pytest
from small import private_study, write_npz

from client import chain, ledger
from common.event import AccountingError
from common.study import Study
from server.events import read
from simulations.experiment import Request, run
from simulations.plan import plan
from simulations.sites import declared, lifetime


def request(folder: Path, study: Study, **more: Any) -> Request:
    data = write_npz(folder / "data.npz", images=48, seed=0, official=True)
    return Request(study=study, data=f"medmnist:{data}", sites=3, out=folder / "out", **more)


@pytest.mark.e2e
def test_a_private_run_says_what_it_promises_and_what_only_a_simulation_sees(tmp_path: Path) -> None:
    study = private_study()
    asked = request(tmp_path, study, compare=True)
    summary = run(asked, jobs=1)
    assert sorted(summary["privacy"]) == ["site-0", "site-1", "site-2"]
    for site, found in summary["privacy"].items():
        assert found["epsilon"] == 8.0 and found["unit"] == "patient" and found["steps_planned"] == 3
        assert found["steps_charged"] == 2 and 0 < found["epsilon_charged"] < 8.0
        assert found["nominal_patients"] == declared(summary["sites"][site]["patients"])
        assert found["ledger"]["epsilon"] == lifetime(study).epsilon and found["ledger"]["left"]["test"] == 1.0
    assert summary["final"]["source"] == "simulation" and summary["final_private"] == {}
    assert {r["metrics"]["source"] for r in summary["rounds"]} == {"simulation"}
    assert summary["comparison"]["unprotected"]["test"]["auc"] is not None
    # What the server had: no metric of any kind.
    for event in read(asked.out / "events.jsonl"):
        if event["event"] == "round":
            assert event["metrics"] == {"val": {}}
        assert "test" not in event and "private" not in event
    page = (asked.out / "report.html").read_text(encoding="utf-8")
    for said in ("What protects the patients", "add or remove one patient", "epsilon = 8", "Not covered:", "PRV"):
        assert said in page
    assert "No differential privacy was used" not in page and "Visible in a simulation only" in page
    card = json.loads((asked.out / "model.json").read_text(encoding="utf-8"))
    assert card["validation"] == {}


@pytest.mark.e2e
def test_metrics_are_released_when_the_study_says_so_and_never_otherwise(tmp_path: Path) -> None:
    evaluation = {"epsilon": 30.0, "releases": 2, "pool": "validation"}
    asked = request(tmp_path, private_study(study={"rounds": 4}, privacy={"evaluation": evaluation}))
    summary = run(asked, jobs=1)
    assert ["released" in entry for entry in summary["rounds"]] == [False, True, False, False]
    for found in (summary["rounds"][1]["released"], summary["final_private"]):
        assert found["sites"] == ["site-0", "site-1", "site-2"] and {"value", "low", "high", "reason"} <= set(
            found["auc"]
        )
    events = read(asked.out / "events.jsonl")
    assert sum("released" in event for event in events) == 1
    assert [event["private"] == summary["final_private"] for event in events if event["event"] == "final"] == [True]
    privacy = summary["privacy"]["site-0"]
    assert privacy["evaluation"]["releases"] == 2 and privacy["ledger"]["left"]["validation"] < 0.2
    page = (asked.out / "report.html").read_text(encoding="utf-8")
    assert "After round 2: " in page and "Final model: AUC" in page


@pytest.mark.e2e
def test_a_resumed_run_is_charged_for_no_closed_round_again(tmp_path: Path) -> None:
    asked = request(tmp_path, private_study(study={"rounds": 3}))

    def stop(_name: str, event: Any) -> None:
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, jobs=1, watch=stop)
    summary = run(asked, resume=True, jobs=1)
    assert len(summary["rounds"]) == 3
    for site in ("site-0", "site-1", "site-2"):
        entries = chain.read(asked.out / "sites" / site / ledger.FOLDER, ledger.NAME).entries
        # Round 2 was closed but not yet saved: its orders come again, with the same weights, and cost nothing.
        assert [entry.body["round"] for entry in entries if entry.kind == "reserve"] == [1, 2, 3]


def test_a_simulated_site_declares_declared() -> None:
    assert [declared(n) for n in (0, 1, 9, 14, 15, 149, 1234, 96)] == [1, 1, 9, 10, 20, 100, 1000, 100]


def test_the_plan_says_what_privacy_costs() -> None:
    study = private_study(study={"rounds": 20})
    found = plan(study, images=200, sites=3, threads=1).privacy
    assert found is not None and found.statement["steps_planned"] == 22
    assert found.noise_over_signal == pytest.approx((14274 * 3) ** 0.5 / (found.mu * 600))
    assert found.verdict == "learning will suffer" and 8.0 < found.lifetime_epsilon < 11.0
    rich = plan(study, images=10_000, sites=3, threads=1).privacy
    poor = plan(study, images=20, sites=3, threads=1).privacy
    assert rich is not None and poor is not None
    assert (rich.verdict, poor.verdict) == ("all is well", "too much for a linear model; try on public images")


def test_a_plan_is_refused_where_every_site_would_refuse_it() -> None:
    with pytest.raises(AccountingError, match=r"at most 1 / \(10 x nominal_patients\) = 5e-06 for 20000 patients"):
        plan(private_study(), images=20_000, sites=3, threads=1)
