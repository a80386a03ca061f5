"""COCO: JSON with boxes and, where objects have a `segmentation`, masks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.annotations import Finding, Remark, Split, Subject, inside, single_frame
from client.drops import Drop, Unusable
from common.annotation import Annotation, Box
from common.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of a COCO file and its objects, unchecked but for being JSON objects."""

    place: str  # file and entry, for remarks
    image: dict[str, Any]
    objects: list[dict[str, Any]]
    categories: dict[int, str]  # id to name, by ascending id
    has_masks: bool  # whether objects of this file have segmentations at all
    split: Split | None


@dataclass
class Coco:
    """Objects by image. `file_name` is a relative path (also below `images`), a file's name, or a SOPInstanceUID."""

    by_name: dict[str, list[Entry]]
    files: frozenset[str]
    _used: set[str] = field(default_factory=set)
    _remarks: list[Remark] = field(default_factory=list)

    def annotation(self, subject: Subject) -> Annotation:
        entry = self._entry(subject)
        if entry is None:
            return Annotation()
        single_frame(subject, "boxes")
        size = (entry.image.get("height"), entry.image.get("width"))
        if None not in size and size != (subject.height, subject.width):
            says, is_ = "{} x {}".format(*size), f"{subject.height} x {subject.width}"
            raise Unusable(Drop.BAD_ANNOTATION, f"{entry.place} says {says} pixels, the image has {is_}")
        # A crowd region stands for objects that nobody counted: neither an object nor background.
        objects = [item for item in entry.objects if not item.get("iscrowd")]
        try:
            boxes = [_box(item, entry.categories) for item in objects]
            kept, without_area = inside(boxes, height=subject.height, width=subject.width)
            mask = _mask(objects, entry.categories, subject.height, subject.width) if entry.has_masks else None
        except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
            raise Unusable(
                Drop.BAD_ANNOTATION, f"{entry.place} has an object that is not COCO ({type(error).__name__})"
            ) from None
        self._remarks += [Remark(finding=Finding.BOX_WITHOUT_AREA, place=entry.place)] * without_area
        names = tuple(entry.categories.values())
        return Annotation(boxes=kept, box_names=names, mask=mask, mask_names=names if mask is not None else None)

    def official(self, subject: Subject) -> Split | None:
        entry = self._entry(subject)
        return entry.split if entry else None

    def columns(self, subject: Subject) -> dict[str, str]:
        return {}

    def remarks(self) -> Iterator[Remark]:
        yield from self._remarks
        for name, entries in self.by_name.items():
            if name not in self._used:
                yield from (Remark(finding=Finding.LABEL_WITHOUT_IMAGE, place=entry.place) for entry in entries)

    def _entry(self, subject: Subject) -> Entry | None:
        path = PurePosixPath(subject.path)
        for name in (subject.path, "/".join(path.parts[1:]), path.name, subject.sop_uid, f"{subject.sop_uid}.dcm"):
            if name and name in self.by_name:
                self._used.add(name)
                if len(self.by_name[name]) > 1:
                    raise Unusable(Drop.BAD_ANNOTATION, "several COCO entries have its name: give relative paths")
                return self.by_name[name][0]
        return None


def read_coco(root: Path, files: list[str]) -> Coco:
    """The COCO entries of the JSON files named (relative paths). Raises DataError for a file that is not COCO."""
    by_name: dict[str, list[Entry]] = {}
    for file in files:
        for name, entry in _entries(root / file, file):
            by_name.setdefault(name, []).append(entry)
    return Coco(by_name=by_name, files=frozenset(files))


def is_coco(path: Path) -> bool:
    """Whether a JSON file is an object with `images`, `annotations` and `categories`."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _entries(path: Path, file: str) -> Iterator[tuple[str, Entry]]:
    try:
        content = json.loads(path.read_bytes())
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: int(c["id"]))}
        images = {image["id"]: (str(image["file_name"]), dict(image)) for image in content["images"]}
        objects: dict[Any, list[dict[str, Any]]] = {image: [] for image in images}
        for item in content["annotations"]:
            objects[item["image_id"]].append(dict(item))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else type(error).__name__
        raise DataError(
            f"{file}: not a COCO file ({why}): it needs images, annotations and categories that fit"
        ) from None
    if len(categories) > 255:
        raise DataError(f"{file}: {len(categories)} categories; at most 255")
    has_masks = any(item.get("segmentation") for items in objects.values() for item in items)
    split = _split(PurePosixPath(file).stem)
    for key, (name, image) in images.items():
        yield (
            name.removeprefix("./"),
            Entry(
                place=f"{file} image {str(key)[:20]}",
                image=image,
                objects=objects[key],
                categories=categories,
                has_masks=has_masks,
                split=split,
            ),
        )


def _split(stem: str) -> Split | None:
    """The split that a file name such as `instances_val2017` tells."""
    words: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
    found = {split for word, split in words.items() if word in stem.lower()}
    return found.pop() if len(found) == 1 else None


def _box(item: dict[str, Any], categories: dict[int, str]) -> Box:
    if not isinstance(item["bbox"], list):
        raise TypeError("a box is a list")
    x, y, width, height = (float(value) for value in item["bbox"])
    return Box(x1=x, y1=y, x2=x + width, y2=y + height, name=categories[item["category_id"]])


def _mask(
    objects: list[dict[str, Any]], categories: dict[int, str], height: int, width: int
) -> NDArray[np.uint8] | None:
    """Value k is the k-th category, later objects over earlier ones. None if an object has no shape."""
    mask = np.zeros((height, width), np.uint8)
    position = {category: k for k, category in enumerate(categories, start=1)}
    for item in objects:
        if not item.get("segmentation"):
            return None
        mask[_shape(item["segmentation"], height, width)] = position[item["category_id"]]
    return mask


def _shape(shape: Any, height: int, width: int) -> NDArray[np.bool_]:
    """[height, width] of one object from polygons or run lengths. Raises ValueError before C code sees nonsense."""
    from pycocotools import mask as api

    if isinstance(shape, list):
        limit = 2 * max(height, width)
        for polygon in shape:
            if len(polygon) < 6 or len(polygon) % 2 or not all(abs(float(v)) <= limit for v in polygon):
                raise ValueError("a polygon has three or more corners near the image")
        polygons: Any = [[float(v) for v in polygon] for polygon in shape]
        drawn: Any = api.frPyObjects(polygons, height, width)
        runs = [_lengths(one["counts"]) for one in drawn]
    else:
        if list(shape["size"]) != [height, width]:
            raise ValueError("run lengths for another size")
        counts = shape["counts"]
        runs = [counts if isinstance(counts, list) else _lengths(counts.encode("ascii"))]
    covered = np.zeros(height * width, bool)
    for lengths in runs:
        if any(not isinstance(n, int) or n < 0 for n in lengths) or sum(lengths) != height * width:
            raise ValueError("run lengths that do not fill the image")
        covered |= np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return covered.reshape(width, height).T


def _lengths(text: bytes) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, low first; from the fourth on less the run but one before.

    Source: rleFrString in maskApi.c of pycocotools.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("not compressed run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end in the middle")
    return lengths
