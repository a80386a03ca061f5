"""A site's index: one row per usable image, and every other file with the reason why it isn't one.

Patients, studies and images stand in it as keyed hashes. In clear are paths below the images' root, which this machine
has anyway, and what the annotations say.
"""

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client import sources
from client.agreement import Agreement
from client.annotations import Finding, Remark
from client.drops import Drop, Dropped
from client.readers import Fusion
from client.records import SCHEMA, TABLES, Row, from_record, to_record
from client.sources import Format, Found, Progress
from common.errors import DataError

NAME = "index.sqlite"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an index accounts for. Guarantees: used + sum(dropped.values()) is the number of files found."""

    used: int  # files with at least one used image
    dropped: dict[Drop, int]  # files without
    images: int
    dropped_images: dict[Drop, int]  # single images of files of several
    patients: int
    findings: dict[Finding, int]

    @property
    def files(self) -> int:
        return self.used + sum(self.dropped.values())


def build(
    form: Format | Literal["auto"],
    path: Path,
    folder: Path,
    *,
    patient_key: bytes,
    image_is_patient: bool = False,
    require_annotation: bool = True,
    fusion: Fusion = "majority",
    jobs: int | None = None,
    quiet: bool = True,
) -> Counts:
    """Index what lies at `path` into the site folder `folder`, in place of an earlier index.

    `image_is_patient`: an image without patient identifier is a patient of its own, else it is dropped. `fusion` makes
    one annotation of several readers'.
    Raises DataError when nothing lies there, or the index can't be written.
    """
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise DataError(f"{path}: no such file or folder") from None
    if len(patient_key) < 32:
        raise DataError(f"the patient key has {len(patient_key)} bytes; it needs at least 32")
    if folder.resolve().is_relative_to(path):
        raise DataError(f"{folder}: lies inside the images' folder; a site folder needs a place of its own")
    counted: list[Dropped | Remark | Agreement] = []

    def rows(progress: Progress) -> Iterator[Row]:
        for item in sources.scan(
            path,
            sources.detect(path) if form == "auto" else form,
            image_is_patient=image_is_patient,
            require_annotation=require_annotation,
            fusion=fusion,
            jobs=jobs,
            progress=progress,
        ):
            if isinstance(item, Found):
                if item.agreement is not None:
                    counted.append(item.agreement)
                yield _row(item, patient_key)
            else:
                counted.append(item)

    with progress_bar("Reading", quiet=quiet) as progress:
        write(folder, rows(progress), counted)
    return counts(folder)


def write(folder: Path, rows: Iterable[Row], others: Iterable[Dropped | Remark | Agreement]) -> None:
    """The index of a site folder, in place of an earlier one. `others` is read after `rows`.

    Guarantees: atomic; after any error or kill the earlier index is still there. Readable by its owner alone.
    Raises DataError when two rows have one id, lie under different roots, or the disk is full or not writable.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{NAME}.", dir=folder)
        os.close(handle)
        temporary = Path(name)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            # A file that nobody else sees needs neither journal nor sync; it is synced as a whole below.
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {TABLES}")
            database.execute(f"PRAGMA user_version = {SCHEMA}")
            database.execute("BEGIN")
            _fill(database, rows, others)
            database.execute("COMMIT")
        _sync(temporary)
        os.replace(temporary, folder / NAME)
        temporary = None
        _sync(folder)
    except sqlite3.IntegrityError:
        raise DataError(f"{folder / NAME}: two rows have the same image id") from None
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{folder / NAME}: can't be written ({_why(error)}); an earlier index is unchanged") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def read(folder: Path) -> list[Row]:
    """All rows, ordered by image id. Raises DataError for a missing or damaged index, or one of another version."""
    with _opened(folder) as database:
        root = Path(dict(database.execute("SELECT key, value FROM meta")).get("root", ""))
        return [from_record(root, record) for record in database.execute("SELECT * FROM image ORDER BY image")]


def dropped(folder: Path) -> list[Dropped]:
    """What is not used and why, by path. Raises DataError as `read`."""
    with _opened(folder) as database:
        records = database.execute("SELECT * FROM dropped ORDER BY path, array, item").fetchall()
        return [
            Dropped(path=r["path"], reason=Drop(r["reason"]), detail=r["detail"], array=r["array"], item=r["item"])
            for r in records
        ]


