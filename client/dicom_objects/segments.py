"""DICOM segmentations: which pixels of an image the segments cover. Source: DICOM PS3.3 A.51, C.8.20.2."""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydicom
from numpy.typing import NDArray

from client.dicom import FORMAT, Tags, checked, refusing, text
from client.dicom_objects import authors, opening
from client.dicom_objects.authors import Author
from client.dicom_objects.opening import Geometry, Reference, first, images_named, items, names_image, reference
from client.dicom_pixels import stored_frame
from client.drops import Drop, Unusable
from client.planes import SAME, Plane, sampled, step_between

_DECODED_LIMIT = 4_000_000_000  # pixels of a segmentation decoded for one image
_NAMES_LIMIT = 255  # values of a mask, without background
_TAGS = [
    *authors.TAGS, "SegmentationType", "MaximumFractionalValue", "SegmentSequence", "ReferencedSeriesSequence",
    "DimensionOrganizationType", *FORMAT, *opening.PLACES, "PixelData",
]  # fmt: skip
_COUNTER = re.compile(r"(segment)?[\s_#-]*\d+|segment", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame of a segmentation: its segment (0: several, in a label map) and the images it was drawn on."""

    segment: int
    sources: tuple[Reference, ...]
    displaced: bool  # the file says that its pixels don't lie where those images' do


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A segmentation object, its pixels still packed. `names[k - 1]` is what value k of a mask stands for.

    Several segments of one name are one class. `images` is empty where the object names none: it then speaks for all
    images in its frame of reference.
    """

    uid: str
    patient_id: str | None
    author: Author
    names: tuple[str, ...]
    images: frozenset[str]
    geometry: Geometry
    frames: tuple[Frame, ...]
    largest: int  # stored value of full coverage, of a fractional one; else 1
    values: NDArray[np.uint8]  # number of a segment to value of a mask
    automatic: tuple[int, ...]  # numbers of the segments that a program made alone
    dataset: pydicom.FileDataset
    tags: Tags

    @property
    def frames_of_reference(self) -> frozenset[str]:
        """Those that its frames have a place in."""
        own = self.geometry
        return frozenset({own.frame_of_reference} if own.frame_of_reference and any(own.planes) else ())

    def by_people(self) -> Self:
        """Without its automatic segments: a person's object, which has others."""
        values = self.values.copy()
        values[list(self.automatic)] = 0
        left = np.unique(values[values > 0])
        renumbered = np.zeros(_NAMES_LIMIT + 1, np.uint8)
        renumbered[left] = np.arange(1, len(left) + 1)
        return replace(self, names=tuple(self.names[k - 1] for k in left), values=renumbered[values], automatic=())

    def mask(
        self, image: str, frame: int, size: tuple[int, int], geometry: Geometry
    ) -> tuple[NDArray[np.uint8], bool] | None:
        """The image's mask [H, W] on its own grid, and whether segments overlapped: then the later covers the earlier.

        With a frame of reference in common, by place in the patient; each pixel takes the value of the segmentation's
        pixel that its centre lies in. Else pixel by pixel, if the segmentation was drawn on this image and is of its
        size. Half covered is covered. None: the object says nothing of this image.
        Raises Unusable, and no other error, when neither way is open or pixels can't be decoded.
        """
        plane = geometry.planes[frame] if frame < len(geometry.planes) else None
        with refusing():
            if plane is not None and any(self.geometry.planes):
                if geometry.frame_of_reference not in self.frames_of_reference:
                    raise Unusable(Drop.BAD_ANNOTATION, "another frame of reference than the image's")
                return self._by_place(image, frame, plane)
            return self._by_pixel(image, frame, size)

    @cached_property
    def _stack(self) -> tuple[list[Plane], NDArray[np.float64], float, bool]:
        """All planes, how far they lie off the first, the distance from slice to slice, and whether that's sure: a
        slice may be thicker than the way to the next. Raises Unusable for frames that make no stack.
        """
        planes = [own for own in self.geometry.planes if own is not None]
        if len(planes) < len(self.frames):
            raise Unusable(Drop.BAD_ANNOTATION, "frames without a place beside others that have one")
        if not all(own.parallel(planes[0]) for own in planes):
            raise Unusable(Drop.BAD_ANNOTATION, "frames of several orientations")
        offsets = planes[0].offsets(np.array([own.origin for own in planes]))
        gap, spacing, thickness = step_between(offsets), self.geometry.spacing, self.geometry.thickness
        step, is_sure = gap, thickness is not None
        if spacing is not None:
            step, is_sure = min(spacing, gap), True
        elif thickness is not None and gap > thickness:
            step, is_sure = thickness, False
        elif not math.isfinite(gap):
            step, is_sure = 2 * SAME, True
        for segment in {own.segment for own in self.frames}:
            own = np.sort(offsets[[one.segment == segment for one in self.frames]])
            if np.diff(own).min(initial=math.inf) < min(SAME, step / 2):
                raise Unusable(Drop.BAD_ANNOTATION, "several frames of one segment at one place")
        return planes, offsets, step, is_sure

    def _by_place(self, image: str, frame: int, plane: Plane) -> tuple[NDArray[np.uint8], bool] | None:
        planes, offsets, step, is_sure = self._stack
        mask, covered, overlap = np.zeros(plane.size, np.uint8), False, False
        decoded = 0
        for segment in sorted({own.segment for own in self.frames}):
            stack = [
                k
                for k, own in enumerate(self.frames)
                if own.segment == segment and (is_sure or not own.sources or names_image(own.sources, image, frame))
            ]
            last, stored = -1, np.zeros(0, np.uint8)
            found = sampled([planes[k] for k in stack], offsets[stack], plane, step) if stack else ()
            for position, there, here in found:
                covered = covered or len(here) > 0
                if position != last:
                    decoded += self.tags.height * self.tags.width
                    if decoded > _DECODED_LIMIT:
                        raise Unusable(Drop.TOO_LARGE, "an image that cuts through too many frames")
                    last, stored = position, self._values(stack[position]).ravel()
                overlap |= _draw(mask.reshape(-1), there, stored[here])
        return (mask, overlap) if covered or image in self.images else None

    def _by_pixel(self, image: str, frame: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], bool] | None:
        if image not in self.images:
            return None
        if size != (self.tags.height, self.tags.width):
            raise Unusable(
                Drop.BAD_ANNOTATION,
                f"no place in the patient, and {self.tags.height} x {self.tags.width} pixels"
                f" where the image has {size[0]} x {size[1]}",
            )
        mask, overlap, seen = np.zeros(size, np.uint8), False, set()
        for k, own in sorted(enumerate(self.frames), key=lambda pair: pair[1].segment):
            if names_image(own.sources, image, frame) or (not own.sources and len(self.images) == 1):
                if own.displaced or own.segment in seen:
                    why = "pixels that lie elsewhere than the image's" if own.displaced else "a segment twice"
                    raise Unusable(Drop.BAD_ANNOTATION, f"no place in the patient, and {why}")
                seen.add(own.segment)
                overlap |= _draw(mask.reshape(-1), np.arange(mask.size), self._values(k).ravel())
        return mask, overlap

    def _values(self, frame: int) -> NDArray[np.uint8]:
        stored = stored_frame(self.dataset, frame, self.tags)
        if stored.ndim != 2 or stored.dtype.kind != "u":
            raise Unusable(Drop.BAD_ANNOTATION, "a segmentation in colour or with signs")
        segment = self.frames[frame].segment
        if not segment:
            values: NDArray[np.uint8] = self.values[np.minimum(stored.astype(np.intp), len(self.values) - 1)]
            return values
        return np.where(stored.astype(np.int64) * 2 >= self.largest, self.values[segment], np.uint8(0))


