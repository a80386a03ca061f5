"""Whole runs by direct calls: what was sent, who was absent, and what is left after a kill."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from numpy.typing import NDArray
from small import tiny_study

from common import params, wire
from common.errors import Reason, RunError, StudyError
from common.study import Study
from server import app as server_app
from server import federation
from server.events import read, summary
from server.exchange import Clock, Exchange
from simulations.faults import Fault, Faults
from simulations.inprocess import DirectGrid, SimulatedClock, run

NO_FAULTS = Faults(scripted={})


def options(out: Path, folders: list[Path], **changes: Any) -> federation.Options:
    roster = frozenset(folder.name for folder in folders)
    return federation.Options(**{"out": out, "backend": "inprocess", "roster": roster, **changes})


def weights_in(out: Path) -> bytes:
    tensors = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def rounds_in(out: Path) -> list[dict[str, Any]]:
    return list(summary(read(out / "events.jsonl"))["rounds"])


def test_a_run_leaves_model_card_checkpoints_and_events(tmp_path: Path, site_folders: list[Path]) -> None:
    run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["study_hash"] == tiny_study().sha256 and card["classes"] == ["dark", "bright"]
    assert [event["event"] for event in read(tmp_path / "out" / "events.jsonl")] == [
        *("started", "round", "round", "final", "finished")
    ]
    first = rounds_in(tmp_path / "out")[0]
    assert first["participants"] == ["site-0", "site-1", "site-2"] and first["absent"] == {}
    assert first["bytes_up"]["site-0"] > 4 * card["parameters"] and first["metrics"]["val"]["images"] > 0


def test_what_a_run_held_is_gone_when_it_has_ended(
    tmp_path: Path, site_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a search for cycles: arrays are few and large, and the next run's come before Python looks for any."""
    made = []

    class Kept(federation._Run):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    monkeypatch.setattr(federation, "_Run", Kept)
    gc.disable()
    try:
        run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


def test_the_mean_is_that_of_the_sites_own_models(tmp_path: Path, site_folders: list[Path]) -> None:
    """One round of FedAvg against each site training alone and averaging by hand."""
    study = tiny_study(study={"rounds": 1})
    run(study, options(tmp_path / "all", site_folders), site_folders, NO_FAULTS)
    total, weight = np.zeros(0), 0.0
    for folder in site_folders:
        alone = tiny_study(study={"rounds": 1, "min_sites": 1})
        run(alone, options(tmp_path / folder.name / "alone", [folder]), [folder], NO_FAULTS)
        model = np.frombuffer(weights_in(tmp_path / folder.name / "alone"), np.float32).astype(np.float64)
        from client.dataset import open_dataset
        from client.site import open_site

        images = len(open_dataset(open_site(folder), study).pools["train"])
        total = images * model + (total if total.size else 0)
        weight += images
    assert np.allclose(np.frombuffer(weights_in(tmp_path / "all"), np.float32), total / weight, atol=1e-6)


def test_equal_seeds_give_equal_bits(tmp_path: Path, site_folders: list[Path]) -> None:
    for name in ("one", "two"):
        run(tiny_study(), options(tmp_path / name, site_folders), site_folders, NO_FAULTS)
    assert weights_in(tmp_path / "one") == weights_in(tmp_path / "two")


def test_absent_sites_are_named_with_their_reason(tmp_path: Path, site_folders: list[Path]) -> None:
    scripted = {
        (1, "site-0", "update"): Fault(do="drop"),
        (2, "site-1", "update"): Fault(do="crash"),
        (3, "site-2", "update"): Fault(do="late", seconds=700),
        (4, "site-2", "update"): Fault(do="late", seconds=500),
    }
    study = tiny_study(study={"rounds": 4})
    run(study, options(tmp_path / "out", site_folders), site_folders, Faults(scripted=scripted))
    absent = [entry["absent"] for entry in rounds_in(tmp_path / "out")]
    assert absent == [{"site-0": "offline"}, {"site-1": "failed"}, {"site-2": "late"}, {}]


