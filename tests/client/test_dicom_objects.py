"""DICOM segmentations, structure sets and reports against highdicom's own reading, affines worked out by hand, and
files that mean harm.
"""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_cases import (
    ACROSS,
    BIG,
    COUNT,
    DOWN,
    FRAME_OF_REFERENCE,
    NORMAL,
    ORIGIN,
    SIZE,
    SMALL,
    SPACING,
    STEP,
    blank,
    drawn,
    enhanced,
    region,
    region_3d,
    report,
    ring,
    saved,
    segmentation,
    slice_,
    structure_set,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from client import dicom_objects
from client.dicom import quiet
from client.dicom_objects import Geometry, Report, Segmentation, StructureSet, View, view_of
from client.dicom_objects.counting import elements
from client.dicom_objects.segments import segment_name
from client.drops import Drop, Unusable

NOWHERE = Geometry(frame_of_reference=None, planes=(None,), spacing=None, thickness=None)


@pytest.fixture
def series() -> list[FileDataset]:
    return [slice_(number) for number in range(COUNT)]


def as_object(dataset: Dataset, folder: Path) -> Any:
    path = saved(dataset, folder / "object.dcm")
    kind = dicom_objects.kind_of(path.read_bytes()[: dicom_objects.HEAD])
    assert kind is not None
    with quiet():
        return dicom_objects.read(path, kind)


def place(image: FileDataset, folder: Path) -> Geometry:
    with quiet():
        return dicom_objects.image_geometry(saved(image, folder / "image.dcm"))


def mask_on(found: Segmentation | StructureSet, image: FileDataset, folder: Path) -> NDArray[np.uint8]:
    result = found.mask(image.SOPInstanceUID, 0, (image.Rows, image.Columns), place(image, folder))
    assert result is not None
    return result[0]


# --- segmentations


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", None),
        ("LABELMAP", None),
        ("LABELMAP", RLELossless),
        ("FRACTIONAL", None),
        ("FRACTIONAL", RLELossless),
    ],
)
def test_each_slices_mask_is_what_highdicom_reads_back(
    kind: str, syntax: str | None, series: list[FileDataset], tmp_path: Path
) -> None:
    values = drawn()
    pixels: Any = values
    if kind == "FRACTIONAL":
        pixels = np.stack([(values == 1) * 0.6, (values == 2) * 0.5 + (values == 1) * 0.4], axis=-1)
    options = {} if syntax is None else {"transfer_syntax_uid": syntax}
    written = segmentation(series, pixels, ["lesion", "node"], segmentation_type=kind, **options)
    found = as_object(written, tmp_path)
    assert (found.uid, found.patient_id) == (written.SOPInstanceUID, "P")
    assert found.names == ("lesion", "node") and found.images == {image.SOPInstanceUID for image in series}
    expected = written.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in series],
        combine_segments=kind != "FRACTIONAL",
        assert_missing_frames_are_empty=True,
    )
    for number, image in enumerate(series):
        other = expected[number] if kind != "FRACTIONAL" else (expected[number] >= 0.5) @ (1, 2)
        assert np.array_equal(mask_on(found, image, tmp_path), other)
        assert np.array_equal(other, values[number])


AFFINE = np.eye(4)
AFFINE[:3, 0], AFFINE[:3, 1], AFFINE[:3, 2] = NORMAL * STEP, DOWN * SPACING[0], ACROSS * SPACING[1]
AFFINE[:3, 3] = ORIGIN


