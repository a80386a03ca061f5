"""A run as it goes, in lines of text: what `run`, `resume` and `status --follow` print."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import RunError
from server.events import Event, moved, name_of, read

ENDS = ("finished", "stopped")
_HEADLINES = ("auc", "dice", "map50")


def follow(out: Path, *, alive: Callable[[], bool], poll: float = 1.0, seen: int = 0) -> Iterator[Event]:
    """The events of a run after the first `seen`, as they come, until it has ended or `alive` (asked every 20 s) says
    that it doesn't go on.

    Raises RunError for a damaged log.
    """
    asked = time.monotonic()
    while True:
        events = _events(out)
        for event in events[seen:]:
            yield event
            if event["event"] in ENDS:
                return
        seen = len(events)
        if time.monotonic() - asked > 20.0:
            asked = time.monotonic()
            if not alive() and len(_events(out)) == seen:
                return
        time.sleep(poll)


def _events(out: Path) -> list[Event]:
    try:
        return read(out / "events.jsonl")
    except RunError:
        if (out / "events.jsonl").exists():
            raise
        return []


def line(event: Event, *, rounds: int, epsilon: float | None = None) -> str:
    """An event as one line; "" for those that say nothing to a coordinator. `epsilon`: the largest that a site has been
    charged by then.
    """
    kind = event["event"]
    absent = ", ".join(f"{site} {reason}" for site, reason in sorted(event.get("absent", {}).items()))
    missing = f"; absent: {absent}" if absent else ""
    if kind == "started":
        return f"started: {len(event['sites'])} sites, {rounds} rounds"
    if kind == "resumed":
        return f"resumed after round {event['round']}"
    if kind == "counted":
        return f"classes counted, with noise: {len(event['participants'])} sites{missing}"
    if kind == "round":
        took = event["seconds"].get("train", 0.0)
        score = _score(event.get("metrics", {}).get("val", {}))
        closed = f"round {event['round']} of {rounds}: {len(event['participants'])} sites in {took:.0f} s"
        return f"{closed}, {cost(*moved(event), epsilon)}{score}{missing}"
    if kind == "retry":
        return f"{name_of(event['round'])}, attempt {event['attempt']}: too few sites{missing}"
    if kind == "final":
        return f"final{_score(event.get('test', {}))}"
    if kind == "stopped":
        return f"stopped: {event['reason']}"
    return kind if kind == "finished" else ""


def cost(up: int, down: int, epsilon: float | None) -> str:
    """Bytes and privacy in words."""
    spent = "" if epsilon is None else f", epsilon {epsilon:.2f} charged so far"
    return f"{up / 1e6:.1f} MB up, {down / 1e6:.1f} MB down{spent}"


def _score(metrics: dict[str, float | None]) -> str:
    for name in _HEADLINES:
        if metrics.get(name) is not None:
            return f", {name} {metrics[name]:.3f}"
    return ""
