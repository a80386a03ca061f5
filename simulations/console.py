"""Progress for a person: live lines on a terminal, one plain line per event elsewhere, nothing when quiet."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.events import name_of
from simulations.partition import Count

_MANY = 24  # trainings that get a line of their own on a terminal


class Watcher:
    """Shows trainings as their events come in. Use as a context manager."""

    def __init__(self, *, rounds: int, headline: str, quiet: bool) -> None:
        self._rounds, self._headline, self._quiet = rounds, headline, quiet
        self._console = Console(file=sys.stderr, highlight=False)
        self._lines: dict[str, TaskID] = {}
        self._live = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            self._progress.console.print(text, markup=False) if self._live else print(text, file=sys.stderr, flush=True)

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        """An event of the training called `name`."""
        if self._quiet:
            return
        note = self._note(event)
        if not self._live:
            if note:
                print(f"{name}: {note}", file=sys.stderr, flush=True)
            return
        if name not in self._lines and len(self._lines) < _MANY:
            self._lines[name] = self._progress.add_task(name, total=self._rounds, note="")
        if name in self._lines:
            done = event.get("round") if event["event"] in ("round", "resumed") else None
            finished = self._rounds if event["event"] == "finished" else done
            self._progress.update(self._lines[name], completed=finished, note=note or None)

    def _note(self, event: Mapping[str, Any]) -> str:
        match event["event"]:
            case "round":
                value = event["metrics"]["val"].get(self._headline)
                # The metrics are of the weights that came in: those after the round before.
                shown = f", {self._headline} {value:.3f} on validation before it" if value is not None else ""
                absent = "".join(f", {site} {why}" for site, why in event["absent"].items())
                return f"round {event['round']} of {self._rounds}: {len(event['participants'])} sites{absent}{shown}"
            case "counted":
                return f"classes counted, with noise: {len(event['participants'])} sites"
            case "retry":
                absent = ", ".join(f"{site} {why}" for site, why in event["absent"].items())
                return f"{name_of(event['round'])}: too few sites ({absent}); trying again"
            case "resumed":
                return f"continues after round {event['round']}"
            case "stopped":
                return str(event["reason"])
            case "finished":
                return "finished"
            case _:
                return ""


def who_got_what(counts: list[Count], *, title: str) -> Table:
    """The partition as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    names = list(counts[0].per_class) if counts else []
    for name in ("site", "patients", "images", *names, "none of them"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for count in counts:
        cells = [count.patients, count.images, *(count.per_class[name] for name in names), count.without]
        table.add_row(count.site, *map(str, cells))
    return table
