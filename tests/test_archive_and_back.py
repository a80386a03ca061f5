"""From a hospital's archive to a federation's model and back: what a viewer shows beside the images is what was found.

Two hospitals' images lie in one real Orthanc and are pulled over DICOMweb by one of them and over DIMSE by the other.
The federation is a deployed one, server and sites as processes of their own: what trains here is what hospitals run.
"""

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archives
import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from deployed import enrolled
from dicom_cases import FRAME_OF_REFERENCE, saved, slice_
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from client import dicom_pixels, ensemble
from client.__main__ import app
from client.site import site_toml
from common.model_files import open_model
from common.study import load
from simulations.datasets.phantom import write_phantom

pytestmark = [*archives.needs_orthanc, pytest.mark.slow]
STUDIES = Path(__file__).parent.parent / "simulations" / "studies"
MASKS = load(
    STUDIES / "phantom-masks.toml",
    changes={
        "study.rounds": 6,
        "training.local_epochs": 15,
        "training.learning_rate": 0.01,
        "training.augmentation": "none",
        "aggregation.range": 1.0,
    },
)
BOXES = load(STUDIES / "phantom-boxes.toml", changes={"study.rounds": 5})
LEAST = 0.05  # score of boxes that are reported: a detector of five rounds is sure of little
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
CT = "CT-1"  # a patient with slices that have a place in space, as the phantom's X-rays have none


@dataclass(frozen=True, kw_only=True)
class Circle:
    """What is left when everything has been done."""

    archive: archives.Orthanc
    phantom: Path
    before: dict[str, pydicom.Dataset]  # all objects of the archive by SOPInstanceUID, before results came
    after: dict[str, pydicom.Dataset]
    pulled: Path  # the images that were predicted
    models: dict[str, Path]
    results: dict[str, Path]
    filed: tuple[int, int]  # patients and studies in the archive, before

    @property
    def new(self) -> dict[str, pydicom.Dataset]:
        return {uid: one for uid, one in self.after.items() if uid not in self.before}


