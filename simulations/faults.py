"""Drop-outs, laggards and crashes on purpose: what a network and a hospital do to a federation, repeatable from a
seed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Literal, get_args

from common.errors import StudyError
from common.randomness import stream

Deed = Literal["drop", "late", "crash"]
Step = Literal["keys", "shares", "count", "update", "evaluate", "open", "reveal"]  # kinds of orders (common.wire)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one site's order: it never arrives, its answer comes `seconds` late, or the site dies over it."""

    do: Deed
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """All faults of a run: `scripted` by round, site and kind of order, and drop-outs with `probability` for each site,
    round and attempt.
    """

    scripted: Mapping[tuple[int, str, Step], Fault]
    probability: float = 0.0
    seed: int = 0

    def of(self, site: str, *, round: int, attempt: int, step: str = "update") -> Fault | None:
        """What happens to this site's order. A script strikes a round's first attempt alone, chance its training."""
        if attempt == 1 and (round, site, step) in self.scripted:
            return self.scripted[round, site, step]  # type: ignore[index]  # is in there
        if self.probability > 0 and step == "update":
            draw = stream(self.seed, f"drop-out {attempt}", site=site, round=round).random()
            return Fault(do="drop") if draw < self.probability else None
        return None


def load(script: Path | None, *, drop: float, seed: int) -> Faults:
    """Faults from `--script` and `--drop`. Raises StudyError, one line with the line's number, for anything else."""
    if not 0 <= drop < 1:
        raise StudyError(f"--drop {drop}: a probability, at least 0 and below 1")
    scripted: dict[tuple[int, str, Step], Fault] = {}
    try:
        lines = script.read_text(encoding="utf-8").splitlines() if script else []
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"--script {script}: can't be read ({error.__class__.__name__})") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            place, fault = _parse(line, where=f"--script {script}, line {number}")
            scripted[place] = fault
    return Faults(scripted=scripted, probability=drop, seed=seed)


def _parse(line: str, *, where: str) -> tuple[tuple[int, str, Step], Fault]:
    form = '{"round":2,"site":"site-1","do":"drop"|"late"|"crash","seconds":30}'
    form += f', with "at" for another order than update: {", ".join(get_args(Step))}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise StudyError(f"{where}: not JSON; write {form}") from error
    if not isinstance(entry, dict) or set(entry) - {"round", "site", "do", "seconds", "at"}:
        raise StudyError(f"{where}: write {form}")
    round, site, do, seconds = (entry.get(key) for key in ("round", "site", "do", "seconds"))
    step = entry.get("at", "update")
    known = do in get_args(Deed) and step in get_args(Step)
    first = 1 if step in ("update", "evaluate") else 0  # round 0 is the class histogram
    if not (type(round) is int and round >= first and isinstance(site, str) and known):
        raise StudyError(f"{where}: write {form}")
    if (
        (do == "late") != (seconds is not None)
        or type(seconds) not in (int, float, NoneType)
        or not 0 <= (seconds or 0) < math.inf
    ):
        raise StudyError(f'{where}: "seconds" (0 or more) belongs to "late", and to nothing else')
    fault = Fault(do=do, seconds=float(seconds or 0.0))  # type: ignore[arg-type]  # checked above
    return (round, site, step), fault
