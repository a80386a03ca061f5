"""The file that holds a site's index: its name, its tables filled, opened for reading; one writer at a time."""

import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from client.agreement import Agreement
from client.annotations import Remark
from client.drops import Dropped
from client.records import SCHEMA, Row, to_record
from common.errors import DataError

NAME = "index.sqlite"


def fill(database: sqlite3.Connection, rows: Iterable[Row], others: Iterable[Dropped | Remark | Agreement]) -> None:
    """Put everything into the empty tables. Raises DataError for rows under several roots."""
    roots: set[Path] = set()
    places = ", ".join("?" * 21)
    for row in rows:
        roots.add(row.source.root)
        database.execute(f"INSERT INTO image VALUES ({places})", to_record(row))  # noqa: S608 - question marks only
    if len(roots) > 1:
        raise DataError("the rows of one index must lie under one root folder")
    database.executemany("INSERT INTO meta VALUES ('root', ?)", [(str(root),) for root in roots])
    for other in others:
        if isinstance(other, Agreement):
            found = json.dumps([dict(other.labels), dict(other.dice), dict(other.iou)])
            database.execute("INSERT INTO agreement VALUES (?, ?, ?)", (other.path, other.item, found))
        elif isinstance(other, Remark):
            database.execute("INSERT INTO remark VALUES (?, ?)", (other.finding, other.place))
        else:
            values = (other.path, other.reason, other.detail, other.array, other.item)
            database.execute("INSERT INTO dropped VALUES (?, ?, ?, ?, ?)", values)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second indexer out of a site folder, which is made: two would each make a key for the patients.

    Raises DataError where one is at work already, or nothing can be written.
    """
    path = folder / f"{NAME}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DataError(f"{folder}: the site folder can't be made ({why(error)})") from None
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another `client index` is at work here; wait for it") from None
        yield


@contextmanager
def opened(folder: Path, *, version: int | None = SCHEMA) -> Iterator[sqlite3.Connection]:
    """The index of a site folder, to read or to change; of any version where that is None.

    Raises DataError for a missing, damaged or foreign one.
    """
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"{folder}: has no {NAME}; make one with `python -m client index`")
    try:
        # rw, not ro: after a kill in `remove` only a writer may roll back.
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as database:
            database.row_factory = sqlite3.Row
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (None, found):
                raise DataError(
                    f"{path}: an index of version {found}, not {version}; make it anew with `python -m client index`"
                )
            yield database
    except (OSError, sqlite3.Error, ValueError, zlib.error) as error:
        raise DataError(f"{path}: can't be used ({why(error)}); make it anew with `python -m client index`") from None


def why(error: Exception) -> str:
    """The system's own words."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error) or type(error).__name__


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
