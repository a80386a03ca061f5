"""What prediction writes as DICOM opens elsewhere, lies where the image lies, and says what made it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archives
import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_cases import ACROSS, DOWN, NORMAL, SIZE, SPACING, enhanced, saved, slice_
from predict_cases import NOW, RETINA, UNET, lines, run
from predict_cases import saved as saved_model
from pydicom.dataset import FileDataset
from pydicom.uid import UltrasoundMultiFrameImageStorage
from small import full_disk, tiny_study

from client import study_results
from client.dicom_objects import image_geometry, read, read_origin
from client.dicom_objects.findings import Finding
from client.dicom_objects.maker import Maker
from client.dicom_objects.origins import Origin, grid_among
from client.dicom_objects.writing import write_report, write_segmentation
from client.drops import Drop, Unusable
from client.planes import Plane

CLASSES = ("lesion", "Gefäß\\rest")
MAKER = Maker(
    name="tiny",
    version="0.1.0",
    weights=("ab" * 32, "cd" * 32),
    studies=("12" * 32, "34" * 32),
    intended_use="research; not a medical device",
    made=NOW,
    rule="vote",
    window=True,
    min_score=0.9,
)


def series(folder: Path, count: int = 3) -> list[Path]:
    return [saved(slice_(number), folder / f"{number}.dcm") for number in range(count)]


def masks_of(count: int, frames: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((frames, len(CLASSES), *SIZE)) < 0.2 for _ in range(count)]


def dump(tool: str, path: Path, *options: str) -> str:
    """What a tool of another maker says of a file; it must not complain."""
    binary = shutil.which(tool)
    if binary is None:
        pytest.skip(f"{tool} is not installed: apt-get install dcmtk")
    done = subprocess.run([binary, *options, str(path)], capture_output=True, check=False)
    said = [line for line in done.stderr.decode().splitlines() if "ISO_IR 192" not in line]  # it can't check UTF-8
    assert done.returncode == 0 and not said, said
    return done.stdout.decode("utf-8")


def test_a_segmentation_comes_back_pixel_for_pixel_on_each_slice(tmp_path: Path) -> None:
    paths, masks = series(tmp_path / "in"), masks_of(3)
    masks[1][:] = False  # a slice where nothing was found
    write_segmentation(tmp_path / "s.dcm", [read_origin(p) for p in paths], masks, classes=CLASSES, maker=MAKER)
    other = hd.seg.segread(tmp_path / "s.dcm")
    assert other.number_of_segments == 2
    for number, (path, mask) in enumerate(zip(paths, masks, strict=True)):
        uid = pydicom.dcmread(path).SOPInstanceUID
        found = other.get_pixels_by_source_instance(
            [uid], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        assert np.array_equal(found[0].transpose(2, 0, 1) > 0, mask[0]), number
    ours = read(tmp_path / "s.dcm", "segmentation")
    mask, _ = ours.mask(uid, 0, SIZE, image_geometry(paths[2])) or (None, None)  # type: ignore[union-attr]
    assert mask is not None and np.array_equal(mask == 2, masks[2][0, 1])
    assert ours.names == ("lesion", "Gefäß/rest")  # type: ignore[union-attr]


def image_of(kind: str) -> FileDataset:
    """An image of one frame, or three, that has no place in the patient, or none that a series could share."""
    match kind:
        case "projection":
            return slice_(0, projection=True)
        case "frames with places":
            return enhanced([slice_(k) for k in range(3)])
        case "frames at one place":
            return enhanced([slice_(k) for k in (0, 1, 1)])
        case "frames":
            image = slice_(0, projection=True)
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
            image.NumberOfFrames, image.PixelData = 3, 3 * image.PixelData
            return image
    image = slice_(0)
    delattr(image, kind)
    return image


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:1]])
@pytest.mark.parametrize(
    "kind",
    [
        "projection",
        "frames",
        "frames with places",
        "frames at one place",
        "FrameOfReferenceUID",
        "PixelSpacing",
        "ImagePositionPatient",
    ],
)
def test_a_segmentation_of_an_image_without_a_place_or_of_many_frames(
    tmp_path: Path, kind: str, classes: tuple[str, ...]
) -> None:
    image = image_of(kind)
    path = saved(image, tmp_path / "image.dcm")
    frames = int(image.get("NumberOfFrames", 1))
    masks = [masks_of(1, frames)[0][:, : len(classes)]]
    masks[0][frames // 2 + 1 :, 0] = False
    write_segmentation(tmp_path / "s.dcm", [read_origin(path)], masks, classes=classes, maker=MAKER)
    other, uid = hd.seg.segread(tmp_path / "s.dcm"), str(image.SOPInstanceUID)
    assert other.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPClassUID == image.SOPClassUID
    (source,) = other.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert (source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID) == (uid, image.SOPClassUID)
    found = (
        other.get_pixels_by_source_frame(
            uid, range(1, frames + 1), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        if frames > 1
        else other.get_pixels_by_source_instance([uid], ignore_spatial_locations=True)
    )
    assert np.array_equal(found.transpose(0, 3, 1, 2) > 0, masks[0])
    assert "FrameOfReferenceUID" in other if kind == "frames with places" else "FrameOfReferenceUID" not in other
    dump("dcmdump", tmp_path / "s.dcm")
    if len(classes) == 1:
        return
    ours = read(tmp_path / "s.dcm", "segmentation")
    for frame in range(frames):
        mask, _ = ours.mask(str(image.SOPInstanceUID), frame, SIZE, image_geometry(path)) or (None, None)  # type: ignore[union-attr]
        assert mask is not None
        assert np.array_equal(mask == 2, masks[0][frame, 1])
        assert np.array_equal(mask == 1, masks[0][frame, 0] & ~masks[0][frame, 1])


def test_slices_at_one_place_get_segmentations_of_their_own(tmp_path: Path) -> None:
    data, echoes = tmp_path / "in", dict[str, int]()
    for number in range(3):
        for echo in (2, 1):
            image = slice_(number, uid=f"1.2.9.3.{number}.{echo}")
            image.EchoNumbers, image.InstanceNumber = echo, 2 * number + echo
            echoes[str(image.SOPInstanceUID)] = echo
            saved(image, data / f"{number}{3 - echo}.dcm")
    model = saved_model(tmp_path / "m", tiny_study(study=UNET["study"], model=UNET["model"]))
    counts = run([model], data, tmp_path / "out", overlays=False).plain
    assert counts["written"] == {"segmentations": 2} and not counts["unwritten"]
    for path in (tmp_path / "out" / "segmentations").iterdir():
        images = read(path, "segmentation").images
        assert len(images) == 3 and len({echoes[uid] for uid in images}) == 1
    for one in lines(tmp_path / "out" / "predictions.csv"):
        ours = read(tmp_path / "out" / one["segmentation"], "segmentation")
        found = ours.mask(one["sop_instance_uid"], 0, SIZE, image_geometry(data / one["file"]))  # type: ignore[union-attr]
        assert found is not None and int((found[0] > 0).sum()) == int(one["pixels:lesion"])


def unsteady(folder: Path, step: float, count: int = 6) -> list[Path]:
    """A series of which each slice's directions are `step` from the last one's, and lengths are written in two ways."""
    paths = []
    for number in range(count):
        image = slice_(number)
        towards = np.array([*ACROSS, *DOWN]) + number * step * np.array([*NORMAL, *-ACROSS])
        image.ImageOrientationPatient = [f"{v:.9f}" for v in towards]
        if number % 2:
            image.PixelSpacing = [f"{v:.4f}" for v in SPACING]
        paths.append(saved(image, folder / f"{number}.dcm"))
    return paths


def corners(image: Any, position: Any, orientation: Any, spacing: Any) -> np.ndarray:
    """Where an image's corner pixels lie, in mm. Source: DICOM PS3.3 C.7.6.2.1.1."""
    x, y = np.array(orientation, float)[:3], np.array(orientation, float)[3:]
    below, beside = (float(v) for v in spacing)
    ends = [(0, 0), (0, image.Columns - 1), (image.Rows - 1, 0), (image.Rows - 1, image.Columns - 1)]
    return np.stack([np.array(position, float) + r * below * y + c * beside * x for r, c in ends])


