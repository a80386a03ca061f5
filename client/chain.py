"""An append-only file of JSON lines, each naming the hash of the one before, with a head that names the last.

Three files in a folder that only its owner may enter: NAME.jsonl, NAME.head and NAME.lock. What the lines say is the
caller's; the kind `repair` is this module's own. The chain has no key: whoever may write to the folder can make another
one. What shows that is an anchor that somebody else remembers.
"""

import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.chain_lines import (
    Anchor,
    ChainError,
    Contents,
    Entry,
    agreed,
    anchor_in,
    contains,
    head_of,
    new_line,
    verified,
)


def read(folder: Path, name: str) -> Contents:
    """The verified chain, without a lock and without mending anything; somebody may be writing meanwhile.

    Raises ChainError, one line, for everything that no crash explains: edited, truncated, missing, head missing,
    permissions too open.
    """
    _demand_private(folder)
    head = b""
    for _ in range(100):
        head, data = _read(folder / f"{name}.head"), _read(folder / f"{name}.jsonl")
        if head == _read(folder / f"{name}.head"):
            break
    return agreed(folder / f"{name}.jsonl", data, head)


def install(folder: Path, name: str, data: bytes) -> None:
    """Put a whole chain where there is none, durably.

    Guarantees: a chain that exists is never replaced; a head that was left without its chain is an anchor that the new
    one must contain. A crash leaves nothing, or a head alone; the same call may then be repeated (a head of the very
    first record binds nobody: nothing was written after it).
    Raises ChainError.
    """
    contents = verified(folder / f"{name}.jsonl", data)
    last = contents.entries[-1].anchor
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(folder, name)
        try:
            if (folder / f"{name}.jsonl").exists():
                raise ChainError(f"{folder / f'{name}.jsonl'}: exists already; nothing was changed")
            if (folder / f"{name}.head").exists():
                left = anchor_in(folder / f"{name}.head", _read(folder / f"{name}.head"))
                if left.sequence and not contents.contains(left):
                    raise ChainError(
                        f"{folder / f'{name}.head'}: names record {left}, which is not in what would be put beside it: "
                        "use a newer copy"
                    )
            _replace(folder, f"{name}.head", head_of(last))
            _replace(folder, f"{name}.jsonl", data)
            _sync_folder(folder.resolve().parent)
        finally:
            os.close(lock)
    except OSError as error:
        raise ChainError(f"{folder}: {name} can't be written ({error.strerror or error}); nothing was kept") from error


