"""Append-only log of a run, OUT/events.jsonl: console, summary and report all read it, and nothing else remembers.

Every event has "event", its kind, and "time", seconds since 1970. Kinds and what else they hold:
started: run, study, study_hash, backend, sites. resumed: round. retry: round, attempt, absent.
counted (the class histogram, before round 1): round 0, attempt, participants, absent, classes, noise, prior.
round: round, attempt, participants, absent, metrics, bytes_up, bytes_down, seconds. Its metrics describe the weights
that entered it, those after the round before. retry, round and final also have audit: by site, where its log stood.
final: val, test. finished. stopped: reason.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common import guarantee
from common.errors import RunError
from common.study import parse

Event = dict[str, Any]


class EventLog:
    """The writing end.

    Guarantees: an event is on disk when `append` returns (unless `durable` is off); one event is one line and one
    write; lines never change.
    A last line that a crash tore is closed at opening and followed by a `repaired` event, which voids it for readers.
    After a failed write the log is closed: open it again to go on.
    Raises: RunError, one line, when the file can't be opened or written, or an event is not plain JSON.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path, self._durable = path, durable
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            torn = _torn(self._descriptor)
            _sync_folder(path.parent)
        except OSError as error:
            raise RunError(
                f"{path}: can't be opened ({error.strerror}): choose a folder that can be written"
            ) from error
        if torn:
            self._write(b"\n")
            self.append({"event": "repaired"})

    def append(self, event: Mapping[str, Any]) -> None:
        """One event, its "time" now unless given. NaN and infinity are refused: an absent number is None."""
        try:
            line = json.dumps({"time": time.time(), **event}, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise RunError(f"{self._path}: event {event.get('event')!r} is not plain JSON: {error}") from error
        self._write(line + b"\n")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            raise RunError(f"{self._path}: closed; open it again to go on")
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(0, "no room for the whole line")
            if self._durable:
                os.fsync(self._descriptor)
        except OSError as error:
            self.close()
            raise RunError(
                f"{self._path}: can't be written ({error.strerror}): free disk space, then resume"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[Event]:
    """All events in order of writing. A torn last line, closed since or not, is left out.

    Raises RunError where the file can't be read, or a line that no crash explains is not an event.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror}): give the folder of a run") from error
    lines.pop()  # after the last newline: nothing, or a torn line
    events: list[Event | None] = [_event(line) for line in lines]
    for position, event in enumerate(events):
        if event is not None and event["event"] == "repaired" and position:
            events[position - 1] = {"event": "torn"}
    if None in events:
        raise RunError(f"{path}: line {events.index(None) + 1} is not an event: the file was edited or damaged")
    return [event for event in events if event is not None and event["event"] not in ("torn", "repaired")]


def effective(events: Sequence[Event]) -> list[Event]:
    """The events that count: from the last start on, and after `resumed` at round k nothing of the rounds above k.

    A resumed run has no final metrics and no end until it reaches them again.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "started":
            kept = []
        elif event["event"] == "resumed":
            ends = ("final", "finished", "stopped")
            kept = [e for e in kept if e["event"] not in ends and e.get("round", 0) <= event["round"]]
        kept.append(event)
    return kept


def anchors(events: Sequence[Event]) -> dict[str, str]:
    """By site, where its audit log stood when it last answered: what `client audit verify --anchor` looks for."""
    found: dict[str, str] = {}
    for event in events:
        found |= event.get("audit", {})
    return found


def summary(events: Sequence[Event]) -> dict[str, Any]:
    """What summary.json holds of a run, from its events alone. `final` is {} until the run has come so far.

    Under `[privacy]`: `final_private`, the released metrics, and `privacy`, by site, everything that has to stand
    beside epsilon; its steps and histograms are those of the answers that the server had. `class_counts`: the released
    histogram, if there is one.

    Raises RunError without a `started` event.
    """
    counted = effective(events)
    if not counted or counted[0]["event"] != "started":
        raise RunError("the event log has no start: it belongs to no run")
    started = counted[0]
    keys = ("round", "participants", "absent", "metrics", "released", "bytes_up", "bytes_down", "seconds")
    finals = [{key: e[key] for key in ("val", "test") if key in e} for e in counted if e["event"] == "final"]
    released = [e["private"] for e in counted if e["event"] == "final" and "private" in e]
    found = {
        "schema": 1,
        "study": {"name": started["study"]["study"]["name"], "hash": started["study_hash"]},
        "backend": started["backend"],
        "rounds": [{key: event[key] for key in keys if key in event} for event in counted if event["event"] == "round"],
        "final": finals[-1] if finals else {},
    }
    if started["study"].get("privacy") is not None:
        study = parse(started["study"], where="events.jsonl")
        found["final_private"] = released[-1] if released else {}
        histograms = [event for event in counted if event["event"] == "counted"]
        if histograms:
            found["class_counts"] = {key: histograms[-1][key] for key in ("classes", "noise", "prior", "participants")}
        found["privacy"] = {
            site: guarantee.statement(
                study,
                nominal_patients=nominal,
                rounds_charged=sum(site in round["participants"] for round in found["rounds"]),
                counts_charged=sum(site in event["participants"] for event in histograms),
            )
            for site, nominal in sorted(started["nominal_patients"].items())
        }
    return found


def charged(events: Sequence[Event]) -> float | None:
    """The largest epsilon that a site has been charged so far; None in a study without `[privacy]`."""
    sites = summary(events).get("privacy", {}).values()
    return max((float(site["epsilon_charged"]) for site in sites), default=None)


def name_of(round: int) -> str:
    """What a round is called: number 0 is the class histogram."""
    return f"round {round}" if round else "the class histogram"


def moved(event: Event) -> tuple[int, int]:
    """Bytes up and down of all sites, in a `round`."""
    return sum(event["bytes_up"].values()), sum(event["bytes_down"].values())


def _torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