@pytest.mark.parametrize("step", [1e-7, 6e-5])
def test_slices_whose_directions_differ_below_the_tolerance_share_a_segmentation_that_lies_right(
    tmp_path: Path, step: float
) -> None:
    paths, masks = unsteady(tmp_path / "in", step), masks_of(6)
    model = saved_model(tmp_path / "m", tiny_study(study=UNET["study"], model=UNET["model"]))
    counts = run([model], tmp_path / "in", tmp_path / "out", overlays=False).plain
    assert counts["written"] == {"segmentations": 1} and not counts["unwritten"]
    before = [path.read_bytes() for path in paths]
    origins = [read_origin(path) for path in paths]
    write_segmentation(tmp_path / "s.dcm", origins, masks, classes=CLASSES, maker=MAKER)
    assert [path.read_bytes() for path in paths] == before
    dump("dcmdump", tmp_path / "s.dcm")
    found = pydicom.dcmread(tmp_path / "s.dcm")
    shared = found.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    size = found.NumberOfFrames * SIZE[0] * SIZE[1]
    pixels = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")[:size]
    by_uid = {str(pydicom.dcmread(path).SOPInstanceUID): number for number, path in enumerate(paths)}
    seen = set()
    for group, mask in zip(found.PerFrameFunctionalGroupsSequence, pixels.reshape(-1, *SIZE), strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        number = by_uid[source.ReferencedSOPInstanceUID]
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(mask, masks[number][0, segment - 1])
        image = pydicom.dcmread(paths[number])
        there = corners(image, group.PlanePositionSequence[0].ImagePositionPatient, orientation, spacing)
        here = corners(image, image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing)
        assert np.linalg.norm(there - here, axis=1).max() < min(0.15, 0.25 * min(SPACING))
        seen.add((number, segment))
    assert len(seen) == 12


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01, 2])
@pytest.mark.parametrize("spacing", [0.7, 0.4])
@pytest.mark.parametrize("what", ["tilted", "turned", "wider"])
def test_slices_have_one_grid_while_no_pixel_lies_a_quarter_of_its_size_away_nor_015_mm(
    what: str, spacing: float, share: float
) -> None:
    limit, reach = min(0.15, spacing / 4), 511 * spacing  # 0.15 mm and 0.1 mm, to the end of a row
    turn = share * limit / reach
    x, y, z = np.eye(3)
    changed = {
        "tilted": (np.cos(turn) * x + np.sin(turn) * z, y, (spacing, spacing)),
        "turned": (np.cos(turn) * x + np.sin(turn) * y, y, (spacing, spacing)),
        "wider": (x, y, (spacing, spacing * (1 + turn))),
    }
    planes = [
        Plane(origin=np.full(3, k), across=a, down=d, spacing=s, size=(256, 512))
        for k, (a, d, s) in enumerate([(x, y, (spacing, spacing)), changed[what]])
    ]
    assert planes[0].same_grid(planes[1]) == planes[1].same_grid(planes[0]) == (share < 1)