def client(*words: object) -> dict[str, Any]:
    """The counts that a command prints; it must have found everything in order."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def holdings(archive: archives.Orthanc) -> dict[str, pydicom.Dataset]:
    found = [
        pydicom.dcmread(io.BytesIO(archive.get(f"instances/{one}/file").content))
        for one in archive.get("instances").json()
    ]
    return {str(one.SOPInstanceUID): one for one in found}


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Circle]:
    base = tmp_path_factory.mktemp("circle")
    phantom = base / "phantom"
    write_phantom(phantom, patients=40, seed=3, image_size=96, images_per_patient=(1, 2))
    with archives.orthanc(base / "archive", DicomAlwaysAllowStore=True) as archive:
        hospitals: dict[str, set[str]] = {}
        for path in sorted(phantom.rglob("*")):
            if path.is_file() and path.suffix not in (".csv", ".json", ".png"):
                archive.take(path)
                patient = str(pydicom.dcmread(path, stop_before_pixels=True).PatientID)
                hospitals.setdefault(path.relative_to(phantom).parts[0], set()).add(patient)
        for number in range(3):
            archive.take(saved(slice_(number, patient=CT), base / "ct" / f"{number}.dcm"))
        hospitals["valley"].add(CT)
        statistics = archive.get("statistics").json()
        for name, patients in hospitals.items():
            (base / f"{name}.txt").write_text("\n".join(sorted(patients)))
        web = (archive.web, "--login-file", archive.login_file)
        sites = []
        for name, address in (("northgate", web), ("lakeside", (archive.dimse,))):
            client("pull", *address, "--patients", base / f"{name}.txt", "--out", base / name, "--rate", 900)
            annotate(base / name / "images", phantom)
            site = base / "sites" / name
            site.mkdir(parents=True)
            (site / "site.toml").write_text(site_toml(name, nominal_patients=10, simulated=True))
            counts = client("index", base / name / "images", "--out", site)
            assert counts["used"] == len(list((base / name / "images").rglob("*.dcm"))) > 10
            assert set(counts["dropped"]) == {"annotation_file"} and counts["patients"] == len(hospitals[name])
            sites.append(site)
        models = {"masks": base / "model-masks", "boxes": base / "model-boxes"}
        with enrolled(base / "federation", sites) as federation:
            federation.start_all()
            for study, out in zip((MASKS, BOXES), models.values(), strict=True):
                federation.submit(study, out)
                assert federation.finished(out)[-1]["event"] == "finished"
        before, pulled = holdings(archive), base / "valley"
        client("pull", *web, "--patients", base / "valley.txt", "--out", pulled, "--rate", 900)
        results = {name: base / f"found-{name}" for name in models}
        for name, model in models.items():
            own = ("--input", pulled / "images", "--out", results[name], "--no-overlays", "--min-score", LEAST)
            assert client("predict", "--model", model, *own)["unwritten"] == {}
        given = client("push", *web, results["masks"], "--rate", 900)
        assert given["stored"] == given["found"] > 5
        given = client("push", archive.dimse, results["boxes"], "--rate", 900)
        assert given["stored"] == given["found"] > 5
        yield Circle(
            archive=archive,
            phantom=phantom,
            before=before,
            after=holdings(archive),
            pulled=pulled / "images",
            models=models,
            results=results,
            filed=(statistics["CountPatients"], statistics["CountStudies"]),
        )


def annotate(images: Path, phantom: Path) -> None:
    """What readers drew on the images that are here, as `client index` takes it."""
    here = {path.stem for path in images.rglob("*.dcm")}
    (images / "masks").mkdir()
    for uid in here:
        shutil.copy(phantom / "masks" / f"{uid}.png", images / "masks")
    coco = json.loads((phantom / "boxes.json").read_text())
    coco["images"] = [one for one in coco["images"] if one["file_name"] in here]
    numbers = {one["id"] for one in coco["images"]}
    coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in numbers]
    (images / "boxes.json").write_text(json.dumps(coco))


def referenced(dataset: pydicom.Dataset) -> set[str]:
    """Every SOPInstanceUID that stands anywhere in an object as a reference."""
    return {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedSOPInstanceUID"}


def test_results_are_filed_under_the_patients_and_studies_of_their_images(circle: Circle) -> None:
    statistics = circle.archive.get("statistics").json()
    assert (statistics["CountPatients"], statistics["CountStudies"]) == circle.filed
    assert {one.Modality for one in circle.new.values()} == {"SEG", "SR"}
    for uid, result in circle.new.items():
        images = referenced(result)
        assert images and images <= circle.before.keys(), f"{uid} names objects that the archive doesn't have"
        for image in (circle.before[one] for one in images):
            for name in PATIENT + STUDY:
                assert (result.get(name) or "") == (image.get(name) or ""), name
        assert result.SeriesInstanceUID not in {one.SeriesInstanceUID for one in circle.before.values()}
        assert "research only" in result.SeriesDescription
    # Nothing of the images themselves has changed.
    assert all(circle.after[uid] == image for uid, image in circle.before.items())


def test_every_mask_comes_back_pixel_for_pixel_on_the_image_it_was_made_of(circle: Circle) -> None:
    model = open_model(circle.models["masks"])
    objects = [hd.seg.Segmentation.from_dataset(one) for one in circle.new.values() if one.Modality == "SEG"]
    checked, right, turned = 0, [], []
    for path in circle.pulled.rglob("*.dcm"):
        uid = path.stem
        image = circle.before[uid]
        (found,) = [one for one in objects if uid in referenced(one)]
        mask = found.get_pixels_by_source_instance(
            [uid], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )[0, :, :, 0]
        window = model.study.preprocessing.window
        pixels = {window: dicom_pixels.pixels(path, window=window)}
        (outcome,) = ensemble.outcomes([model], [pixels], rule="mean", window=False, where=torch.device("cpu"))
        assert mask.shape == (image.Rows, image.Columns)
        assert np.array_equal(mask > 0, outcome.prediction[0])
        checked += 1
        truth = circle.phantom / "masks" / f"{uid}.png"
        if truth.exists() and (drawn := np.asarray(Image.open(truth)) > 0).any():
            right.append(dice(mask > 0, drawn))
            turned.append(max(dice(one > 0, drawn) for one in (mask[::-1], mask[:, ::-1], mask[::-1, ::-1])))
    assert checked > 10
    # The oracle that shares no code: lesions lie where the phantom drew them, and not where a mirror would put them.
    assert np.mean(right) > 2 * np.mean(turned) and np.mean(right) > 0.2, (right, turned)


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def test_a_mask_of_slices_lies_in_their_frame_of_reference_at_their_place(circle: Circle) -> None:
    slices = {uid: one for uid, one in circle.before.items() if one.PatientID == CT}
    (found,) = [one for one in circle.new.values() if one.Modality == "SEG" and one.PatientID == CT]
    assert found.FrameOfReferenceUID == FRAME_OF_REFERENCE
    shared = found.SharedFunctionalGroupsSequence[0]
    for frame in found.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        image = slices[str(source.ReferencedSOPInstanceUID)]
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(place - np.array(image.ImagePositionPatient, float)).max() < 1e-5
        direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        assert np.abs(direction - np.array(image.ImageOrientationPatient, float)).max() < 1e-5
        assert [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == [
            float(v) for v in image.PixelSpacing
        ]


def test_boxes_in_the_reports_lie_where_the_tables_say_in_pixels_of_the_stored_image(circle: Circle) -> None:
    with (circle.results["boxes"] / "boxes.csv").open() as file:
        table = [one for one in csv.DictReader(file) if float(one["score"]) >= LEAST]
    expected: dict[str, list[list[float]]] = {}
    for one in table:
        expected.setdefault(one["sop_instance_uid"], []).append([float(one[name]) for name in ("x1", "y1", "x2", "y2")])
    drawn: dict[str, list[list[float]]] = {}
    reports = [one for one in circle.new.values() if one.Modality == "SR"]
    for report in (hd.sr.ComprehensiveSR.from_dataset(one) for one in reports):
        for group in report.content.get_planar_roi_measurement_groups():  # type: ignore[attr-defined]
            region = group.roi
            uid = str(region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            corners = np.asarray(region.value)
            low, high = corners.min(axis=0), corners.max(axis=0)
            image = circle.before[uid]
            assert (low >= 0).all() and (high <= (image.Columns, image.Rows)).all()
            drawn.setdefault(uid, []).append([*low.tolist(), *high.tolist()])
            (score,) = [m.value for m in group.get_measurements()]
            assert LEAST <= score <= 1
    assert len(table) > 5 and drawn.keys() == expected.keys()
    for uid, boxes in drawn.items():
        apart = np.abs(np.array(boxes)[:, None] - np.array(expected[uid])[None]).max(axis=2)
        assert apart.shape[0] == apart.shape[1] and apart.min(axis=0).max() < 2e-3 > apart.min(axis=1).max()


def test_dcmtk_reads_what_the_archive_gives_back_without_complaint(circle: Circle, tmp_path: Path) -> None:
    binary = shutil.which("dsrdump")
    if binary is None:
        pytest.skip("dsrdump is not installed: apt-get install dcmtk")
    for report in (one for one in circle.new.values() if one.Modality == "SR"):
        report.save_as(tmp_path / "r.dcm")
        done = subprocess.run([binary, "+U8", str(tmp_path / "r.dcm")], capture_output=True, check=False)
        said = [line for line in done.stderr.decode().splitlines() if "ISO_IR 192" not in line]
        assert done.returncode == 0 and not said, said
        text = done.stdout.decode()
        assert "Imaging Measurement Report" in text and "unverified" in text.lower()


def test_what_was_pushed_can_be_pulled_again_as_any_other_object(circle: Circle, tmp_path: Path) -> None:
    patients = {str(one.PatientID) for one in circle.new.values()}
    (tmp_path / "list").write_text("\n".join(sorted(patients)))
    own = ("--login-file", circle.archive.login_file, "--patients", tmp_path / "list", "--out", tmp_path / "out")
    client("pull", circle.archive.web, *own, "--modality", "SEG", "--modality", "SR", "--rate", 900)
    assert {path.stem for path in (tmp_path / "out").rglob("*.dcm")} == circle.new.keys()
