"""A line of the preflight: PASS, WARN or FAIL, what it is about, and a sentence."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.errors import FederationError


class Level(StrEnum):
    """How a finding counts: a FAIL keeps the site from taking part, or would."""

    PASS = "PASS"  # noqa: S105 - a verdict
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the preflight."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}  {self.about:<12} {self.text}"

    def values(self) -> dict[str, str]:
        """For JSON."""
        return {"level": str(self.level), "about": self.about, "text": self.text}


Look = Callable[[], Iterator[Finding]]


def finding(level: Level, about: str, text: str) -> Finding:
    return Finding(level=level, about=about, text=text)


def gathered(parts: Mapping[str, Look]) -> list[Finding]:
    """What all parts find. A part that raises because something can't be looked at is a FAIL, said once for all parts
    that can't look for the same reason.
    """
    found: list[Finding] = []
    for about, look in parts.items():
        try:
            found += look()
        except (FederationError, OSError) as error:
            text = str(error) if isinstance(error, FederationError) else f"can't be looked at ({error.strerror})"
            if not any(each.level is Level.FAIL and each.text == text for each in found):
                found.append(Finding(level=Level.FAIL, about=about, text=text))
    return found


def exit_code(found: list[Finding], *, strict: bool = False) -> int:
    """0 where nothing fails, 1 where something does; `strict` counts warnings too."""
    bad = {Level.FAIL, Level.WARN} if strict else {Level.FAIL}
    return int(any(finding.level in bad for finding in found))
