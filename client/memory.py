"""What was read of each file the last time, so that a file that hasn't changed since isn't read again.

It holds identifiers out of headers, so it is one file sealed under a key that comes from the site's patient key. Losing
it costs time and nothing else: whatever can't be opened, or isn't beyond doubt, counts as not remembered.
"""

import hashlib
import hmac
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal

from client.chain import write_privately
from client.dicom import Tags
from client.drops import Drop
from client.walk import Status
from common.crypto.sealed import seal, unseal
from common.errors import FederationError

NAME = "headers.sealed"
VERSION = 3  # of what is made of a header: raise it when equal files give other values
YOUNG = 3_000_000_000  # nanoseconds; FAT, the coarsest file system, counts time in steps of two seconds
EDGE = 4096  # bytes at a file's beginning and end
_SALT = 16
_LARGEST = 2**31 - 64  # bytes that are sealed in one piece
_AGAIN = frozenset({Drop.UNREADABLE, Drop.TOO_LARGE, Drop.UNSUPPORTED})  # perhaps the disk, the memory, a decoder

Kind = Literal["dicom", "picture", "array"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What reading one file's header gave."""

    kind: Kind
    tags: Tags


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a file isn't an image that can be used."""

    reason: Drop
    detail: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One file: SHA-256 of all its bytes, and its header; None where it was read for annotations alone."""

    digest: str
    header: Header | Refusal | None


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What tells an unchanged file: its status, and a digest of its first and last bytes."""

    status: Status
    edges: str


@dataclass(kw_only=True)
class Memory:
    """Files of one folder by relative path. `read` counts files whose content had to be read.

    Guarantees: a file is recalled only where size, both times and both edges are as they were when it was read, it had
    then lain unchanged for YOUNG at least, and the machine's clock hasn't gone back since the memory was made.
    """

    path: Path | None = None
    key: bytes = field(default=b"", repr=False)
    about: str = ""  # of which folder, in which format
    read: int = 0
    _earlier: dict[str, tuple[Stamp, Seen]] = field(default_factory=dict)
    _now: dict[str, tuple[Stamp, Seen]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def begin(self, root: Path, form: str) -> None:
        """Recall what is known of this folder, read in this format; of another one nothing. Never raises."""
        self.about = f"{form} {root}"
        self._now, self.read = {}, 0
        self._earlier = {} if self.path is None else _load(self.path, self.key, self.about)

    def forget(self) -> None:
        """Have everything read again. Raises OSError."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def knows(self) -> bool:
        """Whether anything is remembered."""
        return bool(self._earlier)

    def asides(self) -> frozenset[str]:
        """The files that were read for annotations the last time."""
        return frozenset(path for path, (_, seen) in self._earlier.items() if seen.header is None)

    def recall(self, path: str, stamp: Stamp) -> Seen | None:
        """What was read of this file, if it's beyond doubt that nothing has changed."""
        known = self._earlier.get(path)
        if known is None or known[0] != stamp:
            return None
        self._now[path] = known
        return known[1]

    def note(self, path: str, stamp: Stamp, seen: Seen, *, steady: bool, now: int) -> None:
        """Keep what was read, unless it could change without a trace or did while it was read. `now`: nanoseconds since
        1970, before reading began.
        """
        with self._lock:
            self.read += 1
        refused = isinstance(seen.header, Refusal) and seen.header.reason in _AGAIN
        if steady and settled(stamp.status, now=now) and not refused:
            self._now[path] = (stamp, seen)

    def save(self, *, whole: bool) -> None:
        """Have it for the next time. `whole`: all files were seen, others are forgotten. Never raises OSError."""
        if self.path is None:
            return
        entries = self._now if whole else {**self._earlier, **self._now}
        content = {
            "version": VERSION,
            "about": self.about,
            "time": time.time_ns(),
            "files": [_plain(path, *entry) for path, entry in entries.items()],
        }
        text = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)
        if len(text) > _LARGEST:
            return
        salt = os.urandom(_SALT)
        sealed = seal(text, key=_own_key(self.key, salt), transcript=salt, sender=0, receiver=0)
        try:
            write_privately(self.path, salt + sealed)
        except OSError:  # a full disk: the next run reads everything again
            self.path.unlink(missing_ok=True)


def remembered(folder: Path, *, patient_key: bytes) -> Memory:
    """The memory of a site folder."""
    return Memory(path=folder / NAME, key=patient_key)


def stamp_of(file: BinaryIO) -> Stamp:
    """The stamp of an open file; its position is then the beginning."""
    status = Status.of(os.fstat(file.fileno()))
    digest = hashlib.sha256(file.read(EDGE))
    if status.size > EDGE:
        file.seek(-EDGE, os.SEEK_END)
        digest.update(file.read(EDGE))
    file.seek(0)
    return Stamp(status=status, edges=digest.hexdigest()[:32])


def settled(status: Status, *, now: int) -> bool:
    """Whether a change after `now` is sure to change the times: not where they lie in the same tick, or ahead."""
    return max(status.modified, status.changed) < now - YOUNG


def _load(path: Path, key: bytes, about: str) -> dict[str, tuple[Stamp, Seen]]:
    try:
        data = path.read_bytes()
        salt = data[:_SALT]
        text = unseal(data[_SALT:], key=_own_key(key, salt), transcript=salt, sender=0, receiver=0)
        content = json.loads(zlib.decompress(text))
        if (content["version"], content["about"]) != (VERSION, about) or content["time"] > time.time_ns():
            return {}
        return dict(map(_entry, content["files"]))
    except (OSError, FederationError, ValueError, KeyError, TypeError, zlib.error):
        return {}


def _own_key(key: bytes, salt: bytes) -> bytes:
    """A key for one sealed file, which no other use of the patient key has."""
    return hmac.digest(key, b"headers\0" + salt, hashlib.sha256)


_DEFAULTS = {one.name: one.default for one in fields(Tags)}


def _plain(path: str, stamp: Stamp, seen: Seen) -> list[Any]:
    status, header = stamp.status, seen.header
    said: list[Any] | None = None
    if isinstance(header, Header):
        said = [header.kind, {k: v for k, v in asdict(header.tags).items() if v != _DEFAULTS[k]}]
    elif header is not None:
        said = [header.reason, header.detail]
    return [path, status.size, status.modified, status.changed, stamp.edges, seen.digest, said]


def _entry(values: list[Any]) -> tuple[str, tuple[Stamp, Seen]]:
    path, size, modified, changed, edges, digest, said = values
    header: Header | Refusal | None = None
    if said is not None and isinstance(said[1], Mapping):
        spacing = said[1].get("pixel_spacing")
        tags = Tags(**{**said[1], "pixel_spacing": None if spacing is None else (spacing[0], spacing[1])})
        header = Header(kind=said[0], tags=tags)
    elif said is not None:
        header = Refusal(reason=Drop(said[0]), detail=said[1])
    stamp = Stamp(status=Status(size=size, modified=modified, changed=changed), edges=edges)
    return path, (stamp, Seen(digest=digest, header=header))
