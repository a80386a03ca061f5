"""Planted faults in what lays annotations onto images and fuses readers: each must make a test fail."""

import pytest
from mutants import ROOT, survives

ROOMS = ("client", "common")
OBJECTS, FOLDER, OUTLINES, READERS = (
    f"tests/client/test_{name}.py" for name in ("dicom_objects", "annotation_objects", "outlines", "readers")
)

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "another patient's object": (
        "annotations/dicom.py",
        "by.setdefault((one.patient_id, key), [])",
        'by.setdefault(("P", key), [])',
        f"{FOLDER}::test_an_object_of_another_patient_is_never_used",
    ),
    "a copy is a reader": (
        "annotations/dicom.py",
        "if (one.patient_id, one.uid) in seen:",
        "if False:",
        f"{FOLDER}::test_what_can_not_be_used_is_named_and_harms_no_other",
    ),
    "a reader who saw nothing is none": (
        "annotations/dicom.py",
        "found += blind",
        "pass",
        f"{FOLDER}::test_a_reader_whose_report_has_no_box_on_an_image_saw_nothing_there",
    ),
    "any frame of reference": (
        "dicom_objects/segments.py",
        "if geometry.frame_of_reference not in self.frames_of_reference:",
        "if False:",
        f"{OBJECTS}::test_another_frame_of_reference_is_refused",
    ),
    "any size": (
        "dicom_objects/segments.py",
        "if size != (",
        "if size == () != (",
        f"{OBJECTS}::test_projections_are_mapped_pixel_by_pixel_if_they_are_of_one_size",
    ),
    "displaced pixels": (
        "dicom_objects/segments.py",
        "if own.displaced or",
        "if False or",
        f"{OBJECTS}::test_pixels_that_lie_elsewhere_are_refused",
    ),
    "thick slices": (
        "dicom_objects/segments.py",
        "step, is_sure = thickness, False",
        "step, is_sure = thickness, True",
        f"{OBJECTS}::test_a_slice_thicker_than_the_way_to_the_next_stays_on_its_own",
    ),
    "a tenth covered": (
        "dicom_objects/segments.py",
        ".astype(np.int64) * 2 >=",
        ".astype(np.int64) * 10 >=",
        f"{OBJECTS}::test_each_slices_mask_is_what_highdicom_reads_back",
    ),
    "half a pixel off": (
        "planes.py",
        "_HALF = 0.5 + 1e-6",
        "_HALF = 0.0",
        f"{OBJECTS}::test_another_grid_is_mapped_by_place_in_the_patient",
    ),
    "a whole step": (
        "planes.py",
        "<= step / 2 *",
        "<= step *",
        f"{OUTLINES}::test_the_nearest_slice_within_half_a_step_is_taken",
    ),
    "no holes": ("outlines.py", "np.bitwise_xor.at(", "np.bitwise_or.at(", OUTLINES),
    "outlines elsewhere": (
        "dicom_objects/contours.py",
        "if named and not is_own:",
        "if False:",
        f"{OBJECTS}::test_outlines_that_can_not_be_laid_on_the_image_are_refused",
    ),
    "upright ellipses": (
        "dicom_objects/reports.py",
        "np.hypot(*(points[[0, 2]] - centre))",
        "np.abs(points[0] - centre)",
        f"{OBJECTS}::test_a_report_gives_boxes_about_closed_regions",
    ),
    "corner and centre": (
        "dicom_objects/reports.py",
        "plane.pixels(region.points) + 0.5",
        "plane.pixels(region.points)",
        f"{OBJECTS}::test_a_report_gives_boxes_about_closed_regions",
    ),
    "depth": (
        "dicom_objects/reports.py",
        "if node.depth > _DEPTH_LIMIT or",
        "if",
        f"{OBJECTS}::test_a_deep_tree_is_refused",
    ),
    "uncounted sequences": (
        "dicom_objects/counting.py",
        'elif vr == b"SQ" or',
        "elif",
        f"{OBJECTS}::test_elements_are_counted_as_a_parser_finds_them",
    ),
    "half is a majority": ("readers.py", "(share > 0.5)", "(share >= 0.5)", READERS),
    "half of the readers' boxes": (
        "readers.py",
        "2 * len(group) > len(boxes)",
        "2 * len(group) >= len(boxes)",
        READERS,
    ),
    "a tie between labels": ("readers.py", "if others and others[0][1] == votes:", "if False:", READERS),
    "specificity from the object": ("readers.py", "(1 - probability) * pixels", "probability * pixels", READERS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_noticed(name: str) -> None:
    file, old, new, tests = MUTANTS[name]
    assert not survives(f"client/{file}", old, new, [tests], rooms=ROOMS)


def test_each_fault_can_be_planted() -> None:
    for file, old, _, _ in MUTANTS.values():
        assert (ROOT / "client" / file).read_text(encoding="utf-8").count(old) == 1, old
