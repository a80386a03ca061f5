"""Deployed is simulated: the folders that a simulation made, enrolled and trained by real processes, give its model.

Sites draw their batches, augmentations and dropout from the study's seed, their own name and the round, and split
their patients by their own key; all of these lie in the site's folder or in the study. Hence in the clear the bits are
the same. Under secure aggregation each site rounds with bits from the operating system, up or down by less than a unit
of the encoding: that is the whole difference, and it is bounded here round by round, each from the same weights.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Federation, enrolled
from numpy.typing import NDArray
from safetensors.numpy import load_file
from small import private_study, tiny_study, write_npz

from client import chain, ledger
from common import guarantee, params, secure
from common.models import build_model
from common.study import Study
from server.events import read, summary
from simulations import sites
from simulations.faults import Faults
from simulations.partition import parse_partition
from simulations.training import Task, execute

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SITES = 4
CLEAR = tiny_study(study={"name": "clear", "min_sites": 3}, training={"augmentation": "standard"})
EQUAL = tiny_study(study={"name": "equal", "min_sites": 3}, aggregation={"weights": "equal"})
SECURE = tiny_study(
    study={"name": "secure", "min_sites": 3}, aggregation={"weights": "equal", "secure": True, "range": 0.5}
)
EVALUATION = {"epsilon": 30.0, "releases": 1, "pool": "validation"}
OWN = {"study": {"name": "private", "min_sites": 3}, "privacy": {"evaluation": EVALUATION}}
PRIVATE = private_study(**OWN, aggregation={"secure": True})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> sites.Federation:
    """Sites of unequal size with privacy ledgers, as `simulations run` makes them; policies that allow every study."""
    base = tmp_path_factory.mktemp("made")
    study = private_study(**OWN)  # without keys and roster of secure aggregation: those come with enrolment
    found = sites.prepare(
        study,
        source_study=study,
        data=f"medmnist:{write_npz(base / 'data.npz', images=120, seed=0, official=True)}",
        partition=parse_partition("quantity:3.0"),
        sites=SITES,
        shared=base / "data",
        folder=base / "sites",
        say=lambda _text: None,
        quiet=True,
    )
    for folder in found.folders:
        with (folder / "site.toml").open("a", encoding="utf-8") as file:
            file.write("unprotected = true\n")  # the last table is the policy's
    return found


def copies(found: sites.Federation, base: Path) -> list[Path]:
    """The same sites elsewhere, before anything was done to them."""
    return [shutil.copytree(folder, base / folder.name) for folder in found.folders]


@pytest.fixture(scope="module")
def running(made: sites.Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    base = tmp_path_factory.mktemp("deployed")
    with enrolled(base, copies(made, base), min_sites=3) as federation:
        federation.start_all()
        yield federation


@pytest.fixture
def simulated(made: sites.Federation, tmp_path: Path) -> Task:
    """The same federation in one process, of another study each time."""
    folders = copies(made, tmp_path / "simulated")
    return Task(
        name="simulated",
        study=CLEAR.canonical,
        folders=tuple(folders),
        out=tmp_path / "simulation",
        faults=Faults(scripted={}),
        backend="inprocess",
        nominal=made.nominal,
        credentials=sites.enrol(folders, SECURE, tmp_path / "coordinator"),
    )


def deploy(federation: Federation, study: Study, out: Path) -> list[dict[str, Any]]:
    """The events of the deployed run, in which no site was ever absent."""
    federation.submit(study, out)
    found = federation.finished(out)
    assert found[-1]["event"] == "finished", found[-1]
    rounds = [event for event in found if event["event"] == "round"]
    assert [(event["round"], len(event["participants"]), event["absent"]) for event in rounds] == [
        (number + 1, SITES, {}) for number in range(study.study.rounds)
    ]
    return found


def simulate(task: Task, study: Study) -> list[dict[str, Any]]:
    execute(replace(task, study=study.canonical))
    return read(task.out / "events.jsonl")


def weights_in(out: Path) -> bytes:
    tensors = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def after(out: Path, number: int) -> NDArray[np.float32]:
    """All weights after a round, from its checkpoint."""
    found: NDArray[np.float32] = load_file(out / "checkpoints" / f"round-{number:06d}.safetensors")["weights"]
    return found


def test_under_privacy_ledgers_and_statements_are_the_same(
    running: Federation, simulated: Task, tmp_path: Path
) -> None:
    """Noise is drawn from the operating system, hence weights differ; what was charged for them does not."""
    theirs = summary(deploy(running, PRIVATE, tmp_path / "out"))
    ours = summary(simulate(simulated, PRIVATE))
    assert theirs["privacy"] == ours["privacy"] and len(ours["privacy"]) == SITES
    for folder, copy in zip(running.sites, simulated.folders, strict=True):
        charged = entries(folder, PRIVATE)
        assert charged == entries(copy, PRIVATE)
        # Two rounds of training and one release of metrics, each charged once, with the noise that the study implies.
        events = [json.loads(line)["event"] for line in charged if '"reserve"' in line]
        assert [event["noise_multiplier"] for event in events] == [
            guarantee.order_event(PRIVATE).noise_multiplier,
            guarantee.order_event(PRIVATE).noise_multiplier,
            guarantee.release_event(PRIVATE).noise_multiplier,
        ]
    assert weights_in(tmp_path / "out") != weights_in(simulated.out)


def entries(folder: Path, study: Study) -> list[str]:
    """What a site's ledger says of a study, but for what follows from the noise: digests, and their place."""
    found = []
    for entry in chain.read(folder / ledger.FOLDER, ledger.NAME).entries:
        if entry.kind in ("allocate", "reserve") and entry.body["study"] == study.sha256:
            said = {key: value for key, value in entry.body.items() if key not in ("weights", "query", "digest")}
            found.append(json.dumps({**said, "kind": entry.kind}, sort_keys=True))
        elif entry.kind in ("commit", "forget"):
            found.append(entry.kind)
    return found