def remarks(folder: Path) -> list[Remark]:
    """What a person should look at. Raises DataError as `read`."""
    with _opened(folder) as database:
        records = database.execute("SELECT finding, place FROM remark ORDER BY rowid").fetchall()
        return [Remark(finding=Finding(r["finding"]), place=r["place"]) for r in records]


def agreements(folder: Path) -> list[Agreement]:
    """How far several readers of an image agree, by image. Raises DataError as `read`."""
    with _opened(folder) as database:
        records = database.execute("SELECT * FROM agreement ORDER BY path, item").fetchall()
        found = [(r["path"], r["item"], *json.loads(r["found"])) for r in records]
        return [Agreement(path=p, item=i, labels=labels, dice=dice, iou=iou) for p, i, labels, dice, iou in found]


def counts(folder: Path) -> Counts:
    """The index in numbers. Raises DataError as `read`."""
    with _opened(folder) as database:
        used = {r["path"] for r in database.execute("SELECT DISTINCT path FROM image")}
        images, patients = database.execute("SELECT COUNT(*), COUNT(DISTINCT patient) FROM image").fetchone()
        files: dict[str, Drop] = {}
        single: Counter[Drop] = Counter()
        for record in database.execute("SELECT path, reason, item FROM dropped ORDER BY rowid"):
            reason = Drop(record["reason"])
            if record["item"] is not None:
                single[reason] += 1
            if record["path"] not in used:
                files.setdefault(record["path"], reason)
        findings = {Finding(f): n for f, n in database.execute("SELECT finding, COUNT(*) FROM remark GROUP BY finding")}
    return Counts(
        used=len(used),
        dropped=dict(sorted(Counter(files.values()).items())),
        images=images,
        dropped_images=dict(sorted(single.items())),
        patients=patients,
        findings=findings,
    )


def remove(folder: Path, reasons: Mapping[str, Drop]) -> None:
    """Move images, by id, to what is dropped: their pixels turned out not to be readable. Unknown ids are ignored.

    Guarantees: all or none. Raises DataError as `read`, or when the disk is full.
    """
    with _opened(folder) as database:
        database.execute("BEGIN IMMEDIATE")
        for image, reason in reasons.items():
            database.execute(
                "INSERT INTO dropped SELECT path, ?, 'found when decoding', array, item FROM image WHERE image = ?",
                (reason, image),
            )
            database.execute("DELETE FROM image WHERE image = ?", (image,))
        database.execute("COMMIT")


@contextmanager
def progress_bar(text: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on standard error that the yielded function moves; nothing when quiet or not a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _row(found: Found, key: bytes) -> Row:
    place = (found.source.array, str(found.source.item))
    return Row(
        image=_hash(key, "image", found.patient, found.digest, *place),
        patient=_hash(key, "patient", found.patient),
        study=None if found.study_uid is None else _hash(key, "study", found.study_uid),
        source=found.source,
        height=found.height,
        width=found.width,
        modality=found.modality,
        scanner=found.scanner,
        burned_in=found.burned_in,
        official=found.official,
        annotation=found.annotation,
        columns=found.columns,
    )


def _hash(key: bytes, purpose: str, *parts: str) -> str:
    """128 bits of HMAC-SHA256, hex; each part with its length in front, so that none can run into the next."""
    encoded = [part.encode("utf-8", "surrogateescape") for part in (purpose, *parts)]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    return hmac.digest(key, message, hashlib.sha256).hex()[:32]


def _fill(database: sqlite3.Connection, rows: Iterable[Row], others: Iterable[Dropped | Remark | Agreement]) -> None:
    roots: set[Path] = set()
    places = ", ".join("?" * 18)
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
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"{folder}: has no {NAME}; make one with `python -m client index`")
    try:
        # rw, not ro: after a kill in `remove` only a writer may roll back.
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as database:
            database.row_factory = sqlite3.Row
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA:
                raise DataError(
                    f"{path}: an index of version {version}, not {SCHEMA}; make it anew with `python -m client index`"
                )
            yield database
    except (OSError, sqlite3.Error, ValueError, zlib.error) as error:
        raise DataError(f"{path}: can't be used ({_why(error)}); make it anew with `python -m client index`") from None


def _why(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error) or type(error).__name__


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
