"""Where fetched images lie: OUT/images/STUDY/SERIES/IMAGE.dcm, whole or not at all, and a journal of what is complete.

Files and folders are named by their UIDs as the archive gives them, not by hashes: the files hold the same UIDs in
clear anyway, a labels.csv is keyed by them, and what is here can be seen without a key. A UID becomes a name only after
`is_uid`. Half a file lies in OUT/incoming, never below OUT/images, which is the folder to index.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from client.pull.archive import Fault, Instance, is_uid
from common.errors import DataError, RunError

JOURNAL = "journal.jsonl"


@dataclass(kw_only=True)
class Folder:
    """An opened folder of fetched images; one process at a time. Use it as a context.

    Guarantees: readable by its owner alone (0700). A file below `images` is complete and on disk, after a crash too.
    The journal only spares questions: a line that it lost costs a question, and it is never taken for a file.
    """

    path: Path
    complete: dict[str, int] = field(default_factory=dict, init=False)  # STUDY/SERIES -> images that it has
    refused: dict[str, dict[str, Fault]] = field(default_factory=dict, init=False)  # STUDY/SERIES -> IMAGE -> why
    _journal: IO[str] | None = field(default=None, init=False)

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def incoming(self) -> Path:
        """Where a file grows; emptied when the folder is opened."""
        return self.path / "incoming"

    def __enter__(self) -> Self:
        """Raises DataError for a folder with other things in it, in use, or not writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            journal = self.path / JOURNAL
            if not journal.exists() and any(self.path.iterdir()):
                raise DataError(f"{self.path}: not empty, and no earlier pull wrote it; give a new folder")
            self.path.chmod(0o700)
            descriptor = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            self._journal = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
            shutil.rmtree(self.incoming, ignore_errors=True)
            self.incoming.mkdir(mode=0o700)
            self.images.mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError:
            self._close()
            raise DataError(f"{self.path}: another pull is writing here; wait for it, or give another folder") from None
        except OSError as error:
            self._close()
            raise DataError(f"{self.path}: can't be written ({error.strerror or type(error).__name__})") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.incoming, ignore_errors=True)
        self._close()

    def place_of(self, instance: Instance) -> Path:
        """Where an image lies, or will."""
        return self.images / instance.study / instance.series / f"{instance.sop}.dcm"

    def here(self, series: str) -> int:
        """Images of a series (STUDY/SERIES) that are here."""
        try:
            return sum(name.endswith(".dcm") for name in os.listdir(self.images / series))
        except FileNotFoundError:
            return 0

    def keep(self, file: Path, instance: Instance) -> None:
        """Move a whole file to its place. Raises RunError when the disk doesn't take it."""
        place = self.place_of(instance)
        try:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            for folder in (place.parent.parent, place.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            os.replace(file, place)
        except OSError as error:
            raise disk_error(self.path, error) from None

    def refuse(self, instance: Instance, fault: Fault) -> None:
        """Note that an image is not asked for again."""
        series = f"{instance.study}/{instance.series}"
        self.refused.setdefault(series, {})[instance.sop] = fault
        self._write({"refused": f"{series}/{instance.sop}", "why": fault.value})

    def finish(self, series: str, images: int) -> None:
        """Note a series (STUDY/SERIES) of which everything is here, or refused for good."""
        if self.complete.get(series) == images:
            return
        try:
            if (self.images / series).is_dir():
                for folder in (self.images / series, (self.images / series).parent, self.images):
                    _sync(folder)
        except OSError as error:
            raise disk_error(self.path, error) from None
        self.complete[series] = images
        self._write({"complete": series, "images": images})

    def known(self, series: str, images: int) -> Counter[Fault] | None:
        """Why images of a complete series are not here; None unless it is complete and has as many as the archive says.

        Files that were taken away are missing: then the series is not complete.
        """
        noted = self.refused.get(series, {})
        refused = Counter(why for sop, why in noted.items() if not (self.images / series / f"{sop}.dcm").exists())
        whole = self.complete.get(series) == images and self.here(series) + refused.total() == images
        return refused if whole else None

    def _write(self, entry: dict[str, object]) -> None:
        try:
            if self._journal is not None:
                self._journal.write(json.dumps(entry) + "\n")
                self._journal.flush()
                os.fsync(self._journal.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from None

    def _read(self) -> None:
        """What earlier runs noted. A line that makes no sense, as a crash leaves one, is no note."""
        if self._journal is None:
            return
        self._journal.seek(0)
        text = self._journal.read()
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if "complete" in entry:
                    self.complete[str(entry["complete"])] = int(entry["images"])
                else:
                    series, _, sop = str(entry["refused"]).rpartition("/")
                    if all(map(is_uid, (*series.split("/"), sop))):
                        self.refused.setdefault(series, {})[sop] = Fault(entry["why"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        if text and not text.endswith("\n"):
            self._journal.write("\n")

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def disk_error(path: Path, error: OSError) -> RunError:
    """The end of a run that the disk ended."""
    return RunError(f"{path}: can't be written ({error.strerror or type(error).__name__}); make room, then run again")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
