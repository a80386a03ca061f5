"""Looks at each file of a folder once: its content's digest and its header, from memory where it hasn't changed."""

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from client import dicom
from client.annotations import picture, voc
from client.dicom import Tags
from client.drops import Drop, Dropped, Unusable
from client.memory import Header, Kind, Memory, Refusal, Seen, settled, stamp_of
from client.walk import Entry, Status, walk

Format = Literal["medmnist", "voc", "coco", "masks", "dicom"]
Progress = Callable[[int, int], None]  # done, of how many
_HEAD = 262  # bytes that tell what a file is
_PACKED = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_ZIPPED = (".docx", ".xlsx", ".xlsm", ".pptx", ".odt", ".ods", ".odp", ".epub", ".npz", ".jar", ".whl")  # no archives
_WAVE = 256  # files read ahead: what is wasted when a scan is broken off


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of images: relative path, SHA-256 of its content, what its header says."""

    path: str
    digest: str
    kind: Kind
    tags: Tags


@dataclass(kw_only=True)
class Look:
    """One look at a folder: its files as they were listed, what was read of them, and what was read the last time."""

    root: Path
    form: Format
    memory: Memory
    jobs: int | None
    entries: list[Entry]
    started: int  # nanoseconds since 1970, before the files were listed
    _seen: dict[str, Seen | Dropped] = field(default_factory=dict)
    _doubtful: bool = False  # an annotation file may have been read with another content than its digest's

    @property
    def files(self) -> list[str]:
        """Those that can be opened."""
        return [entry.path for entry in self.entries if entry.problem is None]

    def compare(self, progress: Progress | None) -> None:
        """Look at all files before anything is made of them. What is no image for all that's known isn't taken for one.

        Without a memory this does nothing.
        """
        if self.memory.knows():
            for _ in self._all(self.memory.asides(), progress):
                pass

    def images(self, aside: frozenset[str], progress: Progress | None) -> Iterator[File | Dropped]:
        """Each file in order, or why it's no image. `aside` are annotation files."""
        for entry, seen in self._all(aside, progress):
            if isinstance(seen, Dropped):
                yield seen
            elif entry.path in aside:
                yield Dropped(path=entry.path, reason=Drop.ANNOTATION_FILE)
            elif isinstance(seen.header, Refusal):
                yield Dropped(path=entry.path, reason=seen.header.reason, detail=seen.header.detail)
            elif seen.header is not None:
                yield File(path=entry.path, digest=seen.digest, kind=seen.header.kind, tags=seen.header.tags)

    def fingerprint(self, *, key: bytes, options: str) -> str | None:
        """A keyed digest of the options and of each file's path and content; None where that is not beyond doubt.

        Guarantees: equal only for equal files and options; changes when any file's content does, or its name.
        """
        if self._doubtful or any(entry.path not in self._seen for entry in self.entries):
            return None
        digest = hmac.new(key, b"inputs\0", hashlib.sha256)
        for text in (options, str(self.root), self.form):
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogateescape"))
        for entry in self.entries:
            seen = self._seen[entry.path]
            said = seen.digest if isinstance(seen, Seen) else f"{seen.reason} {seen.detail}"
            digest.update(f"\n{len(entry.path)} {entry.path} {said}".encode())
        return digest.hexdigest()

    def _all(self, aside: frozenset[str], progress: Progress | None) -> Iterator[tuple[Entry, Seen | Dropped]]:
        """In order. Threads: hashing, reading and decoding of pictures leave the interpreter free."""

        def outcome(entry: Entry) -> Seen | Dropped:
            known = self._seen.get(entry.path)
            if known is not None and (isinstance(known, Dropped) or entry.path in aside or known.header is not None):
                return known
            return self._looked(entry, aside=entry.path in aside)

        with dicom.quiet(), ThreadPoolExecutor(self.jobs or min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.entries), _WAVE):
                part = self.entries[start : start + _WAVE]
                for entry, seen in zip(part, pool.map(outcome, part), strict=True):
                    self._seen[entry.path] = seen
                    yield entry, seen
                if progress:
                    progress(min(start + _WAVE, len(self.entries)), len(self.entries))

    def _looked(self, entry: Entry, *, aside: bool) -> Seen | Dropped:
        if entry.problem is not None:
            return entry.problem
        if aside and self.memory.path is None:  # its digest is for the next time, and there is none
            self._doubtful = True
            return Seen(digest="", header=None)
        path, now = entry.path, time.time_ns()
        try:
            with (self.root / path).open("rb") as stream:
                stamp = stamp_of(stream)
                # Annotation files are read at any time after they were listed, so from there on nothing may change.
                if aside and not (stamp.status == entry.status and settled(stamp.status, now=self.started)):
                    self._doubtful = True
                seen = self.memory.recall(path, stamp)
                if seen is not None and (aside or seen.header is not None):
                    return seen
                head = stream.read(_HEAD)
                stream.seek(0)
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            seen = Seen(digest=digest, header=None if aside else _header(self.root / path, path, self.form, head))
            after = Status.of((self.root / path).stat())
        except OSError as error:
            self._doubtful = self._doubtful or aside
            return Dropped(path=path, reason=Drop.UNREADABLE, detail=type(error).__name__)
        self.memory.note(path, stamp, seen, steady=after == stamp.status, now=now)
        return seen


def look(root: Path, form: Format, *, memory: Memory | None = None, jobs: int | None = None) -> Look:
    """The folder's files, listed; nothing is read as yet. `memory` is what a former look has left."""
    memory = memory or Memory()
    memory.begin(root, form)
    started = time.time_ns()
    return Look(root=root, form=form, memory=memory, jobs=jobs, started=started, entries=walk(root))


def _header(file: Path, path: str, form: Format, head: bytes) -> Header | Refusal:
    try:
        if dicom.looks_like_dicom(head[:132]):
            return Header(kind="dicom", tags=dicom.header(file))
        pure = PurePosixPath(path)
        if (head.startswith(_PACKED) or head[257:262] == b"ustar") and pure.suffix.lower() not in _ZIPPED:
            raise Unusable(Drop.PACKED_ARCHIVE, "a packed archive: unpack it")
        outside = {"voc": voc.IMAGES, "masks": "images"}.get(form)
        if pure.suffix.lower() not in picture.SUFFIXES or (outside and not pure.is_relative_to(outside)):
            kind = Drop.UNREADABLE if pure.suffix.lower() in (".dcm", ".dicom") else Drop.NOT_AN_IMAGE
            raise Unusable(kind, "neither a DICOM file nor a picture" if not outside else f"no image in {outside}")
        height, width = picture.size(file.read_bytes())
        return Header(kind="picture", tags=Tags(height=height, width=width))
    except Unusable as error:
        return Refusal(reason=error.reason, detail=str(error))