def test_an_images_grid_is_compared_with_each_grids_first_and_never_rounded() -> None:
    def tilted(turn: float) -> Plane:
        x, y, z = np.eye(3)
        across = np.cos(turn) * x + np.sin(turn) * z
        return Plane(origin=np.zeros(3), across=across, down=y, spacing=(0.7, 0.7), size=(512, 512))

    limit, firsts = 0.15 / (511 * 0.7), list[Plane]()
    shares = [0, 0.8, 1.6, 0.9, 2.4, 0, -0.9, -1.1]
    assert [grid_among(firsts, tilted(limit * share)) for share in shares] == [0, 0, 1, 0, 1, 0, 0, 2]
    assert grid_among([], tilted(0.00005)) == grid_among([tilted(0.0000499)], tilted(0.0000501)) == 0


def test_a_header_of_which_no_result_can_be_made_is_not_called_unreadable(tmp_path: Path) -> None:
    origin = read_origin(series(tmp_path / "in", 1)[0])
    origin.dataset.Rows = 7
    with pytest.raises(Unusable, match="no DICOM result can be made from the image's header") as caught:
        write_segmentation(tmp_path / "s.dcm", [origin], masks_of(1), classes=CLASSES, maker=MAKER)
    assert caught.value.reason is Drop.UNSUPPORTED


