"""DICOM segmentations, structure sets and reports beside the images: each is one reader of the images that it names."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from client import dicom_objects
from client.annotations import Finding, Remark, Split, Subject, inside
from client.dicom import quiet
from client.dicom_objects import DicomObject, Geometry, Kind, Region, Report, Segmentation
from client.drops import Unusable
from client.readers import READERS_LIMIT, Reading
from common.annotation import Annotation, Box

_WAVE = 4096  # files looked at ahead
_HELD = 1 << 30  # bytes of files kept open for the next image, however many readers it has
Key = tuple[str | None, str]  # PatientID and a UID


@dataclass
class Objects:
    """Masks of segmentations and structure sets and boxes of reports, laid onto the stored pixels of each image.

    An object counts for images of its own PatientID alone, those that it names by SOPInstanceUID, or, where it names
    none, those in its frame of reference. An image that a segmentation or structure set names and has nothing drawn on
    is background; one that a report has no box for is not annotated, but where another report has one it counts as a
    reader that saw nothing. What can't be laid onto an image is left out and named in the remarks; so are Fedward's own
    results and, unless they're kept, segments and reports that a program made alone.
    """

    root: Path
    kinds: Mapping[str, Kind]  # relative path to kind, of all files that were meant for annotations
    by_image: Mapping[Key, Sequence[str]]
    by_place: Mapping[Key, Sequence[str]]
    names: Mapping[str, str]  # the study's name for a name found
    unreadable: Mapping[str, str]  # relative path to what's wrong
    left_out: Mapping[str, Finding]  # relative path to whose work it is, as a whole or in part
    keeps_automatic: bool
    _used: set[str] = field(default_factory=set)
    _problems: Counter[tuple[str, str]] = field(default_factory=Counter)  # path and what's wrong: images
    _overlaps: Counter[str] = field(default_factory=Counter)
    _remarks: list[Remark] = field(default_factory=list)
    _held: dict[str, tuple[DicomObject, int]] = field(default_factory=dict)
    _located: tuple[str, Geometry] | None = None  # the image looked at last

    @property
    def files(self) -> frozenset[str]:
        return frozenset(self.kinds)

    def readings(self, subject: Subject) -> list[Reading]:
        found: list[Reading] = []
        blind: list[Reading] = []
        for path, one in self._objects(subject):
            try:
                if isinstance(one, Report):
                    boxes = [replace(box, name=self._name(box.name)) for box, _ in self._boxes(subject, one)]
                    kept, without_area = inside(boxes, height=subject.height, width=subject.width)
                    self._remarks += [Remark(finding=Finding.BOX_WITHOUT_AREA, place=path)] * without_area
                    looked_for = tuple({self._name(region.name): None for region in one.regions})
                    known = Annotation(boxes=kept, box_names=looked_for)
                    (found if kept else blind).append(Reading(reader=path, annotation=known))
                    continue
                drawn = one.mask(
                    subject.sop_uid or "", subject.frame, (subject.height, subject.width), self._geometry(subject)
                )
            except (Unusable, OSError) as error:
                self._problems[path, str(error) if isinstance(error, Unusable) else type(error).__name__] += 1
                continue
            if drawn is not None:
                names = tuple(self._name(name) for name in one.names)
                found.append(Reading(reader=path, annotation=Annotation(mask=drawn[0], mask_names=names)))
                self._used.add(path)
                self._overlaps[path] += drawn[1]
        if any(reading.annotation.boxes for reading in found):
            self._used.update(reading.reader for reading in found)
            found += blind
        return found

    def official(self, subject: Subject) -> Split | None:
        return None

    def columns(self, subject: Subject) -> dict[str, str]:
        """What reports measured in regions on the image: by quantity and unit the values, with spaces between them."""
        found: dict[str, list[str]] = {}
        for _, one in self._objects(subject):
            if isinstance(one, Report):
                try:
                    measured = [pair for _, region in self._boxes(subject, one) for pair in region.measurements]
                except (Unusable, OSError):  # already counted
                    continue
                for quantity, value in measured:
                    found.setdefault(quantity, []).append(value)
        return {quantity: " ".join(values) for quantity, values in found.items()}

    def remarks(self) -> Iterator[Remark]:
        yield from self._remarks
        for path, finding in sorted(self.left_out.items()):
            yield Remark(finding=finding, place=path)
        for path, why in sorted(self.unreadable.items()):
            yield Remark(finding=Finding.ANNOTATION_NOT_USABLE, place=f"{path}: {why}")
        for (path, why), count in sorted(self._problems.items()):
            yield Remark(finding=Finding.ANNOTATION_NOT_USABLE, place=f"{path}: {why} ({count} images)")
        for path, count in sorted((+self._overlaps).items()):
            yield Remark(finding=Finding.OVERLAPPING_CLASSES, place=f"{path} ({count} images)")
        for path in sorted(self.files - self._used - self.unreadable.keys() - {path for path, _ in self._problems}):
            yield Remark(finding=Finding.LABEL_WITHOUT_IMAGE, place=path)

    def _objects(self, subject: Subject) -> Iterator[tuple[str, DicomObject]]:
        paths = list(self.by_image.get((subject.patient_id, subject.sop_uid or ""), ()))
        if any(patient == subject.patient_id for patient, _ in self.by_place):
            try:
                place = self._geometry(subject).frame_of_reference
            except (Unusable, OSError):  # nothing says where it is, so nothing is there
                place = None
            paths += [path for path in self.by_place.get((subject.patient_id, place or ""), ()) if path not in paths]
        for path in paths:
            try:
                yield path, self._object(path)
            except (Unusable, OSError) as error:
                self._problems[path, str(error) if isinstance(error, Unusable) else type(error).__name__] += 1

    def _object(self, path: str) -> DicomObject:
        """The object, read again where it had to make room for others."""
        if path not in self._held:
            one, size = dicom_objects.read(self.root / path, self.kinds[path]), (self.root / path).stat().st_size
            if isinstance(one, Segmentation) and not self.keeps_automatic:
                one = one.by_people()
            while self._held and (
                len(self._held) == READERS_LIMIT or size + sum(held for _, held in self._held.values()) > _HELD
            ):
                del self._held[next(iter(self._held))]
            self._held[path] = one, size
        return self._held[path][0]

    def _geometry(self, subject: Subject) -> Geometry:
        if self._located is None or self._located[0] != subject.path:
            self._located = subject.path, dicom_objects.image_geometry(self.root / subject.path)
        return self._located[1]

    def _boxes(self, subject: Subject, one: Report) -> list[tuple[Box, Region]]:
        geometry = self._geometry(subject) if any(region.frame_of_reference for region in one.regions) else None
        return one.boxes(subject.sop_uid or "", subject.frame, geometry)

    def _name(self, found: str) -> str:
        return self.names.get(found, found)


def read_objects(
    root: Path,
    files: Sequence[str],
    names: Mapping[str, str],
    *,
    keeps_automatic: bool = False,
    jobs: int | None = None,
) -> Objects | None:
    """The annotation objects among the folder's files (relative paths), or None where there is none.

    Each is read once here, for what it's about, and again when its images come. Of two with one SOPInstanceUID the
    first counts; a report without regions is no annotation, but counted as one. `keeps_automatic`: what a program made
    alone is an annotation too.
    """
    kinds = _kinds(root, files, jobs)
    by_image: dict[Key, list[str]] = {}
    by_place: dict[Key, list[str]] = {}
    unreadable: dict[str, str] = {}
    seen: set[Key] = set()
    silent: set[str] = set()
    left_out: dict[str, Finding] = {}
    with quiet():
        for path, kind in kinds.items():
            try:
                one = dicom_objects.read(root / path, kind)
            except (Unusable, OSError) as error:
                unreadable[path] = str(error) if isinstance(error, Unusable) else type(error).__name__
                continue
            if (one.patient_id, one.uid) in seen:
                unreadable[path] = "same SOPInstanceUID as an earlier file"
                continue
            seen.add((one.patient_id, one.uid))
            is_own, has_automatic = one.author == "fedward", isinstance(one, Segmentation) and one.automatic
            if is_own or (not keeps_automatic and (one.author == "program" or has_automatic)):
                left_out[path] = Finding.OWN_RESULT if is_own else Finding.MADE_BY_A_PROGRAM
                if one.author != "person":
                    silent.add(path)
                    continue
            if isinstance(one, Report) and not one.regions:
                silent.add(path)
                continue
            by, keys = (by_image, one.images) if one.images else (by_place, one.frames_of_reference)
            for key in keys:
                by.setdefault((one.patient_id, key), []).append(path)
    return (
        Objects(
            root=root,
            kinds=kinds,
            by_image=by_image,
            by_place=by_place,
            names=names,
            unreadable=unreadable,
            left_out=left_out,
            keeps_automatic=keeps_automatic,
            _used=silent,
        )
        if kinds
        else None
    )


def _kinds(root: Path, files: Sequence[str], jobs: int | None) -> dict[str, Kind]:
    """The annotation objects among files, by their first bytes."""

    def kind(path: str) -> Kind | None:
        try:
            with (root / path).open("rb") as file:
                return dicom_objects.kind_of(file.read(dicom_objects.HEAD))
        except OSError:  # counted when it's looked at as an image
            return None

    found: dict[str, Kind] = {}
    with ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), _WAVE):
            part = files[start : start + _WAVE]
            found.update({path: one for path, one in zip(part, pool.map(kind, part), strict=True) if one is not None})
    return found
