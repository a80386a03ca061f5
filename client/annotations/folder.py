"""All that a folder's files know of its images, whoever drew it and in whatever format."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from client.annotations import Finding, Panel, Reader, Remark, Split, Subject, coco, masks, tables, voc
from client.annotations.dicom import read_objects
from client.readers import Reading, not_comparable
from common.errors import DataError

_BOXES = re.compile(r"boxes(-.+)?\.json")  # boxes.json, or boxes-READER.json for one of several
_MASKS = re.compile(masks.FOLDER + "(-.+)?")


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The readers of a folder, those of `labels.csv` first, each with its name: "" where there is but one."""

    readers: tuple[tuple[str, Reader | Panel], ...]
    _apart: Counter[str] = field(default_factory=Counter)  # by reader the images whose mask fits no other reader's

    @property
    def files(self) -> frozenset[str]:
        """Read for annotations: never images."""
        return frozenset((tables.PATIENTS, tables.NAMES)).union(*(reader.files for _, reader in self.readers))

    def readings(self, subject: Subject) -> list[Reading]:
        """What each reader says of an image. Raises Unusable when one of them is wrong."""
        found: list[Reading] = []
        for name, reader in self.readers:
            if isinstance(reader, Panel):
                found += reader.readings(subject)
            else:
                found.append(Reading(reader=name, annotation=reader.annotation(subject)))
        self._apart.update(one.reader for one in not_comparable(found))
        return found

    def official(self, subject: Subject) -> Split | None:
        """The split that the data set's makers gave an image."""
        return next((split for _, reader in self.readers if (split := reader.official(subject))), None)

    def columns(self, subject: Subject) -> dict[str, str]:
        """Further columns of an image's rows in tables, and what was measured in it."""
        return {name: value for _, reader in self.readers for name, value in reader.columns(subject).items()}

    def remarks(self) -> Iterator[Remark]:
        """What was found, once every image has been asked for."""
        for _, reader in self.readers:
            yield from reader.remarks()
        for name, count in sorted(self._apart.items()):
            yield Remark(finding=Finding.NOT_COMPARABLE, place=f"{name or 'a reader without name'} ({count} images)")


def has_masks(root: Path) -> bool:
    """Whether a folder has masks of one reader or several."""
    return any(_MASKS.fullmatch(path.name) and path.is_dir() for path in root.glob(masks.FOLDER + "*"))


def mask_files(files: Iterable[str]) -> frozenset[str]:
    """Those of a folder's files (relative paths) that lie where masks do: drawn on images, and none themselves."""
    return frozenset(
        file for file in files if len(parts := PurePosixPath(file).parts) > 1 and _MASKS.fullmatch(parts[0])
    )


def is_coco(path: Path) -> bool:
    """Whether a file is COCO and stands for a folder of that format: not the boxes of a DICOM folder."""
    return not _BOXES.fullmatch(path.name) and coco.is_coco(path)


def open_annotations(
    root: Path,
    form: Literal["voc", "coco", "masks", "dicom"],
    files: Sequence[str],
    *,
    keeps_automatic: bool = False,
    jobs: int | None,
) -> Annotations:
    """The annotations among a folder's files (relative paths). Whatever the format, `labels.csv` may add labels.
    `keeps_automatic`: DICOM objects that a program made alone count too.

    Raises DataError when a file that speaks for many images can't be read.
    """
    readers: list[tuple[str, Reader | Panel | None]] = [("", tables.read_labels(root))]
    if form == "voc":
        readers.append(("", voc.read_voc(root, list(files))))
    elif form == "coco":
        found = [f for f in files if f.endswith(".json") and PurePosixPath(f).parts[:-1] in ((), ("annotations",))]
        found = [f for f in found if coco.is_coco(root / f)]
        if not found:
            raise DataError(
                f"{root}: no COCO file (.json with images and annotations) in it or in its annotations folder"
            )
        readers.append(("", coco.read_coco(root, found)))
    else:
        tops = sorted({PurePosixPath(file).parts[0] for file in files})
        images = "images" if form == "masks" else None
        for folder, reader in _named(tops, _MASKS):
            readers.append((reader, masks.read_masks(root, list(files), images=images, folder=folder)))
        if form == "dicom":
            readers += [(reader, coco.read_coco(root, [file])) for file, reader in _named(tops, _BOXES)]
            names = tables.read_names(root)
            readers.append(("", read_objects(root, files, names, keeps_automatic=keeps_automatic, jobs=jobs)))
    return Annotations(readers=tuple((name, reader) for name, reader in readers if reader is not None))


def _named(names: Iterable[str], pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """The names that fit, each with its reader's."""
    return [(name, (found[1] or "")[1:]) for name in names if (found := pattern.fullmatch(name))]
