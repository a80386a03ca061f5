"""Command lines run in this process as `python -m` runs them, for tests of what they say when they are refused."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NOBODY = 65534


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code, and the lines of both streams."""

    code: Any
    out: list[str]
    err: list[str]

    @property
    def error(self) -> str:
        """The one line on standard error of a command that was refused; raises AssertionError for any other end."""
        assert self.code == 1 and len(self.err) == 1 and self.err[0].startswith("error: "), self
        return self.err[0]


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str], *words: object) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
    out, err = capsys.readouterr()
    return Ended(code=end.value.code, out=out.splitlines(), err=err.splitlines())


def refused_with_json(main: Callable[[], None], capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """With --json standard output has the same reason, as one line of JSON."""
    found = ended(main, capsys, *words, "--json")
    (line,) = found.out
    assert json.loads(line) == {"schema": 1, "error": found.error.removeprefix("error: ")}


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """The folder, as somebody sees it who may not enter it."""
    before = folder.stat().st_mode
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(before & 0o7777)
