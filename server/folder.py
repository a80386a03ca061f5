"""The coordinator's folder: what a federation's server keeps, and the keys that lie elsewhere.

FOLDER/federation.toml   name, addresses and ports, smallest round, colluding sites
FOLDER/ca.pem            the federation's authority; goes to every site with the roster
FOLDER/tls/              certificates and keys of the open port and of loopback
FOLDER/keys/             online.key, which signs orders; executor.secret
FOLDER/sites/            a request of every site that is to be in the next roster
FOLDER/roster.json       the roster in force; older ones in FOLDER/rosters/
FOLDER/flower/           Flower's database and configuration
FOLDER/runs/, orders/    what runs leave behind; what a submitted run is to do
FOLDER/logs/

KEYS/roster.key, ca.key, ca.pem: made with the folder, needed to sign rosters and certificates, and to be kept where the
server is not.
"""

import contextlib
import ipaddress
import json
import os
import secrets
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common import body, roster
from common.crypto import certificates
from common.crypto.certificates import Certified
from common.crypto.identity import KEY_BYTES, Identity
from common.errors import DataError, MessageError
from common.roster import Member, Roster, RosterError

Parsed = TypeVar("Parsed")
LOOPBACK = ("127.0.0.1", "localhost")
LOOPBACK_PORTS = 3  # the SuperLink, its health endpoint, the status page
_LAST = {"port": 65535, "loopback": 65536 - LOOPBACK_PORTS}
_AUTHORITY = "Fedward federation"
_NAME = 64 - len(_AUTHORITY) - 1  # characters: a certificate's name has 64
_ADDRESS = "an IPv4 or IPv6 address of this machine is needed, or 0.0.0.0 or :: for all of them"
_FIELDS = {"name": str, "hosts": list, "listen": str, "port": int, "colluding": int, "min_sites": int, "loopback": int}
_REQUEST = {"name": str, "identity": str, "supernode": str, "nominal_patients": int, "signature": str}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An opened folder.

    hosts       names and addresses under which sites reach the open port
    listen      address of this machine on which the port is opened
    port        the one open port
    colluding   c of the next roster; `min_sites`: its smallest round
    loopback    first of the ports on loopback: SuperLink, its health endpoint, the status page
    """

    path: Path
    name: str
    hosts: tuple[str, ...]
    listen: str
    port: int
    colluding: int
    min_sites: int
    loopback: int

    @property
    def gate(self) -> str:
        """Where the open port is, as one writes it."""
        return f"[{self.listen}]:{self.port}" if ":" in self.listen else f"{self.listen}:{self.port}"

    @property
    def superlink(self) -> str:
        return f"{LOOPBACK[0]}:{self.loopback}"

    @property
    def health(self) -> str:
        return f"{LOOPBACK[0]}:{self.loopback + 1}"

    @property
    def page(self) -> int:
        return self.loopback + 2

    @property
    def secret(self) -> Path:
        return self.path / "keys" / "executor.secret"

    @property
    def root(self) -> Path:
        return self.path / "ca.pem"

    def tls(self, what: str) -> tuple[Path, Path]:
        """Certificate and key of "gate" or "loopback"."""
        return self.path / "tls" / f"{what}.pem", self.path / "tls" / f"{what}.key"

    def online_key(self) -> Identity:
        """The key that signs orders, as the roster names it."""
        path = self.path / "keys" / "online.key"
        private = _read(path)
        if len(private) != KEY_BYTES:
            raise DataError(f"{path}: {len(private)} bytes instead of {KEY_BYTES}; restore it from your backup")
        return Identity(private)

    def demand_keys(self) -> None:
        """Raises DataError, one line, where a key of the server is missing, or others may read it."""
        for path in (self.path / "keys" / "online.key", self.secret, self.tls("gate")[1], self.tls("loopback")[1]):
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
            except OSError as error:
                raise DataError(f"{path}: can't be read ({error.strerror}); restore it from your backup") from error
            if mode & 0o077:
                raise DataError(f"{path}: readable for others; make it the server's alone: chmod 600 {path}")

    def roster(self) -> Roster | None:
        """The roster in force. Raises RosterError, MessageError for one that isn't."""
        path = self.path / "roster.json"
        return _named(path, roster.parse) if path.exists() else None

    def revoked(self) -> frozenset[str]:
        """SuperNode keys that an earlier roster had and the one in force has not."""
        now = self.roster()
        earlier = [_named(path, roster.parse) for path in (self.path / "rosters").glob("*.json")]
        return frozenset(one.supernode for each in earlier for one in each.sites) - frozenset(
            one.supernode for one in (now.sites if now is not None else ())
        )

    def members(self) -> tuple[Member, ...]:
        """The sites of the next roster, by name."""
        found = [_named(path, read_request) for path in sorted((self.path / "sites").glob("*.json"))]
        return tuple(sorted(found, key=lambda site: site.name))