def test_in_the_clear_the_model_is_the_same_bits(running: Federation, simulated: Task, tmp_path: Path) -> None:
    theirs, ours = deploy(running, CLEAR, tmp_path / "out"), simulate(simulated, CLEAR)
    assert weights_in(tmp_path / "out") == weights_in(simulated.out)
    for number in (1, 2):
        one, other = after(tmp_path / "out", number), after(simulated.out, number)
        assert one.tobytes() == other.tobytes()
    assert not np.array_equal(after(simulated.out, 1), after(simulated.out, 2))
    assert [event["metrics"] for event in theirs if event["event"] == "round"] == [
        event["metrics"] for event in ours if event["event"] == "round"
    ]
    assert summary(theirs)["final"] == summary(ours)["final"]


def test_under_secure_aggregation_each_round_is_the_same_within_its_rounding(
    running: Federation, simulated: Task, tmp_path: Path
) -> None:
    """With equal weights the mean of n sites' values, each rounded up or down to a multiple of the unit, is less than
    a unit off, and two such means of the same values are at most a unit apart; the new weights are one more float32.

    Round 2 is simulated from the weights that the deployed round 1 has left: by induction over any number of rounds,
    and without a bound on what training makes of a small difference.
    """
    found = deploy(running, SECURE, tmp_path / "out")
    assert [event["saturated"] for event in found if event["event"] == "round"] == [0, 0]
    unit = secure.encoding_of(SECURE, "update", sites=SITES).unit
    clear = replace(simulated, out=tmp_path / "plain")
    simulate(clear, EQUAL)  # the same training: the study's hash goes into no random draw
    theirs = after(tmp_path / "out", 1)
    room = 2 * np.spacing(np.abs(theirs).astype(np.float32)).astype(np.float64)
    assert apart(theirs, after(clear.out, 1), room) < unit

    first = replace(simulated, out=tmp_path / "first")
    simulate(first, SECURE)
    assert apart(theirs, after(first.out, 1), room) <= unit

    second = replace(simulated, out=tmp_path / "second")
    resumable(tmp_path / "out", second.out, found)
    simulate(second, SECURE)
    theirs = after(tmp_path / "out", 2)
    assert apart(theirs, after(second.out, 2), room) <= unit
    assert weights_in(tmp_path / "out") == b"".join(
        value.tobytes()
        for _, value in sorted(params.split(theirs, params.shapes(build_model(SECURE), trainable=False)).items())
    )


def apart(one: NDArray[np.float32], other: NDArray[np.float32], room: NDArray[np.float64]) -> float:
    """The largest difference beyond `room`; 0.0 would mean that nothing was rounded."""
    differences = np.abs(one.astype(np.float64) - other.astype(np.float64))
    assert differences.max() > 0
    return float((differences - room).max())


def resumable(deployed: Path, out: Path, events: list[dict[str, Any]]) -> None:
    """A folder in which a simulation goes on from the deployed run's first round."""
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(deployed / "checkpoints" / "round-000001.safetensors", out / "checkpoints")
    until = [event for event in events if event["event"] == "started" or event.get("round") == 1]
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in until), encoding="utf-8")