def test_a_segmentation_in_which_nothing_was_found_says_so(tmp_path: Path) -> None:
    origins = [read_origin(p) for p in series(tmp_path / "in")]
    empty = [np.zeros((1, 2, *SIZE), np.bool_)] * 3
    write_segmentation(tmp_path / "s.dcm", origins, empty, classes=CLASSES, maker=MAKER)
    assert not hd.seg.segread(tmp_path / "s.dcm").pixel_array.any()


def test_a_full_disk_leaves_no_half_of_a_result(tmp_path: Path) -> None:
    origins = [read_origin(p) for p in series(tmp_path / "in")]
    (tmp_path / "out").mkdir()
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_segmentation(tmp_path / "out" / "s.dcm", origins, masks_of(3), classes=CLASSES, maker=MAKER)
    assert not list((tmp_path / "out").iterdir())


def findings(origins: list[Origin]) -> list[Finding]:
    box = Finding(
        origin=origins[0], frame=0, name="lesion", scores={"lesion": 0.75}, box=(1.5, 2, 9, 7.25), disagreement=0.5
    )
    scores = {"lesion": 0.2, CLASSES[1]: 0.8}
    whole = Finding(origin=origins[1], frame=0, name=CLASSES[1], scores=scores, disagreement=0.25)
    tie = Finding(origin=origins[2], frame=0, name=None, scores=scores, votes={"lesion": 1, CLASSES[1]: 1})
    return [box, whole, tie]


SCORE, VOTES = "Class score, no finding: ", "Class votes, no finding: "
DISAGREEMENT = "Disagreement of models, from 0 to 1"


def said_of(group: Any) -> tuple[dict[str, str], str | None, dict[str, float]]:
    """What a group evaluates, what it is about, and what it measures."""
    about = group.finding_type
    own = [one for one in group.get_qualitative_evaluations() if one.name.scheme_designator == "99FEDWARD"]
    return (
        {one.name.meaning: one.value.meaning for one in own},
        about and about.meaning,
        {one.name.meaning: one.value for one in group.get_measurements()},
    )


def test_a_report_comes_back_with_boxes_classes_and_scores(tmp_path: Path) -> None:
    paths = series(tmp_path / "in")
    origins = [read_origin(p) for p in paths]
    write_report(tmp_path / "r.dcm", origins, findings(origins), maker=MAKER)
    ours = read(tmp_path / "r.dcm", "report")
    assert [region.name for region in ours.regions] == ["lesion"]  # type: ignore[union-attr]
    (found,) = ours.boxes(origins[0].uid, 0, image_geometry(paths[0]))  # type: ignore[union-attr]
    assert (found[0].x1, found[0].y1, found[0].x2, found[0].y2, found[0].name) == (1.5, 2, 9, 7.25, "lesion")
    assert ours.images == {origin.uid for origin in origins}  # type: ignore[union-attr]
    other = hd.sr.srread(tmp_path / "r.dcm")
    (box,) = other.content.get_planar_roi_measurement_groups()  # type: ignore[attr-defined]
    assert [m.value for m in box.get_measurements()] == [0.75, 0.5]
    whole, tie = other.content.get_image_measurement_groups()  # type: ignore[attr-defined]
    scores = {SCORE + "lesion": 0.2, SCORE + "Gefäß/rest": 0.8}
    assert said_of(whole) == (
        {"Class of the highest score": "Gefäß/rest"}, "Gefäß/rest", {DISAGREEMENT: 0.25, **scores}
    )  # fmt: skip
    undecided = {"Class of the most votes": "Undecided: no class is ahead of all others"}
    assert said_of(tie) == (undecided, None, {**scores, VOTES + "lesion": 1, VOTES + "Gefäß/rest": 1})
    assert (other.VerificationFlag, other.CompletionFlag, other.PreliminaryFlag) == (
        "UNVERIFIED", "COMPLETE", "PRELIMINARY"
    )  # fmt: skip


