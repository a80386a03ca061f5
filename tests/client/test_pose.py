"""How images lie in the patient: every turn and flip against arrays written out, and training and prediction alike."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from dicom_cases import saved as saved_file
from dicom_cases import slice_
from predict_cases import RETINA, UNET, lines, run, saved
from small import tiny_study

from client import dataset, ensemble, index, quality, quality_sections, sources
from client.dicom import header
from client.ensemble import Grey, outcomes
from client.pose import Pose, directions_of, ratio_of
from client.preprocess import Geometry
from client.site import open_site, site_toml
from common.model_files import open_model
from common.study import from_json, parse

CPU = torch.device("cpu")
UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # two rows, three columns
SHOWN = {  # one thing, as it is stored for each way that a frontal image can lie
    "LF": [[1, 2, 3], [4, 5, 6]],
    "RF": [[3, 2, 1], [6, 5, 4]],
    "LH": [[4, 5, 6], [1, 2, 3]],
    "RH": [[6, 5, 4], [3, 2, 1]],
    "FL": [[1, 4], [2, 5], [3, 6]],
    "FR": [[3, 6], [2, 5], [1, 4]],
    "HL": [[4, 1], [5, 2], [6, 3]],
    "HR": [[6, 3], [5, 2], [4, 1]],
}
WAYS = [
    first + second for one, other in itertools.permutations(("LR", "AP", "HF"), 2) for first in one for second in other
]


@pytest.mark.parametrize("way", SHOWN)
def test_whatever_its_directions_an_upright_picture_of_one_thing_is_the_same(way: str) -> None:
    pose, stored = Pose(directions=way), np.array(SHOWN[way], np.float32)
    assert np.array_equal(pose.turned(stored), UPRIGHT) and np.array_equal(pose.back(UPRIGHT), stored)
    assert pose.size(stored.shape) == UPRIGHT.shape  # type: ignore[arg-type]
    colour = np.stack([stored, 2 * stored, stored], axis=2)
    assert np.array_equal(pose.turned(colour, axes=(0, 1))[..., 1], 2 * UPRIGHT)
    row, column = (int(n) for n in np.argwhere(stored == 6)[0])  # the last pixel, upright in row 1, column 2
    box = np.array([[column, row, column + 1, row + 1]], np.float64)
    assert pose.boxes(box, stored.shape).tolist() == [[2, 1, 3, 2]]  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["", *WAYS])
def test_back_undoes_turned_and_boxes_back_undoes_boxes(way: str) -> None:
    pose, rng = Pose(directions=way, ratio=2.0), np.random.default_rng(0)
    image, boxes = rng.random((2, 5, 7)), rng.random((4, 4)) * 5
    assert np.array_equal(pose.back(pose.turned(image)), image)
    np.testing.assert_allclose(pose.boxes_back(pose.boxes(boxes, (5, 7)), (5, 7)), boxes)


@pytest.mark.parametrize(
    ("plane", "letters", "found"),
    [
        ([1, 0, 0, 0, 1, 0], [], "LP"),
        ([-1, 0, 0, 0, 0, 1], ["L", "F"], "RH"),  # the plane counts, where there is one
        ([0.1, 0.99, 0, 0, 0.1, -0.99], [], "PF"),
        ([0.8, 0, 0.6, 0.6, 0, 0.8], [], "LH"),
        ([0.8, 0, 0.6, 0.8, 0.6, 0], [], ""),  # one axis twice
        ([0, 0, 0, 0, 0, 0], ["L", "FP"], "LF"),
        ([], ["PL", "F"], "PF"),
        ([], ["L", "R"], ""),
        ([], ["L"], ""),
        ([], ["CR", "V"], ""),
        ([float("nan")] * 6, [], ""),
    ],
)
def test_directions_are_those_of_the_header_or_none(plane: list[float], letters: list[str], found: str) -> None:
    assert directions_of(plane, letters) == found


def test_a_pixels_shape_is_a_likely_one() -> None:
    assert [ratio_of(one) for one in (None, (1.0, 0.5), (0.5, 1.0), (100.0, 1.0))] == [1, 2, 0.5, 1]


def test_with_pad_a_square_in_the_patient_is_a_square_to_the_model_however_it_is_stored() -> None:
    for way, stored, ratio in (("LF", (64, 32), 0.5), ("FL", (32, 64), 2.0), ("", (64, 32), 0.5)):
        pose = Pose(directions=way, ratio=ratio)
        geometry = Geometry(stored=stored, model=(64, 64), aspect="pad", pose=pose)
        assert geometry.content == (64, 64)
        boxes = np.array([[3, 5, 20, 17]], np.float32)
        np.testing.assert_allclose(geometry.boxes_to_stored(geometry.boxes_to_model(boxes)), boxes, atol=1e-3)
        maps = np.zeros((1, 64, 64), np.float32)
        assert geometry.maps_to_stored(maps).shape == (1, *stored)
    assert Geometry(stored=(64, 32), model=(64, 64), aspect="pad").content == (64, 32)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("values", [{}, UNET, RETINA], ids=["classification", "segmentation", "detection"])
def test_an_answer_is_the_same_however_the_image_is_stored(
    tmp_path: Path, values: dict[str, Any], window: bool
) -> None:
    if window and not values:
        return  # a classifier has no windows
    study = tiny_study(**values, preprocessing={"orientation": "patient"})
    model = open_model(saved(tmp_path / "m", study))
    height, width = study.model.image_size
    upright = np.random.default_rng(7).random((height + 8, width - 6), np.float32)
    found = []
    for way in SHOWN:
        pose = Pose(directions=way)
        grey: Grey = {"dicom": pose.back(upright)}
        (one,) = outcomes([model], [grey], [pose], rule="mean", window=window, where=CPU)
        if not values:
            found.append(one.prediction)
        elif values is UNET:
            found.append(pose.turned(one.prediction))
        else:
            found.append(pose.boxes(one.prediction.boxes.astype(np.float64), grey["dicom"].shape))  # type: ignore[arg-type]
    assert len(found[0]) and all(np.allclose(one, found[0], atol=1e-3) for one in found)


def radiograph(folder: Path, pixels: np.ndarray, name: str, directions: list[str] | None) -> None:
    image = slice_(0, projection=True, uid=f"1.2.9.{len(name)}", patient=name, size=pixels.shape)  # type: ignore[arg-type]
    image.PixelData = pixels.astype(np.uint16).tobytes()
    image.ImagerPixelSpacing = ["0.2", "0.4"]
    if directions:
        image.PatientOrientation = directions
    saved_file(image, folder / f"{name}.dcm")


@pytest.mark.parametrize("orientation", ["stored", "patient"])
def test_training_and_prediction_turn_alike_and_images_without_directions_are_counted(
    tmp_path: Path, orientation: str
) -> None:
    """Three files of one picture, one mirrored, one silent: through index and cache, and as prediction reads them."""
    images, site = tmp_path / "images", tmp_path / "site"
    site.mkdir()
    pixels = np.random.default_rng(3).integers(0, 1000, (30, 24))
    for name, directions, shown in (
        ("a", ["L", "F"], pixels),
        ("bb", ["R", "F"], pixels[:, ::-1]),
        ("ccc", None, pixels),
    ):
        radiograph(images, shown, name, directions)
    masks = {"a": pixels > 500}
    study = tiny_study(preprocessing={"orientation": orientation})
    index.build("dicom", images, site, patient_key=bytes(32), require_annotation=False)
    rows = {row.source.path: row for row in index.read(site)}
    found = {path: (row.pose.directions, row.pose.ratio) for path, row in rows.items()}
    assert found == {"a.dcm": ("LF", 0.5), "bb.dcm": ("RF", 0.5), "ccc.dcm": ("", 0.5)}
    (site / "keys").mkdir()
    (site / "keys" / "patient.key").write_bytes(bytes(32))
    (site / "site.toml").write_text(site_toml("a"))
    seen = quality.gather(open_site(site))
    assert {group.name: group.images for group in seen.directions} == {"LF": 1, "RF": 1, quality.UNKNOWN: 1}
    page = repr(quality_sections.machines(seen, None))
    assert "left, feet" in page and "right, feet" in page
    cache = dataset.caches.open_cache(tmp_path / "cache", study)
    assert not cache.ensure(list(rows.values()))
    model = open_model(saved(tmp_path / "m", study))
    trained = {}
    for path, row in rows.items():
        own = dataset.Images(study=study, rows=(row,), truths=(0,), cache=cache).batch([0]).images
        pixel = sources.pixels(row.source, window="dicom")
        theirs = ensemble.model_input([pixel], [row.pose], model)
        assert own.numpy().tobytes() == theirs.numpy().tobytes()
        trained[path] = own.numpy()
    assert np.array_equal(trained["a.dcm"], trained["bb.dcm"]) == (orientation == "patient")
    counts = run([tmp_path / "m"], images, tmp_path / "out", overlays=False)
    assert counts.plain["unturned"] == (1 if orientation == "patient" else 0)
    said = {one["file"]: one["score:dark"] for one in lines(tmp_path / "out" / "predictions.csv")}
    assert (said["a.dcm"] == said["bb.dcm"]) == (orientation == "patient")
    segmenting = tiny_study(**UNET, preprocessing={"orientation": orientation})
    geometry = dataset.Images(study=segmenting, rows=(rows["bb.dcm"],), truths=(0,), cache=cache).geometry(0)
    upright = dataset.Images(study=segmenting, rows=(rows["a.dcm"],), truths=(0,), cache=cache).geometry(0)
    mirrored, plain = masks["a"][:, ::-1].astype(np.uint8), masks["a"].astype(np.uint8)
    same = np.array_equal(geometry.mask_to_model(mirrored), upright.mask_to_model(plain))
    assert same == (orientation == "patient")


def test_a_study_without_the_key_is_what_it_was_before_there_was_one() -> None:
    plain, turned = tiny_study(), tiny_study(preprocessing={"orientation": "patient"})
    assert "orientation" not in plain.canonical and '"orientation":"patient"' in turned.canonical
    assert plain.sha256 == tiny_study(preprocessing={"orientation": "stored"}).sha256 != turned.sha256
    assert from_json(turned.canonical) == turned and from_json(plain.canonical) == plain
    assert parse(turned.model_dump(mode="json", by_alias=True), where="test") == turned


def test_caches_of_turned_images_and_of_others_are_apart(tmp_path: Path) -> None:
    studies = (tiny_study(), tiny_study(preprocessing={"orientation": "patient"}))
    assert len({dataset.caches.open_cache(tmp_path, study).folder for study in studies}) == 2


def test_a_headers_nonsense_is_no_direction(tmp_path: Path) -> None:
    image = slice_(0)
    image.ImageOrientationPatient = ["0", "0", "0", "0", "0", "0"]
    assert header(saved_file(image, tmp_path / "a.dcm")).pose == Pose(ratio=2 / 1.5)
    image.ImageOrientationPatient = None
    image["PatientOrientation"] = pydicom.DataElement("PatientOrientation", "CS", "L")
    assert header(saved_file(image, tmp_path / "b.dcm")).directions == ""
