"""DICOM objects beside the images of a folder, from the files to the index."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import (
    BIG,
    COUNT,
    SIZE,
    blank,
    drawn,
    enhanced,
    region,
    report,
    ring,
    saved,
    segmentation,
    slice_,
    structure_set,
)
from PIL import Image
from predict_cases import NOW, UNET, run
from predict_cases import saved as saved_model
from pydicom.dataset import FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from small import KEY, tiny_study
from typer.testing import CliRunner

from client import index
from client.__main__ import app
from client.agreement import summary
from client.annotations import Finding, Remark
from client.dicom_objects import read_origin
from client.dicom_objects.writing import Finding as Box
from client.dicom_objects.writing import Maker, write_report
from client.drops import Drop, Dropped
from client.records import Row
from client.sources import Found, scan

NAMES = ["lesion", "node"]
MAKER = Maker(name="tiny", version="1", weights=("ab" * 32,), studies=("12" * 32,), intended_use="research", made=NOW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The series of one patient, on slices of which objects can be drawn."""
    for number in range(COUNT):
        saved(slice_(number), tmp_path / "in" / "series" / f"{number}.dcm")
    return tmp_path / "in"


@pytest.fixture
def series() -> list[FileDataset]:
    return [slice_(number) for number in range(COUNT)]


def indexed(folder: Path, **options: object) -> dict[str, Row]:
    """The index's rows by path, after a check that each file is accounted for."""
    site = folder.parent / "site"
    index.build("dicom", folder, site, patient_key=KEY, **options)  # type: ignore[arg-type]
    assert index.counts(site).files == sum(path.is_file() for path in folder.rglob("*"))
    return {row.source.path: row for row in index.read(site)}


def remarks(folder: Path) -> list[tuple[Finding, str]]:
    return [(one.finding, one.place) for one in index.remarks(folder.parent / "site")]


def test_a_segmentation_annotates_the_images_that_it_names(folder: Path, series: list[FileDataset]) -> None:
    saved(segmentation(series[:4], drawn()[:4], NAMES), folder / "results" / "SEG0001")
    rows = indexed(folder)
    assert sorted(rows) == [f"series/{number}.dcm" for number in range(4)]
    for number in range(4):
        known = rows[f"series/{number}.dcm"].annotation
        assert known.mask_names == ("lesion", "node") and known.mask is not None
        assert np.array_equal(known.mask, drawn()[number])
    reasons = {one.path: one.reason for one in index.dropped(folder.parent / "site")}
    assert reasons == {"results/SEG0001": Drop.ANNOTATION_FILE, "series/4.dcm": Drop.NO_ANNOTATION}
    assert not remarks(folder) and not index.agreements(folder.parent / "site")


