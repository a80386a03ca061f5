"""The same rounds through Flower's simulation runtime."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import private_study, tiny_study, write_npz

from common import params
from common.errors import RunError
from server import proposals
from server.events import read, summary
from server.federation import Options
from simulations import flower, inprocess
from simulations.experiment import Request, run
from simulations.faults import Fault, Faults


def weights_in(out: Path) -> bytes:
    tensors = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


@pytest.mark.e2e
def test_ray_and_direct_calls_give_the_same_bits_with_the_same_faults(
    tmp_path: Path, site_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "PROPOSAL_DEADLINE", 600.0)  # the runtime starts slowly on a machine at work
    study = tiny_study(study={"rounds": 3}, training={"augmentation": "standard"})
    faults = Faults(scripted={(1, "site-0", "update"): Fault(do="drop"), (2, "site-2", "update"): Fault(do="crash")})
    roster = frozenset(folder.name for folder in site_folders)
    options = Options(out=tmp_path / "inprocess", backend="inprocess", roster=roster)
    inprocess.run(study, options, site_folders, faults)
    flower.run(study, replace(options, out=tmp_path / "ray", backend="ray"), site_folders, faults, threads=1)
    assert weights_in(tmp_path / "ray") == weights_in(tmp_path / "inprocess")
    absent = [entry["absent"] for entry in summary(read(tmp_path / "ray" / "events.jsonl"))["rounds"]]
    assert absent == [{"site-0": "offline"}, {"site-2": "failed"}, {}]


@pytest.mark.e2e
def test_ray_trains_a_secure_private_study_and_survives_a_drop_out(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", images=48, seed=0, official=True)
    study = private_study(
        study={"rounds": 2, "min_sites": 3},
        training={"class_balance": "weighted", "class_prior": "released"},
        aggregation={"secure": True},
    )
    script = tmp_path / "script.jsonl"
    script.write_text('{"round":2,"site":"site-1","do":"drop"}\n', encoding="utf-8")
    request = Request(study=study, data=f"medmnist:{data}", sites=4, out=tmp_path / "out", backend="ray", script=script)
    summary = run(request, jobs=1)
    assert [entry["absent"] for entry in summary["rounds"]] == [{}, {"site-1": "offline"}]
    assert [found["steps_charged"] for found in summary["privacy"].values()] == [2, 1, 2, 2]
    assert [found["histogram"]["charged"] for found in summary["privacy"].values()] == [1] * 4
    assert len(summary["class_counts"]["participants"]) == 4


def test_ray_wants_folders_in_the_order_of_its_partitions(tmp_path: Path, site_folders: list[Path]) -> None:
    options = Options(out=tmp_path / "ray", backend="ray", roster=frozenset())
    with pytest.raises(RunError, match="site-1, site-0"):
        flower.run(tiny_study(), options, site_folders[1::-1], Faults(scripted={}), threads=1)
