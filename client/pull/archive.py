"""What an archive is to `pull` and `push`: questions, answers, images, and what can go wrong with one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

Level = Literal["STUDY", "SERIES", "IMAGE"]
Answer = Mapping[str, str]  # DICOM keyword -> value, in several values the first; absent or empty is ""

ANSWERS_LIMIT = 100_000  # to one question: more is an archive that never ends, or a question without dates
TEXT_LIMIT = 1024  # characters of a value that are looked at
_UID = re.compile("[0-9]+([.][0-9]+)*")
_FOLDERS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


class Fault(StrEnum):
    """Why one image is not here, or one object not there. A lasting one is not asked for again."""

    TOO_LARGE = "too_large"
    MALFORMED = "malformed"  # not DICOM, or not what the protocol says an answer looks like
    WRONG_UID = "wrong_uid"  # another image than the one asked for
    NOT_THERE = "not_there"  # listed by the archive, and then not given
    NOT_LISTED = "not_listed"  # counted by the archive in its series, and not among the images that it lists
    FAILED = "failed"  # the archive says that it can't, now
    BROKE_OFF = "broke_off"
    LATE = "late"
    NOT_TAKEN = "not_taken"  # the archive says that it doesn't take this object

    @property
    def lasting(self) -> bool:
        return self in (Fault.TOO_LARGE, Fault.MALFORMED, Fault.WRONG_UID, Fault.NOT_TAKEN)


class Missing(Exception):
    """One answer or image could not be had. Never carries text from the archive."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Unreached(Missing):
    """No connection came about: nobody listens at `place`, HOST:PORT, or the way there is barred."""

    def __init__(self, place: str) -> None:
        super().__init__(Fault.BROKE_OFF)
        self.place = place


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One image (or other object) as the archive lists it. Guarantees: its UIDs are safe as names of files."""

    study: str
    series: str
    sop: str
    sop_class: str = ""  # empty where the archive does not tell

    def __post_init__(self) -> None:
        if not all(map(is_uid, (self.study, self.series, self.sop))):
            raise Missing(Fault.MALFORMED)


class Archive(Protocol):
    """An open archive. One question or image at a time."""

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Answer]:
        """What matches `keys` (DICOM keyword -> value; an empty value asks for it to be in the answers).

        Guarantees: at most ANSWERS_LIMIT answers, within the deadline, each with a UID of its level that `is_uid`.
        Raises Missing; DataError where asking again makes no sense (credentials, certificate, titles).
        """

    def fetch(self, instance: Instance, path: Path, *, limit: int) -> None:
        """Write the image to `path`, at most `limit` bytes, in the transfer syntax that it has in the archive.

        Guarantees: returns only when the protocol said that this was all of it; within the deadline.
        Raises Missing, OSError from the disk; DataError as `find`.
        """

    def store(self, path: Path, instance: Instance) -> None:
        """Give the archive a DICOM file of these UIDs, as it is.

        Guarantees: returns only when the archive said that it has it; within the deadline.
        Raises Missing, OSError from the disk; DataError as `find`.
        """

    def close(self) -> None:
        """Say goodbye. Never raises."""


def is_uid(text: str) -> bool:
    """Whether a text is digits and single dots, at most 64: what a UID is (PS3.5 9.1), leading zeros let pass.

    Guarantees: such a text is safe as the name of one file: no separator, no `..`, never empty, never hidden.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def uid_of(level: Level) -> str:
    """Keyword of the UID that names what a level lists."""
    return _FOLDERS[level]


def distinct(level: Level, answers: list[Answer]) -> list[Answer]:
    """Each answer with a usable UID, once. An answer without is nothing that could be asked for."""
    named = {identity(level, answer): answer for answer in reversed(answers)}
    return [answer for (uid, _), answer in reversed(named.items()) if is_uid(uid)]


def identity(level: Level, answer: Answer) -> tuple[str, str]:
    """What tells an answer from others: its UID and, where that was asked, whose it is, as UIDs repeat by mistake."""
    return answer.get(uid_of(level), ""), answer.get("PatientID", "").strip()