def test_finding_is_the_chosen_class_and_no_other(tmp_path: Path) -> None:
    classes = ("normal", "lesion", "x" * 64)
    origins = [read_origin(p) for p in series(tmp_path / "in")]
    scores = dict(zip(classes, (0.5, 0.45, 0.05), strict=True))
    said = [Finding(origin=one, frame=0, name=name, scores=scores) for one, name in zip(origins, classes, strict=True)]
    undecided = Finding(origin=origins[0], frame=0, name=None, scores=scores, votes=dict.fromkeys(classes, 1))
    for finding in (*said, undecided):
        write_report(tmp_path / "r.dcm", [finding.origin], [finding], maker=MAKER)
        tree = dump("dsrdump", tmp_path / "r.dcm", "+U8", "+Pc").splitlines()  # with codes
        found = [line for line in tree if '(121071,DCM,"Finding")' in line]
        assert len(found) == (finding.name is not None) and all(f'"{finding.name}"' in line for line in found)
        scored = [line for line in tree if "no finding: " in line]
        assert len(scored) == (6 if finding.votes else 3) and all(" NUM:" in line for line in scored)
        assert all(any(f'score, no finding: {name[:39]}"' in line for line in scored) for name in classes)


def test_a_report_without_findings_names_what_was_looked_at(tmp_path: Path) -> None:
    origins = [read_origin(p) for p in series(tmp_path / "in")]
    write_report(tmp_path / "r.dcm", origins, [], maker=MAKER)
    assert read(tmp_path / "r.dcm", "report").images == {origin.uid for origin in origins}
    (group,) = hd.sr.srread(tmp_path / "r.dcm").content.get_image_measurement_groups()  # type: ignore[attr-defined]
    found = {"What the model found": "No box with a score of 0.9 or more"}
    assert said_of(group) == (found, None, {"Least score of a box that is reported": 0.9})


@pytest.mark.slow
def test_the_longest_report_is_still_read_by_our_own_reader(tmp_path: Path) -> None:
    origin = read_origin(series(tmp_path / "in", 1)[0])
    own = [
        Finding(origin=origin, frame=0, name="lesion", scores={"lesion": 0.5}, box=(k, 1, k + 2, 5))
        for k in range(1001)
    ]
    with pytest.raises(ValueError, match="1001 groups"):
        write_report(tmp_path / "r.dcm", [origin], own, maker=MAKER)
    write_report(tmp_path / "r.dcm", [origin], own[:1000], maker=MAKER)
    assert len(read(tmp_path / "r.dcm", "report").regions) == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["segmentation", "report"])
def test_dcmtk_reads_it_without_complaint_and_finds_what_made_it(tmp_path: Path, kind: str) -> None:
    origins = [read_origin(p) for p in series(tmp_path / "in")]
    path = tmp_path / "r.dcm"
    if kind == "report":
        write_report(path, origins, findings(origins), maker=MAKER)
        tree = dump("dsrdump", path, "+U8")
        assert "Imaging Measurement Report" in tree and "Gefäß/rest" in tree and "POLYLINE" in tree
    else:
        write_segmentation(path, origins, masks_of(3), classes=CLASSES, maker=MAKER)
    text = dump("dcmdump", path, "+L")
    for said in ("rule=vote", "window=true", "min_score=0.9"):
        assert said in text, said
    for said in (*MAKER.weights, *MAKER.studies, "Fedward", "0.1.0", MAKER.intended_use, NOW.strftime("%Y%m%d")):
        assert said in text, said
    assert "A^B" in text and "research only" in text  # the patient's name, as the image has it


