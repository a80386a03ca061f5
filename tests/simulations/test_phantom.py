"""The phantom: real DICOM files that decode to what was drawn, with labels, masks and boxes that agree."""

import csv
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pydicom
import pytest
from PIL import Image

from common.errors import DataError
from simulations.datasets.anatomy import expose, grow
from simulations.datasets.phantom import PREVALENCE, Case, cases, write_phantom

PATIENTS = 30
ARGUMENTS: dict[str, Any] = {"patients": PATIENTS, "seed": 5, "image_size": 96, "images_per_patient": (1, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(path, **ARGUMENTS)
    return path


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    beside = {folder / "labels.csv", folder / "boxes.json", *(folder / "masks").iterdir()}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in beside]


@pytest.fixture(scope="module")
def datasets(paths: list[Path]) -> dict[str, pydicom.FileDataset]:
    read = [pydicom.dcmread(path) for path in paths]
    return {str(dataset.SOPInstanceUID): dataset for dataset in read}


@pytest.fixture(scope="module")
def labels(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def drawn(labels: dict[str, dict[str, str]]) -> dict[str, tuple[Case, int]]:
    """What was drawn for each image: labels.csv lists images in the order in which they were drawn."""
    order = [(case, position) for case in cases(**ARGUMENTS) for position in range(len(case.pictures))]
    return dict(zip(labels, order, strict=True))


def _decoded(dataset: pydicom.FileDataset) -> np.ndarray:
    """Grey values in [0, 1] by the standard: modality LUT, window (PS3.3 C.11.2.1.2.1) or all bits, inversion."""
    values = dataset.pixel_array.astype(np.float64)
    low, high = 0.0, 2.0**dataset.BitsStored - 1
    if "RescaleSlope" in dataset:
        values = values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if "WindowCenter" in dataset:
        centre, width = (
            float(v[0] if isinstance(v, pydicom.multival.MultiValue) else v)
            for v in (dataset.WindowCenter, dataset.WindowWidth)
        )
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    grey = np.clip((values - low) / (high - low), 0, 1)
    return 1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def test_thirty_patients_show_every_vendors_habits(datasets: dict[str, pydicom.FileDataset], paths: list[Path]) -> None:
    found = list(datasets.values())
    assert {str(d.file_meta.TransferSyntaxUID.name) for d in found} == {
        "Implicit VR Little Endian",
        "Explicit VR Little Endian",
        "Deflated Explicit VR Little Endian",
        "JPEG-LS Lossless Image Compression",
        "JPEG 2000 Image Compression (Lossless Only)",
        "RLE Lossless",
    }
    assert {d.PhotometricInterpretation for d in found} == {"MONOCHROME1", "MONOCHROME2"}
    assert {d.BitsStored for d in found} == {8, 10, 12, 16}
    assert {d.PixelRepresentation for d in found} == {0, 1}
    assert {d.Modality for d in found} == {"CR", "DX"}
    assert {(float(d.RescaleSlope), float(d.RescaleIntercept)) for d in found if "RescaleSlope" in d} > {(1.0, 0.0)}
    assert {d["WindowCenter"].VM if "WindowCenter" in d else 0 for d in found} == {0, 1, 2}
    for keyword in ("RescaleSlope", "ManufacturerModelName", "ViewPosition", "PixelSpacing", "StudyDescription"):
        assert {keyword in d for d in found} == {True, False}, keyword
    assert {path.suffix for path in paths} >= {".dcm", ".DCM"} and any(not path.name.endswith("m") for path in paths)
    assert len({len(path.parts) for path in paths}) >= 3
    assert len({(d.Rows, d.Columns) for d in found}) >= 4


def test_every_file_decodes_to_what_was_drawn_to_within_half_a_stored_step(
    datasets: dict[str, pydicom.FileDataset], drawn: dict[str, tuple[Case, int]]
) -> None:
    assert datasets.keys() == drawn.keys()
    for uid, dataset in datasets.items():
        case, position = drawn[uid]
        vendor, pixels = case.vendor, case.pictures[position].pixels
        error = np.abs(_decoded(dataset) - pixels.astype(np.float64) ** vendor.gamma).max()
        assert error <= 0.5 / (vendor.high - vendor.low) + 1e-6, vendor.scanner


def test_labels_masks_and_boxes_agree(folder: Path, labels: dict[str, dict[str, str]]) -> None:
    coco = json.loads((folder / "boxes.json").read_text(encoding="utf-8"))
    assert {image["file_name"] for image in coco["images"]} == labels.keys()
    assert {path.stem for path in (folder / "masks").iterdir()} == labels.keys()
    assert [category["name"] for category in coco["categories"]] == ["lesion"]
    boxes = defaultdict(list)
    for annotation in coco["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    for image in coco["images"]:
        mask = np.asarray(Image.open(folder / "masks" / f"{image['file_name']}.png"))
        assert mask.dtype == np.uint8 and mask.shape == (image["height"], image["width"])
        assert set(np.unique(mask)) == ({0, 1} if labels[image["file_name"]]["label"] == "lesion" else {0})
        assert len(boxes[image["id"]]) in ((1, 2, 3) if mask.any() else (0,))
        outside = mask.copy()
        for annotation in boxes[image["id"]]:
            x, y, width, height = annotation["bbox"]
            inside = mask[y : y + height, x : x + width]
            assert inside.shape == (height, width)  # wholly on the image
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))  # and tight
            outside[y : y + height, x : x + width] = 0
        assert not outside.any()


def test_a_patients_images_have_one_label_hospital_vendor_and_size(
    datasets: dict[str, pydicom.FileDataset], labels: dict[str, dict[str, str]]
) -> None:
    patients = defaultdict(list)
    for uid, dataset in datasets.items():
        patients[dataset.PatientID].append((labels[uid], (dataset.Rows, dataset.Columns)))
    assert len(patients) == PATIENTS
    assert {len(images) for images in patients.values()} == {1, 2, 3}
    for images in patients.values():
        assert len({(row["label"], row["hospital"], row["scanner"], size) for row, size in images}) == 1
    sick = sum(images[0][0]["label"] == "lesion" for images in patients.values())
    assert sick == round(PREVALENCE * PATIENTS)


def test_uids_are_valid_unique_and_derived_from_uuids(datasets: dict[str, pydicom.FileDataset]) -> None:
    for dataset in datasets.values():
        uids = (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
        assert len(set(uids)) == 3
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        for uid in uids:
            root, number = uid.rsplit(".", 1)
            assert uid.is_valid and root == "2.25" and UUID(int=int(number)).version == 4
    studies = Counter((d.PatientID, d.StudyInstanceUID) for d in datasets.values())
    assert len({study for _, study in studies}) == len(studies)  # no study of two patients


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_images(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantom(tmp_path / name, patients=12, seed=seed, image_size=48, images_per_patient=(1, 1))
    first = _bytes(tmp_path / "a")
    assert first == _bytes(tmp_path / "b")
    assert len(first) == 2 * 12 + 2
    assert not {p.name for p in (tmp_path / "a/masks").iterdir()} & {p.name for p in (tmp_path / "c/masks").iterdir()}


def test_phantoms_of_another_size_never_share_a_uid(tmp_path: Path) -> None:
    for name, size in (("a", 48), ("b", 64)):
        write_phantom(tmp_path / name, patients=2, seed=1, image_size=size, images_per_patient=(1, 1))
    assert not {p.name for p in (tmp_path / "a/masks").iterdir()} & {p.name for p in (tmp_path / "b/masks").iterdir()}


def test_hospitals_go_with_vendors_but_not_wholly() -> None:
    at: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases(patients=120, seed=2, image_size=32, images_per_patient=(1, 1)):
        at[case.vendor.scanner][case.hospital] += 1
    assert all(places.most_common(1)[0][1] > places.total() / 2 for places in at.values())
    assert len({place for places in at.values() for place in places}) == 4
    assert any(len(places) > 1 for places in at.values())


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_is_where_a_lesion_adds_half_of_its_contrast_and_far_outside_it_adds_nothing(seed: int) -> None:
    chest = grow(np.random.default_rng(seed), lesions=1)
    lesion = chest.lesions[0]
    size = {"height": 128, "width": 128}
    shown = expose(chest, np.random.default_rng(9), **size)
    bare = expose(replace(chest, lesions=()), np.random.default_rng(9), **size)
    difference = shown.pixels - bare.pixels
    free = (shown.pixels < 1) & (bare.pixels > 0)  # not cut off at the ends of the grey scale
    inside = shown.mask.astype(bool) & free
    assert not bare.mask.any() and bare.boxes == ()
    assert 0.5 * lesion.contrast < difference[inside].mean() < 1.2 * lesion.contrast
    assert difference[inside].min() > 0.5 * lesion.contrast * 0.85 - 0.01  # exposure, then noise
    assert difference[~shown.mask.astype(bool)].max() < 0.5 * lesion.contrast * 1.15 + 0.01
    x1, y1, x2, y2 = shown.boxes[0]
    margin = x2 - x1
    far = np.ones_like(inside)
    far[max(0, y1 - margin) : y2 + margin, max(0, x1 - margin) : x2 + margin] = False
    assert np.abs(difference[far]).max() < 0.02


def test_a_folder_with_files_and_impossible_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").touch()
    with pytest.raises(DataError, match=r"must be empty$"):
        write_phantom(tmp_path, patients=1, seed=1)
    for wrong in ({"patients": 0}, {"image_size": 16}, {"images_per_patient": (0, 2)}, {"images_per_patient": (3, 2)}):
        with pytest.raises(DataError, match="at least"):
            next(cases(**{"patients": 1, "seed": 1, **wrong}))
