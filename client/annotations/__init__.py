"""What is known about a site's images, read from files of several formats into one type.

A reader is made once per folder. It says which files it has read, then answers for one image after the other, and at
the end names what matched no image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

from client.drops import Drop, Unusable
from client.readers import Reading
from common.annotation import Annotation, Box

Split = Literal["train", "validation", "test"]


class Finding(StrEnum):
    """What a person should look at although no file was dropped for it."""

    BOX_WITHOUT_AREA = "box_without_area"  # dropped
    LABEL_WITHOUT_IMAGE = "label_without_image"  # a label, mask or box file entry that matches no image
    ANNOTATION_NOT_USABLE = "annotation_not_usable"  # a DICOM object that can't be read, or not be laid onto an image
    OWN_RESULT = "own_result"  # left out: what a model of Fedward's said is no truth to train the next one on
    MADE_BY_A_PROGRAM = "made_by_a_program"  # left out: segments and reports without a person's hand or verification
    OVERLAPPING_CLASSES = "overlapping_classes"  # kept: a mask holds one class for each pixel, the later segment's
    NOT_COMPARABLE = "not_comparable"  # left out: masks with named classes beside masks with numbered ones
    OUTVOTED = "outvoted"  # kept: without a class that one of several readers saw in the image
    SAME_IN_TWO_PATIENTS = "same_in_two_patients"  # kept: which of the two is right is not for a program to say
    SEVERAL_ISSUERS = "several_issuers"  # kept as one patient: split where it's one person, he would count as two


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One finding and its place: a file and a line or entry, never an identifier's value."""

    finding: Finding
    place: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The stored image that an annotation is looked for: one frame (from 0) of a file. `path` is relative to the
    folder, with forward slashes.
    """

    path: str
    height: int
    width: int
    frames: int = 1  # of the file
    frame: int = 0
    sop_uid: str | None = None
    study_uid: str | None = None
    patient_id: str | None = None  # in the file's header
    patient: str | None = None  # whose image it is, as `patients.csv` or the header says


class Known(Protocol):
    """What one format in one folder tells besides annotations."""

    @property
    def files(self) -> frozenset[str]:
        """Read for annotations: never images."""

    def official(self, subject: Subject) -> Split | None:
        """The split that the data set's makers gave the image."""

    def columns(self, subject: Subject) -> dict[str, str]:
        """Further columns of the image's row in a table."""

    def remarks(self) -> Iterator[Remark]:
        """What was found, once every image has been asked for."""


class Reader(Known, Protocol):
    """The annotations of one format in one folder."""

    def annotation(self, subject: Subject) -> Annotation:
        """What this format knows of the image; an empty annotation if nothing. Raises Unusable when it's wrong."""


@runtime_checkable
class Panel(Known, Protocol):
    """Annotations of one format in one folder by several readers."""

    def readings(self, subject: Subject) -> list[Reading]:
        """What each reader knows of the image. Raises Unusable when it's wrong."""


def inside(boxes: Sequence[Box], *, height: int, width: int) -> tuple[tuple[Box, ...], int]:
    """The boxes cut at the image's border, without those of no area (NaN included), and how many those were."""
    kept = []
    for box in boxes:
        x1, x2 = (min(max(x, 0.0), float(width)) for x in (box.x1, box.x2))
        y1, y2 = (min(max(y, 0.0), float(height)) for y in (box.y1, box.y2))
        if x2 > x1 and y2 > y1:
            kept.append(Box(x1=x1, y1=y1, x2=x2, y2=y2, name=box.name))
    return tuple(kept), len(boxes) - len(kept)


def single_frame(subject: Subject, what: str) -> None:
    """Raises Unusable for a multi-frame file: nothing says which frame masks and boxes belong to."""
    if subject.frames != 1:
        raise Unusable(
            Drop.BAD_ANNOTATION, f"{what} for a file of {subject.frames} frames: only labels are read for those"
        )
