"""A site's index: one row per usable image, and every other file with the reason why it isn't one.

Patients, studies and images stand in it as keyed hashes. In clear are paths below the images' root, which this machine
has anyway, and what the annotations say.
"""

import contextlib
import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client import headers, sources
from client.agreement import Agreement
from client.annotations import Finding, Remark
from client.apart import Cohorts
from client.drops import ASIDE, Drop, Dropped
from client.headers import Format, Progress
from client.index_file import NAME, fill, opened, sync, why
from client.known import hashed
from client.memory import Memory
from client.readers import Fusion
from client.records import SCHEMA, TABLES, Row, from_record
from client.sources import Found
from common.errors import DataError


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

    @property
    def lost(self) -> dict[Drop, int]:
        """The files that are not used, but for those that are not there to be used (ASIDE)."""
        return {reason: number for reason, number in self.dropped.items() if reason not in ASIDE}


def build(
    form: Format | Literal["auto"],
    path: Path,
    folder: Path,
    *,
    patient_key: bytes,
    image_is_patient: bool = False,
    require_annotation: bool = True,
    drop_burned_in: bool = False,
    keeps_automatic: bool = False,
    fusion: Fusion = "majority",
    memory: Memory | None = None,
    cohorts: Cohorts | None = None,
    jobs: int | None = None,
    quiet: bool = True,
) -> Counts:
    """Index what lies at `path` into the site folder `folder`, in place of an earlier index.

    `image_is_patient`: an image without patient identifier is a patient of its own, else it is dropped.
    `drop_burned_in`: so is one whose header says that text is burned into its pixels. `keeps_automatic`: DICOM objects
    that a program made alone are annotations too. `fusion` makes one annotation of several readers'. `memory` spares
    reading files that haven't changed since it was made. `cohorts`: the list of this site's patients and those of its
    hospital's other cohorts, whose patients are dropped; None keeps no list, for folders that a simulation makes.
    Guarantees: with a memory the index is the same as without one. Who is in the index is in the list before it.
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
    form = sources.detect(path) if form == "auto" else form
    options = {
        "image_is_patient": image_is_patient,
        "require_annotation": require_annotation,
        "drop_burned_in": drop_burned_in,
        "keeps_automatic": keeps_automatic,
        "fusion": fusion,
    }
    memory = memory or Memory()
    look = headers.look(path, form, memory=memory, jobs=jobs) if form != "medmnist" and path.is_dir() else None
    counted: list[Dropped | Remark | Agreement] = []

    def inputs() -> str | None:
        others = {} if cohorts is None else {"cohorts": cohorts.fingerprint()}
        said = json.dumps({**options, **others, "version": [SCHEMA, sources.VERSION]}, sort_keys=True)
        return None if look is None else look.fingerprint(key=patient_key, options=said)

    def rows(progress: Progress) -> Iterator[Row]:
        for item in sources.scan(
            path,
            form,
            image_is_patient=image_is_patient,
            require_annotation=require_annotation,
            drop_burned_in=drop_burned_in,
            keeps_automatic=keeps_automatic,
            fusion=fusion,
            jobs=jobs,
            progress=progress,
            look=look,
            elsewhere=None if cohorts is None else cohorts.elsewhere,
        ):
            if isinstance(item, Found):
                if item.agreement is not None:
                    counted.append(item.agreement)
                yield _row(item, patient_key)
            else:
                counted.append(item)

    finished = False
    try:
        with progress_bar("Reading", quiet=quiet) as progress:
            if look is not None:
                look.compare(progress)
            if memory.knows() and (made_of := inputs()) and made_of == _made_of(folder):
                finished = True
                if cohorts is not None:
                    cohorts.record()
                return counts(folder)
            enter = None if cohorts is None else cohorts.enter
            write(folder, rows(progress), counted, made_of=inputs, enter=enter)
            finished = True
    finally:
        memory.save(whole=finished)
    return counts(folder)


def write(
    folder: Path,
    rows: Iterable[Row],
    others: Iterable[Dropped | Remark | Agreement],
    *,
    made_of: Callable[[], str | None] = lambda: None,
    enter: Callable[[set[str]], Mapping[str, str]] | None = None,
) -> None:
    """The index of a site folder, in place of an earlier one. `others` is read after `rows`, and `made_of` asked: a
    digest of all that the index was made of, where it's known. `enter` lists the patients, by hash, while the earlier
    index is still there, and says what to keep of that.

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
            fill(database, rows, others)
            if (digest := made_of()) is not None:
                database.execute("INSERT INTO meta VALUES ('made_of', ?)", (digest,))
            if enter is not None:
                patients = {patient for (patient,) in database.execute("SELECT DISTINCT patient FROM image")}
                database.executemany("INSERT INTO meta VALUES (?, ?)", enter(patients).items())
            database.execute("COMMIT")
        sync(temporary)
        os.replace(temporary, folder / NAME)
        temporary = None
        sync(folder)
    except sqlite3.IntegrityError:
        raise DataError(f"{folder / NAME}: two rows have the same image id") from None
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{folder / NAME}: can't be written ({why(error)}); an earlier index is unchanged") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def read(folder: Path) -> list[Row]:
    """All rows, ordered by image id. Raises DataError for a missing or damaged index, or one of another version."""
    return list(each(folder))