class Chain:
    """The writing end: at most one at a time, in one process.

    Guarantees: when `append` returns, line and head are on disk. A second writer is refused. After a failed or short
    write or a failed fsync the descriptor is closed, and `append` refuses until `verify_again` has read the file from
    its beginning; the failed entry may then be there or not. A last line that a crash tore is closed and followed by a
    `repair` entry that holds its hash. A head that is one behind is moved on.
    `durable=False`, for sites that a simulation makes up, leaves it to the operating system when lines reach the disk.
    Raises: ChainError, one line.
    """

    def __init__(self, folder: Path, name: str, *, durable: bool = True) -> None:
        self._folder, self._name, self._process, self._durable = folder, name, os.getpid(), durable
        self._path = folder / f"{name}.jsonl"
        self._descriptor: int | None = None
        self._entries: list[Entry] = []
        self._size = 0
        self._paused: tuple[tuple[int, ...], ...] | None = None
        _demand_private(folder)
        _demand_private(self._path)  # before a lock file is made for nothing
        try:
            self._lock: int | None = _lock(folder, name)
        except OSError as error:
            raise ChainError(f"{folder}: {name}.lock can't be taken ({error.strerror})") from error
        try:
            self.verify_again()
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def anchor(self) -> Anchor:
        return self._entries[-1].anchor

    @property
    def usable(self) -> bool:
        """False after a failed write, until `verify_again` succeeds."""
        return self._descriptor is not None

    def contains(self, anchor: Anchor) -> bool:
        return contains(self._entries, anchor)

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """One entry, on disk with its head when this returns."""
        if self._descriptor is None:
            raise ChainError(f"{self._path}: not verified since a write failed")
        line, entry = new_line(kind, body, sequence=len(self._entries), previous=self.anchor.hash)
        self._write(line, entry)
        return entry

    def verify_again(self) -> None:
        """Read and verify the file from its beginning, and mend what a crash explains."""
        if self._lock is None or os.getpid() != self._process:
            raise ChainError(f"{self._path}: closed, or opened by another process")
        self._forget_descriptor()
        head = _read(self._folder / f"{self._name}.head")
        contents = agreed(self._path, _read(self._path), head)
        if self._entries and not contents.contains(self.anchor):
            raise ChainError(f"{self._path}: was changed while in use: record {self.anchor} is gone")
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(self._descriptor).st_size != len(contents.data):
                raise ChainError(f"{self._path}: was changed while it was read")
            if self._durable:
                os.fsync(self._descriptor)  # the last line may have been written and not synced
            if anchor_in(self._path, head) != contents.entries[-1].anchor:
                _replace(self._folder, f"{self._name}.head", head_of(contents.entries[-1].anchor))
        except OSError as error:
            self._forget_descriptor()
            raise self._failed(error) from error
        except BaseException:
            self._forget_descriptor()
            raise
        self._entries, self._size = list(contents.entries), len(contents.data)
        if contents.tail:
            torn = contents.tail.removesuffix(b"\n")
            body = {"torn": hashlib.sha256(torn).hexdigest(), "lines": torn.count(b"\n") + 1}
            line, entry = new_line("repair", body, sequence=len(self._entries), previous=self.anchor.hash)
            self._write(line if contents.tail.endswith(b"\n") else b"\n" + line, entry)

    def pause(self) -> None:
        """Let others have the lock. What is verified need not be read again, if nothing is touched before `resume`."""
        self._paused = self._status() if self.usable else None
        self.close()

    def resume(self) -> None:
        """Take the lock again, and go on where file and head are untouched (device, inode, size, times of change and of
        modification); else they are read and verified from the beginning. Raises ChainError; it is closed then.
        """
        if self._lock is not None or os.getpid() != self._process:
            raise ChainError(f"{self._path}: open already, or opened by another process")
        seen, self._paused = self._paused, None
        try:
            self._lock = _lock(self._folder, self._name)
            if seen is None or self._status() != seen:
                self.verify_again()
            else:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise ChainError(f"{self._path}: can't be opened again ({error.strerror})") from error
        except BaseException:
            self.close()
            raise

    def _status(self) -> tuple[tuple[int, ...], ...]:
        """What changes when somebody writes to file or head, replaces them, or changes who may read them."""
        found = (os.stat(self._folder / f"{self._name}.{end}", follow_symlinks=False) for end in ("jsonl", "head"))
        return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)

    def close(self) -> None:
        """Let go of file and lock."""
        self._forget_descriptor()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, line: bytes, entry: Entry) -> None:
        """One write, fsync, then the head. Anything that fails closes the descriptor."""
        descriptor = self._descriptor
        if descriptor is None or os.getpid() != self._process:
            raise ChainError(f"{self._path}: closed, or opened by another process")
        try:
            seen, named = os.fstat(descriptor), os.stat(self._path, follow_symlinks=False)
            if (seen.st_dev, seen.st_ino, seen.st_size) != (named.st_dev, named.st_ino, self._size):
                raise ChainError(f"{self._path}: was changed while in use")
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "no room for the whole line")
            if self._durable:
                os.fsync(descriptor)
            _replace(self._folder, f"{self._name}.head", head_of(entry.anchor), durable=self._durable)
        except OSError as error:
            self._forget_descriptor()
            raise self._failed(error) from error
        except BaseException:
            self._forget_descriptor()
            raise
        self._size += len(line)
        self._entries.append(entry)

    def _failed(self, error: OSError) -> ChainError:
        return ChainError(
            f"{self._path}: can't be written ({error.strerror or error}): free disk space, then try again"
        )

    def _forget_descriptor(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_privately(path: Path, data: bytes) -> None:
    """A file for its owner alone, whole under its name and durable; or nothing of it. Raises OSError."""
    _replace(path.parent, path.name, data)


def _lock(folder: Path, name: str) -> int:
    """The descriptor that holds the lock; it goes with the process. Raises ChainError where another one has it."""
    _demand_private(folder)
    path = folder / f"{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _demand_private(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != os.stat(path).st_ino:
            raise ChainError(f"{path}: was replaced while it was locked; try again")
    except BlockingIOError as error:
        os.close(descriptor)
        raise ChainError(f"{path}: another process has it open; stop that one first") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read(path: Path) -> bytes:
    _demand_private(path)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return file.read()
    except OSError as error:
        raise ChainError(f"{path}: can't be read ({error.strerror})") from error


def _demand_private(path: Path) -> None:
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        raise ChainError(
            f"{path}: missing; restore it from a backup, or where there never was one: `client ledger create`"
        ) from None
    except OSError as error:
        raise ChainError(f"{path}: can't be read ({error.strerror})") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ChainError(f"{path}: is neither file nor folder")
    if mode & 0o077:
        wanted = "700" if stat.S_ISDIR(mode) else "600"
        raise ChainError(
            f"{path}: others may enter or read it (mode {mode & 0o777:o}); find out who did, chmod {wanted}"
        )


def _replace(folder: Path, name: str, data: bytes, *, durable: bool = True) -> None:
    """The file whole under its name, and on disk, folder included; or nothing of it. Raises OSError."""
    temporary = folder / f".{name}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(0, "no room for the whole file")
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, folder / name)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