def turned(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    cross = np.cross(np.eye(3), axis)
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * -cross + (1 - np.cos(angle)) * cross @ cross


# Axes of the annotation's volume [slice, row, column] as columns, its voxel size and number of voxels.
GRIDS: dict[str, tuple[NDArray[np.float64], tuple[float, float, float], tuple[int, int, int]]] = {
    "finer": (np.stack((NORMAL, DOWN, ACROSS), 1), (3, 0.7, 0.6), (5, 34, 40)),
    "coarser": (np.stack((NORMAL, DOWN, ACROSS), 1), (5.1, 3.1, 2.9), (4, 8, 9)),
    "turned in its plane": (turned(NORMAL, 33) @ np.stack((NORMAL, DOWN, ACROSS), 1), (3, 1.1, 1.3), (5, 30, 30)),
    "from below": (np.stack((-NORMAL, DOWN, -ACROSS), 1), (3, 2, 1.5), (5, 12, 16)),
    "across the slices": (np.stack((ACROSS, NORMAL, DOWN), 1), (1.7, 0.9, 1.2), (14, 18, 21)),
    "at a slant": (turned(DOWN, 20) @ np.stack((NORMAL, DOWN, ACROSS), 1), (2.3, 1.9, 1.4), (13, 15, 20)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_another_grid_is_mapped_by_place_in_the_patient(grid: str, series: list[FileDataset], tmp_path: Path) -> None:
    axes, size, shape = GRIDS[grid]
    affine = np.eye(4)
    affine[:3, :3] = axes * size
    middle = (AFFINE @ (*(n / 2 - 0.5 for n in (COUNT, *SIZE)), 1))[:3]
    middle += (0.05, -0.03, 0.02)  # no ties
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2 - 0.5)
    # Blobs, so that a mask shows any shift or turn, and no slice of the volume is empty.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    wave = np.sin(index @ (0.9, 0.37, 0.23)) + np.cos(index @ (0.2, -0.31, 0.41))
    values = (wave > 0.4).astype(np.uint8) + 2 * (wave < -0.6).astype(np.uint8)
    volume = hd.Volume(values, affine, coordinate_system="PATIENT", frame_of_reference_uid=FRAME_OF_REFERENCE)
    found = as_object(segmentation(series, volume, ["lesion", "node"]), tmp_path)
    to_voxel, total = np.linalg.inv(affine) @ AFFINE, 0
    for number, image in enumerate(series):
        expected = np.zeros(SIZE, np.uint8)
        for row in range(SIZE[0]):
            for column in range(SIZE[1]):
                voxel = np.floor((to_voxel @ (number, row, column, 1))[:3] + 0.5).astype(int)
                if (voxel >= 0).all() and (voxel < shape).all():
                    expected[row, column] = values[tuple(voxel)]
        assert np.array_equal(mask_on(found, image, tmp_path), expected)
        total += np.count_nonzero(expected)
    assert total > 200  # of 960 pixels


def test_an_image_of_the_volume_that_is_not_named_is_not_annotated(series: list[FileDataset], tmp_path: Path) -> None:
    found = as_object(segmentation(series[:2], drawn()[:2], ["lesion", "node"]), tmp_path)
    far = slice_(4, uid="1.2.99")
    assert found.mask("1.2.99", 0, SIZE, place(far, tmp_path)) is None
    assert mask_on(found, series[0], tmp_path).max() == 0  # named, and nothing drawn: background


def test_another_frame_of_reference_is_refused(series: list[FileDataset], tmp_path: Path) -> None:
    found = as_object(segmentation(series, drawn(), ["lesion", "node"]), tmp_path)
    series[1].FrameOfReferenceUID = "1.2.3"
    with pytest.raises(Unusable, match="frame of reference"):
        mask_on(found, series[1], tmp_path)


def test_projections_are_mapped_pixel_by_pixel_if_they_are_of_one_size(tmp_path: Path) -> None:
    image = slice_(0, projection=True)
    found = as_object(segmentation([image], drawn()[1:2], ["lesion", "node"]), tmp_path)
    assert np.array_equal(mask_on(found, image, tmp_path), drawn()[1])
    assert found.mask("1.2.99", 0, SIZE, NOWHERE) is None
    with pytest.raises(Unusable, match="12 x 16 pixels where the image has 24 x 32"):
        found.mask(image.SOPInstanceUID, 0, (24, 32), NOWHERE)


def test_pixels_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    image = slice_(0, projection=True)
    written = segmentation([image], drawn()[1:2], ["lesion", "node"])
    source = written.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.SpatialLocationsPreserved = "NO"
    with pytest.raises(Unusable, match="elsewhere"):
        mask_on(as_object(written, tmp_path), image, tmp_path)


def test_a_slice_thicker_than_the_way_to_the_next_stays_on_its_own(series: list[FileDataset], tmp_path: Path) -> None:
    values = drawn()
    values[3] = 0
    written = segmentation(series, values, ["lesion", "node"])
    measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices
    measures.SliceThickness = "7.5"
    found = as_object(written, tmp_path)
    assert [int(mask_on(found, image, tmp_path).max()) for image in series] == [0, 2, 0, 0, 0]


def test_segments_of_one_name_are_one_class_and_the_later_covers_the_earlier(
    series: list[FileDataset], tmp_path: Path
) -> None:
    pixels = np.zeros((COUNT, *SIZE, 3), np.uint8)
    pixels[2, 2:6, 2:6, 0] = pixels[2, 7:9, 2:6, 2] = pixels[2, 4:8, 4:8, 1] = 1
    kinds = [codes.SCT.Nodule, codes.SCT.Mass, codes.SCT.Nodule]
    found = as_object(segmentation(series, pixels, ["Nodule 1", "mass", "Nodule 2"], kinds=kinds), tmp_path)
    result = found.mask(series[2].SOPInstanceUID, 0, SIZE, place(series[2], tmp_path))
    expected = np.zeros(SIZE, np.uint8)
    expected[2:6, 2:6], expected[4:8, 4:8], expected[7:9, 2:6] = 1, 2, 1
    assert found.names == ("Nodule", "mass") and result is not None
    assert np.array_equal(result[0], expected) and result[1] is True


@pytest.mark.parametrize(
    ("label", "kind", "name"),
    [
        ("Left lung", "Lung", "Left lung"),
        ("Nodule 2", "Nodule", "Nodule"),
        ("nodule_03", "Nodule", "Nodule"),
        ("nodule", "Nodule", "nodule"),
        ("Segment_1", "Nodule", "Nodule"),
        ("Lesion 1", "Neoplasm", "Lesion 1"),
        ("T12", None, "T12"),
        (None, "Nodule", "Nodule"),
        (None, None, "unnamed"),
    ],
)
def test_a_segment_is_called_by_its_label_unless_that_only_counts(
    label: str | None, kind: str | None, name: str
) -> None:
    assert segment_name(label, kind) == name


def test_frames_of_a_multi_frame_image_are_told_apart_by_place(series: list[FileDataset], tmp_path: Path) -> None:
    image = enhanced(series)
    found = as_object(segmentation([image], drawn(), ["lesion", "node"]), tmp_path)
    geometry = place(image, tmp_path)
    assert len(geometry.planes) == COUNT and geometry.spacing == STEP
    for number in range(COUNT):
        result = found.mask("1.2.9.4", number, SIZE, geometry)
        assert result is not None and np.array_equal(result[0], drawn()[number])


# --- structure sets


def test_outlines_cover_the_pixels_inside_them_and_an_inner_one_is_a_hole(
    series: list[FileDataset], tmp_path: Path
) -> None:
    regions = {
        "lesion": [(ring(BIG, 1), series[1]), (ring(SMALL, 1), series[1]), (ring(SMALL, 3), series[3])],
        "node": [(ring([(10, 9.5), (14.3, 9.5), (14.3, 11.2)], 1), series[1])],
        "nothing drawn": [],
    }
    written = structure_set(series, regions)
    found = as_object(written, tmp_path)
    assert (found.uid, found.patient_id) == (written.SOPInstanceUID, "P")
    assert found.names == ("lesion", "node", "nothing drawn")
    assert found.images == {image.SOPInstanceUID for image in series}
    expected = np.zeros((COUNT, *SIZE), np.uint8)
    expected[1, 2:9, 2:10], expected[1, 4:6, 4:7] = 1, 0
    expected[1, 10, 12:15] = expected[1, 11, 14] = 2  # row 10 crosses the slant at column 11.3, row 11 at 13.8
    expected[3, 4:6, 4:7] = 1
    for number, image in enumerate(series):
        assert np.array_equal(mask_on(found, image, tmp_path), expected[number]), number


def test_outlines_without_image_count_for_the_nearest_slice(series: list[FileDataset], tmp_path: Path) -> None:
    lifted = [(ring(BIG, number) + 0.4 * NORMAL, None) for number in (1, 2, 4)]
    found = as_object(structure_set(series, {"lesion": lifted}, listed=False), tmp_path)
    assert found.images == frozenset() and found.frames_of_reference == {FRAME_OF_REFERENCE}
    results = [found.mask("1.2.99", 0, SIZE, place(slice_(k, uid="1.2.99"), tmp_path)) for k in range(6)]
    assert [None if result is None else int(result[0].sum()) for result in results] == [None, 56, 56, None, 56, None]


def test_a_finer_image_grid_takes_the_same_outline(series: list[FileDataset], tmp_path: Path) -> None:
    found = as_object(structure_set(series, {"lesion": [(ring(BIG, 1), series[1])]}), tmp_path)
    fine = slice_(1, size=(48, 64))
    fine.PixelSpacing = [str(v / 4) for v in SPACING]
    assert mask_on(found, fine, tmp_path).sum() == 27 * 31  # rows 7 to 33, columns 7 to 37 of a quarter each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: points + 5 * NORMAL, "elsewhere"),
        (lambda points: points @ turned(ACROSS, 20).T, "parallel"),
        (lambda points: points[:2], "three points"),
        (lambda points: points * 1e6, "in mm"),
    ],
)
def test_outlines_that_can_not_be_laid_on_the_image_are_refused(
    change: Any, message: str, series: list[FileDataset], tmp_path: Path
) -> None:
    written = structure_set(series, {"lesion": [(change(ring(BIG, 1)), series[1])]})
    with pytest.raises(Unusable, match=message):
        mask_on(as_object(written, tmp_path), series[1], tmp_path)


