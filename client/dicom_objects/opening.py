"""Opens DICOM objects that aren't images, within limits that no size, count or depth in a file can pass."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence

from client.dicom import FORMAT, looks_like_dicom, opened, read_tags, refusing, text
from client.dicom_objects.counting import elements
from client.drops import Drop, Unusable
from client.planes import Plane, plane

Kind = Literal["segmentation", "structure set", "report"]
Reference = tuple[str, frozenset[int] | None]  # SOPInstanceUID and frames (from 0), None for all
_BYTES_LIMIT: dict[Kind, int] = {"segmentation": 1 << 29, "structure set": 1 << 27, "report": 1 << 24}
# Some hundred bytes of memory each. A frame of a segmentation has about 30, a group of measurements 200.
_ELEMENTS_LIMIT: dict[Kind, int] = {"segmentation": 800_000, "structure set": 600_000, "report": 300_000}
_CLASS = b"1.2.840.10008.5.1.4.1.1."
_KINDS: dict[bytes, Kind] = {b"66.4": "segmentation", b"66.7": "segmentation", b"481.3": "structure set"}
# Enhanced, comprehensive, comprehensive 3D, extensible; mammography, chest and colon CAD.
_KINDS |= dict.fromkeys((b"88.22", b"88.33", b"88.34", b"88.35", b"88.50", b"88.65", b"88.69"), "report")
_NUMBERS_LIMIT = 9_000_000
PLACES = [
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
HEAD = 1024  # bytes that `kind_of` wants to see


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Where an image's frames lie. A plane is None where the file doesn't say, as of projections."""

    frame_of_reference: str | None
    planes: tuple[Plane | None, ...]
    spacing: float | None  # mm from slice to slice
    thickness: float | None  # mm of a slice: less or more than the spacing


def kind_of(head: bytes) -> Kind | None:
    """What annotation object a file is that begins so; None if it's none.

    The first SOP class in a file is its own: in the file meta group, in old files at the beginning of the rest.
    """
    start = head.find(_CLASS) + len(_CLASS)
    if start < len(_CLASS) or not looks_like_dicom(head):
        return None
    end = start
    while head[end : end + 1] in (b".", *(b"%d" % digit for digit in range(10))):
        end += 1
    return _KINDS.get(head[start:end])


def read_object(path: Path, kind: Kind, tags: list[str], *, pixels: bool = False) -> pydicom.FileDataset:
    """The elements named and those that every object has. For use within `refusing`. Raises Unusable when too large."""
    limit = _BYTES_LIMIT[kind]
    with opened(path) as file:
        if file.seek(0, io.SEEK_END) > limit:
            raise Unusable(Drop.TOO_LARGE, f"a {kind} of more than {limit >> 20} MiB")
        file.seek(0)
        if elements(file.read(), _ELEMENTS_LIMIT[kind]) > _ELEMENTS_LIMIT[kind]:
            raise Unusable(Drop.TOO_LARGE, f"a {kind} of more than {_ELEMENTS_LIMIT[kind]} elements")
        file.seek(0)
        return read_tags(file, ["SOPInstanceUID", "PatientID", "FrameOfReferenceUID", *tags], pixels=pixels)


def image_geometry(path: Path) -> Geometry:
    """Where the frames of an image file lie. Raises Unusable, and no other error but OSError."""
    with refusing(), opened(path) as file:
        dataset = read_tags(file, ["FrameOfReferenceUID", *FORMAT, *PLACES], pixels=False)
        size = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        return geometry(dataset, size, int(dataset.get("NumberOfFrames") or 1))


def geometry(dataset: pydicom.Dataset, size: tuple[int, int], frames: int) -> Geometry:
    """Where the frames of an image or a segmentation lie.

    Edge case: of a multi-frame file that describes no frame, no planes at all.
    Raises Unusable for planes that are none, or when another number of frames is described.
    """
    shared, each = first(dataset, "SharedFunctionalGroupsSequence"), items(dataset, "PerFrameFunctionalGroupsSequence")
    if each and len(each) != frames:
        raise Unusable(Drop.BAD_ANNOTATION, f"{len(each)} frames described, {frames} there")
    planes: list[Plane | None] = []
    distances: dict[str, float] = {}
    for group in each or [dataset] * (frames == 1):
        position, orientation, measures = (
            group if group is dataset else first(group, name) or first(shared, name)
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        where, towards = decimals(position, "ImagePositionPatient"), decimals(orientation, "ImageOrientationPatient")
        between = decimals(measures, "PixelSpacing")
        known = len(where) and len(towards) and len(between)
        planes.append(plane(where, towards, between, size) if known else None)
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            value = np.abs(decimals(measures, name))
            if len(value) == 1 and 0 < value[0] < 1e4:
                distances[name] = float(value[0])
    return Geometry(
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        planes=tuple(planes),
        spacing=distances.get("SpacingBetweenSlices"),
        thickness=distances.get("SliceThickness"),
    )


def items(dataset: pydicom.Dataset | None, keyword: str) -> list[pydicom.Dataset]:
    """The items of a sequence; none where it's missing or no sequence."""
    value = None if dataset is None else dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def first(dataset: pydicom.Dataset | None, keyword: str) -> pydicom.Dataset | None:
    """The first item of a sequence."""
    return next(iter(items(dataset, keyword)), None)


def decimals(dataset: pydicom.Dataset | None, keyword: str) -> NDArray[np.float64]:
    """The numbers [n] of a decimal string; empty where it's missing. Raises ValueError.

    From the bytes: pydicom would make an object of 200 bytes of each number, and an outline can have a million.
    """
    if dataset is None or keyword not in dataset:
        return np.zeros(0)
    element = dataset.get_item(keyword)
    value = element.value if isinstance(element, RawDataElement) else dataset.get(keyword)
    if isinstance(value, bytes):
        if value.count(b"\\") > _NUMBERS_LIMIT:
            raise Unusable(Drop.TOO_LARGE, f"an element of more than {_NUMBERS_LIMIT} numbers")
        value = value.replace(b"\0", b" ").split(b"\\") if value.strip() else []
    elif not isinstance(value, Iterable) or isinstance(value, str):
        value = [] if value is None else [value]
    return np.array([float(number) for number in value], np.float64)


def code(dataset: pydicom.Dataset | None, keyword: str) -> tuple[str, str]:
    """Coding scheme and value of the first code; empty texts where there is none."""
    found = first(dataset, keyword)
    return ("", "") if found is None else (text(found, "CodingSchemeDesignator") or "", text(found, "CodeValue") or "")


def meaning(dataset: pydicom.Dataset | None, keyword: str) -> str | None:
    """What the first code means, in words."""
    found = first(dataset, keyword)
    return None if found is None else text(found, "CodeMeaning")


def reference(item: pydicom.Dataset) -> Reference | None:
    """What a reference to an image names."""
    uid = text(item, "ReferencedSOPInstanceUID")
    frames = frozenset(int(number) - 1 for number in decimals(item, "ReferencedFrameNumber"))
    return (uid, frames or None) if uid else None


def images_named(level: Iterable[pydicom.Dataset], *keywords: str) -> frozenset[str]:
    """SOPInstanceUIDs of the references below some items, down a path of sequences."""
    for keyword in keywords:
        level = [item for one in level for item in items(one, keyword)]
    return frozenset(uid for item in level for uid in [text(item, "ReferencedSOPInstanceUID")] if uid)


def names_image(sources: Iterable[Reference], image: str, frame: int) -> bool:
    """Whether an image's frame is among those that references name."""
    return any(uid == image and (frames is None or frame in frames) for uid, frames in sources)
