"""MONAI runs a detector's bundle, and its files say what `client predict` says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_cases import FASTER, RETINA, lines, run, saved
from small import tiny_study

from server import export

CORNERS = ("x1", "y1", "x2", "y2")
NEEDS = ("monai", "ignite", "fire")  # what `python -m monai.bundle run` asks for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "aspect", "size", "shape"),
    [
        (RETINA, "pad", [128, 160], (50, 31)),  # more than 1000 candidates on the finest level
        (RETINA, "stretch", [64, 64], (40, 70, 3)),
        (FASTER, "pad", [64, 96], (50, 31)),
    ],
)
def test_a_bundle_runs_and_finds_what_prediction_finds(
    tmp_path: Path, base: dict[str, Any], aspect: str, size: list[int], shape: tuple[int, ...]
) -> None:
    for name in NEEDS:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'monai[fire,ignite]'")
    study = tiny_study(
        study=base["study"], model={**base["model"], "image_size": size}, preprocessing={"aspect": aspect}
    )
    model = saved(tmp_path / "m", study)
    export.export(model, tmp_path / "b", "monai")
    pictures = np.random.default_rng(1).integers(0, 256, (2, *shape), np.uint8)
    (tmp_path / "b" / "images").mkdir()
    for position, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "b" / "images" / f"{position}.png")
    command = [sys.executable, "-m", "monai.bundle", "run"]
    subprocess.run(
        [*command, "--config_file", "configs/inference.json", "--bundle_root", "."], cwd=tmp_path / "b", check=True
    )
    images = {f"{part}_images": pictures for part in ("train", "val", "test")}
    labels = {f"{part}_labels": np.zeros((2, 1), int) for part in ("train", "val", "test")}
    np.savez(tmp_path / "d.npz", **images, **labels)
    run([model], tmp_path / "d.npz", tmp_path / "p")
    own = [line for line in lines(tmp_path / "p" / "boxes.csv") if line["array"] == "test_images"]
    for position in range(2):
        said = json.loads((tmp_path / "b" / "eval" / f"{position}.png.json").read_text())
        expected = [line for line in own if line["frame"] == str(position + 1)]
        assert said["image"] == f"{position}.png"
        assert len(expected) == 100 and {line["class"] for line in expected} == set(study.study.classes)
        assert [one["label"] for one in said["objects"]] == [line["class"] for line in expected]
        found = np.array([[*one["box"], one["score"]] for one in said["objects"]])
        right = np.array([[float(line[key]) for key in (*CORNERS, "score")] for line in expected])
        np.testing.assert_allclose(found, right, atol=1e-3)


@pytest.mark.parametrize("base", [RETINA, pytest.param(FASTER, marks=pytest.mark.slow)])
def test_a_bundle_says_what_its_boxes_are(tmp_path: Path, base: dict[str, Any]) -> None:
    export.export(saved(tmp_path / "m", tiny_study(**base)), tmp_path / "b", "monai")
    values = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    pred = values["network_data_format"]["outputs"]["pred"]
    assert pred["type"] == "object" and pred["channel_def"] == {"0": "lesion", "1": "other"}
    assert {"pytorch-ignite", "torchvision"} <= set(values["required_packages_version"])
    config = json.loads((tmp_path / "b" / "configs" / "inference.json").read_text())
    assert config["classes"] == ["lesion", "other"] and "$import torchvision" in config["imports"]
    assert "corners" in (tmp_path / "b" / "docs" / "README.md").read_text()
