"""Who made an annotation object: a person, a program alone, or Fedward, whose answers must not come back as truth."""

from typing import Literal

import pydicom

from client.dicom import text
from client.dicom_objects.opening import code, items

Author = Literal["person", "program", "fedward"]
TAGS = ["SOPClassUID", "Manufacturer", "VerificationFlag", "PreliminaryFlag", "ApprovalStatus"]
_OWN = "Fedward"  # the manufacturer of all that dicom_objects/writing.py writes
# Mammography, chest and colon CAD: what a program found, and nothing else.
_CAD = tuple(f"1.2.840.10008.5.1.4.1.1.88.{end}" for end in ("50", "65", "69"))
_OBSERVER, _DEVICE = ("DCM", "121005"), ("DCM", "121007")


def author_of(dataset: pydicom.Dataset) -> Author:
    """Of an object read with TAGS. What a person has verified or approved is that person's, and so is all that doesn't
    say how it was made.

    Source: DICOM PS3.3 C.8.20.4 (segment algorithm type), C.8.8.5 (generation of a region), C.8.8.16 (approval), C.17.2
    (verification, preliminary); PS3.16 TID 1002.
    """
    if text(dataset, "Manufacturer") == _OWN:
        return "fedward"
    segments, regions = items(dataset, "SegmentSequence"), items(dataset, "StructureSetROISequence")
    outlined = bool(regions) and all(text(one, "ROIGenerationAlgorithm") == "AUTOMATIC" for one in regions)
    is_programs = (
        (segments and all(map(is_automatic, segments)))
        or (outlined and text(dataset, "ApprovalStatus") != "APPROVED")
        or _is_programs(dataset)
    )
    return "program" if is_programs else "person"


def is_automatic(segment: pydicom.Dataset) -> bool:
    """Whether no person had a hand in a segment."""
    return text(segment, "SegmentAlgorithmType") == "AUTOMATIC"


def _is_programs(report: pydicom.Dataset) -> bool:
    if text(report, "VerificationFlag") != "UNVERIFIED":
        return False
    observers = {
        code(item, "ConceptCodeSequence")
        for item in items(report, "ContentSequence")
        if code(item, "ConceptNameCodeSequence") == _OBSERVER
    }
    is_preliminary = text(report, "PreliminaryFlag") == "PRELIMINARY"
    return text(report, "SOPClassUID") in _CAD or (is_preliminary and observers == {_DEVICE})