def test_points_and_open_lines_are_no_outlines(series: list[FileDataset], tmp_path: Path) -> None:
    written = structure_set(series, {"isocentre": [(ring(BIG, 1), series[1])]}, shape="OPEN_PLANAR")
    with pytest.raises(Unusable, match="0 regions"):
        as_object(written, tmp_path)


# --- reports


def boxes_of(found: Report, image: FileDataset, folder: Path) -> list[tuple[str, list[float]]]:
    boxes = found.boxes(image.SOPInstanceUID, 0, place(image, folder))
    return [(box.name, [round(v, 2) for v in (box.x1, box.y1, box.x2, box.y2)]) for box, _ in boxes]


def test_a_report_gives_boxes_about_closed_regions(series: list[FileDataset], tmp_path: Path) -> None:
    slanted = [[3, 3], [9, 7], [6 - 0.8, 5 + 1.2], [6 + 0.8, 5 - 1.2]]
    written = report(
        series,
        [
            (region("POLYLINE", [[2, 3], [7, 3], [7, 8], [2, 8], [2, 3]], series[1]), codes.SCT.Nodule),
            (region("CIRCLE", [[5, 5], [5, 8]], series[1]), codes.SCT.Mass),
            (region("ELLIPSE", slanted, series[2]), codes.SCT.Mass),
            (region("POINT", [[5, 5]], series[2]), codes.SCT.Mass),
            (region("POLYLINE", [[1, 1], [5, 5]], series[3]), codes.SCT.Mass),
            (region_3d("POLYGON", ring([*SMALL, SMALL[0]], 4)), codes.SCT.Nodule),
        ],
    )
    found = as_object(written, tmp_path)
    assert (found.uid, found.patient_id) == (written.SOPInstanceUID, "P")
    assert found.images == {image.SOPInstanceUID for image in series}
    assert boxes_of(found, series[0], tmp_path) == []
    assert boxes_of(found, series[1], tmp_path) == [("Nodule", [2, 3, 7, 8]), ("Mass", [2, 2, 8, 8])]
    # Points of the ellipse by its parameter.
    turn = np.linspace(0, 2 * np.pi, 100_000)[:, None]
    rim = np.array([6, 5]) + np.cos(turn) * (3, 2) + np.sin(turn) * (0.8, -1.2)
    (name, box), *others = boxes_of(found, series[2], tmp_path)
    assert name == "Mass" and not others and box == np.round((*rim.min(0), *rim.max(0)), 2).tolist()
    assert boxes_of(found, series[3], tmp_path) == []
    # In mm from the centre of the first pixel, in a box from its corner.
    assert boxes_of(found, series[4], tmp_path) == [("Nodule", [4.1, 4.1, 6.9, 5.9])]
    assert found.regions[1].measurements == (("Diameter (mm)", "5.5"),)


