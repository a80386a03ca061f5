"""A site is a folder: its name, where its index and cache lie, and the studies that it has been shown."""

import contextlib
import hashlib
import hmac
import os
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import DataError, StudyError
from common.study import Study, from_json

_ALLOWED = set("abcdefghijklmnopqrstuvwxyz0123456789-")
_KEYS = ("name", "nominal_patients", "paths.anchor", "paths.cache", "policy.unprotected")


@dataclass(frozen=True, kw_only=True)
class Site:
    """An opened site folder."""

    folder: Path
    name: str
    cache: Path
    patient_key: bytes  # 32 bytes; turns patient identifiers into hashes and decides the split; never leaves the site
    nominal_patients: int | None = None  # declared from what may be known anyway, one significant digit; public
    anchor: Path | None = None  # where, on another disk, the ledger's newest head is kept
    unprotected: bool = False  # whether studies without differential privacy may use patients who have a ledger


def open_site(folder: Path) -> Site:
    """The site in a folder. Raises DataError, one line, when it isn't one or its site.toml is wrong."""
    try:
        values = tomllib.loads((folder / "site.toml").read_text(encoding="utf-8"))
        key = (folder / "keys" / "patient.key").read_bytes()
    except OSError as error:
        missing = Path(error.filename or folder).name
        raise DataError(
            f"{folder}: not a site folder ({missing}: {error.strerror}); make one with `client index`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / 'site.toml'}: not valid TOML: {error}") from error
    name, paths, policy = values.get("name"), values.get("paths", {}), values.get("policy", {})
    tables = {"paths": paths, "policy": policy}
    for part, table in tables.items():
        if not isinstance(table, dict):
            raise DataError(f"{folder / 'site.toml'}: {part} = {table!r}; write a table: [{part}], then its keys")
    found = {*values, *(f"{part}.{inner}" for part in tables for inner in tables[part])} - tables.keys()
    if unknown := sorted(found - set(_KEYS)):
        raise DataError(f"{folder / 'site.toml'}: unknown key {unknown[0]}; known: {', '.join(_KEYS)}")
    if not isinstance(name, str) or not 1 <= len(name) <= 32 or not set(name) <= _ALLOWED:
        raise DataError(f"{folder / 'site.toml'}: name = {name!r}; a site name is 1 to 32 of a-z, 0-9 and -")
    cache, anchor = paths.get("cache", "cache"), paths.get("anchor")
    for part, path in (("cache", cache), ("anchor", anchor or "")):
        if not isinstance(path, str):
            raise DataError(
                f"{folder / 'site.toml'}: paths.{part} = {path!r}; give a path, relative to the site's or absolute"
            )
    nominal, unprotected = values.get("nominal_patients"), policy.get("unprotected", False)
    if nominal is not None and (type(nominal) is not int or not 1 <= nominal <= 10**9):
        raise DataError(f"{folder / 'site.toml'}: nominal_patients = {nominal!r}; a whole number from 1 to 1000000000")
    if type(unprotected) is not bool:
        raise DataError(f"{folder / 'site.toml'}: policy.unprotected = {unprotected!r}; true or false")
    if len(key) != 32:
        raise DataError(
            f"{folder / 'keys' / 'patient.key'}: {len(key)} bytes instead of 32; restore it from your backup"
        )
    return Site(
        folder=folder,
        name=name,
        cache=(folder / cache).resolve(),
        patient_key=key,
        nominal_patients=nominal,
        anchor=(folder / anchor).resolve() if anchor else None,
        unprotected=unprotected,
    )


def site_toml(name: str, *, cache: str = "cache", nominal_patients: int | None = None) -> str:
    """The text of a new site.toml. Raises DataError for a name that isn't one."""
    if not 1 <= len(name) <= 32 or not set(name) <= _ALLOWED:
        raise DataError(f"site name {name!r}: use 1 to 32 of a-z, 0-9 and -")
    declared = "" if nominal_patients is None else f"nominal_patients = {nominal_patients}\n"
    return f'name = "{name}"\n{declared}\n[paths]\ncache = "{cache}"\n'


def declare(folder: Path, nominal_patients: int) -> None:
    """Write the declared number of patients into a site.toml that has none. Whole, or not at all."""
    path = folder / "site.toml"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(
        f"nominal_patients = {nominal_patients}\n" + path.read_text(encoding="utf-8"), encoding="utf-8"
    )
    temporary.replace(path)


def split_position(site: Site, patient: str) -> float:
    """Where a patient falls in [0, 1): the same always, and not to be guessed without the key."""
    digest = hmac.digest(site.patient_key, b"split\0" + patient.encode(), hashlib.sha256)
    return int.from_bytes(digest[:7], "big") / 2**56


def remember(site: Site, study: Study) -> None:
    """Keep a study that was proposed, under its hash: whole, or not at all."""
    path = site.folder / "studies" / f"{study.sha256}.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(study.canonical, encoding="utf-8")
    temporary.replace(path)


def known_study(site: Site, study_hash: str) -> Study | None:
    """The study with this hash, if it was ever proposed here and its file is still what it was."""
    if len(study_hash) != 64 or not set(study_hash) <= set("0123456789abcdef"):
        return None
    try:
        study = from_json((site.folder / "studies" / f"{study_hash}.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StudyError):
        return None
    return study if study.sha256 == study_hash else None


def note_error(site: Site, where: str, error: BaseException) -> None:
    """Write down, at the site alone, what went wrong, as one line: what leaves is a reason code. On a full disk
    nothing is written, and nothing raised.
    """
    text = " ".join(f"{where}: {type(error).__name__}: {error}".split())
    with contextlib.suppress(OSError), (site.folder / "errors.log").open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")
