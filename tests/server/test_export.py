"""Exported models: other programs open them, and they answer as the model itself does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predict_cases import FASTER, RETINA, UNET, saved
from small import tiny_study
from typer.testing import CliRunner

from client import preprocess
from client.pose import STORED
from common.errors import DataError
from common.model_files import open_model
from common.models.scatter import scattering
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Detections
from common.tasks.detection import overlap_of
from server import bundle, export, export_cli
from server.portable import portable
from server.real_scatter import RealScatter

STUDIES: dict[str, dict[str, Any]] = {
    "cnn": {"preprocessing": {"mean": 0.4, "std": 0.2}},
    "unet": {**UNET, "preprocessing": {"aspect": "stretch"}},
    "retinanet": RETINA,
    "fasterrcnn": FASTER,
    "scatter": {"model": {"name": "scatter", "image_size": [28, 28], "head": "dense"}},
    "resnet18": {"model": {"name": "resnet18", "image_size": [32, 32], "head": "dense"}},
}
SLOW = {"fasterrcnn", "resnet18", "scatter", "scatter maps"}
SCATTER_MAPS = {**UNET, "model": {"name": "scatter", "image_size": [28, 28], "head": "dense"}}
STUDIES["scatter maps"] = SCATTER_MAPS
ALL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STUDIES]


def study_of(name: str) -> Study:
    return tiny_study(**STUDIES[name])


@pytest.mark.parametrize("name", ALL)
def test_what_is_exported_answers_as_prediction_does(tmp_path: Path, name: str) -> None:
    """The module before it is written, against the task's own predictions from normalised input."""
    study = study_of(name)
    model = open_model(saved(tmp_path / "m", study))
    shape = (2, study.model.channels, *study.model.image_size)
    images = np.random.default_rng(4).random(shape, np.float32)
    own = task_of(study).predict(model.network, torch.from_numpy(preprocess.normalise(images, study.preprocessing)))
    with torch.no_grad():
        found = portable(model)(torch.from_numpy(images))
    if study.study.task != "detection":
        np.testing.assert_allclose(found.numpy(), np.stack(own), atol=1e-6)
        return
    for boxes, scores, expected in zip(found[0].numpy(), found[1].numpy(), own, strict=True):
        merged = _merged(boxes, scores)
        np.testing.assert_allclose(merged.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(merged.boxes, expected.boxes, atol=1e-2)


def _merged(boxes: np.ndarray, scores: np.ndarray) -> Detections:
    """As the export's description says, the slow way; these images have fewer than 1000 anchors on a level."""
    by_class = boxes if boxes.ndim == 3 else np.repeat(boxes[:, None], scores.shape[1], axis=1)
    anchor, kind = np.nonzero(scores > 0.05)
    score = scores[anchor, kind]
    order = np.argsort(-score, kind="stable")
    chosen: list[int] = []
    for k in order:
        rivals = [c for c in chosen if kind[c] == kind[k]]
        shared = overlap_of(*(by_class[anchor[one], kind[one]].astype(float) for one in (rivals, [k])))
        if len(chosen) < 100 and not (shared > 0.5).any():
            chosen.append(int(k))
    return Detections(boxes=by_class[anchor, kind][chosen], classes=kind[chosen], scores=score[chosen])


@pytest.mark.parametrize("name", ALL)
def test_onnxruntime_answers_alike_to_1e_4_and_the_file_says_what_it_is(tmp_path: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fedward[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'fedward[export]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'fedward[export]'")
    study = study_of(name)
    model = open_model(saved(tmp_path / "m", study))
    done = export.export(tmp_path / "m", tmp_path / "out", "onnx")
    assert done["difference"] <= 1e-4
    session = runtime.InferenceSession(done["file"], providers=["CPUExecutionProvider"])
    images = np.random.default_rng(9).random((1, 1, *study.model.image_size), np.float32)
    with torch.no_grad():
        own = portable(model)(torch.from_numpy(images))
    found = session.run(None, {"images": images})
    own = [one.numpy() for one in (own if isinstance(own, tuple) else (own,))]
    if name == "fasterrcnn":  # proposals that are almost as likely may have changed places
        nearest = np.abs(own[0][0][:, None] - found[0][0][None]).max(axis=(2, 3)).argmin(axis=1)
        found = [one[:, nearest] for one in found]
    for a, b in zip(own, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * (64 if b.shape[-1] == 4 else 1))
    said = {one.key: one.value for one in onnx.load(done["file"]).metadata_props}
    assert said["weights_sha256"] == model.weights_sha256 and said["study_hash"] == study.sha256
    assert json.loads(said["classes"]) == list(study.study.classes) and "not a medical device" in said["intended_use"]


@pytest.mark.parametrize("name", ALL)
def test_a_torch_program_needs_no_code_of_ours(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path / "m", study_of(name))
    done = export.export(model, tmp_path / "out", "torch")
    assert done["difference"] <= 1e-6
    notes = {"fedward.json": ""}
    program = torch.export.load(done["file"], extra_files=notes)
    assert json.loads(notes["fedward.json"])["weights_sha256"] == open_model(model).weights_sha256
    assert "common." not in str(program.graph)


@pytest.mark.parametrize(
    ("size", "cells", "second", "channels"),
    [((28, 28), (7, 7), True, 1), ((32, 20), (8, 5), True, 3), ((28, 28), (14, 14), False, 1)],
)
def test_scattering_in_real_numbers_is_scattering(
    size: tuple[int, int], cells: tuple[int, int], second: bool, channels: int
) -> None:
    images = torch.from_numpy(np.random.default_rng(1).random((2, channels, *size), np.float32))
    found = RealScatter(size, cells, second=second)(images)
    torch.testing.assert_close(found, scattering(images, cells, second=second), atol=1e-6, rtol=0)


def test_an_export_that_answers_otherwise_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.errors import RunError

    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="differ"):
        export.export(saved(tmp_path / "m", study_of("cnn")), tmp_path / "out", "torch")
    assert not list((tmp_path / "out").iterdir())


def test_proposals_may_change_places_but_none_may_be_missing(tmp_path: Path) -> None:
    model = open_model(saved(tmp_path / "m", study_of("fasterrcnn")))
    rng = np.random.default_rng(1)
    boxes, scores = (torch.from_numpy(rng.random(shape, np.float32)) for shape in ((2, 9, 2, 4), (2, 9, 2)))
    turned = torch.arange(8, -1, -1)
    assert export._apart(model, (boxes, scores), (boxes[:, turned], scores[:, turned])) == 0
    for left_out in (torch.tensor([*range(8), 0]), torch.tensor([1, *range(1, 9)])):
        assert export._apart(model, (boxes, scores), (boxes[:, left_out], scores[:, left_out])) > 1e-3
    assert np.isnan(export._apart(model, (boxes, scores), (boxes * float("nan"), scores)))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finished run"):
        export.export(tmp_path / "nothing", tmp_path / "out", "torch")


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(export_cli.command)
    model = saved(tmp_path / "m", study_of("cnn"))
    given = ["--model", str(model), "--out", str(tmp_path / "out"), "--format", "torch", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0 and Path(json.loads(done.stdout)["file"]).stat().st_size > 0


@pytest.mark.parametrize("name", ["cnn", "unet", "retinanet", pytest.param("fasterrcnn", marks=pytest.mark.slow)])
def test_a_bundle_has_what_monai_asks_for(tmp_path: Path, name: str) -> None:
    """Keys that MONAI's schema of metadata and its inference workflow require."""
    study = study_of(name)
    export.export(saved(tmp_path / "m", study), tmp_path / "b", "monai")
    values = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    required = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"}
    assert required | {"copyright", "network_data_format", "changelog"} <= set(values)
    for direction, key in (("inputs", "image"), ("outputs", "pred")):
        form = values["network_data_format"][direction][key]
        keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
        assert keys | {"channel_def"} <= set(form)
    assert values["fedward"]["study_hash"] == study.sha256
    config = json.loads((tmp_path / "b" / "configs" / "inference.json").read_text())
    workflow = {"bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer"}
    network = torch.export.unflatten(torch.export.load(tmp_path / "b" / "models" / bundle.NETWORK)).eval()
    images = torch.from_numpy(np.random.default_rng(0).random((1, 1, *study.model.image_size), np.float32))
    with torch.no_grad():  # as the configuration opens it
        torch.testing.assert_close(network(images), portable(open_model(tmp_path / "m"))(images))
    assert "unflatten" in config["network_def"]
    assert workflow <= set(config) and (tmp_path / "b" / "models" / bundle.NETWORK).stat().st_size > 0


@pytest.mark.parametrize("orientation", ["stored", "patient"])
def test_a_bundle_says_how_pictures_have_to_lie(tmp_path: Path, orientation: str) -> None:
    model = saved(tmp_path / "m", tiny_study(preprocessing={"orientation": orientation}))
    export.export(model, tmp_path / "b", "monai")
    said = (tmp_path / "b" / "docs" / "README.md").read_text()
    assert ("patient's left" in said) == (orientation == "patient")


# MONAI warns of a decoder for NVIDIA's cards that it does not find.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("aspect", ["pad", "stretch"])
@pytest.mark.parametrize("window", ["dicom", "percentile", (100.0, 80.0)])
def test_monai_opens_a_bundle_and_preprocesses_as_we_do(tmp_path: Path, aspect: str, window: Any) -> None:
    pytest.importorskip("monai", reason="monai is not installed: pip install monai")
    from monai.bundle import ConfigParser  # type: ignore[import-not-found,unused-ignore]
    from PIL import Image

    from client.annotations.picture import pixels

    study = tiny_study(model={"image_size": [24, 20]}, preprocessing={"aspect": aspect, "window": window})
    model = saved(tmp_path / "m", study)
    export.export(model, tmp_path / "b", "monai")
    (tmp_path / "b" / "images").mkdir()
    rng = np.random.default_rng(1)
    for name, shape in (("a.png", (50, 31)), ("b.png", (17, 40, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "b" / "images" / name)
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "b" / "configs" / "inference.json"))
    parser["bundle_root"] = str(tmp_path / "b")
    dataset, network = parser.get_parsed_content("dataset"), parser.get_parsed_content("network").eval()
    for name, one in zip(("a.png", "b.png"), dataset, strict=True):
        data = (tmp_path / "b" / "images" / name).read_bytes()
        own = preprocess.kept(pixels(data, window=study.preprocessing.window), study, STORED).astype(np.float32)
        np.testing.assert_allclose(np.asarray(one["image"]), own, atol=1e-3)
        with torch.no_grad():
            found = network(torch.as_tensor(np.asarray(one["image"]))[None])
            expected = portable(open_model(model))(torch.from_numpy(own)[None])
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-2)
