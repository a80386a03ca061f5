"""DICOM structured reports: regions of images that were measured, as boxes. Source: DICOM PS3.3 C.17.3, C.18.6, C.18.9.

A region is any SCOORD or SCOORD3D that encloses an area: ellipse, circle, closed line. Points and open lines, such as
the diameters of a lesion, enclose none. Its name is the finding of the measurement group that it stands in (PS3.16,
TID 1410).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from client.dicom import refusing, text
from client.dicom_objects import authors, opening
from client.dicom_objects.authors import Author
from client.dicom_objects.opening import Geometry, Reference, code, images_named, items, meaning, names_image, reference
from client.drops import Drop, Unusable
from client.planes import SAME
from common.annotation import Box

_DEPTH_LIMIT = 24
_REGIONS_LIMIT = 20_000
_MEASUREMENTS_LIMIT = 32  # of one group
_FINDING, _GROUP = ("DCM", "121071"), ("DCM", "125007")
_OUTLINES = (("DCM", "111030"), ("DCM", "111041"))  # image region, outline: closed, whether they say it or not
_TAGS = ["ContentSequence", "CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """An outlined region. `points` are (column, row) [n, 2] in pixels of the images named, 0, 0 the corner of the first
    pixel; or [n, 3] in mm in a frame of reference.
    """

    name: str
    shape: str  # the DICOM graphic type
    points: NDArray[np.float64]
    sources: tuple[Reference, ...]
    frame_of_reference: str | None  # None: points in pixels
    measurements: tuple[tuple[str, str], ...]  # of its group: what and unit, value


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """A structured report's regions. `images` are those it draws on or names as evidence."""

    uid: str
    patient_id: str | None
    author: Author
    images: frozenset[str]
    frames_of_reference: frozenset[str]
    regions: tuple[Region, ...]

    def boxes(self, image: str, frame: int, geometry: Geometry | None) -> list[tuple[Box, Region]]:
        """The smallest upright boxes about the regions on an image. `geometry` is needed for points in mm alone.

        A region in mm counts for the images that it names, else for those that it lies on, within half a slice.
        Raises Unusable, and no other error, for points in mm of an image that they can't be laid on.
        """
        found: dict[tuple[float, ...], tuple[Box, Region]] = {}
        with refusing():
            for region in self.regions:
                named = names_image(region.sources, image, frame)
                if region.frame_of_reference is None:
                    points = region.points if named else None
                else:
                    points = _laid(region, named, frame, geometry)
                if points is not None:
                    low, high = _extent(region.shape, points)
                    key = (*np.round(low, 2).tolist(), *np.round(high, 2).tolist())
                    box = Box(
                        x1=float(low[0]), y1=float(low[1]), x2=float(high[0]), y2=float(high[1]), name=region.name
                    )
                    found.setdefault((*key, hash(region.name)), (box, region))
        return list(found.values())


