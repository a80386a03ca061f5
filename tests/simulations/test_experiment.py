"""A whole simulation on small data: what it leaves behind, and that it can be interrupted."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import tiny_study, write_npz

from common import params
from common.errors import DataError, FederationError, RunError, StudyError
from server.events import read
from simulations import run as exported
from simulations.evaluation import evaluate
from simulations.experiment import Request, interval, over_seeds, run
from simulations.training import Task, execute


def request(tmp_path: Path, *, official: bool = False, **changes: Any) -> Request:
    source = tmp_path / "x.npz"
    if not source.exists():
        write_npz(source, images=120, seed=0, official=official)
    values: dict[str, Any] = {
        "study": tiny_study(),
        "data": f"medmnist:{source}",
        "sites": 3,
        "out": tmp_path / "out",
        "partition": "quantity:2",
    }
    return Request(**{**values, **changes})


def model_in(out: Path) -> bytes:
    tensors = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compared")
    return folder, run(request(folder, compare=True, official=True), jobs=1)


def test_run_is_what_the_package_exports() -> None:
    assert exported is run


def test_everything_that_a_run_leaves_behind_is_there(compared: tuple[Path, dict[str, Any]]) -> None:
    out = compared[0] / "out"
    for name in ("events.jsonl", "checkpoints", "model.safetensors", "model.json", "report.html", "summary.json"):
        assert (out / name).exists(), name
    assert json.loads((out / "summary.json").read_text()) == compared[1]


def test_the_summary_accounts_for_every_patient(compared: tuple[Path, dict[str, Any]]) -> None:
    sites = compared[1]["sites"]
    assert list(sites) == ["site-0", "site-1", "site-2"]
    assert (
        sum(site["patients"] for site in sites.values()) == 120 + 30
    )  # train and validation; the test images are nobody's
    assert all(sum(site["per_class"].values()) == site["images"] for site in sites.values())


def test_the_official_test_split_is_kept_whole_and_out_of_every_site(compared: tuple[Path, dict[str, Any]]) -> None:
    assert compared[1]["final"]["test"]["images"] == 30
    assert compared[1]["comparison"]["pooled"]["test"]["images"] == 30
    assert compared[1]["comparison"]["gain"]["on"] == "validation"


def test_every_round_names_its_participants_bytes_and_sites_own_curves(compared: tuple[Path, dict[str, Any]]) -> None:
    for entry in compared[1]["rounds"]:
        assert set(entry["participants"]) | set(entry["absent"]) == {"site-0", "site-1", "site-2"}
        assert all(entry["bytes_up"][site] > 0 and entry["bytes_down"][site] > 0 for site in entry["participants"])
        assert set(entry["per_site"]) == set(entry["participants"])


def test_the_comparison_holds_pooled_alone_and_gain(compared: tuple[Path, dict[str, Any]]) -> None:
    comparison = compared[1]["comparison"]
    assert set(comparison["alone"]) == set(comparison["gain"]["sites"]) == {"site-0", "site-1", "site-2"}
    for row in comparison["gain"]["sites"].values():
        if row["difference"] is not None:
            assert row["difference"] == pytest.approx(row["federated"] - row["alone"])
            assert row["low"] is None or row["low"] <= row["high"]


def test_no_image_is_copied(compared: tuple[Path, dict[str, Any]]) -> None:
    out = compared[0] / "out"
    assert [path.parent.parent.name for path in out.rglob("images.f16")] == ["cache"]
    assert not list((out / "sites").rglob("images.f16"))


def test_an_interrupted_simulation_resumes_to_the_same_result(tmp_path: Path) -> None:
    whole = run(request(tmp_path, out=tmp_path / "whole", seeds=2), jobs=1)

    def interrupt(name: str, event: Any) -> None:
        if name == "seed 4" and event["event"] == "round":
            raise KeyboardInterrupt

    broken = request(tmp_path, out=tmp_path / "broken", seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run(broken, jobs=1, watch=interrupt)
    with pytest.raises(RunError, match="--resume"):
        run(broken, jobs=1)
    resumed = run(broken, resume=True, jobs=1)
    assert model_in(tmp_path / "broken") == model_in(tmp_path / "whole")
    second = Path("seeds") / "seed-4"
    assert model_in(tmp_path / "broken" / second) == model_in(tmp_path / "whole" / second)
    assert resumed["final"] == whole["final"] and resumed["over_seeds"] == whole["over_seeds"]


def test_a_wrong_spec_leaves_out_free_for_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="mri"):
        run(request(tmp_path, data="mri:x"))
    assert not (tmp_path / "out").exists()


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        "import os, time; from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context\n"
        "from simulations.training import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=_end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True); pool.submit(time.sleep, 60); time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a training process outlived the one that started it")


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    study = tiny_study(study={"rounds": 1})
    run(request(tmp_path, study=study), jobs=1)
    model = tmp_path / "out"
    other = f"medmnist:{tmp_path / 'x.npz'}"
    first = evaluate(model, data=other, out=tmp_path / "e", threads=1, quiet=True)
    write_npz(tmp_path / "x.npz", images=60, seed=4)
    second = evaluate(model, data=other, out=tmp_path / "e", threads=1, quiet=True)
    assert (first["images"], second["images"]) == (120, 60)


def test_a_run_that_stopped_leaves_a_report_that_says_why(tmp_path: Path) -> None:
    lines = [json.dumps({"round": 1, "site": f"site-{k}", "do": "drop"}) for k in range(3)]
    (tmp_path / "script").write_text("\n".join(lines))
    study = tiny_study(study={"round_retries": 0})
    with pytest.raises(RunError, match="round 1"):
        run(request(tmp_path, study=study, script=tmp_path / "script"), jobs=1)
    assert "offline" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "summary.json").exists()


def test_resuming_with_another_request_names_what_changed(tmp_path: Path) -> None:
    asked = request(tmp_path, study=tiny_study(study={"rounds": 1}))
    run(asked, jobs=1)
    with pytest.raises(RunError, match="another partition"):
        run(replace(asked, partition="uniform"), resume=True, jobs=1)


def test_scanner_shift_changes_pixels_and_not_who_gets_what(tmp_path: Path) -> None:
    study = tiny_study(study={"rounds": 1})
    plain = run(request(tmp_path, out=tmp_path / "plain", study=study), jobs=1)
    shifted = run(request(tmp_path, out=tmp_path / "shifted", study=study, partition="quantity:2+scanner:1.5"), jobs=1)
    assert plain["sites"] == shifted["sites"]
    assert model_in(tmp_path / "plain") != model_in(tmp_path / "shifted")


@pytest.mark.slow
def test_processes_give_the_same_models_as_one_process(tmp_path: Path) -> None:
    study = tiny_study(study={"rounds": 1})
    run(request(tmp_path, out=tmp_path / "one", study=study, seeds=2), jobs=1)
    run(request(tmp_path, out=tmp_path / "two", study=study, seeds=2), jobs=2)
    assert model_in(tmp_path / "one") == model_in(tmp_path / "two")
    seed = Path("seeds") / "seed-4"
    assert model_in(tmp_path / "one" / seed) == model_in(tmp_path / "two" / seed)


def test_a_model_is_evaluated_on_other_data(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    other = write_npz(tmp_path / "other.npz", images=40, seed=9)
    result = evaluate(compared[0] / "out", data=f"medmnist:{other}", out=tmp_path / "e", threads=1, quiet=True)
    assert result["images"] == 40 and 0 <= result["metrics"]["auc"] <= 1
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == result
    with pytest.raises(DataError, match=r"model\.json"):
        evaluate(tmp_path, data=f"medmnist:{other}", out=tmp_path / "e", threads=1, quiet=True)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer sites than the quorum": ({"sites": 1}, "min_sites"),
    "no seeds": ({"seeds": 0}, "--seeds"),
    "unknown partition": ({"partition": "fair"}, "'fair'"),
    "unknown data": ({"data": "imagenet"}, "'imagenet'"),
    "missing file": ({"data": "medmnist:/absent.npz"}, "does not exist"),
    "probability": ({"drop": 1.5}, "--drop"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_request_is_one_line(tmp_path: Path, fault: str) -> None:
    changes, says = WRONG[fault]
    with pytest.raises(FederationError, match=says) as caught:
        run(request(tmp_path, **changes), jobs=1)
    assert "\n" not in str(caught.value)


def test_data_without_any_label_of_the_study_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "voc"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    with pytest.raises(DataError) as caught:
        run(request(tmp_path, data=f"masks:{folder}"), jobs=1)
    assert "\n" not in str(caught.value)


def test_images_of_other_classes_than_the_studys_are_counted_and_none_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "x.npz"
    labels = np.full((20, 1), 7, np.uint8)
    empty = {
        f"{split}_{what}": np.zeros((0, 20, 20) if what == "images" else (0, 1), np.uint8)
        for split in ("val", "test")
        for what in ("images", "labels")
    }
    np.savez(source, train_images=np.zeros((20, 20, 20), np.uint8), train_labels=labels, **empty)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no usable image for classification of dark, bright"):
        run(request(tmp_path), jobs=1)


def test_a_study_that_names_weights_needs_exactly_that_file(tmp_path: Path) -> None:
    study = tiny_study(model={"pretrained_sha256": "0" * 64})
    with pytest.raises(StudyError, match="--pretrained"):
        run(request(tmp_path, study=study), jobs=1)


def test_training_starts_from_the_pinned_weights(tmp_path: Path) -> None:
    import hashlib

    first = request(tmp_path, study=tiny_study(study={"rounds": 1}), out=tmp_path / "first")
    run(first, jobs=1)
    file = tmp_path / "first" / "model.safetensors"
    pinned = {"pretrained_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "freeze": "backbone"}
    second = replace(
        first, study=tiny_study(study={"rounds": 1}, model=pinned), out=tmp_path / "second", pretrained=file
    )
    run(second, jobs=1)
    before = params.from_bytes(file.read_bytes(), where="first")
    after = params.from_bytes((tmp_path / "second" / "model.safetensors").read_bytes(), where="second")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if not name.startswith("features.")}


def test_a_finished_training_is_not_done_again(compared: tuple[Path, dict[str, Any]]) -> None:
    out = compared[0] / "out"
    before = len(read(out / "events.jsonl"))
    study = tiny_study().canonical
    from simulations.faults import Faults

    execute(Task(name="x", study=study, folders=(), out=out, faults=Faults(scripted={})))
    assert len(read(out / "events.jsonl")) == before


def test_intervals_over_seeds_are_students(tmp_path: Path) -> None:
    found = interval([0.8, 0.9, 1.0])
    # mean 0.9, sd 0.1, t(0.975, 2) = 4.3027 (any table), half width 4.3027 * 0.1 / sqrt(3)
    assert found["mean"] == pytest.approx(0.9) and found["high"] == pytest.approx(0.9 + 0.24842, abs=1e-4)
    assert interval([None, 0.5]) == {"mean": 0.5, "sd": None, "low": None, "high": None}
    seeds = [
        {
            "final": {"test": {"auc": f}},
            "comparison": {"pooled": {"test": {"auc": p}}, "alone_mean": {"test": {"auc": 0.5}}},
        }
        for f, p in ((0.8, 0.8), (0.9, 1.0))
    ]
    assert over_seeds(seeds, "auc")["federated_over_pooled"]["mean"] == pytest.approx(0.95)
