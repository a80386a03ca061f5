"""The committed updates that may be asked for again: each a differentially private release, so it may lie on disk.

A file is the raw bytes of one release. What may be served is the ledger's to say: it holds each release's digest.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from client.chain import write_privately
from client.chain_lines import ChainError


@dataclass(frozen=True, kw_only=True)
class Query:
    """What an order asks of the patients of one pool. Two orders with equal queries are the same order."""

    study: str  # the study's hash, or that and the run's id
    pool: str
    round: int
    weights: str  # hex SHA-256 of the weights received

    @cached_property
    def sha256(self) -> str:
        values = [self.study, self.pool, self.round, self.weights]
        return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


class Released:
    """The store, in a folder that only its owner may enter.

    Guarantees: a release is on disk when `put` returns, and off it when `forget` returns; a torn one has no name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, query: Query, update: bytes) -> str:
        """Keep an update; its hex SHA-256. Raises ChainError when it can't be written."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_privately(self._path(query), update)
        except OSError as error:
            raise ChainError(f"{self._folder}: can't be written ({error.strerror}): free disk space") from error
        return hashlib.sha256(update).hexdigest()

    def mark(self, query: Query, text: str) -> None:
        """Keep a note beside an update. Raises ChainError when it can't be written."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_privately(self._note(query), text.encode())
        except OSError as error:
            raise ChainError(f"{self._folder}: can't be written ({error.strerror}): free disk space") from error

    def marked(self, query: Query) -> str | None:
        """The note beside an update; None where there is none."""
        try:
            return self._note(query).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ChainError(f"{self._note(query)}: can't be read") from error

    def get(self, query: Query, digest: str) -> bytes | None:
        """The update with this digest; None where it is gone. Raises ChainError where it is not what was stored."""
        path = self._path(query)
        try:
            update = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ChainError(f"{path}: can't be read ({error.strerror})") from error
        if hashlib.sha256(update).hexdigest() != digest:
            raise ChainError(f"{path}: is not what was released: edited or damaged; without it the order costs anew")
        return update

    def forget(self, query: Query) -> None:
        """Delete what was stored for this query."""
        self._delete([self._path(query), self._note(query)])

    def forget_before(self, query: Query) -> None:
        """Delete what the study released in earlier rounds."""
        start = f"{_study(query)}-"
        found = (path for path in self._folder.glob(f"{start}*") if path.name.count("-") == 2)
        self._delete([path for path in found if int(path.name.split("-")[1]) < query.round])

    def _delete(self, paths: list[Path]) -> None:
        try:
            present = [path for path in paths if path.exists()]
            for path in present:
                path.unlink()
            if present:
                descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise ChainError(f"{self._folder}: can't be changed ({error.strerror})") from error

    def _path(self, query: Query) -> Path:
        return self._folder / f"{_study(query)}-{query.round}-{query.sha256}"

    def _note(self, query: Query) -> Path:
        return self._path(query).with_suffix(".note")


def _study(query: Query) -> str:
    return hashlib.sha256(query.study.encode()).hexdigest()[:32]