def test_regions_in_mm_of_another_place_are_refused_or_not_meant(series: list[FileDataset], tmp_path: Path) -> None:
    written = report(series, [(region_3d("POLYGON", ring([*SMALL, SMALL[0]], 4)), codes.SCT.Nodule)])
    series[4].FrameOfReferenceUID = "1.2.3"
    assert boxes_of(as_object(written, tmp_path), series[4], tmp_path) == []


def item(kind: str, children: list[Dataset] | None = None, **values: Any) -> Dataset:
    found = Dataset()
    found.ValueType, found.RelationshipType = kind, "CONTAINS"
    for name, value in values.items():
        setattr(found, name, value)
    if children:
        found.ContentSequence = Sequence(children)
    return found


def code_of(value: str, words: str = "x") -> Sequence:
    found = Dataset()
    found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning = value, "DCM", words
    return Sequence([found])


def image_item(uid: str = "1.2.9.3.1", frame: int | None = None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = uid
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    return item("IMAGE", ReferencedSOPSequence=Sequence([reference]))


def plain_report(children: list[Dataset]) -> FileDataset:
    dataset = blank(ComprehensiveSRStorage, "1.2.9.7")
    dataset.ValueType, dataset.ContentSequence = "CONTAINER", Sequence(children)
    return dataset


def test_an_image_may_be_named_by_its_position_in_the_tree(tmp_path: Path) -> None:
    by_reference = Dataset()
    by_reference.RelationshipType, by_reference.ReferencedContentItemIdentifier = "SELECTED FROM", [1, 1, 2]
    outline = item("SCOORD", [by_reference], GraphicType="CIRCLE", GraphicData=[5.0, 5.0, 5.0, 8.0])
    finding = item("CODE", [outline], ConceptCodeSequence=code_of("F-1", "Density"))
    written = plain_report([item("CONTAINER", [item("TEXT"), image_item(frame=3)]), finding])
    found = as_object(written, tmp_path)
    assert found.images == {"1.2.9.3.1"}
    assert [box.name for box, _ in found.boxes("1.2.9.3.1", 2, None)] == ["Density"]
    assert found.boxes("1.2.9.3.1", 0, None) == []


@pytest.mark.parametrize("path", [[1, 1], [1], [1, 1, 1, 1], [1, 99], [1, 0], [2**31] * 3, [1] * 5000])
def test_references_that_lead_round_or_nowhere_end(path: list[int], tmp_path: Path) -> None:
    reference = Dataset()
    reference.ReferencedContentItemIdentifier = path
    outline = item("SCOORD", [reference], GraphicType="CIRCLE", GraphicData=[5.0, 5.0, 5.0, 8.0])
    found = as_object(plain_report([outline]), tmp_path)
    assert len(found.regions) == 1 and found.images == frozenset()


# --- files that mean harm


def refused(dataset: Dataset, folder: Path) -> Drop:
    """The reason, with time and memory watched."""
    path = saved(dataset, folder / "object.dcm")
    kind = dicom_objects.kind_of(path.read_bytes()[: dicom_objects.HEAD])
    assert kind is not None
    tracemalloc.start()
    started = time.monotonic()
    try:
        with quiet(), pytest.raises(Unusable) as caught:
            dicom_objects.read(path, kind)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_a_huge_number_of_frames_is_refused(series: list[FileDataset], tmp_path: Path) -> None:
    written = segmentation(series, drawn(), ["lesion", "node"])
    written.NumberOfFrames = 2**31 - 1
    assert refused(written, tmp_path) is Drop.TOO_LARGE
    written.NumberOfFrames, written.Rows, written.Columns = 1, 65535, 65535
    assert refused(written, tmp_path) is Drop.TOO_LARGE
    written.Rows, written.Columns = SIZE
    assert refused(written, tmp_path) is Drop.BAD_ANNOTATION  # three frames described


def test_a_deep_tree_is_refused(tmp_path: Path) -> None:
    nested = [image_item()]
    for _ in range(60):
        nested = [item("CONTAINER", nested)]
    assert refused(plain_report(nested), tmp_path) is Drop.TOO_LARGE


def test_many_elements_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    written = blank(ComprehensiveSRStorage, "1.2.9.7")
    path = saved(written, tmp_path / "object.dcm")
    head, started = path.read_bytes(), time.monotonic()
    item_, element = b"\xfe\xff\x00\xe0\0\0\0\0", b"\x10\x00\x10\x00PN\0\0"
    for inside in (item_ * 1_500_000, b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element * 1_500_000):
        for length in (len(inside), 0xFFFFFFFF):
            path.write_bytes(head + b"\x40\x00\x30\xa7SQ\0\0" + length.to_bytes(4, "little") + inside)
            with pytest.raises(Unusable, match="more than 300000 elements") as caught:
                dicom_objects.read(path, "report")
            assert caught.value.reason is Drop.TOO_LARGE
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_elements_are_counted_as_a_parser_finds_them(
    syntax: str, undefined: bool, series: list[FileDataset], tmp_path: Path
) -> None:
    regions = [(region("CIRCLE", [[5, 5], [5, 8]], series[1]), codes.SCT.Mass)] * 3
    dataset: Dataset = report(series, regions)
    expected = 0

    def walk(level: Dataset) -> None:
        nonlocal expected
        for element in level:
            expected += 1
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                expected += undefined  # its delimiter
                for below in element.value:
                    below.is_undefined_length_sequence_item = undefined
                    expected += 1 + undefined
                    walk(below)

    walk(dataset)
    dataset.file_meta.TransferSyntaxUID = syntax
    with quiet():
        pydicom.dcmwrite(
            tmp_path / "sr",
            dataset,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            enforce_file_format=True,
        )
    expected += len(pydicom.dcmread(tmp_path / "sr").file_meta)
    data = (tmp_path / "sr").read_bytes()
    assert elements(data, 10**9) == expected > 300
    assert elements(data, 100) == 101
    bare = data[132 + 12 + int.from_bytes(data[140:144], "little") :]
    assert elements(bare, 10**9) == expected - len(pydicom.dcmread(tmp_path / "sr").file_meta)


def test_an_outline_of_a_million_points_takes_a_moment(series: list[FileDataset], tmp_path: Path) -> None:
    turn = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    circle = np.stack((7.5 + 5 * np.cos(turn), 5.5 + 4 * np.sin(turn)), axis=1)
    written = structure_set(series, {"lesion": [(ring(BIG, 1), series[1])]})
    points = "\\".join(["\\".join(np.char.mod("%.3f", ring(circle, 1)).ravel().tolist())] * 101)  # times round: odd
    written.ROIContourSequence[0].ContourSequence[0].add_new("ContourData", "UN", points.encode())
    started = time.monotonic()
    found = as_object(written, tmp_path)
    column, row = np.meshgrid(np.arange(16), np.arange(12))
    expected = ((column - 7.5) / 5) ** 2 + ((row - 5.5) / 4) ** 2 < 1
    assert np.array_equal(mask_on(found, series[1], tmp_path), expected)
    assert time.monotonic() - started < 20
    many = written.ROIContourSequence[0].ContourSequence
    many.extend([many[0]] * 3)
    with pytest.raises(Unusable, match="3000000 points"):
        as_object(written, tmp_path)


def test_two_frames_of_a_segment_at_one_place_are_refused(series: list[FileDataset], tmp_path: Path) -> None:
    written = segmentation(series, drawn(), ["lesion", "node"])
    groups = written.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    with pytest.raises(Unusable, match="at one place"):
        mask_on(as_object(written, tmp_path), series[1], tmp_path)


SPOILT: dict[str, Any] = {
    "segment missing": ("SegmentSequence", None),
    "segments without number": ("SegmentSequence", Sequence([Dataset()])),
    "type": ("SegmentationType", "SOMETHING"),
    "frame groups": ("PerFrameFunctionalGroupsSequence", None),
    "uid": ("SOPInstanceUID", None),
    "pixels": ("PixelData", None),
    "rows": ("Rows", None),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_lacks_something_is_refused(case: str, series: list[FileDataset], tmp_path: Path) -> None:
    written = segmentation(series, drawn(), ["lesion", "node"])
    name, value = SPOILT[case]
    if value is None:
        delattr(written, name)
    else:
        setattr(written, name, value)
    with pytest.raises(Unusable):
        mask_on(as_object(written, tmp_path), series[1], tmp_path)


@pytest.mark.parametrize("position", ["1\\2", "1\\2\\x", "nan\\1\\1", "1e9\\1\\1"])
def test_places_that_are_none_are_refused(position: str, series: list[FileDataset], tmp_path: Path) -> None:
    data = saved(segmentation(series, drawn(), ["lesion", "node"]), tmp_path / "s.dcm").read_bytes()
    where = data.index(b"\x20\x00\x32\x00DS") + 6
    length = int.from_bytes(data[where : where + 2], "little")
    spoilt = data[: where + 2] + position.encode().ljust(length) + data[where + 2 + length :]
    (tmp_path / "s.dcm").write_bytes(spoilt)
    with quiet(), pytest.raises(Unusable):
        dicom_objects.read(tmp_path / "s.dcm", "segmentation")


def test_damaged_files_give_a_reason_and_never_another_error(series: list[FileDataset], tmp_path: Path) -> None:
    objects: list[tuple[Dataset, Any]] = [
        (segmentation(series, drawn(), ["lesion", "node"]), "segmentation"),
        (structure_set(series, {"lesion": [(ring(BIG, 1), series[1])]}), "structure set"),
        (report(series, [(region("CIRCLE", [[5, 5], [5, 8]], series[1]), codes.SCT.Mass)]), "report"),
    ]
    rng = np.random.default_rng(5)
    geometry, outcomes = place(series[1], tmp_path), []
    for dataset, kind in objects:
        whole = saved(dataset, tmp_path / "object.dcm").read_bytes()
        for round_ in range(150):
            data = bytearray(whole if round_ % 3 else whole[: int(rng.integers(140, len(whole)))])
            for at in rng.integers(132, len(data), 4):
                data[at] = rng.integers(256)
            (tmp_path / "object.dcm").write_bytes(data)
            with quiet():
                try:
                    found = dicom_objects.read(tmp_path / "object.dcm", kind)
                    if isinstance(found, Report):
                        found.boxes(series[1].SOPInstanceUID, 0, geometry)
                    else:
                        found.mask(series[1].SOPInstanceUID, 0, SIZE, geometry)
                    outcomes.append(True)
                except Unusable:
                    outcomes.append(False)
    assert 20 < sum(outcomes) < 430  # both happen


def test_kinds_are_told_by_the_first_bytes(series: list[FileDataset], tmp_path: Path) -> None:
    assert dicom_objects.kind_of(saved(series[0], tmp_path / "a").read_bytes()[:1024]) is None
    data = saved(plain_report([]), tmp_path / "b").read_bytes()
    assert dicom_objects.kind_of(data) == "report"
    assert dicom_objects.kind_of(b"\0" * 200 + data[132:]) is None and dicom_objects.kind_of(b"") is None
    dose = blank("1.2.840.10008.5.1.4.1.1.88.67", generate_uid())
    assert dicom_objects.kind_of(saved(dose, tmp_path / "c").read_bytes()[:1024]) is None
    bare = pydicom.dcmread(tmp_path / "b")
    assert dicom_objects.kind_of(data[data.index(b"\x08\x00\x16\x00") :]) == "report"  # begins with no group length
    assert bare.SOPClassUID == ComprehensiveSRStorage


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"PatientOrientation": ["L", "F"]}, ("R", "L", "H", "F", 1.0)),
        ({"PatientOrientation": ["P", "FR"]}, ("A", "P", "HL", "FR", 1.0)),
        ({"PatientOrientation": ["LEFT", "F"]}, ("", "", "", "", 1.0)),
        ({"PatientOrientation": ""}, ("", "", "", "", 1.0)),
        ({"ImagerPixelSpacing": ["0.4", "0.2"]}, ("", "", "", "", 2.0)),
        ({"PixelAspectRatio": ["1", "2"]}, ("", "", "", "", 0.5)),
        ({"PixelSpacing": ["0", "0.2"]}, ("", "", "", "", 1.0)),
    ],
)
def test_a_projection_is_shown_as_its_header_says(tmp_path: Path, change: dict[str, Any], expected: Any) -> None:
    image = slice_(0, projection=True)
    for name, value in change.items():
        setattr(image, name, value)
    found = view_of(saved(image, tmp_path / "i.dcm"))
    assert (found.left, found.right, found.top, found.bottom, found.aspect) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("towards", "expected"),
    [
        ((1, 0, 0, 0, 1, 0), ("R", "L", "A", "P")),  # an axial slice, seen from the feet
        ((0, 1, 0, 0, 0, -1), ("A", "P", "H", "F")),  # sagittal
        ((1, 0, 0, 0, 0, -1), ("R", "L", "H", "F")),  # coronal
        ((0.8, 0.6, 0, 0, 0, -1), ("RA", "LP", "H", "F")),
        ((0.99, 0.141067, 0, 0, 0, -1), ("R", "L", "H", "F")),
    ],
)
def test_a_slice_is_shown_by_its_place_in_the_patient(tmp_path: Path, towards: Any, expected: Any) -> None:
    image = slice_(0)
    image.ImageOrientationPatient, image.PixelSpacing = [str(v) for v in towards], ["3", "1.5"]
    found = view_of(saved(image, tmp_path / "i.dcm"))
    assert (found.left, found.right, found.top, found.bottom) == expected and found.aspect == 2
    several = view_of(saved(enhanced([slice_(k) for k in range(3)]), tmp_path / "e.dcm"), 2)
    assert several.left and several.aspect == pytest.approx(SPACING[0] / SPACING[1])


def test_what_is_no_image_says_nothing_of_how_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no DICOM")
    assert view_of(tmp_path / "x") == view_of(tmp_path / "missing") == View()
