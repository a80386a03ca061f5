"""What an archive has already taken: a line for each object, beside the objects; a second run sends the rest."""

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from client.pull.folder import disk_error
from common.errors import DataError

NAME = "pushed.jsonl"


@dataclass(kw_only=True)
class Journal:
    """An opened journal; one process at a time. Use it as a context.

    It only spares work: an object that is sent again replaces itself. Readable by its owner alone.
    """

    folder: Path
    address: str  # of the archive
    taken: set[str] = field(default_factory=set, init=False)  # SOPInstanceUIDs
    _file: IO[str] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Raises DataError where it's in use or not writable."""
        path = self.folder / NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._close()
            raise DataError(f"{self.folder}: another push is at work here; wait for it") from None
        except OSError as error:
            self._close()
            raise DataError(f"{path}: can't be written ({error.strerror or type(error).__name__})") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def note(self, sop: str) -> None:
        """The archive has it. Raises RunError when the disk doesn't take the line."""
        self.taken.add(sop)
        try:
            if self._file is not None:
                self._file.write(json.dumps({"archive": self.address, "stored": sop}) + "\n")
                self._file.flush()
        except OSError as error:
            raise disk_error(self.folder, error) from None

    def _read(self) -> None:
        """A line that makes no sense, as a crash leaves one, is no note."""
        if self._file is None:
            return
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if entry["archive"] == self.address:
                    self.taken.add(str(entry["stored"]))
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
