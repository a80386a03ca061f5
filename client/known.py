"""The list of every patient that a site folder ever indexed, as keyed hashes: what another cohort must not take.

`SITE/patients` holds it as one hash-chained file (`client/chain.py`), a line for each index that had new patients, with
its time. It belongs to the folder's patient key and goes with it.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from client import chain
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, Contents, anchor_from, first_line
from client.index_file import opened
from common.errors import DataError

FOLDER, NAME = "patients", "known"
LISTED, COMPARED = "listed", "compared"  # keys of an index's table meta


@dataclass(frozen=True, kw_only=True)
class Known:
    """A list as it stood."""

    patients: frozenset[str]
    anchor: Anchor


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What an index says of its patients: their hashes, where the list stood when it was made (None: it was made
    without one), and the keys' marks of the cohorts that it was compared with.
    """

    patients: frozenset[str]
    listed: Anchor | None
    compared: frozenset[str]


def hashed(key: bytes, purpose: str, *parts: str) -> str:
    """128 bits of HMAC-SHA256, hex; each part with its length in front, so that none can run into the next."""
    encoded = [part.encode("utf-8", "surrogateescape") for part in (purpose, *parts)]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    return hmac.digest(key, message, hashlib.sha256).hex()[:32]


def mark(patient_key: bytes) -> str:
    """Says that a list belongs to a patient key, and nothing else about it."""
    return hmac.digest(patient_key, b"known patients\0", hashlib.sha256).hex()


def exists(site: Path) -> bool:
    """Whether the folder has a list, in whatever state. A crash may leave its folder alone, which is none."""
    return (site / FOLDER / f"{NAME}.jsonl").exists()


def read(site: Path, *, patient_key: bytes) -> Known:
    """The list. Raises ChainError, DataError where it is missing, damaged, or another key's."""
    if not exists(site):
        raise DataError(f"{site / FOLDER}: this site's list of known patients is missing: restore it from a backup")
    return known_of(chain.read(site / FOLDER, NAME), patient_key=patient_key, where=site / FOLDER)


def known_of(contents: Contents, *, patient_key: bytes, where: Path) -> Known:
    """What a verified chain lists. Raises DataError where it is no list, or another key's."""
    if contents.entries[0].body.get("key") != mark(patient_key):
        raise DataError(f"{where}: this list of patients and keys/patient.key don't belong together: restore the pair")
    found: set[str] = set()
    for entry in contents.entries:
        if entry.kind != "repair":
            found.update(entry.body.get("patients", ()))
    return Known(patients=frozenset(found), anchor=contents.entries[-1].anchor)


def add(site: Path, patients: Iterable[str], *, patient_key: bytes) -> Known:
    """List these patients too.

    Guarantees: when this returns they are on disk; nobody is ever taken out.
    Raises ChainError, DataError.
    """
    before = read(site, patient_key=patient_key)
    new = sorted({*patients} - before.patients)
    with Chain(site / FOLDER, NAME) as own:
        if new:
            own.append("patients", {"patients": new})
        return Known(patients=before.patients.union(new), anchor=own.anchor)


def ensured(site: Path, *, patient_key: bytes, has_ledger: bool) -> tuple[Known, int]:
    """The list, begun where there never was one, and how many patients of the index were taken up into it.

    A folder from before there were lists begins one with the patients of its index. A list that is missing beside an
    index made with it, or beside a ledger without an index to begin from, was lost: who left is then known to nobody.
    Call it with the folder locked.
    Raises ChainError, DataError where the list was lost, damaged, or is older than the index.
    """
    index = indexed(site)
    if not exists(site):
        lost = has_ledger if index is None else index.listed is not None
        if not lost:
            body = {"key": mark(patient_key), "patients": sorted(index.patients) if index else []}
            chain.install(site / FOLDER, NAME, first_line("begin", body))
            return read(site, patient_key=patient_key), len(body["patients"])
    known = read(site, patient_key=patient_key)
    if index is None:
        return known, 0
    if index.listed is not None and not chain.read(site / FOLDER, NAME).contains(index.listed):
        raise DataError(
            f"{site / FOLDER}: older than this site's index, which was made with record {index.listed} of it: restore"
            " a newer one from a backup"
        )
    return add(site, index.patients, patient_key=patient_key), len(index.patients - known.patients)


def indexed(site: Path) -> Indexed | None:
    """What the index in place says of its patients, whatever its version; None where none can be read."""
    try:
        with opened(site, version=None) as database:
            patients = frozenset(r["patient"] for r in database.execute("SELECT DISTINCT patient FROM image"))
            meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
        listed = anchor_from(meta[LISTED]) if LISTED in meta else None
        return Indexed(patients=patients, listed=listed, compared=frozenset(json.loads(meta.get(COMPARED, "[]"))))
    except (DataError, ChainError, ValueError):
        return None


def meta(known: Known, *, compared: Iterable[str]) -> dict[str, str]:
    """What the index keeps of the lists that it was made with."""
    return {LISTED: f"{known.anchor.sequence}-{known.anchor.hash}", COMPARED: json.dumps(sorted(compared))}