def read_segmentation(path: Path) -> Segmentation:
    """A DICOM segmentation: binary, fractional or label map. Raises Unusable, and no other error but OSError."""
    with refusing():
        dataset = opening.read_object(path, "segmentation", _TAGS, pixels=True)
        uid = text(dataset, "SOPInstanceUID")
        if uid is None or "PixelData" not in dataset:
            raise Unusable(Drop.BAD_ANNOTATION, "a segmentation without SOPInstanceUID or pixels")
        tags = checked(dataset, len(dataset.PixelData))
        kind = text(dataset, "SegmentationType") or ""
        largest = int(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or largest < 1:
            raise Unusable(Drop.UNSUPPORTED, "a segmentation that is not binary, fractional or a label map")
        names, values = _names(dataset)
        listed = images_named([dataset], "ReferencedSeriesSequence", "ReferencedInstanceSequence")
        frames = _frames(dataset, tags.frames, None if kind == "LABELMAP" else values)
        geometry = opening.geometry(dataset, (tags.height, tags.width), tags.frames)
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ReferencedSeriesSequence"):
            dataset.pop(name, None)  # much larger than what is kept of them
        return Segmentation(
            uid=uid,
            patient_id=tags.patient_id,
            author=authors.author_of(dataset),
            names=names,
            images=listed | {named for frame in frames for named, _ in frame.sources},
            geometry=geometry,
            frames=frames,
            largest=largest,
            values=values,
            automatic=tuple(
                int(segment.get("SegmentNumber") or 0)
                for segment in items(dataset, "SegmentSequence")
                if authors.is_automatic(segment)
            ),
            dataset=dataset,
            tags=tags,
        )


def segment_name(label: str | None, kind: str | None) -> str:
    """The class of a segment: its label, or its type's meaning where the label only counts (Nodule 2, Segment_1)."""
    if label and kind:
        rest = label[len(kind) :] if label.lower().startswith(kind.lower()) else label
        return kind if _COUNTER.fullmatch(rest) else label
    return label or kind or "unnamed"


def _names(dataset: pydicom.Dataset) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Names in the order of the segments' numbers, and number [65536] to mask value, 0 where it's no segment's."""
    numbered: dict[int, str] = {}
    for segment in items(dataset, "SegmentSequence"):
        number = int(segment.get("SegmentNumber") or 0)
        name = segment_name(
            text(segment, "SegmentLabel"), opening.meaning(segment, "SegmentedPropertyTypeCodeSequence")
        )
        if not 0 <= number < 1 << 16 or numbered.setdefault(number, name) != name:
            raise Unusable(Drop.BAD_ANNOTATION, "segments without a number of their own")
    numbered.pop(0, None)  # a label map may describe its background
    names = tuple(dict.fromkeys(numbered[number] for number in sorted(numbered)))
    if not 1 <= len(names) <= _NAMES_LIMIT:
        raise Unusable(Drop.BAD_ANNOTATION, f"{len(names)} differently named segments; 1 to {_NAMES_LIMIT} can be used")
    values = np.zeros(1 << 16, np.uint8)
    values[list(numbered)] = [names.index(name) + 1 for name in numbered.values()]
    return names, values


def _frames(dataset: pydicom.Dataset, count: int, values: NDArray[np.uint8] | None) -> tuple[Frame, ...]:
    """All frames; `values` is None for a label map."""
    shared, each = first(dataset, "SharedFunctionalGroupsSequence"), items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(each) != count:
        raise Unusable(Drop.BAD_ANNOTATION, f"{len(each)} frames described, {count} there")
    found = []
    for group in each:
        identity = first(group, "SegmentIdentificationSequence") or first(shared, "SegmentIdentificationSequence")
        segment = 0 if values is None or identity is None else int(identity.get("ReferencedSegmentNumber") or 0)
        if values is not None and not (0 < segment < len(values) and values[segment]):
            raise Unusable(Drop.BAD_ANNOTATION, "a frame of a segment that isn't described")
        drawn = [
            source
            for derived in items(group, "DerivationImageSequence") or items(shared, "DerivationImageSequence")
            for source in items(derived, "SourceImageSequence")
        ]
        found.append(
            Frame(
                segment=segment,
                sources=tuple(named for source in drawn if (named := reference(source))),
                displaced=any((text(source, "SpatialLocationsPreserved") or "YES") != "YES" for source in drawn),
            )
        )
    return tuple(found)


def _draw(mask: NDArray[np.uint8], there: NDArray[Any], values: NDArray[np.uint8]) -> bool:
    """Put values above 0 into a flat mask; whether another one was there before."""
    there, values = there[values > 0], values[values > 0]
    before = mask[there]
    mask[there] = values
    return bool(((before > 0) & (before != values)).any())
