"""A site is a folder: its name, where its index and cache lie, and the studies that it has been shown."""

import contextlib
import hashlib
import hmac
import os
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client import policy_text
from client.policy import SIMULATED, Policy
from client.redaction import without_paths
from common.errors import DataError, FederationError, StudyError
from common.study import Study, from_json

_NAME = r"^[a-z0-9-]{1,32}$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Paths(_Table):
    """`[paths]`: relative to the site folder, or absolute."""

    cache: str = Field("cache", description="give a path, relative to the site's or absolute")
    anchor: str | None = Field(None, description="give a path, relative to the site's or absolute")


class _Settings(_Table):
    """All of site.toml."""

    name: Annotated[str, Field(pattern=_NAME)] = Field(description="a site name is 1 to 32 of a-z, 0-9 and -")
    nominal_patients: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="a whole number from 1 to 1000000000"
    )
    simulated: bool = Field(
        False,
        description="true or false: made up by a simulation; its audit log need not outlive a power cut",
    )
    paths: _Paths = Field(_Paths(), description="write a table: [paths], then its keys")
    policy: Policy = Field(Policy(), description="write a table: [policy], then its keys")


@dataclass(frozen=True, kw_only=True)
class Site:
    """An opened site folder."""

    folder: Path
    name: str
    cache: Path
    patient_key: bytes  # 32 bytes; turns patient identifiers into hashes and decides the split; never leaves the site
    nominal_patients: int | None = None  # declared from what may be known anyway, one significant digit; public
    anchor: Path | None = None  # where, on another disk, the ledger's newest head is kept
    simulated: bool = False  # made up by a simulation
    policy: Policy = field(default_factory=Policy)  # the hospital's own limits

    @property
    def unprotected(self) -> bool:
        """Whether studies without differential privacy may use patients who have a ledger."""
        return self.policy.unprotected


def open_site(folder: Path) -> Site:
    """The site in a folder. Raises DataError, one line, when it isn't one or its site.toml is wrong."""
    file = folder / "site.toml"
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        key = (folder / "keys" / "patient.key").read_bytes()
        settings = _Settings.model_validate(_tuples(values))
    except OSError as error:
        missing = Path(error.filename or folder).name
        raise DataError(
            f"{folder}: not a site folder ({missing}: {error.strerror}); make one with `client index`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid TOML: {error}") from error
    except ValidationError as error:
        faults = [_fault(dict(fault)) for fault in error.errors(include_url=False)]
        raise DataError(f"{file}: {'; '.join(dict.fromkeys(faults))}") from None
    if len(key) != 32:
        raise DataError(
            f"{folder / 'keys' / 'patient.key'}: {len(key)} bytes instead of 32; restore it from your backup"
        )
    anchor = settings.paths.anchor
    return Site(
        folder=folder,
        name=settings.name,
        cache=(folder / settings.paths.cache).resolve(),
        patient_key=key,
        nominal_patients=settings.nominal_patients,
        anchor=(folder / anchor).resolve() if anchor else None,
        simulated=settings.simulated,
        policy=settings.policy,
    )


def _tuples(value: Any) -> Any:
    """TOML arrays as the tuples that frozen values hold."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def _fault(fault: dict[str, Any]) -> str:
    """One fault of a site.toml: its key, its value, and what would be right."""
    table: type[BaseModel] = _Settings
    place = [str(part) for part in fault["loc"] if isinstance(part, str)]
    hint = ""
    for name in place:
        if name not in table.model_fields:
            break
        hint, inner = table.model_fields[name].description or "", table.model_fields[name].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            table = inner
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}; known here: {', '.join(table.model_fields)}"
    if fault["type"] == "value_error":
        return f"{key}: {str(fault['msg']).removeprefix('Value error, ')}"
    value = None if fault["type"] == "missing" else fault["input"]
    return f"{key} = {value!r}; {hint}"


def site_toml(name: str, *, cache: str = "cache", nominal_patients: int | None = None, simulated: bool = False) -> str:
    """The text of a new site.toml. A hospital's explains every key of the policy, each with its safe value; that of a
    simulated site lets every study run.

    Raises DataError for a name that isn't one.
    """
    if not 1 <= len(name) <= 32 or not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise DataError(f"site name {name!r}: use 1 to 32 of a-z, 0-9 and -")
    declared = "" if nominal_patients is None else f"nominal_patients = {nominal_patients}\n"
    made_up = "simulated = true\n" if simulated else ""
    limits = policy_text.to_toml(SIMULATED) if simulated else policy_text.template()
    return f'name = "{name}"\n{declared}{made_up}\n[paths]\ncache = "{cache}"\n\n{limits}'


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
    """Write down, at the site alone, what went wrong, as one line: what leaves is a reason code. What looks like
    a path in an error that nobody foresaw is left out. On a full disk nothing is written, and nothing raised.
    """
    said = str(error) if isinstance(error, FederationError) else without_paths(str(error))
    text = " ".join(f"{where}: {type(error).__name__}: {said}".split())
    with contextlib.suppress(OSError), (site.folder / "errors.log").open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")
