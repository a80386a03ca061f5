"""How a command line ends: what was foreseen to go wrong is one line on standard error and exit code 1.

With --json a script that reads standard output alone learns of it too: where nothing else was printed there, the line
is {"schema": 1, "error": "..."}.
"""

import inspect
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any, TextIO

import click
import typer

from common.errors import FederationError


class _Noted:
    """A stream, and whether anything was written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.used = stream, False

    def write(self, text: str) -> int:
        self.used |= bool(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(app: typer.Typer, name: str) -> None:
    """Run a command line. FederationError, and what the system refuses, are a line and exit code 1."""
    command = typer.main.get_command(app)
    _flow(command)
    noted = _Noted(sys.stdout)
    try:
        with redirect_stdout(noted):
            try:
                command(prog_name=name)
            finally:
                noted.flush()
    except BrokenPipeError:  # who read it has gone, as with `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (FederationError, OSError) as error:
        said = _line(error)
    else:
        return
    if "--json" in sys.argv and not noted.used:
        print(json.dumps({"schema": 1, "error": said}))
    print(f"error: {said}", file=sys.stderr)
    sys.exit(1)


def _flow(command: click.Command) -> None:
    """Paragraphs of --help as wide as the terminal; those that begin with a backspace stand as they are written."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(
        text.removeprefix("\b\n") if text.startswith("\b") else text.replace("\n", " ") for text in paragraphs
    )
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _flow(inner)


def _line(error: Exception) -> str:
    """For a terminal: one line, without control or direction characters."""
    text = str(error)
    if isinstance(error, OSError):
        text = (
            f"{error.filename}: {error.strerror}" if error.filename and error.strerror else f"the system says: {error}"
        )
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