def found(path: Path, keys: Path, *, values: dict[str, Any], now: int) -> Folder:
    """Make a folder and its keys; `values` as in federation.toml. Raises DataError where there is one already, or where
    the values can't be; then nothing is made.
    """
    _demand(values)
    for place in (path, keys):
        if place.exists() and any(place.iterdir()):
            raise DataError(f"{place}: not empty; name a new folder, or remove what is in it")
    if keys.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{keys}: lies in the server's folder; keep these keys where the server is not")
    if not (1 <= len(values["name"]) <= _NAME and values["name"].isprintable()):
        raise DataError(f"name {values['name']!r}: use 1 to {_NAME} printable characters")
    certificates.server(certificates.authority("check", now=now), values["hosts"], now=now)  # names are names
    for inner in ("tls", "keys", "sites", "rosters", "flower", "runs", "orders", "logs"):
        (path / inner).mkdir(parents=True, mode=0o700)
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = certificates.authority(f"{_AUTHORITY} {values['name']}", now=now)
    write(keys / "ca.key", authority.key, private=True)
    write(keys / "ca.pem", authority.certificate)
    write(keys / "roster.key", Identity.new().private_bytes(), private=True)
    write(path / "ca.pem", authority.certificate)
    write(path / "keys" / "online.key", Identity.new().private_bytes(), private=True)
    write(path / "keys" / "executor.secret", secrets.token_bytes(32), private=True)
    write(path / "federation.toml", _toml(values).encode())
    folder = open_folder(path)
    certify(folder, keys, now=now)
    return folder


def certify(folder: Folder, keys: Path, *, now: int) -> None:
    """New certificates, with new keys, for the open port and for loopback."""
    by = Certified(certificate=_read(keys / "ca.pem"), key=_read(keys / "ca.key"))
    if by.certificate != _read(folder.root):
        raise DataError(f"{keys}: holds the authority of another federation")
    for what, hosts in (("gate", folder.hosts), ("loopback", LOOPBACK)):
        made = certificates.server(by, hosts, now=now)
        certificate, key = folder.tls(what)
        write(key, made.key, private=True)
        write(certificate, made.certificate)


def changed(folder: Folder, values: dict[str, Any]) -> Folder:
    """The folder with other ports, or other numbers of sites for its next roster. Raises DataError where they can't
    be; then nothing is changed.
    """
    wanted = _values(folder) | values
    _demand(wanted)
    write(folder.path / "federation.toml", _toml(wanted).encode())
    return open_folder(folder.path)


def renamed(folder: Folder, hosts: list[str], keys: Path) -> Folder:
    """The folder with other names of its server; `certify` makes the certificate for them. Raises DataError."""
    if _read(keys / "ca.pem") != _read(folder.root):
        raise DataError(f"{keys}: holds the authority of another federation")
    certificates.server(certificates.authority("check", now=0), hosts, now=0)  # names are names
    write(folder.path / "federation.toml", _toml(_values(folder) | {"hosts": hosts}).encode())
    return open_folder(folder.path)