def each(folder: Path) -> Iterator[Row]:
    """The rows as `read` gives them, one at a time: masks of many images don't fit into memory together."""
    with opened(folder) as database:
        root = Path(dict(database.execute("SELECT key, value FROM meta")).get("root", ""))
        for record in database.execute("SELECT * FROM image ORDER BY image"):
            yield from_record(root, record)


def dropped(folder: Path) -> list[Dropped]:
    """What is not used and why, by path. Raises DataError as `read`."""
    with opened(folder) as database:
        records = database.execute("SELECT * FROM dropped ORDER BY path, array, item").fetchall()
        return [
            Dropped(path=r["path"], reason=Drop(r["reason"]), detail=r["detail"], array=r["array"], item=r["item"])
            for r in records
        ]


def remarks(folder: Path) -> list[Remark]:
    """What a person should look at. Raises DataError as `read`."""
    with opened(folder) as database:
        records = database.execute("SELECT finding, place FROM remark ORDER BY rowid").fetchall()
        return [Remark(finding=Finding(r["finding"]), place=r["place"]) for r in records]


def agreements(folder: Path) -> list[Agreement]:
    """How far several readers of an image agree, by image. Raises DataError as `read`."""
    with opened(folder) as database:
        records = database.execute("SELECT * FROM agreement ORDER BY path, item").fetchall()
        found = [(r["path"], r["item"], *json.loads(r["found"])) for r in records]
        return [Agreement(path=p, item=i, labels=labels, dice=dice, iou=iou) for p, i, labels, dice, iou in found]


def counts(folder: Path) -> Counts:
    """The index in numbers. Raises DataError as `read`."""
    with opened(folder) as database:
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
    with opened(folder) as database:
        database.execute("BEGIN IMMEDIATE")
        for image, reason in reasons.items():
            database.execute(
                "INSERT INTO dropped SELECT path, ?, 'found when decoding', array, item FROM image WHERE image = ?",
                (reason, image),
            )
            database.execute("DELETE FROM image WHERE image = ?", (image,))
        # The next `client index` shall put them to the test again, whether or not a file has changed.
        database.execute("DELETE FROM meta WHERE key = 'made_of'")
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


def _made_of(folder: Path) -> str | None:
    """What a whole index says that it was made of; None where there is none or it's damaged."""
    try:
        with opened(folder) as database:
            if [tuple(record) for record in database.execute("PRAGMA quick_check(1)")] != [("ok",)]:
                return None
            return dict(database.execute("SELECT key, value FROM meta")).get("made_of")
    except DataError:
        return None


def _row(found: Found, key: bytes) -> Row:
    place = (found.source.array, str(found.source.item))
    return Row(
        image=hashed(key, "image", found.patient, found.digest, *place),
        patient=hashed(key, "patient", found.patient),
        study=None if found.study_uid is None else hashed(key, "study", found.study_uid),
        source=found.source,
        height=found.height,
        width=found.width,
        modality=found.modality,
        scanner=found.scanner,
        burned_in=found.burned_in,
        official=found.official,
        annotation=found.annotation,
        columns=found.columns,
        pose=found.pose,
        image_kind=found.image_kind,
    )
