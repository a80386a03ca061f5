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


@dataclass(frozen=True, kw_only=True)
class Site:
    """An opened site folder."""

    folder: Path
    name: str
    cache: Path
    patient_key: bytes  # 32 bytes; turns patient identifiers into hashes and decides the split; never leaves the site


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
    name, paths = values.get("name"), values.get("paths", {})
    if not isinstance(paths, dict):
        raise DataError(f'{folder / "site.toml"}: paths = {paths!r}; write a table: [paths], then cache = "cache"')
    unknown = sorted({*values, *(f"paths.{key}" for key in paths)} - {"name", "paths", "paths.cache"})
    if unknown:
        raise DataError(f"{folder / 'site.toml'}: unknown key {unknown[0]}; known: name, paths.cache")
    if not isinstance(name, str) or not 1 <= len(name) <= 32 or not set(name) <= _ALLOWED:
        raise DataError(f"{folder / 'site.toml'}: name = {name!r}; a site name is 1 to 32 of a-z, 0-9 and -")
    cache = paths.get("cache", "cache")
    if not isinstance(cache, str):
        raise DataError(
            f"{folder / 'site.toml'}: paths.cache = {cache!r}; give a folder, relative to the site's or absolute"
        )
    if len(key) != 32:
        raise DataError(
            f"{folder / 'keys' / 'patient.key'}: {len(key)} bytes instead of 32; restore it from your backup"
        )
    return Site(folder=folder, name=name, cache=(folder / cache).resolve(), patient_key=key)


def site_toml(name: str, *, cache: str = "cache") -> str:
    """The text of a new site.toml. Raises DataError for a name that isn't one."""
    if not 1 <= len(name) <= 32 or not set(name) <= _ALLOWED:
        raise DataError(f"site name {name!r}: use 1 to 32 of a-z, 0-9 and -")
    return f'name = "{name}"\n\n[paths]\ncache = "{cache}"\n'


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