@pytest.mark.parametrize(
    ("change", "works"),
    [
        ({"PatientSex": "unknown"}, True),
        ({"PatientBirthDate": "1950"}, True),
        ({"StudyTime": "noon"}, True),
        ({"PatientName": None}, True),
        ({"PatientName": "Gefäß^Ü", "SpecificCharacterSet": "ISO_IR 100"}, True),
        ({"Modality": None}, True),
        ({"StudyInstanceUID": None}, False),
        ({"SeriesInstanceUID": ""}, False),
        ({"SOPInstanceUID": None}, False),
    ],
)
def test_a_header_that_lacks_what_a_result_needs(tmp_path: Path, change: dict[str, Any], works: bool) -> None:
    image = slice_(0)
    for name, value in change.items():
        if value is None and name in image:
            delattr(image, name)
        else:
            image[name] = pydicom.DataElement(name, pydicom.datadict.dictionary_VR(name), value, validation_mode=0)
    path = tmp_path / "image.dcm"
    image.save_as(path)
    if not works:
        with pytest.raises(Unusable, match="without"):
            read_origin(path)
        return
    origin = read_origin(path)
    write_segmentation(tmp_path / "s.dcm", [origin], masks_of(1), classes=CLASSES, maker=MAKER)
    write_report(tmp_path / "r.dcm", [origin], findings([origin] * 3), maker=MAKER)
    for name in ("s.dcm", "r.dcm"):
        written = pydicom.dcmread(tmp_path / name)
        assert written.StudyInstanceUID == "1.2.9.1"
        if "SpecificCharacterSet" in change:
            assert str(written.PatientName) == "Gefäß^Ü"


