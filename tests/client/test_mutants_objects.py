"""Planted faults in what reads images, lays annotations onto them and fuses readers: each must make a test fail."""

from mutants import noticed, placed, unharmed

OBJECTS, FOLDER, OUTLINES, READERS, POSE, RESULTS, STREAMS, SOURCES = (
    f"tests/client/test_{name}.py"
    for name in (
        "dicom_objects",
        "annotation_objects",
        "outlines",
        "readers",
        "pose",
        "predict_dicom",
        "codestreams",
        "sources",
    )
)

FAULTS: dict[str, tuple[str, str, str, str]] = {
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
    "grids far apart": (
        "planes.py",
        "return farthest < min(",
        "return farthest < 2 * min(",
        f"{RESULTS}::test_slices_have_one_grid_while_no_pixel_lies_a_quarter_of_its_size_away_nor_015_mm",
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
    "mirrored images stay mirrored": (
        "pose.py",
        "down != self._wanted[1], across != self._wanted[0]",
        "down != self._wanted[1], False",
        POSE,
    ),
    "mirrored boxes stay where they were": (
        "pose.py",
        "boxes[:, [low, high]] = side - boxes[:, [high, low]]",
        "pass",
        f"{POSE}::test_whatever_its_directions_an_upright_picture_of_one_thing_is_the_same",
    ),
    "a pixel's shape after a quarter turn": (
        "pose.py",
        "return 1 / self.ratio if self._transposed else self.ratio",
        "return self.ratio",
        f"{POSE}::test_with_pad_a_square_in_the_patient_is_a_square_to_the_model_however_it_is_stored",
    ),
    "one result of two patients": (
        "dicom_objects/origins.py",
        'for name in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")',
        'for name in ("StudyInstanceUID",)',
        f"{RESULTS}::test_no_result_is_of_two_patients_whose_studies_and_series_have_one_uid",
    ),
    "all of one frame": (
        "dicom_objects/unplaced.py",
        "named.ReferencedFrameNumber = frame + 1",
        "named.ReferencedFrameNumber = 1",
        f"{RESULTS}::test_a_segmentation_of_an_image_without_a_place_or_of_many_frames",
    ),
    "half is a majority": ("readers.py", "(share > 0.5)", "(share >= 0.5)", READERS),
    "half of the readers' boxes": (
        "readers.py",
        "2 * len(group) > len(drawn)",
        "2 * len(group) >= len(drawn)",
        READERS,
    ),
    "readers of other classes": (
        "readers.py",
        " for own in readers if _looks_for(own, name)]",
        " for own in readers]",
        f"{READERS}::test_readers_who_look_for_other_classes_do_not_outvote_each_other",
    ),
    "an empty truth": (
        "readers.py",
        "if is_disputed and not kept:",
        "if False:",
        f"{READERS}::test_boxes_that_no_majority_drew_alike_are_no_image_without_objects",
    ),
    "a model's own results": (
        "annotations/dicom.py",
        'if one.author != "person":',
        "if False:",
        f"{FOLDER}::test_a_models_results_beside_the_images_change_no_annotation",
    ),
    "a program's segments": (
        "dicom_objects/segments.py",
        "values[list(self.automatic)] = 0",
        "pass",
        f"{FOLDER}::test_what_a_program_made_alone_counts_where_it_is_asked_for",
    ),
    "a stream of no kind": ("dicom_pixels.py", "if declared is None and", "if False and", STREAMS),
    "any size inside a JP2 file": ("dicom_pixels.py", "stream = bare(get_frame(", "stream = bytes(get_frame(", STREAMS),
    "a box before its own end": ("codestreams.py", "length = 16, struct", "length = 8, struct", STREAMS),
    "the first copy, whole or not": (
        "copies.py",
        "if least is None or len(found) < least:",
        "if least is None:",
        SOURCES,
    ),
    "a damaged copy is used": ("sources.py", "spoiled.get((patient, outcome.digest))", "None", SOURCES),
    "one issuer is several": ("sources.py", "if first[0] != issuer:", "if True:", SOURCES),
    "a tie between labels": ("readers.py", "if others and others[0][1] == votes:", "if False:", READERS),
    "specificity from the object": ("readers.py", "(1 - probability) * pixels", "probability * pixels", READERS),
}
PLANTED = {name: (f"client/{file}", old, new, [tests]) for name, (file, old, new, tests) in FAULTS.items()}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
