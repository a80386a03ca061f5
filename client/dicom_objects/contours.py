"""DICOM structure sets: the outlines drawn on slices, as pixels of an image. Source: DICOM PS3.3 C.8.8.5, C.8.8.6."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from client.dicom import refusing, text
from client.dicom_objects import authors, opening
from client.dicom_objects.authors import Author
from client.dicom_objects.opening import (
    Geometry,
    Reference,
    decimals,
    images_named,
    items,
    meaning,
    names_image,
    reference,
)
from client.drops import Drop, Unusable
from client.outlines import filled
from client.planes import SAME, Plane, step_between

_POINTS_LIMIT = 3_000_000  # of one structure set
_NAMES_LIMIT = 255  # values of a mask, without background
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TAGS = [
    "StructureSetROISequence",
    "ROIContourSequence",
    "RTROIObservationsSequence",
    "ReferencedFrameOfReferenceSequence",
]
_LISTED = (
    "ReferencedFrameOfReferenceSequence",
    "RTReferencedStudySequence",
    "RTReferencedSeriesSequence",
    "ContourImageSequence",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """What was outlined under one number. Points are in mm, in the patient's coordinates."""

    name: str
    frame_of_reference: str | None
    outlines: tuple[NDArray[np.float64], ...]  # [n, 3] each, n >= 3, closed by itself
    sources: tuple[tuple[Reference, ...], ...]  # for each outline the images it was drawn on; none where not said

    def levels(self, plane: Plane) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """How far off a plane each outline lies [n], with sign, and whether it's parallel to it [n]."""
        points, starts = self._joined
        offsets = plane.offsets(points)
        low, high = np.minimum.reduceat(offsets, starts), np.maximum.reduceat(offsets, starts)
        return (low + high) / 2, high - low <= 2 * SAME

    @cached_property
    def _joined(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """All outlines in one [n, 3], and where each begins."""
        starts = np.cumsum([0, *(len(outline) for outline in self.outlines[:-1])])
        return np.concatenate(self.outlines), starts.astype(np.intp)


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureSet:
    """A structure set. `names[k - 1]` is what value k of a mask stands for; regions of one name are one class.

    `images` is empty where the object names none: it then speaks for all images in its frame of reference.
    """

    uid: str
    patient_id: str | None
    author: Author
    names: tuple[str, ...]
    images: frozenset[str]
    frames_of_reference: frozenset[str]
    regions: tuple[Region, ...]

    def mask(
        self, image: str, frame: int, size: tuple[int, int], geometry: Geometry
    ) -> tuple[NDArray[np.uint8], bool] | None:
        """The image's mask [H, W] on its own grid, and whether regions overlapped: then the later covers the earlier.

        An outline counts for the images that it names, else for the one on its plane or within half a step of it. An
        outline in another of the same region is a hole. None: the object says nothing of this image.
        Raises Unusable, and no other error, when an outline can't be laid on the image.
        """
        plane = geometry.planes[frame] if frame < len(geometry.planes) else None
        if plane is None or geometry.frame_of_reference is None:
            raise Unusable(Drop.BAD_ANNOTATION, "an image without a place in the patient")
        with refusing():
            found = [
                (region, *region.levels(plane))
                for region in self.regions
                if region.frame_of_reference == geometry.frame_of_reference
            ]
            if self.regions and not found:
                raise Unusable(Drop.BAD_ANNOTATION, "another frame of reference than the image's")
            flat = np.concatenate([levels[is_flat] for _, levels, is_flat in found] or [np.zeros(0)])
            if found and not len(flat):
                raise Unusable(Drop.BAD_ANNOTATION, "outlines that are not parallel to the image")
            step = step_between(flat)
            if not math.isfinite(step):
                step = geometry.spacing or geometry.thickness or 2 * SAME
            level = flat[np.argmin(np.abs(flat))] if len(flat) else math.inf
            mask, overlap, met = np.zeros(size, np.uint8), False, False
            for region, levels, is_flat in found:
                near = (np.abs(levels - level) <= SAME) & is_flat & (abs(level) <= step / 2)
                own = (np.abs(levels) <= step / 2 + SAME) & is_flat
                drawn = _drawn(region, image, frame, near=near, own=own)
                if drawn:
                    value = self.names.index(region.name) + 1
                    inside = filled([plane.pixels(outline) for outline in drawn], size)
                    overlap |= bool(((mask > 0) & (mask != value))[inside].any())
                    mask[inside] = value
                    met = True
            return (mask, overlap) if met or image in self.images else None


def read_structure_set(path: Path) -> StructureSet:
    """A DICOM structure set. Raises Unusable, and no other error but OSError."""
    with refusing():
        dataset = opening.read_object(path, "structure set", [*authors.TAGS, *_TAGS])
        uid = text(dataset, "SOPInstanceUID")
        if uid is None:
            raise Unusable(Drop.BAD_ANNOTATION, "a structure set without SOPInstanceUID")
        described, contours = _described(dataset), _contours(dataset)
        drawn = _regions(contours, described)
        empty = [number for number in described if not contours.get(number)]
        names = tuple(dict.fromkeys([*(region.name for region in drawn), *(described[number][0] for number in empty)]))
        if not 1 <= len(names) <= _NAMES_LIMIT:
            raise Unusable(
                Drop.BAD_ANNOTATION, f"{len(names)} regions with closed outlines; 1 to {_NAMES_LIMIT} can be used"
            )
        sources = {named for region in drawn for references in region.sources for named, _ in references}
        frames_of_reference = {region.frame_of_reference for region in drawn}
        return StructureSet(
            uid=uid,
            patient_id=text(dataset, "PatientID"),
            author=authors.author_of(dataset),
            names=names,
            images=images_named([dataset], *_LISTED) | sources,
            frames_of_reference=frozenset(one for one in frames_of_reference if one),
            regions=drawn,
        )


def _described(dataset: pydicom.Dataset) -> dict[int, tuple[str, str | None]]:
    """Name and frame of reference by region number."""
    coded = {
        int(item.get("ReferencedROINumber") or 0): meaning(item, "RTROIIdentificationCodeSequence")
        for item in items(dataset, "RTROIObservationsSequence")
    }
    found: dict[int, tuple[str, str | None]] = {}
    for item in items(dataset, "StructureSetROISequence"):
        number = int(item.get("ROINumber") or 0)
        name = text(item, "ROIName") or coded.get(number) or "unnamed"
        if found.setdefault(number, (name, text(item, "ReferencedFrameOfReferenceUID")))[0] != name:
            raise Unusable(Drop.BAD_ANNOTATION, "regions without a number of their own")
    return found


def _contours(dataset: pydicom.Dataset) -> dict[int, list[pydicom.Dataset]]:
    """Contours of any kind by region number."""
    found: dict[int, list[pydicom.Dataset]] = {}
    for item in items(dataset, "ROIContourSequence"):
        found.setdefault(int(item.get("ReferencedROINumber") or 0), []).extend(items(item, "ContourSequence"))
    return found


def _regions(
    contours: dict[int, list[pydicom.Dataset]], described: dict[int, tuple[str, str | None]]
) -> tuple[Region, ...]:
    """The regions that have closed outlines."""
    regions, left = [], _POINTS_LIMIT
    for number, found in contours.items():
        closed = [contour for contour in found if text(contour, "ContourGeometricType") in _CLOSED]
        outlines = []
        for contour in closed:
            points = decimals(contour, "ContourData").reshape(-1, 3)
            left -= len(points)
            if left < 0:
                raise Unusable(Drop.TOO_LARGE, f"outlines of more than {_POINTS_LIMIT} points")
            if len(points) < 3 or not (np.abs(points) < 1e6).all():
                raise Unusable(Drop.BAD_ANNOTATION, "an outline that is not three points or more, in mm")
            outlines.append(points)
        if outlines:
            if number not in described:
                raise Unusable(Drop.BAD_ANNOTATION, "outlines of a region that isn't described")
            name, frame_of_reference = described[number]
            sources = tuple(
                tuple(named for item in items(contour, "ContourImageSequence") if (named := reference(item)))
                for contour in closed
            )
            regions.append(
                Region(name=name, frame_of_reference=frame_of_reference, outlines=tuple(outlines), sources=sources)
            )
    return tuple(regions)


def _drawn(
    region: Region, image: str, frame: int, *, near: NDArray[np.bool_], own: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """The region's outlines on an image: those that name it, and those `near` that name none. Raises Unusable unless
    those that name it are its `own` by place.
    """
    found = []
    for outline, sources, is_near, is_own in zip(region.outlines, region.sources, near, own, strict=True):
        named = names_image(sources, image, frame)
        if named and not is_own:
            raise Unusable(Drop.BAD_ANNOTATION, "an outline that lies elsewhere than the image it names")
        if named or (is_near and not sources):
            found.append(outline)
    return found