def test_a_folder_gets_one_segmentation_for_a_series_and_leaves_the_images_as_they_are(tmp_path: Path) -> None:
    data = tmp_path / "in"
    series(data, 4)
    saved(slice_(9, projection=True, uid="1.2.9.9"), data / "deep" / "x")  # same series by its UID, but no place
    nameless = slice_(5, uid="1.2.9.5")
    del nameless.StudyInstanceUID
    saved(nameless, data / "nameless.dcm")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    study = tiny_study(study=UNET["study"], model=UNET["model"])
    models = [saved_model(tmp_path / f"m{k}", study, seed=k) for k in range(2)]
    counts = run(models, data, tmp_path / "out").plain
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert counts["written"] == {"overlays": 6, "doubt": 6, "segmentations": 2, "masks": 1}
    assert counts["unwritten"] == {"unsupported": 1} and counts["used"] == counts["files"] == 6
    files = {one["file"]: one for one in lines(tmp_path / "out" / "predictions.csv")}
    written = {one["segmentation"] for one in files.values()}
    assert written == {"", "segmentations/000001.dcm", "segmentations/000002.dcm"}
    assert files["nameless.dcm"]["segmentation"] == "" and files["nameless.dcm"]["pixels:lesion"]
    assert len({files[f"{number}.dcm"]["segmentation"] for number in range(4)}) == 1
    for name, one in files.items():
        if one["segmentation"]:
            ours = read(tmp_path / "out" / one["segmentation"], "segmentation")
            found = ours.mask(one["sop_instance_uid"], 0, SIZE, image_geometry(data / name))  # type: ignore[union-attr]
            assert found is not None and int((found[0] > 0).sum()) == int(one["pixels:lesion"])
    hashes = {json.loads((model / "model.json").read_text())["weights_sha256"] for model in models}
    (segment,) = pydicom.dcmread(tmp_path / "out" / "segmentations" / "000001.dcm").SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert all(one in algorithm.AlgorithmParameters for one in hashes)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_folder_gets_one_report_for_a_study_or_parts_of_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    data = tmp_path / "in"
    series(data, 2)
    other = slice_(3, uid="1.2.9.7")
    other.StudyInstanceUID = "1.2.9.8"
    saved(other, data / "other.dcm")
    values = RETINA if task == "detection" else {"study": {}, "model": {}}
    model = saved_model(tmp_path / "m", tiny_study(study=values["study"], model=values["model"]))
    least = 0.2 if task == "detection" else 0.3
    monkeypatch.setattr(study_results, "GROUPS_LIMIT", 150)  # the first study has two images and 200 boxes
    counts = run([model], data, tmp_path / "out", min_score=least, overlays=False).plain
    assert counts["written"] == {"reports": 3 if task == "detection" else 2}
    table = lines(tmp_path / "out" / "predictions.csv")
    assert len({one["report"] for one in table}) == 2
    for one in table:
        uid, parts = one["sop_instance_uid"], [tmp_path / "out" / name for name in one["report"].split()]
        assert all(uid in read(path, "report").images for path in parts)
        if task == "detection":
            boxes = [box for path in parts for box in read(path, "report").boxes(uid, 0, None)]  # type: ignore[union-attr]
            drawn = [
                b for b in lines(tmp_path / "out" / "boxes.csv") if b["sop_instance_uid"] == one["sop_instance_uid"]
            ]
            drawn = [b for b in drawn if float(b["score"]) >= 0.2]
            assert len(boxes) == len(drawn) == int(one["boxes"]) > 0


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize("name", ["PatientID", "IssuerOfPatientID"])
def test_no_result_is_of_two_patients_whose_studies_and_series_have_one_uid(
    tmp_path: Path, task: str, name: str
) -> None:
    data, owners = tmp_path / "in", {}
    for number in range(4):
        image = slice_(number, uid=f"1.2.9.3.{number + 1}")
        setattr(image, name, owners.setdefault(str(image.SOPInstanceUID), "PA" if number % 2 else "PB"))
        saved(image, data / f"{number}.dcm")
    values = UNET if task == "segmentation" else {"study": {}, "model": {}}
    model = saved_model(tmp_path / "m", tiny_study(study=values["study"], model=values["model"]))
    run([model], data, tmp_path / "out", overlays=False)
    kind = "segmentation" if task == "segmentation" else "report"
    written = sorted((tmp_path / "out" / f"{kind}s").iterdir())
    assert len(written) == 2
    for path in written:
        named = {owners[uid] for uid in read(path, kind).images}  # type: ignore[arg-type]
        assert named == {str(pydicom.dcmread(path).get(name))}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[archives.Orthanc]:
    with archives.orthanc(tmp_path_factory.mktemp("orthanc")) as found:
        yield found


@pytest.mark.e2e
@pytest.mark.skipif(archives.BINARY is None, reason="Orthanc is not installed: apt-get install orthanc")
@pytest.mark.skipif(archives.PLUGIN is None, reason="its DICOMweb plugin is not: apt-get install orthanc-dicomweb")
def test_orthanc_takes_results_in_and_files_them_under_the_images_study(
    tmp_path: Path, archive: archives.Orthanc
) -> None:
    paths = series(tmp_path / "in")
    origins = [read_origin(p) for p in paths]
    write_segmentation(tmp_path / "s.dcm", origins, masks_of(3), classes=CLASSES, maker=MAKER)
    write_report(tmp_path / "r.dcm", origins, findings(origins), maker=MAKER)
    kept = [archive.take(path) for path in (*paths, tmp_path / "s.dcm", tmp_path / "r.dcm")]
    assert all(one["Status"] == "Success" for one in kept)
    assert len({one["ParentStudy"] for one in kept}) == 1 and len({one["ParentPatient"] for one in kept}) == 1
    tags = archive.get(f"instances/{kept[3]['ID']}/simplified-tags").json()
    assert tags["Modality"] == "SEG" and tags["DeviceSerialNumber"] == MAKER.weights[0]
