"""What made a result, and names of a study as codes and texts that DICOM takes: for all objects that are written."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from highdicom.sr import CodedConcept

SCHEME = "99FEDWARD"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made a result: it stands in every object that is written. An option is None where it means nothing."""

    name: str  # of the study
    version: str  # of Fedward
    weights: tuple[str, ...]  # SHA-256 of each model's weights
    studies: tuple[str, ...]  # SHA-256 of each model's study
    intended_use: str
    made: datetime  # local time, with its zone
    rule: str | None = None  # how several models answer together
    window: bool | None = None  # whether images larger than the model are asked window by window
    min_score: float | None = None  # from which on boxes are in reports and pictures

    @property
    def options(self) -> dict[str, Any]:
        """How the models were asked, as plain values; of options those alone that mean something."""
        values = {"rule": self.rule, "window": self.window, "min_score": self.min_score}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def details(self) -> dict[str, str]:
        """Parameters of the algorithm, as text."""
        return {
            "weights_sha256": " ".join(self.weights),
            "study_sha256": " ".join(self.studies),
            "made": self.made.isoformat(timespec="seconds"),
            "intended_use": self.intended_use,
            **{name: str(value).lower() for name, value in self.options.items()},
        }


def own(code: str, meaning: str) -> CodedConcept:
    """A concept of Fedward's own."""
    return CodedConcept(code, SCHEME, meaning)


def concept(name: str) -> CodedConcept:
    """A class of the study as a code of our own: studies name their classes freely."""
    return own(hashlib.sha256(name.encode()).hexdigest()[:12].upper(), plain(name))


def plain(text: str) -> str:
    """As a DICOM long string: at most 64 characters, and a backslash would part two values."""
    return text.replace("\\", "/").strip()[:64] or "unnamed"
