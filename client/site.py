"""A site is a folder: its name, where its index and cache lie, and the studies that it has been shown."""

import contextlib
import hashlib
import hmac
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
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
LONGEST = 600  # characters of a line of errors.log
LARGEST = 10 * 2**20  # bytes of errors.log from which on it is set aside
_SERVERS = "federation.toml"  # what a server's folder has


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Paths(_Table):
    """`[paths]`: relative to the site folder, or absolute."""

    cache: str = Field("cache", description="give a path, relative to the site's or absolute")
    anchor: str | None = Field(None, description="give a path, relative to the site's or absolute")
    other_cohorts: tuple[str, ...] = Field((), description="a list of site folders, relative to this one or absolute")


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
    other_cohorts: tuple[Path, ...] = ()  # site folders of the same hospital, whose patients are not this one's
    simulated: bool = False  # made up by a simulation
    policy: Policy = field(default_factory=Policy)  # the hospital's own limits

    @property
    def unprotected(self) -> bool:
        """Whether studies without differential privacy may use patients who have a ledger."""
        return self.policy.unprotected


def one_digit(number: int) -> int:
    """Rounded to one significant digit."""
    return int(float(f"{number:.0e}"))


def demand_site(folder: Path) -> None:
    """Raises DataError, one line, where there is no site folder; what is wrong with one is for others to say."""
    file = folder / "site.toml"
    try:
        file.stat()
    except OSError as error:
        raise _no_site(folder, file, error) from error


def demand_own(folder: Path) -> None:
    """Raises DataError for a server's folder, in which nothing of a site is to be made."""
    if (folder / _SERVERS).exists():
        raise DataError(f"{folder}: a federation's folder, which `server init` made; name a folder of the site's own")


def _no_site(folder: Path, file: Path, error: OSError) -> DataError:
    with contextlib.suppress(OSError):
        demand_own(folder)
    return DataError(f"{folder}: not a site folder ({file.name}: {error.strerror}); make one with `client index`")


def open_site(folder: Path) -> Site:
    """The site in a folder. Raises DataError, one line, when it isn't one or its site.toml is wrong."""
    try:
        settings = _settings(folder / "site.toml", (folder / "site.toml").read_bytes())
        key = (folder / "keys" / "patient.key").read_bytes()
    except OSError as error:
        file = Path(error.filename or folder)
        if file.name == "patient.key" and (folder / "site.toml").exists():
            raise DataError(f"{file}: can't be read ({error.strerror}); restore it from your backup") from error
        raise _no_site(folder, file, error) from error
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
        other_cohorts=_resolved(folder, settings),
        simulated=settings.simulated,
        policy=settings.policy,
    )


def named_cohorts(folder: Path) -> tuple[Path, ...]:
    """The other cohorts that a site folder names itself; none where it is not there yet. Raises DataError."""
    try:
        return _resolved(folder, _settings(folder / "site.toml", (folder / "site.toml").read_bytes()))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _no_site(folder, folder / "site.toml", error) from error


def _resolved(folder: Path, settings: _Settings) -> tuple[Path, ...]:
    return tuple((folder / other).resolve() for other in settings.paths.other_cohorts)


def _settings(file: Path, content: bytes) -> _Settings:
    """What a site.toml says. Raises DataError."""
    try:
        return _Settings.model_validate(_tuples(tomllib.loads(content.decode())))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid TOML: {error}") from error
    except ValidationError as error:
        faults = [_fault(dict(fault)) for fault in error.errors(include_url=False)]
        raise DataError(f"{file}: {'; '.join(dict.fromkeys(faults))}") from None


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
    declared = "" if nominal_patients is None else f"nominal_patients = {nominal_patients}\n"
    made_up = "simulated = true\n" if simulated else ""
    limits = policy_text.to_toml(SIMULATED) if simulated else policy_text.template()
    return f'name = "{_checked(name)}"\n{declared}{made_up}\n[paths]\ncache = "{cache}"\n\n{limits}'


def declare(folder: Path, nominal_patients: int) -> None:
    """Write the declared number of patients into a site.toml that has none. Whole, or not at all."""
    path = folder / "site.toml"
    _replace(path, f"nominal_patients = {nominal_patients}\n" + path.read_text(encoding="utf-8"))


def rename(folder: Path, name: str) -> None:
    """Write another name into a site.toml, in its first line that begins with `name =`. Whole, or not at all.

    Raises DataError for a name that isn't one.
    """
    path, line = folder / "site.toml", f'name = "{_checked(name)}"'
    _replace(path, re.sub(r"(?m)^name\s*=.*$", line, path.read_text(encoding="utf-8"), count=1))


def limit(folder: Path, changes: Mapping[str, Any]) -> Policy:
    """Set keys of `[policy]` in a site.toml, or take them out where the value is None, and leave everything else there
    as it is written; what holds then. Whole, or not at all.

    Raises DataError for what the policy refuses, and for a file that is written in a way that is not understood here.
    """
    path = folder / "site.toml"
    text = path.read_text(encoding="utf-8")
    before = _settings(path, text.encode())
    for name, value in changes.items():
        text = policy_text.changed(text, name, value)
    after = _settings(path, text.encode())
    asked = {name: Policy.model_fields[name].default if value is None else value for name, value in changes.items()}
    if after != before.model_copy(update={"policy": before.policy.model_copy(update=asked)}):
        raise DataError(f"{path}: [policy] is written in a way that no command can change: do it there")
    _replace(path, text)
    return after.policy


def name_cohorts(folder: Path, others: Sequence[Path]) -> None:
    """Have a site.toml name these other cohorts, besides those that it names; written only where one is new.

    Raises DataError where that can't be done, and says what to write.
    """
    path = folder / "site.toml"
    try:
        text = path.read_text(encoding="utf-8")
        before = _settings(path, text.encode())
        new = [str(other) for other in others if other.resolve() not in _resolved(folder, before)]
        if not new:
            return
        wanted = (*before.paths.other_cohorts, *new)
        text = policy_text.with_value(text, "paths", "other_cohorts", list(wanted))
        paths = before.paths.model_copy(update={"other_cohorts": wanted})
        if _settings(path, text.encode()) != before.model_copy(update={"paths": paths}):
            raise DataError("[paths] is written in a way that no command can change")
        _replace(path, text)
    except (OSError, ValueError, DataError) as error:
        listed = ", ".join(map(str, others))
        raise DataError(f"{path}: other_cohorts in [paths] must name {listed}; write it there ({error})") from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _checked(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise DataError(f"site name {name!r}: use 1 to 32 of a-z, 0-9 and -")
    return name


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

    Another party may have written what an error quotes: of each line `LONGEST` characters are kept, those that could
    steer a terminal replaced; a log that has grown to `LARGEST` bytes is set aside as errors.old.
    """
    said = str(error) if isinstance(error, FederationError) else without_paths(_begun(str(error)))
    words = " ".join(f"{where}: {type(error).__name__}: {said[: 2 * LONGEST]}".split())
    text = "".join(c if c.isprintable() else "?" for c in words[:LONGEST])
    path, how = site.folder / "errors.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size >= LARGEST:
            path.replace(path.with_suffix(".old"))
        with os.fdopen(os.open(path, how, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


def _begun(text: str) -> str:
    """The beginning of a long text, to a whole word: the rest of a path that was cut would not look like one."""
    return text if len(text) <= 4 * LONGEST else text[: 4 * LONGEST].rpartition(" ")[0]
