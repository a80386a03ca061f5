"""Whole runs under secure aggregation: the same training as in the clear, whoever drops out, and nothing leaks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import private_study, tiny_study, write_npz

from client import app as client_app
from client import chain, ledger
from client import secure as site_side
from client.membership import identity_of
from common import params, wire
from common.lanes import Encoding
from common.study import Study
from server import secure as server_side
from server.events import read
from simulations.experiment import Request, run

SECURE = {"secure": True, "weights": "equal", "range": 0.5}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    site_side._runs.clear()
    client_app._datasets.clear()
    client_app._models.clear()


def request(folder: Path, study: Study, *, sites: int = 4, script: list[dict[str, Any]] | None = None) -> Request:
    folder.mkdir(exist_ok=True)
    data = write_npz(folder / "data.npz", images=48, seed=0, official=True)
    file = folder / "script.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in script or []), encoding="utf-8")
    return Request(study=study, data=f"medmnist:{data}", sites=sites, out=folder / "out", script=file)


def weights_in(out: Path) -> np.ndarray:
    tensors = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    return np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)])


@pytest.mark.e2e
@pytest.mark.parametrize("lanes", [3, 4])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_training_agrees_with_training_in_the_clear_within_the_rounding(
    tmp_path: Path, algorithm: str, lanes: int
) -> None:
    how = {"algorithm": algorithm, "weights": "equal"}
    how |= {"server_learning_rate": 0.01, "tau": 0.1} if algorithm == "fedadam" else {}
    clear = run(request(tmp_path / "clear", tiny_study(study={"min_sites": 3}, aggregation=how)), jobs=1)
    secured = {**how, **SECURE, "lanes": lanes}
    masked = run(request(tmp_path / "masked", tiny_study(study={"min_sites": 3}, aggregation=secured)), jobs=1)
    unit = Encoding(values=1, wide=1, lanes=lanes, range_=0.5, sites=4).unit
    apart = np.abs(weights_in(tmp_path / "clear" / "out") - weights_in(tmp_path / "masked" / "out"))
    # Each round's mean is off by less than a unit; the second round trains on from there. FedAdam's steps are its
    # learning rate times mean / (root of the second moment + tau), 0.1 a unit.
    assert 0 < apart.max() < (8 * unit if algorithm == "fedavg" else 2 * unit)
    for one, other in zip(clear["rounds"], masked["rounds"], strict=True):
        assert one["metrics"]["val"]["images"] == other["metrics"]["val"]["images"]
        assert one["metrics"]["val"]["loss"] == pytest.approx(other["metrics"]["val"]["loss"], abs=1e-2)


DROPS = [
    [{"round": 1, "site": "site-1", "do": "drop", "at": "keys"}],
    [{"round": 1, "site": "site-1", "do": "crash", "at": "shares"}],
    [{"round": 2, "site": "site-1", "do": "drop", "at": "update"}],
    [{"round": 2, "site": "site-1", "do": "late", "seconds": 1e6, "at": "update"}],
    [{"round": 1, "site": "site-1", "do": "drop", "at": "open"}],
    [{"round": 4, "site": "site-3", "do": "crash", "at": "evaluate"}],
]


@pytest.mark.e2e
@pytest.mark.parametrize("script", DROPS, ids=lambda script: "+".join(f"{s['do']}-{s['at']}" for s in script))
def test_a_drop_out_at_any_step_costs_that_site_a_round_or_two_and_nobody_else(
    tmp_path: Path, script: list[dict[str, Any]]
) -> None:
    study = tiny_study(study={"rounds": 3, "min_sites": 3}, aggregation=SECURE)
    asked = request(tmp_path / "run", study, sites=5, script=script)
    summary = run(asked, jobs=1)
    for entry in summary["rounds"]:
        assert len(entry["participants"]) >= 4 and set(entry["absent"]) <= {step["site"] for step in script}
    # Keys and shares are asked for twice in round 1, for its session and the next: who gives none misses both.
    full = 1 if script[0]["at"] in ("keys", "shares") else 2
    assert [len(entry["participants"]) for entry in summary["rounds"]].count(5) >= full
    assert not [event for event in read(asked.out / "events.jsonl") if event["event"] == "retry"]


@pytest.mark.e2e
def test_a_round_that_cannot_finish_is_abandoned_and_the_run_goes_on(tmp_path: Path) -> None:
    study = private_study(study={"rounds": 3, "min_sites": 3}, aggregation={"secure": True})
    script = [{"round": 2, "site": site, "do": "drop"} for site in ("site-1", "site-2")]
    asked = request(tmp_path / "run", study, script=script)
    summary = run(asked, jobs=1)
    assert [len(entry["participants"]) for entry in summary["rounds"]] == [4, 4, 4]
    retries = [event for event in read(asked.out / "events.jsonl") if event["event"] == "retry"]
    assert [event["round"] for event in retries] == [2]
    for site, orders in (("site-0", [1, 2, 3]), ("site-1", [1, 2, 3])):
        entries = chain.read(asked.out / "sites" / site / ledger.FOLDER, ledger.NAME).entries
        # The session of the first attempt was closed by all who had masked in it: the same update again, no charge.
        assert [entry.body["round"] for entry in entries if entry.kind == "reserve"] == orders


@pytest.mark.e2e
def test_what_was_opened_is_forgotten_and_costs_anew_when_it_is_asked_again(tmp_path: Path) -> None:
    study = private_study(study={"rounds": 3, "min_sites": 3}, aggregation={"secure": True})
    # In round 2 site-1 is missing and two of three survivors never learn the confirmations: the sum stays closed,
    # but site-0 has opened its shares.
    script = [{"round": 2, "site": "site-1", "do": "drop"}]
    script += [{"round": 2, "site": site, "do": "drop", "at": "reveal"} for site in ("site-2", "site-3")]
    asked = request(tmp_path / "run", study, script=script)
    summary = run(asked, jobs=1)
    assert len(summary["rounds"]) == 3
    retries = [event for event in read(asked.out / "events.jsonl") if event["event"] == "retry"]
    assert [event["round"] for event in retries] == [2] and "shares of" in retries[0]["why"]
    charged = {}
    for site in ("site-0", "site-1", "site-2", "site-3"):
        entries = chain.read(asked.out / "sites" / site / ledger.FOLDER, ledger.NAME).entries
        charged[site] = [entry.body["round"] for entry in entries if entry.kind == "reserve"]
    assert charged["site-0"] == [1, 2, 2, 3]  # had opened
    assert charged["site-1"] == [1, 2, 3]  # was never asked


def arrays(thing: object, seen: set[int]) -> Iterator[np.ndarray]:
    """Every array that can be reached from here by attributes, keys and items."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type)):
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield thing
    inner: list[object] = []
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner = list(thing)
    elif type(thing).__module__.split(".")[0] in ("server", "common"):
        inner = list(vars(thing).values())
    for one in inner:
        yield from arrays(one, seen)


