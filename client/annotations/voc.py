"""Pascal VOC: `Annotations/NAME.xml` with boxes, `ImageSets/Main/{train,val,trainval,test}.txt` with the split."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from client.annotations import Finding, Remark, Split, Subject, inside
from client.drops import Drop, Unusable
from common.annotation import Annotation, Box
from common.errors import DataError

FOLDER, IMAGES, SPLITS = "Annotations", "JPEGImages", "ImageSets/Main"
# Later ones win: an image named for testing is never trained on.
_SPLITS: tuple[tuple[str, Split], ...] = (
    ("trainval", "train"),
    ("train", "train"),
    ("val", "validation"),
    ("test", "test"),
)


@dataclass
class Voc:
    """Boxes by the name of the image. Corners are taken as written, as continuous pixels (labelImg writes them so)."""

    root: Path
    by_name: dict[str, str]
    files: frozenset[str]
    splits: dict[str, Split]
    _used: set[str] = field(default_factory=set)
    _remarks: list[Remark] = field(default_factory=list)

    def annotation(self, subject: Subject) -> Annotation:
        path = self.by_name.get(PurePosixPath(subject.path).stem)
        if path is None:
            return Annotation()
        self._used.add(path)
        boxes, size = _parsed(self.root / path)
        if size is not None and size != (subject.height, subject.width):
            says, is_ = "{} x {}".format(*size), f"{subject.height} x {subject.width}"
            raise Unusable(Drop.BAD_ANNOTATION, f"its XML says {says} pixels, the image has {is_}")
        kept, without_area = inside(boxes, height=subject.height, width=subject.width)
        self._remarks += [Remark(finding=Finding.BOX_WITHOUT_AREA, place=path)] * without_area
        return Annotation(boxes=kept)

    def official(self, subject: Subject) -> Split | None:
        return self.splits.get(PurePosixPath(subject.path).stem)

    def columns(self, subject: Subject) -> dict[str, str]:
        return {}

    def remarks(self) -> Iterator[Remark]:
        yield from self._remarks
        for path in sorted(set(self.by_name.values()) - self._used):
            yield Remark(finding=Finding.LABEL_WITHOUT_IMAGE, place=path)


def read_voc(root: Path, files: list[str]) -> Voc:
    """The annotations among the folder's files. Raises DataError for split lists that can't be read."""
    by_name = {
        PurePosixPath(file).stem: file for file in files if file.startswith(FOLDER + "/") and file.endswith(".xml")
    }
    lists = [file for file in files if file.startswith("ImageSets/") and file.endswith(".txt")]
    splits: dict[str, Split] = {}
    for name, split in _SPLITS:
        if f"{SPLITS}/{name}.txt" in lists:
            try:
                text = (root / SPLITS / f"{name}.txt").read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{SPLITS}/{name}.txt: can't be read as text ({type(error).__name__})") from None
            splits.update({line.split()[0]: split for line in text.splitlines() if line.split()})
    return Voc(root=root, by_name=by_name, files=frozenset((*by_name.values(), *lists)), splits=splits)


def _parsed(path: Path) -> tuple[list[Box], tuple[int, int] | None]:
    """Boxes and, where the file says it, height and width. Raises Unusable."""
    try:
        # As text, so that no encoding can hide them: entities make a small file explode, and no box needs them.
        text = path.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise Unusable(Drop.BAD_ANNOTATION, "its XML has a document type: only plain XML is read")
        tree = ElementTree.fromstring(text)  # noqa: S314 - no entities, as checked above
        boxes = []
        for item in tree.iter("object"):
            corners = [float(item.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")]
            name = (item.findtext("name") or "").strip()
            if not name:
                raise Unusable(Drop.BAD_ANNOTATION, "its XML has an object without name")
            boxes.append(Box(x1=corners[0], y1=corners[1], x2=corners[2], y2=corners[3], name=name))
        height, width = (int(tree.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except (OSError, ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise Unusable(Drop.BAD_ANNOTATION, f"its XML can't be read ({type(error).__name__})") from None
    return boxes, (height, width) if height and width else None
