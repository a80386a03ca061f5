"""Which studies and series are wanted: the questions that say so, and the check of every answer against them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from client.pull.archive import TEXT_LIMIT, Answer
from common.errors import DataError

LIST_LIMIT = 1_000_000  # entries of a list
Key = Literal["PatientID", "AccessionNumber"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is wanted; all that is given must hold. Dates are of the study, both ends included.

    `entries` are values of `key`. In descriptions `*` stands for any text and `?` for one character, and case does not
    matter. They are compared here and never sent: archives differ in what they do with wildcards and with case, and
    machines of one hospital write one examination in several ways.
    """

    since: date | None = None
    until: date | None = None
    modalities: frozenset[str] = frozenset()
    study_description: str = ""
    series_description: str = ""
    key: Key = "PatientID"
    entries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.since is None) != (self.until is None):
            raise DataError("a range of dates has two ends: --from and --to")
        if self.since and self.until and self.since > self.until:
            raise DataError(f"--from {self.since} is later than --to {self.until}; swap them")
        if self.since is None and not self.entries:
            raise DataError("nothing selected; give --from and --to, or a file of --patients or --accessions")
        for modality in self.modalities:
            if not re.fullmatch("[A-Z0-9_]{1,16}", modality):
                raise DataError(f"--modality {modality!r}: a modality is capital letters and digits, such as CR")
        for text in (self.study_description, self.series_description):
            if len(text) > 64 or "\\" in text or not text.isprintable():
                raise DataError("a description has at most 64 printable characters, no backslash")

    def questions(self) -> Iterator[dict[str, str]]:
        """Study-level keys, one question after the other: by day, or by entry.

        Archives cut long answers short, some without a word. The answer for one day is short.
        """
        wanted = dict.fromkeys(("StudyInstanceUID", "StudyDate", "StudyDescription", "ModalitiesInStudy"), "")
        if len(self.modalities) == 1:
            (wanted["ModalitiesInStudy"],) = self.modalities
        if self.entries:
            if self.since and self.until:
                wanted["StudyDate"] = f"{self.since:%Y%m%d}-{self.until:%Y%m%d}"
            for entry in self.entries:
                yield wanted | {self.key: entry}
        elif self.since and self.until:
            for day in range((self.until - self.since).days + 1):
                yield wanted | {"StudyDate": f"{self.since + timedelta(day):%Y%m%d}"}

    def series_question(self, study: str) -> dict[str, str]:
        """Keys that ask for the wanted series of a study."""
        (modality,) = self.modalities if len(self.modalities) == 1 else ("",)
        return {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": "",
            "Modality": modality,
            "SeriesDescription": "",
            "NumberOfSeriesRelatedInstances": "",
        }

    def answers(self, question: dict[str, str], study: Answer) -> bool:
        """Whether a study is what was asked for: an archive may ignore any key that it does not know."""
        day = study.get("StudyDate", "")
        if self.since and self.until and not f"{self.since:%Y%m%d}" <= day <= f"{self.until:%Y%m%d}":
            return False
        return not self.entries or study.get(self.key, "").strip() == question[self.key]

    def holds_study(self, study: Answer) -> bool:
        """Whether a study that was asked for is wanted."""
        return matches(self.study_description, study.get("StudyDescription", ""))

    def holds_series(self, series: Answer) -> bool:
        """Whether a series of a wanted study is wanted."""
        if self.modalities and series.get("Modality", "") not in self.modalities:
            return False
        return matches(self.series_description, series.get("SeriesDescription", ""))


def matches(pattern: str, text: str) -> bool:
    """Wildcard matching without regard to case; an empty pattern matches all. Source: DICOM PS3.4 C.2.2.2.4."""
    if not pattern:
        return True
    # Each star takes as little as it can and never gives back: no pattern makes this slow.
    parts = [re.escape(part).replace(r"\?", ".") for part in re.sub(r"\*+", "*", pattern).split("*")]
    rest = text.strip()[:TEXT_LIMIT]
    if len(parts) == 1:
        return re.fullmatch(parts[0], rest, re.IGNORECASE | re.DOTALL) is not None
    for place, part in enumerate(parts):
        anchored = re.match if place == 0 else re.search
        found = anchored(part + (r"\Z" if place == len(parts) - 1 else ""), rest, re.IGNORECASE | re.DOTALL)
        if found is None:
            return False
        rest = rest[found.end() :]
    return True


def read_entries(path: Path) -> tuple[str, ...]:
    """Identifiers, one a line, each once, in order. Raises DataError; its text names a line and never a value."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({type(error).__name__})") from None
    entries = [line.strip() for line in lines]
    for number, entry in enumerate(entries, 1):
        if len(entry) > 64 or not entry.isprintable() or set(entry) & set("*?\\"):
            raise DataError(f"{path}, line {number}: an identifier has at most 64 characters, none of * ? \\")
    found = tuple(dict.fromkeys(filter(None, entries)))
    if not 1 <= len(found) <= LIST_LIMIT:
        raise DataError(f"{path}: {len(found)} identifiers; one a line, at least one, at most {LIST_LIMIT}")
    return found