def open_folder(path: Path) -> Folder:
    """The folder of a federation. Raises DataError, one line, where it isn't one."""
    try:
        values = tomllib.loads((path / "federation.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: no federation's folder ({_why(path, error)}); make one with `server init`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path / 'federation.toml'}: not valid TOML: {error}") from error
    if wrong := sorted(values.keys() ^ _FIELDS.keys()):
        raise DataError(f"{path / 'federation.toml'}: {wrong[0]}: unknown key, or missing; keys: {', '.join(_FIELDS)}")
    for key, kind in _FIELDS.items():
        if type(values[key]) is not kind:
            raise DataError(f"{path / 'federation.toml'}: {key} = {values[key]!r}; {kind.__name__} is needed")
    for key in ("port", "loopback"):
        if not 1 <= values[key] <= _LAST[key]:
            raise DataError(f"{path / 'federation.toml'}: {key} = {values[key]}; a port from 1 to {_LAST[key]}")
    if not _address(values["listen"]):
        raise DataError(f"{path / 'federation.toml'}: listen = {values['listen']!r}; {_ADDRESS}")
    if not all(isinstance(host, str) for host in values["hosts"]):
        raise DataError(f"{path / 'federation.toml'}: hosts = {values['hosts']!r}; a list of names and addresses")
    return Folder(path=path, **values | {"hosts": tuple(values["hosts"])})


def _why(path: Path, error: OSError) -> str:
    with contextlib.suppress(OSError):
        if (path / "site.toml").exists():
            return "but a hospital's site folder, which `client` takes"
    return error.strerror or str(error)


def read_request(data: bytes) -> Member:
    """The site that a request file asks to be entered as, its signature checked. Raises MessageError, RosterError."""
    values = body.read(data, _REQUEST)
    return Member(
        name=body.name(values["name"]),
        identity=body.binary(values["identity"], 32),
        supernode=values["supernode"],
        nominal_patients=values["nominal_patients"],
        signature=body.binary(values["signature"], 64),
    )


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """A file, whole or not there; `private`: for its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path}: can't be written ({error.strerror})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); restore it from your backup") from error


def _named(path: Path, parse: Callable[[bytes], Parsed]) -> Parsed:
    """What is in this file. Raises what `parse` does, and says which file."""
    try:
        return parse(_read(path))
    except (MessageError, RosterError) as error:
        raise type(error)(f"{path}: {error}; restore it from your backup") from error


def _values(folder: Folder) -> dict[str, Any]:
    return {key: getattr(folder, key) for key in _FIELDS}


def _address(listen: str) -> bool:
    if listen in ("", *LOOPBACK):
        return True
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(listen))
    return False


def _demand(values: dict[str, Any]) -> None:
    """Raises DataError for a roster that nobody would take, for an address that is none, and for ports that are one
    another's.
    """
    if not _address(values["listen"]):
        raise DataError(f"listen {values['listen']!r}: {_ADDRESS}")
    if values["min_sites"] - values["colluding"] < roster.LEAST_HONEST:
        text = f"min_sites {values['min_sites']}, colluding {values['colluding']}"
        raise DataError(f"{text}: at least {roster.LEAST_HONEST} honest sites have to be left")
    own = range(values["loopback"], values["loopback"] + LOOPBACK_PORTS)
    if values["port"] in own and values["listen"] in ("", "0.0.0.0", "::", *LOOPBACK):  # noqa: S104 - compared
        raise DataError(
            f"port {values['port']} is one of the {LOOPBACK_PORTS} on loopback, {own[0]} to {own[-1]}: choose another"
        )


def _toml(values: dict[str, Any]) -> str:
    """Strings, whole numbers and lists of strings: JSON writes them as TOML does."""
    return "".join(f"{key} = {json.dumps(values[key], ensure_ascii=False)}\n" for key in _FIELDS)