def read_report(path: Path) -> Report:
    """A structured report. Raises Unusable, and no other error but OSError."""
    with refusing():
        dataset = opening.read_object(path, "report", [*authors.TAGS, *_TAGS])
        uid = text(dataset, "SOPInstanceUID")
        if uid is None:
            raise Unusable(Drop.BAD_ANNOTATION, "a report without SOPInstanceUID")
        regions = tuple(_regions(dataset))
        named = frozenset[str]().union(
            *(images_named([dataset], name, "ReferencedSeriesSequence", "ReferencedSOPSequence") for name in _TAGS[1:])
        )
        return Report(
            uid=uid,
            patient_id=text(dataset, "PatientID"),
            author=authors.author_of(dataset),
            images=named | {image for region in regions for image, _ in region.sources},
            frames_of_reference=frozenset(
                region.frame_of_reference for region in regions if region.frame_of_reference and not region.sources
            ),
            regions=regions,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Node:
    """A content item that is still to be looked at, with what holds for all below it."""

    item: pydicom.Dataset
    depth: int
    name: str
    group: list[tuple[str, str]]  # measurements of the group that it belongs to


def _regions(root: pydicom.Dataset) -> Iterator[Region]:
    """All regions of a content tree, in its order. References between items are followed one step, so can't loop."""
    found: list[tuple[_Node, str, NDArray[np.float64], str | None]] = []
    waiting = [_Node(item=root, depth=0, name="", group=[])]
    while waiting:
        node = waiting.pop()
        if node.depth > _DEPTH_LIMIT or len(found) > _REGIONS_LIMIT:
            limits = f"{_DEPTH_LIMIT} levels, {_REGIONS_LIMIT} regions"
            raise Unusable(Drop.TOO_LARGE, f"a report of too many levels or regions; limit {limits}")
        kind, name, group = text(node.item, "ValueType"), node.name, node.group
        children = items(node.item, "ContentSequence")
        if kind in ("SCOORD", "SCOORD3D") and (outline := _outline(node.item, kind)):
            found.append((node, *outline))
        elif kind == "NUM":
            group.extend(_measured(node.item))
        elif kind == "CODE" and children:  # a finding of a CAD report, with its outline below it
            name, group = meaning(node.item, "ConceptCodeSequence") or name, []
        elif code(node.item, "ConceptNameCodeSequence") == _GROUP:
            group = []
        for child in children:
            if code(child, "ConceptNameCodeSequence") == _FINDING:
                name = meaning(child, "ConceptCodeSequence") or name
        waiting += [_Node(item=child, depth=node.depth + 1, name=name, group=group) for child in reversed(children)]
    for node, shape, points, frame_of_reference in found:
        yield Region(
            name=node.name or "unnamed",
            shape=shape,
            points=points,
            sources=_sources(node.item, root),
            frame_of_reference=frame_of_reference,
            measurements=tuple(node.group[:_MEASUREMENTS_LIMIT]),
        )


def _outline(item: pydicom.Dataset, kind: str) -> tuple[str, NDArray[np.float64], str | None] | None:
    """Shape, points and frame of reference of a region that encloses an area; None for another one."""
    shape, size = text(item, "GraphicType") or "", 2 if kind == "SCOORD" else 3
    values = item.get("GraphicData")
    points = np.array([] if values is None else values, np.float64).reshape(-1, size)
    if not (np.abs(points) < 1e6).all():
        raise Unusable(Drop.BAD_ANNOTATION, "a region whose corners are no numbers")
    match shape:
        case "ELLIPSE":
            encloses = len(points) == 4
        case "CIRCLE":
            encloses = len(points) == 2
        case "POLYGON":
            encloses = len(points) > 2
        case "POLYLINE":
            said = code(item, "ConceptNameCodeSequence") in _OUTLINES
            encloses = len(points) > 2 and (said or bool(np.array_equal(points[0], points[-1])))
        case _:
            encloses = False
    frame_of_reference = text(item, "ReferencedFrameOfReferenceUID") if kind == "SCOORD3D" else None
    if not encloses or (kind == "SCOORD3D" and frame_of_reference is None):
        return None
    return shape, points, frame_of_reference


def _sources(item: pydicom.Dataset, root: pydicom.Dataset) -> tuple[Reference, ...]:
    """The images that a region was drawn on: below it, or elsewhere in the report by a path of positions."""
    found = []
    for child in items(item, "ContentSequence"):
        path = child.get("ReferencedContentItemIdentifier")
        image: pydicom.Dataset | None = child
        if path is not None:
            image = root
            for position in [path] if isinstance(path, int) else list(path)[1 : _DEPTH_LIMIT + 1]:
                below = items(image, "ContentSequence")
                image = below[position - 1] if 0 < position <= len(below) else None
        if image is not None and text(image, "ValueType") == "IMAGE":
            found += [named for one in items(image, "ReferencedSOPSequence") if (named := reference(one))]
    return tuple(found)


def _measured(item: pydicom.Dataset) -> list[tuple[str, str]]:
    """What a numeric item measures, with its unit, and the value."""
    value = opening.first(item, "MeasuredValueSequence")
    numbers = opening.decimals(value, "NumericValue")
    what, unit = meaning(item, "ConceptNameCodeSequence"), code(value, "MeasurementUnitsCodeSequence")[1]
    return [(f"{what} ({unit})", f"{numbers[0]:g}")] if what and len(numbers) == 1 else []


def _laid(region: Region, named: bool, frame: int, geometry: Geometry | None) -> NDArray[np.float64] | None:
    """A region in mm as points [n, 2] in an image's pixels; None where it belongs to another image."""
    if region.sources and not named:
        return None
    plane = geometry.planes[frame] if geometry is not None and frame < len(geometry.planes) else None
    if geometry is not None and plane is not None and geometry.frame_of_reference == region.frame_of_reference:
        half = (geometry.spacing or geometry.thickness or 0) / 2 + SAME
        if (np.abs(plane.offsets(region.points)) <= half).all():
            return plane.pixels(region.points) + 0.5
    if named:
        raise Unusable(Drop.BAD_ANNOTATION, "a region in mm that does not lie on the image it names")
    return None


def _extent(shape: str, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest (column, row) of what a shape encloses. Source: DICOM PS3.3 C.18.6.1.1."""
    if shape == "CIRCLE":
        radius = np.linalg.norm(points[1] - points[0])
        return points[0] - radius, points[0] + radius
    if shape == "ELLIPSE":  # the ends of its axes, so it reaches the root of the sum of squares along a coordinate
        centre = points.mean(axis=0)
        reach = np.hypot(*(points[[0, 2]] - centre))
        return centre - reach, centre + reach
    return points.min(axis=0), points.max(axis=0)
