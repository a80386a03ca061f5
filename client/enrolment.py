"""How a site becomes part of a federation: keys and a request to send; then a roster and an authority to pin.

The keys never leave the site. What a person compares with another hospital, or with the contract, is the roster's
fingerprint: signatures only say what the coordinator says.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client import membership
from client.chain import write_privately
from client.site import open_site, site_toml
from client.supernode import open_connection, toml
from common import body, roster
from common.crypto import certificates, identity, node_key
from common.errors import DataError
from common.roster import Member, Roster

RUNTIME_HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What `join` would pin, for a person to look at.

    difference   from the roster that is pinned now, a line each; empty for the first
    """

    roster: Roster
    certificate: bytes
    server: str
    difference: tuple[str, ...]


def found(site: Path, *, name: str, nominal_patients: int, runtime: str, health: str) -> Member:
    """Make what a site needs to ask for membership, keys that are there already excepted, and SITE/request.json.

    Raises DataError, also where site.toml is there and says another name or number of patients.
    """
    keys, supernode = site / "keys", site / "supernode"
    for folder in (keys, supernode):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _keep(site / "site.toml", lambda: site_toml(name, nominal_patients=nominal_patients).encode())
    _keep(keys / "patient.key", lambda: secrets.token_bytes(32))
    _keep(supernode / "executor.secret", lambda: secrets.token_bytes(32))
    _keep(supernode / "supernode.toml", lambda: toml(server="", runtime=runtime, health=health).encode())
    if not (supernode / "node.key").exists():
        private, line = node_key.generate()
        _write(supernode / "node.pub", line.encode())
        _write(supernode / "node.key", private)
    if not (supernode / "runtime.pem").exists():
        certify(site)
    said = open_site(site)
    if (said.name, said.nominal_patients) != (name, nominal_patients):
        raise DataError(
            f"{site / 'site.toml'}: name {said.name}, nominal_patients {said.nominal_patients}; ask with the same, or"
            " change it there"
        )
    member = membership.described(
        site,
        name=name,
        supernode=(supernode / "node.pub").read_text(encoding="ascii"),
        nominal_patients=nominal_patients,
    )
    _write(site / "request.json", request(member))
    return member


def certify(site: Path) -> None:
    """A new certificate, of an authority whose key is forgotten at once, for the SuperNode's Runtime API."""
    now = int(time.time())
    host = open_connection(site).runtime.rpartition(":")[0]
    hosts = RUNTIME_HOSTS if host in RUNTIME_HOSTS else (host,)
    by = certificates.authority("Fedward site, loopback", now=now)
    made = certificates.server(by, hosts, now=now, life=certificates.AUTHORITY_LIFE)
    folder = site / "supernode"
    _write(folder / "runtime-ca.pem", by.certificate)
    _write(folder / "runtime.key", made.key)
    _write(folder / "runtime.pem", made.certificate)


def request(member: Member) -> bytes:
    """The request file: what the site says of itself, signed."""
    return body.write(
        {
            "name": member.name,
            "identity": member.identity.hex(),
            "supernode": member.supernode,
            "nominal_patients": member.nominal_patients,
            "signature": member.signature.hex(),
        }
    )


def request_fingerprint(member: Member) -> str:
    """160 bits of the request, to read out to the coordinator."""
    digits = identity.digest("request", request(member))[:20].hex()
    return " ".join(digits[i : i + 4] for i in range(0, 40, 4))


def examine(site: Path, *, roster_file: Path, certificate_file: Path, server: str) -> Pin:
    """Read what came back from the coordinator and say what pinning it would change; nothing is written.

    Raises DataError, RosterError, MessageError: unreadable, forged, expired, older than what is pinned, or without this
    site as it described itself.
    """
    try:
        data, certificate = roster_file.read_bytes(), certificate_file.read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror})") from error
    new, old, now = roster.parse(data), membership.pinned(site), int(time.time())
    key = membership.identity_of(site).public
    own = next((member for member in new.sites if member.identity == key), None)
    if own is None:
        raise roster.RosterError("roster: this site's identity is not in it; send SITE/request.json to the coordinator")
    roster.usable(new, now=now, own=own, colluding=0, min_sites=0)
    if (site / "supernode" / "node.pub").read_text(encoding="ascii") != own.supernode:
        raise roster.RosterError("roster: names another SuperNode key for this site; send the request again")
    if not now < certificates.expires(certificate):
        raise DataError(f"{certificate_file}: has expired; ask the coordinator for the federation's authority")
    if old is not None and new.version < old.version:
        raise roster.RosterError(f"roster: version {new.version} is older than {old.version}, which is pinned")
    return Pin(roster=new, certificate=certificate, server=_address(server), difference=_difference(old, new))


def pin(site: Path, agreed: Pin) -> None:
    """From now on this roster, this authority, this server."""
    connection = open_connection(site)
    settings = toml(
        server=agreed.server, runtime=connection.runtime, health=connection.health, memory=connection.memory
    )
    _write(connection.server_root, agreed.certificate)
    _write(connection.folder / "supernode.toml", settings.encode())
    membership.pin(site, agreed.roster)


def _difference(old: Roster | None, new: Roster) -> tuple[str, ...]:
    if old is None or old.sha256 == new.sha256:
        return ()
    lines = []
    for what in ("coordinator", "server"):
        if getattr(old, what) != getattr(new, what):
            lines.append(f"the {what}'s key is another one")
    lines += [
        f"{what} is {getattr(new, what)}, was {getattr(old, what)}"
        for what in ("colluding", "min_sites")
        if getattr(old, what) != getattr(new, what)
    ]
    before, after = {site.name: site for site in old.sites}, {site.name: site for site in new.sites}
    lines += [f"{name}: new" for name in sorted(after.keys() - before.keys())]
    lines += [f"{name}: gone" for name in sorted(before.keys() - after.keys())]
    lines += [f"{name}: changed" for name in sorted(after.keys() & before.keys()) if after[name] != before[name]]
    return tuple(lines)


def _address(server: str) -> str:
    host, separator, port = server.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or set(server) & set(
        " /"
    ):
        raise DataError(f"{server!r}: give the server as host:port, as the coordinator says")
    return server


def _keep(path: Path, content: Callable[[], bytes]) -> None:
    if not path.exists():
        _write(path, content())


def _write(path: Path, content: bytes) -> None:
    try:
        write_privately(path, content)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror})") from error
