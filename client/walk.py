"""Every file below a folder, once, with what the file system says of it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from client.drops import Drop, Dropped


@dataclass(frozen=True, kw_only=True)
class Status:
    """Size in bytes, and when content and entry last changed, in nanoseconds since 1970. Nobody can set `changed` but
    by the machine's clock.
    """

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        return cls(size=found.st_size, modified=found.st_mtime_ns, changed=found.st_ctime_ns)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file: `path` is relative, with forward slashes; `problem` is why it can't be opened."""

    path: str
    status: Status | None = None
    problem: Dropped | None = None


def walk(root: Path) -> list[Entry]:
    """All files in the order of their paths. Each real folder is entered once, so links can't loop."""
    found: list[Entry] = []
    entered: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(root / folder))
        except OSError as error:
            path = _written(folder)
            problem = Dropped(path=path, reason=Drop.UNREADABLE, detail=f"folder: {error.strerror}")
            found.append(Entry(path=path, problem=problem))
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            seen = _seen(os.path.join(root, path))
            if seen is not None and stat.S_ISDIR(seen.st_mode):
                folders.append(path)
            else:
                found.append(_entry(path, seen))
    return sorted(found, key=lambda entry: entry.path)


def _seen(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # a broken link, or a loop of links
        return None


def _written(path: str) -> str:
    """A path as it can be written down: bytes of it that aren't UTF-8 as \\udc.., by which no file can be opened."""
    return path.encode("utf-8", "backslashreplace").decode()


def _entry(path: str, seen: os.stat_result | None) -> Entry:
    if (shown := _written(path)) != path:
        detail = "its name, or its folder's, is not UTF-8: rename it"
        return Entry(path=shown, problem=Dropped(path=shown, reason=Drop.UNREADABLE, detail=detail))
    if seen is None:
        return Entry(path=path, problem=Dropped(path=path, reason=Drop.UNREADABLE, detail="a broken link"))
    if not stat.S_ISREG(seen.st_mode):
        return Entry(path=path, problem=Dropped(path=path, reason=Drop.NOT_AN_IMAGE, detail="not a regular file"))
    empty = Dropped(path=path, reason=Drop.EMPTY_FILE) if seen.st_size == 0 else None
    return Entry(path=path, status=Status.of(seen), problem=empty)