def test_below_the_quorum_a_round_is_tried_again_and_then_closes(tmp_path: Path, site_folders: list[Path]) -> None:
    scripted = {(1, "site-0", "update"): Fault(do="drop"), (1, "site-1", "update"): Fault(do="crash")}
    run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, Faults(scripted=scripted))
    retries = [event for event in read(tmp_path / "out" / "events.jsonl") if event["event"] == "retry"]
    assert [event["absent"] for event in retries] == [{"site-0": "offline", "site-1": "failed"}]
    assert [entry["round"] for entry in rounds_in(tmp_path / "out")] == [1, 2]


def test_without_its_quorum_a_run_stops_and_says_who_is_missing(tmp_path: Path, site_folders: list[Path]) -> None:
    roster = frozenset({"site-0", "site-1", "site-2", "site-3"})
    study = tiny_study(study={"min_sites": 4, "round_retries": 2})
    with pytest.raises(RunError, match=r"3 times in a row \(absent: site-3 offline\)"):
        run(study, options(tmp_path / "out", site_folders, roster=roster), site_folders, NO_FAULTS)
    events = read(tmp_path / "out" / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "retry", "retry", "retry", "stopped"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_sites_outside_the_roster_are_not_asked(tmp_path: Path, site_folders: list[Path]) -> None:
    roster = frozenset({"site-0", "site-1"})
    run(tiny_study(), options(tmp_path / "out", site_folders, roster=roster), site_folders, NO_FAULTS)
    assert rounds_in(tmp_path / "out")[0]["participants"] == ["site-0", "site-1"]


class TamperingGrid(DirectGrid):
    """Sites whose answers to `update` orders are changed on the way."""

    def __init__(self, folders: list[Path], tamper: Callable[[str, Message], Message]) -> None:
        super().__init__(folders, SimulatedClock())
        self._tamper = tamper

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for reply in super().pull_messages(message_ids):
            name = wire.site_of(reply.content)
            replies.append(self._tamper(name, reply) if reply.metadata.message_type == "train" else reply)
        return replies


def tampered_run(study: Study, out: Path, folders: list[Path], tamper: Callable[[str, Message], Message]) -> None:
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    clock = SimulatedClock()
    server_app.make(study, options(out, folders), clock=clock)(TamperingGrid(folders, tamper), context)


def with_vector(message: Message, vector: np.ndarray[Any, Any]) -> Message:
    data = vector.astype("<f4").tobytes()
    array = Array(dtype="float32", shape=(vector.size,), stype=wire.RAW, data=data)
    message.content["vector"] = ArrayRecord({"vector": array})
    return message


def vector_in(message: Message) -> np.ndarray[Any, Any]:
    return np.frombuffer(message.content["vector"]["vector"].data, "<f4").copy()


@pytest.mark.parametrize("value", [np.nan, 3e38], ids=["NaN", "overflow"])
def test_one_sites_bad_numbers_exclude_that_site_and_no_other(
    tmp_path: Path, site_folders: list[Path], value: float
) -> None:
    def tamper(name: str, message: Message) -> Message:
        if name != "site-1":
            return message
        vector = vector_in(message)
        vector[0] = value
        return with_vector(message, vector)

    tampered_run(tiny_study(), tmp_path / "out", site_folders, tamper)
    assert [entry["absent"] for entry in rounds_in(tmp_path / "out")] == [{"site-1": "malformed"}] * 2
    healthy = [site_folders[0], site_folders[2]]
    run(tiny_study(), options(tmp_path / "healthy", healthy), healthy, NO_FAULTS)
    assert weights_in(tmp_path / "out") == weights_in(tmp_path / "healthy")


def test_an_answer_in_another_sites_name_is_malformed(tmp_path: Path, site_folders: list[Path]) -> None:
    def tamper(name: str, message: Message) -> Message:
        if name == "site-1":
            header = message.content["header"]["json"]
            message.content["header"]["json"] = header.replace(b"site-1", b"site-0")
        return message

    tampered_run(tiny_study(), tmp_path / "out", site_folders, tamper)
    assert rounds_in(tmp_path / "out")[0]["absent"] == {"site-1": "malformed"}


def test_a_replayed_answer_of_an_earlier_round_is_malformed(tmp_path: Path, site_folders: list[Path]) -> None:
    kept: list[RecordDict] = []

    def tamper(name: str, message: Message) -> Message:
        if name == "site-2":
            kept.append(message.content)
            return Message(kept[0], reply_to=message)
        return message

    tampered_run(tiny_study(), tmp_path / "out", site_folders, tamper)
    assert [entry["absent"] for entry in rounds_in(tmp_path / "out")] == [{}, {"site-2": "malformed"}]


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("at", range(1, 7))
def test_killed_anywhere_a_run_resumes_to_the_same_result(tmp_path: Path, site_folders: list[Path], at: int) -> None:
    study = tiny_study(study={"rounds": 3}, aggregation={"algorithm": "fedadam", "server_learning_rate": 0.01})
    whole = tmp_path / "whole"
    run(study, options(whole, site_folders), site_folders, NO_FAULTS)

    count = 0

    def kill(_event: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Killed

    broken = options(tmp_path / "broken", site_folders, watch=kill)
    with pytest.raises(Killed):
        run(study, broken, site_folders, NO_FAULTS)
    run(study, replace(broken, resume=True, watch=lambda _e: None), site_folders, NO_FAULTS)
    assert weights_in(tmp_path / "broken") == weights_in(whole)
    assert [entry["round"] for entry in rounds_in(tmp_path / "broken")] == [1, 2, 3]

    def without_seconds(out: Path) -> list[dict[str, Any]]:
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in rounds_in(out)]

    assert without_seconds(tmp_path / "broken") == without_seconds(whole)


def test_a_site_that_lost_the_study_is_shown_it_again(tmp_path: Path, site_folders: list[Path]) -> None:
    def lose(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            shutil.rmtree(site_folders[1] / "studies")

    study = tiny_study(study={"rounds": 3})
    run(study, options(tmp_path / "out", site_folders, watch=lose), site_folders, NO_FAULTS)
    absent = [entry["absent"] for entry in rounds_in(tmp_path / "out")]
    assert absent == [{}, {"site-1": "refused:study_changed"}, {}]


def test_a_second_answer_to_one_order_is_nobodys() -> None:
    class Twice(DirectGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [answer for answer in super().pull_messages(message_ids) for _ in range(2)]

    wire.speak_as_server(run_id=1)
    order = wire.Order(kind="update", round=1, attempt=1, study_hash="0" * 64)
    received = list(
        Exchange(Twice([Path("absent")], SimulatedClock()), Clock()).ask({1: order}, length=1, deadline=5.0)
    )
    assert [one.reason for one in received] == [Reason.FAILED]


def test_orders_of_abandoned_attempts_are_forgotten(
    tmp_path: Path, site_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grids, make = [], DirectGrid.__init__

    def kept(self: DirectGrid, folders: Sequence[Path], clock: SimulatedClock) -> None:
        make(self, folders, clock)
        grids.append(self)

    monkeypatch.setattr(DirectGrid, "__init__", kept)
    study = tiny_study(study={"min_sites": 3, "round_retries": 50})
    run(study, options(tmp_path / "out", site_folders), site_folders, Faults(scripted={}, probability=0.4, seed=1))
    assert not grids[0]._orders


def test_training_that_diverges_is_the_sites_failure_and_is_explained_there(
    tmp_path: Path, site_folders: list[Path]
) -> None:
    study = tiny_study(training={"learning_rate": 100.0, "local_epochs": 20})
    with pytest.raises(RunError, match=r"site-0 failed.*errors\.log"):
        run(study, options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    assert "diverged" in (site_folders[0] / "errors.log").read_text()


def test_a_sites_seconds_are_its_own_and_a_laggards_hold_nobody_up(tmp_path: Path, site_folders: list[Path]) -> None:
    faults = Faults(scripted={(1, "site-1", "update"): Fault(do="late", seconds=100)})
    run(tiny_study(study={"rounds": 1}), options(tmp_path / "out", site_folders), site_folders, faults)
    seconds = rounds_in(tmp_path / "out")[0]["seconds"]["sites"]
    assert seconds["site-0"] < 60 and seconds["site-2"] < 60 and 100 <= seconds["site-1"] < 160


def test_an_unfinished_out_is_not_overwritten(tmp_path: Path, site_folders: list[Path]) -> None:
    run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="--resume"):
        run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    changed = tiny_study(study={"rounds": 5})
    with pytest.raises(RunError, match="another study"):
        run(changed, options(tmp_path / "out", site_folders, resume=True), site_folders, NO_FAULTS)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_best_selects_the_weights_that_did_best_on_validation(tmp_path: Path, site_folders: list[Path]) -> None:
    """A learning rate that ruins the model in the end: the best weights are an earlier round's."""
    study = tiny_study(study={"rounds": 6, "select": "best"}, training={"learning_rate": 0.3, "local_epochs": 4})
    run(study, options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    result = summary(read(tmp_path / "out" / "events.jsonl"))
    curve = [entry["metrics"]["val"]["auc"] for entry in result["rounds"]]
    assert result["final"]["val"]["auc"] >= max(curve) - 1e-9


def test_average_is_the_mean_of_the_later_halfs_weights_and_survives_a_kill(
    tmp_path: Path, site_folders: list[Path]
) -> None:
    def weights_after(rounds: int) -> NDArray[np.float64]:
        out = tmp_path / f"after-{rounds}"
        run(tiny_study(study={"rounds": rounds}), options(out, site_folders), site_folders, NO_FAULTS)
        return np.frombuffer(weights_in(out), np.float32).astype(np.float64)

    study = tiny_study(study={"rounds": 5, "select": "average"})
    count = 0

    def kill(_event: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:  # the fourth round is logged, its checkpoint not yet written
            raise Killed

    with pytest.raises(Killed):
        run(study, options(tmp_path / "out", site_folders, watch=kill), site_folders, NO_FAULTS)
    run(study, options(tmp_path / "out", site_folders, resume=True), site_folders, NO_FAULTS)
    expected = (weights_after(3) + weights_after(4) + weights_after(5)) / 3
    assert np.allclose(np.frombuffer(weights_in(tmp_path / "out"), np.float32), expected, atol=1e-6)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, site_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import checkpoint

    def full(path: Path, parts: Iterable[bytes]) -> None:
        if "000002" in path.name:
            raise RunError(f"{path}: can't be written (No space left on device)")
        original(path, parts)

    original = checkpoint.write_atomically
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(RunError, match="No space left"):
        run(tiny_study(), options(tmp_path / "out", site_folders), site_folders, NO_FAULTS)
    monkeypatch.setattr(checkpoint, "write_atomically", original)
    run(tiny_study(), options(tmp_path / "out", site_folders, resume=True), site_folders, NO_FAULTS)
    assert [entry["round"] for entry in rounds_in(tmp_path / "out")] == [1, 2]


def test_the_bundled_app_wants_a_study_and_the_coordinators_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDWARD_FEDERATION", raising=False)

    def start(config: dict[str, Any]) -> None:
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
        server_app.app(DirectGrid([], SimulatedClock()), context)

    with pytest.raises(StudyError, match="the run config holds none"):
        start({})
    with pytest.raises(RunError, match="FEDWARD_FEDERATION"):
        start({"study": tiny_study(study={"rounds": 1}).canonical})


def test_a_shuffled_network_gives_the_same_model(tmp_path: Path, site_folders: list[Path]) -> None:
    """Answers in the opposite order: the same bits, because adding has no rounding."""
    run(tiny_study(), options(tmp_path / "one", site_folders), site_folders, NO_FAULTS)
    turned = tmp_path / "turned"
    turned.mkdir()
    for folder in site_folders:
        shutil.copytree(folder, turned / folder.name)
    backwards = [turned / folder.name for folder in reversed(site_folders)]
    delays = {(r, "site-0", "update"): Fault(do="late", seconds=50) for r in (1, 2)}
    run(tiny_study(), options(tmp_path / "two", backwards), backwards, Faults(scripted=delays))
    assert weights_in(tmp_path / "one") == weights_in(tmp_path / "two")