def test_the_command_line_uses_what_lies_beside_the_images(folder: Path, series: list[FileDataset]) -> None:
    saved(segmentation(series, drawn(), NAMES), folder / "seg.dcm")
    result = CliRunner().invoke(app, ["index", str(folder), "--out", str(folder.parent / "site"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert sum(row.annotation.mask is not None for row in index.read(folder.parent / "site")) == COUNT


def test_names_are_replaced_by_the_studys(folder: Path, series: list[FileDataset]) -> None:
    saved(structure_set(series, {"GTV-1": [(ring(BIG, 1), series[1])]}), folder / "rt.dcm")
    (folder / "names.csv").write_text("found,class\nGTV-1,lesion\nNodule,lesion\n")
    saved(report(series, [(region("CIRCLE", [[5, 5], [5, 8]], series[2]), codes.SCT.Nodule)]), folder / "sr.dcm")
    rows = indexed(folder)
    known = rows["series/1.dcm"].annotation
    assert known.mask_names == ("lesion",) and known.mask is not None and known.mask.sum() == 56
    assert known.boxes is None  # the only report has none here: not annotated
    (box,) = rows["series/2.dcm"].annotation.boxes or ()
    assert (box.x1, box.y1, box.x2, box.y2, box.name) == (2, 2, 8, 8, "lesion")
    assert rows["series/2.dcm"].columns == {"Diameter (mm)": "4.5"}


def test_an_object_of_another_patient_is_never_used(folder: Path, series: list[FileDataset]) -> None:
    other = segmentation(series, drawn(), NAMES)
    other.PatientID = "Q"
    saved(other, folder / "seg.dcm")
    nobody = structure_set(series, {"lesion": [(ring(BIG, 1), series[1])]}, listed=False)
    del nobody.PatientID
    saved(nobody, folder / "rt.dcm")
    rows = indexed(folder, require_annotation=False)
    assert len(rows) == COUNT and all(row.annotation.mask is None for row in rows.values())
    assert remarks(folder) == [(Finding.LABEL_WITHOUT_IMAGE, "rt.dcm"), (Finding.LABEL_WITHOUT_IMAGE, "seg.dcm")]


def test_what_names_no_image_counts_in_its_frame_of_reference(folder: Path, series: list[FileDataset]) -> None:
    drawn_ = [(ring(BIG, number), None) for number in (1, 2)]
    saved(structure_set(series, {"lesion": drawn_}, listed=False), folder / "rt.dcm")
    assert sorted(indexed(folder)) == ["series/1.dcm", "series/2.dcm"]


def test_several_readers_are_fused_and_their_agreement_kept(folder: Path, series: list[FileDataset]) -> None:
    votes = [drawn(), drawn(), np.zeros_like(drawn())]
    votes[1][1, 2:5, 8] = 0
    for number, values in enumerate(votes):
        saved(segmentation(series, values, NAMES), folder / f"reader-{number}.dcm")
    expected = votes[1]
    rows = indexed(folder)
    for number in range(COUNT):
        assert np.array_equal(rows[f"series/{number}.dcm"].annotation.mask, expected[number])
    found = index.agreements(folder.parent / "site")
    assert [(one.path, one.item) for one in found] == [("series/1.dcm", 0), ("series/3.dcm", 0)]
    assert found[0].dice["lesion"] == pytest.approx((2 * 15 / 33) / 3) and found[0].dice["node"] == pytest.approx(1 / 3)
    assert summary(found)["dice"] == {
        "lesion": {"mean": pytest.approx((found[0].dice["lesion"] + 1 / 3) / 2), "images": 2},
        "node": {"mean": pytest.approx(1 / 3), "images": 1},
    }


def test_staple_is_used_where_it_is_asked_for(folder: Path, series: list[FileDataset]) -> None:
    truth, rng = drawn() == 1, np.random.default_rng(2)
    votes = [truth, truth, *(truth ^ (rng.random(truth.shape) < 0.35) for _ in range(3))]
    for number, values in enumerate(votes):
        saved(segmentation(series, values.astype(np.uint8), ["lesion"]), folder / f"reader-{number}.dcm")
    masks = [indexed(folder, fusion=how)["series/1.dcm"].annotation.mask for how in ("majority", "staple")]
    assert masks[0] is not None and np.count_nonzero((masks[0] > 0) != truth[1]) == 10
    assert masks[1] is not None and np.array_equal(masks[1] > 0, truth[1])


def test_a_reader_whose_report_has_no_box_on_an_image_saw_nothing_there(
    folder: Path, series: list[FileDataset]
) -> None:
    here, there = region("CIRCLE", [[5, 5], [5, 8]], series[1]), region("CIRCLE", [[9, 5], [9, 8]], series[2])
    for number, outlines in enumerate(((here,), (here, there), (here,))):
        written = report(series, [(outline, codes.SCT.Nodule) for outline in outlines])
        saved(written, folder / f"sr{number}.dcm")
    rows = indexed(folder)
    assert sorted(rows) == ["series/1.dcm", "series/2.dcm"]
    assert [len(rows[path].annotation.boxes or ()) for path in sorted(rows)] == [1, 0]
    assert remarks(folder) == [(Finding.OUTVOTED, "series/2.dcm")]
    iou = {one.path: one.iou for one in index.agreements(folder.parent / "site")}
    assert iou == {"series/1.dcm": {"Nodule": 1.0}, "series/2.dcm": {"Nodule": 0.0}}


def test_what_can_not_be_used_is_named_and_harms_no_other(folder: Path, series: list[FileDataset]) -> None:
    saved(segmentation(series, drawn(), NAMES), folder / "a.dcm")
    (folder / "copy.dcm").write_bytes((folder / "a.dcm").read_bytes())
    (folder / "cut.dcm").write_bytes((folder / "a.dcm").read_bytes()[:-400])
    moved = segmentation(series, drawn(), NAMES)
    moved.FrameOfReferenceUID = "1.2.3"
    saved(moved, folder / "moved.dcm")
    overlapping = np.zeros((COUNT, *SIZE, 2), np.uint8)
    overlapping[2, 3:5, 3:5] = 1
    saved(segmentation(series, overlapping, NAMES), folder / "overlap.dcm")
    saved(blank("1.2.840.10008.5.1.4.1.1.88.33", generate_uid()), folder / "silent.dcm")
    saved(blank("1.2.840.10008.5.1.4.1.1.88.67", generate_uid()), folder / "dose.dcm")
    assert len(indexed(folder)) == COUNT
    found = {place: finding for finding, place in remarks(folder)}
    assert {place.split(":")[0].split(" ")[0]: finding for place, finding in found.items()} == {
        "copy.dcm": Finding.ANNOTATION_NOT_USABLE,
        "cut.dcm": Finding.ANNOTATION_NOT_USABLE,
        "moved.dcm": Finding.ANNOTATION_NOT_USABLE,
        "overlap.dcm": Finding.OVERLAPPING_CLASSES,
    } | {f"series/{number}.dcm": Finding.OUTVOTED for number in (1, 2, 3)}
    assert f"moved.dcm: another frame of reference than the image's ({COUNT} images)" in found
    assert "overlap.dcm (1 images)" in found
    reasons = {one.path: one.reason for one in index.dropped(folder.parent / "site")}
    assert reasons.pop("dose.dcm") is Drop.NO_PIXELS and set(reasons.values()) == {Drop.ANNOTATION_FILE}


def test_a_models_results_beside_the_images_change_no_annotation(folder: Path, series: list[FileDataset]) -> None:
    saved(segmentation(series[:2], drawn()[:2], NAMES), folder / "human.dcm")
    saved(report(series, [(region("CIRCLE", [[5, 5], [5, 8]], series[1]), codes.SCT.Nodule)]), folder / "sr.dcm")
    before = {path: plain(row) for path, row in indexed(folder).items()}
    assert sorted(before) == ["series/0.dcm", "series/1.dcm"] and before["series/1.dcm"]["boxes"]
    model = saved_model(folder.parent / "model", tiny_study(**UNET))
    assert run([model], folder, folder.parent / "out", overlays=False).plain["written"]["segmentations"] == 1  # type: ignore[index]
    shutil.copytree(folder.parent / "out" / "segmentations", folder / "results")
    origins = [read_origin(folder / "series" / f"{number}.dcm") for number in range(COUNT)]
    boxes = [Box(origin=one, frame=0, name="lesion", scores={"lesion": 0.9}, box=(1, 1, 9, 9)) for one in origins]
    write_report(folder / "results" / "report.dcm", origins, boxes, maker=MAKER)
    assert {path: plain(row) for path, row in indexed(folder).items()} == before
    assert remarks(folder) == [(Finding.OWN_RESULT, f"results/{name}.dcm") for name in ("000001", "report")]
    assert {path: plain(row) for path, row in indexed(folder, keeps_automatic=True).items()} == before


def plain(row: Row) -> dict[str, object]:
    known = row.annotation
    mask = None if known.mask is None else known.mask.tolist()
    return {"mask": mask, "names": known.mask_names, "boxes": known.boxes, "columns": row.columns}


def test_what_a_program_made_alone_counts_where_it_is_asked_for(folder: Path, series: list[FileDataset]) -> None:
    mixed = segmentation(series[:4], drawn()[:4], NAMES)
    mixed.SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"
    saved(mixed, folder / "mixed.dcm")
    alone = segmentation(series[4:], drawn()[3:4], NAMES)
    for segment in alone.SegmentSequence:
        segment.SegmentAlgorithmType = "AUTOMATIC"
    saved(alone, folder / "alone.dcm")
    rows = indexed(folder)
    assert sorted(rows) == [f"series/{number}.dcm" for number in range(4)]
    for number in range(4):
        known = rows[f"series/{number}.dcm"].annotation
        assert known.mask_names == ("node",) and np.array_equal(known.mask, drawn()[number] == 2)
    assert remarks(folder) == [(Finding.MADE_BY_A_PROGRAM, name) for name in ("alone.dcm", "mixed.dcm")]
    site = folder.parent / "site"
    done = CliRunner().invoke(app, ["index", str(folder), "--out", str(site), "--automatic", "keep", "--quiet"])
    assert done.exit_code == 0, done.output
    rows = {row.source.path: row for row in index.read(site)}
    assert len(rows) == COUNT and rows["series/1.dcm"].annotation.mask_names == ("lesion", "node")
    assert np.array_equal(rows["series/1.dcm"].annotation.mask, drawn()[1]) and not remarks(folder)


@pytest.mark.parametrize(
    ("change", "is_used"),
    [
        ({"PreliminaryFlag": "PRELIMINARY"}, True),  # a person's, whatever else it says
        (
            {"observer": "121007", "PreliminaryFlag": "FINAL"},
            True,
        ),  # a work station that is named instead of who sits there
        ({"observer": "121007", "PreliminaryFlag": "PRELIMINARY"}, False),
        ({"observer": "121007", "PreliminaryFlag": "PRELIMINARY", "VerificationFlag": "VERIFIED"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.65"}, False),  # chest CAD
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.65", "VerificationFlag": "VERIFIED"}, True),
    ],
)
def test_a_programs_report_counts_once_a_person_has_verified_it(
    folder: Path, series: list[FileDataset], change: dict[str, str], is_used: bool
) -> None:
    written = report(series, [(region("CIRCLE", [[5, 5], [5, 8]], series[2]), codes.SCT.Nodule)])
    for name, value in change.items():
        if name == "observer":
            (said,) = [
                item
                for item in written.ContentSequence
                if item.ConceptNameCodeSequence[0].CodeValue == "121005" and item.ValueType == "CODE"
            ]
            said.ConceptCodeSequence[0].CodeValue = value
        else:
            setattr(written, name, value)
    written.file_meta.MediaStorageSOPClassUID = written.SOPClassUID
    saved(written, folder / "sr.dcm")
    assert sorted(indexed(folder)) == (["series/2.dcm"] if is_used else [])
    assert remarks(folder) == ([] if is_used else [(Finding.MADE_BY_A_PROGRAM, "sr.dcm")])


def test_a_segmentation_beside_mask_pictures_is_left_out_and_counted(folder: Path, series: list[FileDataset]) -> None:
    saved(segmentation(series, drawn(), NAMES), folder / "seg.dcm")
    (folder / "masks").mkdir()
    for number in (1, 2):
        Image.fromarray(np.ones(SIZE, np.uint8)).save(folder / "masks" / f"1.2.9.3.{number + 1}.png")
    rows = indexed(folder)
    assert [rows[f"series/{n}.dcm"].annotation.mask_names for n in range(3)] == [("lesion", "node"), None, None]
    assert remarks(folder) == [(Finding.NOT_COMPARABLE, "seg.dcm (2 images)")]


@pytest.mark.parametrize(
    ("made", "approval", "is_used"),
    [
        (("AUTOMATIC", "AUTOMATIC"), "UNAPPROVED", False),
        (("AUTOMATIC", "AUTOMATIC"), "APPROVED", True),
        (("AUTOMATIC", "SEMIAUTOMATIC"), "UNAPPROVED", True),
        (("", ""), "UNAPPROVED", True),
    ],
)
def test_a_programs_structure_set_counts_once_a_person_has_approved_it(
    folder: Path, series: list[FileDataset], made: tuple[str, str], approval: str, is_used: bool
) -> None:
    written = structure_set(series, {name: [(ring(BIG, 1), series[1])] for name in NAMES}, listed=False)
    for one, how in zip(written.StructureSetROISequence, made, strict=True):
        one.ROIGenerationAlgorithm = how
    written.ApprovalStatus = approval
    saved(written, folder / "rt.dcm")
    assert sorted(indexed(folder)) == (["series/1.dcm"] if is_used else [])
    assert [finding for finding, _ in remarks(folder)] == (
        [Finding.OVERLAPPING_CLASSES] if is_used else [Finding.MADE_BY_A_PROGRAM]
    )


def test_frames_of_a_multi_frame_file_are_images_of_their_own(tmp_path: Path, series: list[FileDataset]) -> None:
    image = enhanced(series)
    saved(image, tmp_path / "in" / "ct.dcm")
    written = structure_set([], {"lesion": [(ring(BIG, n), None) for n in (1, 2)]}, listed=False)
    saved(written, tmp_path / "in" / "rt.dcm")
    items = list(scan(tmp_path / "in", "dicom"))
    found = [one for one in items if isinstance(one, Found)]
    assert [one.source.item for one in found] == [1, 2]
    assert all(one.annotation.mask is not None and one.annotation.mask.sum() == 56 for one in found)
    dropped = {(one.path, one.item): one.reason for one in items if isinstance(one, Dropped)}
    assert dropped == {("rt.dcm", None): Drop.ANNOTATION_FILE} | {
        ("ct.dcm", item): Drop.NO_ANNOTATION for item in (0, 3, 4)
    }
    assert not [one for one in items if isinstance(one, Remark)]
    index.build("dicom", tmp_path / "in", tmp_path / "site", patient_key=KEY)
    counts = index.counts(tmp_path / "site")
    assert (counts.used, counts.images, counts.dropped_images) == (1, 2, {Drop.NO_ANNOTATION: 3})


def test_more_objects_than_are_held_are_read_again(
    folder: Path, series: list[FileDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        saved(segmentation(series, drawn(), NAMES), folder / f"{number}.dcm")
    monkeypatch.setattr("client.annotations.dicom._HELD", 1)
    rows = indexed(folder)
    assert all(np.array_equal(rows[f"series/{n}.dcm"].annotation.mask, drawn()[n]) for n in range(COUNT))


def test_masks_and_boxes_of_several_readers_lie_in_named_places(tmp_path: Path) -> None:
    def picture(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    root = tmp_path / "in"
    saved(slice_(0, uid="1.2.1"), root / "a.dcm")
    boxes = '{"images":[{"id":1,"file_name":"1.2.1"}],"categories":[{"id":1,"name":"lesion"}],"annotations":[%s]}'
    one = '{"image_id":1,"category_id":1,"bbox":[%d,2,4,4]}'
    for number, reader in enumerate(("anna", "ben", "cara")):
        values = np.zeros(SIZE, np.uint8)
        values[2:6, 2 + number : 8] = 1
        picture(root / f"masks-{reader}" / "1.2.1.png", values)
        (root / f"boxes-{reader}.json").write_text(boxes % (one % (2 + number) if number else ""))
    (root / "labels.csv").write_text("key,label,reader\n1.2.1,x,anna\n1.2.1,x,ben\n1.2.1,y,cara\n")
    assert CliRunner().invoke(app, ["index", str(root), "--out", str(tmp_path / "site"), "--quiet"]).exit_code == 0
    (row,) = index.read(tmp_path / "site")
    assert row.annotation.label == "x" and row.annotation.mask is not None and row.annotation.mask.sum() == 4 * 5
    (box,) = row.annotation.boxes or ()
    assert (box.x1, box.x2) == (3.5, 7.5)
    (agreement,) = index.agreements(tmp_path / "site")
    assert agreement.labels == {"anna": "x", "ben": "x", "cara": "y"} and agreement.iou == {
        "lesion": pytest.approx(0.2)
    }
    assert agreement.dice == {"1": pytest.approx((40 / 44 + 32 / 40 + 32 / 36) / 3)}
    assert not index.remarks(tmp_path / "site")
    # The same beside plain pictures.
    picture(tmp_path / "plain" / "images" / "a.png", np.zeros(SIZE, np.uint8))
    picture(tmp_path / "plain" / "masks-anna" / "a.png", np.ones(SIZE, np.uint8))
    picture(tmp_path / "plain" / "masks-ben" / "a.png", np.zeros(SIZE, np.uint8))
    index.build("auto", tmp_path / "plain", tmp_path / "other", patient_key=KEY)
    (plain,) = index.read(tmp_path / "other")
    assert plain.annotation.mask is not None and plain.annotation.mask.max() == 0