@pytest.mark.e2e
def test_the_server_holds_no_vector_of_a_single_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server can reach, once the vectors are in: the weights that it sent out, and one sum."""
    looked = 0
    inner = server_side._Attempt.opened

    def walked(self: server_side._Attempt, session: Any, following: Any, total: Any) -> Any:
        nonlocal looked
        looked += 1

        def held() -> tuple[int, int]:
            mine = [array for array in arrays([self, session, following], set()) if array is not self._order.weights]
            return len(mine), len(list(arrays(total, set())))

        before = held()
        gathered = inner(self, session, following, total)
        assert before == held() == (0, 1)
        return gathered

    monkeypatch.setattr(server_side._Attempt, "opened", walked)
    study = tiny_study(study={"rounds": 2, "min_sites": 3}, aggregation=SECURE)
    run(request(tmp_path / "run", study), jobs=1)
    assert looked == 3


@pytest.mark.e2e
def test_every_word_that_a_site_sends_looks_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[wire.Words] = []
    inner = site_side.respond

    def noted(*args: Any, **more: Any) -> Any:
        session, words = inner(*args, **more)
        if words is not None:
            sent.append(words.copy())
        return session, words

    monkeypatch.setattr(site_side, "respond", noted)
    run(request(tmp_path / "run", tiny_study(study={"min_sites": 3}, aggregation=SECURE)), jobs=1)
    bits = np.unpackbits(np.concatenate(sent).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert len({words.tobytes() for words in sent}) == len(sent)


def test_a_site_of_a_secure_study_answers_nothing_in_the_clear(tmp_path: Path) -> None:
    study = tiny_study(study={"rounds": 1, "min_sites": 3}, aggregation=SECURE)
    asked = request(tmp_path / "run", study)
    run(asked, jobs=1)
    from client.site import open_site
    from common.errors import Reason

    site = open_site(asked.out / "sites" / "site-0")
    weights = np.zeros(params.length(params.shapes(client_app._model(study), trainable=False)), np.float32)
    order = wire.Order(
        kind="update",
        round=1,
        attempt=1,
        study_hash=study.sha256,
        weights=weights,
        weights_hash=wire.digest_of(weights),
    )
    from flwr.app import Message

    wire.speak_as_server(run_id=1)
    server = identity_of(asked.out / "sites" / "federation")
    answer = client_app.respond(site, Message(wire.order_record(order, server), 1, "train", ttl=60))
    assert answer.reason is Reason.MALFORMED and answer.vector is None and answer.words is None
    assert "in the clear" in (site.folder / "errors.log").read_text(encoding="utf-8")
