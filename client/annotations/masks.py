"""Mask pictures: `masks/<SOPInstanceUID>.png` of a DICOM folder, or `masks/NAME.png` beside `images/NAME.png`.

Those of several readers lie in `masks-READER` folders.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client.annotations import Finding, Remark, Split, Subject, picture, single_frame
from client.drops import Drop, Unusable
from common.annotation import Annotation

FOLDER = "masks"


@dataclass
class Masks:
    """Label maps on the stored image's grid. Their values are class numbers, or with one class any value above 0."""

    root: Path
    by_name: dict[str, str]  # name without folder and suffix -> relative path
    files: frozenset[str]
    images: str | None  # the folder whose files masks/ mirrors; None: masks are named by SOPInstanceUID
    _used: set[str] = field(default_factory=set)

    def annotation(self, subject: Subject) -> Annotation:
        path = self.by_name.get(self._name(subject) or "")
        if path is None:
            return Annotation()
        self._used.add(path)
        single_frame(subject, "a mask")
        try:
            mask = picture.label_map((self.root / path).read_bytes())
        except OSError as error:
            raise Unusable(Drop.BAD_ANNOTATION, f"its mask can't be read ({type(error).__name__})") from None
        except Unusable as error:
            raise Unusable(Drop.BAD_ANNOTATION, f"its mask: {error}") from None
        if mask.shape != (subject.height, subject.width):
            raise Unusable(
                Drop.BAD_ANNOTATION,
                f"its mask is {mask.shape[0]} x {mask.shape[1]}, the image {subject.height} x {subject.width} pixels",
            )
        return Annotation(mask=mask)

    def official(self, subject: Subject) -> Split | None:
        return None

    def columns(self, subject: Subject) -> dict[str, str]:
        return {}

    def remarks(self) -> Iterator[Remark]:
        for path in sorted(set(self.by_name.values()) - self._used):
            yield Remark(finding=Finding.LABEL_WITHOUT_IMAGE, place=path)

    def _name(self, subject: Subject) -> str | None:
        if self.images is None:
            return subject.sop_uid
        path = PurePosixPath(subject.path)
        return str(path.relative_to(self.images).with_suffix("")) if path.is_relative_to(self.images) else None


def read_masks(root: Path, files: list[str], *, images: str | None, folder: str = FOLDER) -> Masks | None:
    """The masks among the folder's files (relative paths), or None where there is no folder of masks."""
    paths = [PurePosixPath(file) for file in files if file.startswith(folder + "/")]
    by_name = {
        str(path.relative_to(folder).with_suffix("")): str(path)
        for path in paths
        if path.suffix.lower() in picture.SUFFIXES
    }
    return Masks(root=root, by_name=by_name, files=frozenset(by_name.values()), images=images) if paths else None
