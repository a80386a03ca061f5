"""How a site becomes part of a federation: keys and a request to send; then a roster and an authority to pin.

The keys never leave the site. What a person compares with another hospital, or with the contract, is the roster's
fingerprint: signatures only say what the coordinator says.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client import cohort, membership
from client.chain import write_privately
from client.site import declare, demand_own, open_site, rename, site_toml
from client.supernode import open_connection, toml
from common import body, roster
from common.crypto import certificates, identity, node_key
from common.errors import DataError, MessageError, naming
from common.roster import Member, Roster

RUNTIME_HOSTS = ("127.0.0.1", "localhost")
LOOPBACK, PORT = RUNTIME_HOSTS[0], 9094
_FILES = ("keys/identity.key", "keys/patient.key", "supernode/node.key", "supernode/executor.secret")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A site's request for membership.

    changed   what became other than it was, a line each; empty for a site that is new
    new       whether the request says anything else than the one before
    """

    member: Member
    changed: tuple[str, ...]
    new: bool


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What `join` would pin, for a person to look at.

    difference   from the roster that is pinned now, a line each; empty for the first
    objection    why this site's policy refuses secure aggregation under this roster; "" where it does not
    """

    roster: Roster
    certificate: bytes
    server: str
    difference: tuple[str, ...]
    objection: str
    proxy: bytes = b""  # PEM: the authority of a proxy that opens TLS; b"" where none does


def found(
    site: Path,
    *,
    name: str | None = None,
    nominal_patients: int | None = None,
    host: str | None = None,
    port: int | None = None,
    new_key: bool = False,
) -> Asked:
    """Make what a site needs to ask for membership, or change of it what is given and nothing else; SITE/request.json.

    `host`, `port`: where the worker reaches the SuperNode, and the first of its two ports; LOOPBACK and PORT at first.
    `new_key`: another key for the SuperNode, in place of one that was removed from the roster or lost. A site that has
    asked nobody yet takes up `name`, as `client index` has named it after its folder, and the number where it has none.

    Guarantees: keys that are there already are kept; what is missing is made and named, but for the key of patients who
    have a ledger. Raises DataError: that; or site.toml is there and says another number of patients or, to others,
    another name; or one of both is missing.
    """
    demand_own(site)
    cohort.demand_key(site)
    keys, supernode = site / "keys", site / "supernode"
    settings, text = site / "site.toml", ""
    if not settings.exists():
        if name is None or nominal_patients is None:
            raise DataError(f"{site}: has no site.toml yet; give --name and --patients")
        text = site_toml(name, nominal_patients=nominal_patients)
    if host is not None:
        certificates.server(certificates.authority("check", now=0), [host], now=0)  # a name is a name
    lost = _missing(site) if (supernode / "supernode.toml").exists() else ()
    try:
        for folder in (keys, supernode):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataError(f"{site}: the site folder can't be made ({error.strerror})") from error
    _keep(keys / "patient.key", lambda: secrets.token_bytes(32))
    _keep(settings, lambda: text.encode())
    changed = [*_settled(site, name, nominal_patients), *_reached(site, host, port)]
    changed += [f"{file} was missing and is made anew" for file in lost]
    _keep(supernode / "executor.secret", lambda: secrets.token_bytes(32))
    if new_key or not (supernode / "node.key").exists():
        if new_key and "supernode/node.key" not in lost and (supernode / "node.key").exists():
            changed.append("the SuperNode's key is another one")
        _write(supernode / "node.key", node_key.generate()[0])
    _write(supernode / "node.pub", _public(supernode / "node.key").encode())  # also after a crash in between
    said = open_site(site)
    member = membership.described(
        site,
        name=said.name,
        supernode=_text(supernode / "node.pub"),
        nominal_patients=said.nominal_patients or 0,
    )
    before, data = site / "request.json", request(member)
    new = not (before.exists() and before.read_bytes() == data)
    _write(before, data)
    return Asked(member=member, changed=tuple(changed), new=new)


def _missing(site: Path) -> tuple[str, ...]:
    return tuple(file for file in _FILES if not (site / file).exists())


def _settled(site: Path, name: str | None, nominal_patients: int | None) -> list[str]:
    """The name and the number in site.toml, as long as nobody was told others; what was changed."""
    said = open_site(site)
    number = said.nominal_patients if nominal_patients is None else nominal_patients
    if number is None:
        raise DataError(f"{site / 'site.toml'}: declares no number of patients; give --patients")
    renamed = name is not None and name != said.name
    if number != (said.nominal_patients or number) or (renamed and (site / "request.json").exists()):
        raise DataError(
            f"{site / 'site.toml'}: name {said.name}, nominal_patients {said.nominal_patients}; leave out --name and"
            " --patients to ask with the same, or change it there first: that is a new request and a new roster"
        )
    changed = []
    if name is not None and renamed:
        rename(site, name)
        changed.append(f"name is {name}, was {said.name}")
    if said.nominal_patients is None:
        declare(site, number)
        changed.append(f"nominal_patients is {number}, was not declared")
    now = open_site(site)
    if (now.name, now.nominal_patients) != (name or said.name, number):
        raise DataError(
            f"{site / 'site.toml'}: name or nominal_patients can't be changed by `client init`: do it there"
        )
    return changed


def _reached(site: Path, host: str | None, port: int | None) -> list[str]:
    """Where the SuperNode listens, and its certificate for that place; what was changed."""
    path, changed = site / "supernode" / "supernode.toml", []
    if not path.exists():
        first = PORT if port is None else port
        runtime, health = (f"{host or LOOPBACK}:{number}" for number in (first, first + 1))
        _write(path, toml(server="", runtime=runtime, health=health).encode())
    before, where = open_connection(site), dict[str, str]()
    for number, what in enumerate(("runtime", "health")):
        old, _, old_port = getattr(before, what).rpartition(":")
        where[what] = f"{host or old}:{old_port if port is None else port + number}"
        if where[what] != getattr(before, what):
            changed.append(f"{what} is {where[what]}, was {getattr(before, what)}")
    if changed:
        _write(
            path,
            toml(server=before.server, memory=before.memory, runtime=where["runtime"], health=where["health"]).encode(),
        )
    if not _certified(site):
        again = (path.parent / "runtime.pem").exists()
        certify(site)
        changed += ["the SuperNode's certificate is another one"] if again else []
    return changed


def _hosts(site: Path) -> tuple[str, ...]:
    host = open_connection(site).runtime.rpartition(":")[0]
    return RUNTIME_HOSTS if host in RUNTIME_HOSTS else (host,)


def _certified(site: Path) -> bool:
    """Whether the Runtime API has a certificate, of where it is reached."""
    try:
        return set(certificates.hosts_of((site / "supernode" / "runtime.pem").read_bytes())) == set(_hosts(site))
    except (OSError, DataError):
        return False


def certify(site: Path) -> None:
    """A new certificate, of an authority whose key is forgotten at once, for the SuperNode's Runtime API."""
    now = int(time.time())
    by = certificates.authority("Fedward site, loopback", now=now)
    made = certificates.server(by, _hosts(site), now=now, life=certificates.AUTHORITY_LIFE)
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


def examine(
    site: Path, *, roster_file: Path, certificate_file: Path, server: str, proxy_file: Path | None = None
) -> Pin:
    """Read what came back from the coordinator and say what pinning it would change; nothing is written.

    Raises DataError, RosterError, MessageError: unreadable, forged, expired, older than what is pinned, or without this
    site as it described itself.
    """
    try:
        data, certificate = roster_file.read_bytes(), certificate_file.read_bytes()
        proxy = b"" if proxy_file is None else proxy_file.read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror})") from error
    old, now = membership.pinned(site), int(time.time())
    with naming(roster_file):
        new = roster.parse(data)
    key = membership.identity_of(site).public
    own = next((member for member in new.sites if member.identity == key), None)
    if own is None:
        raise roster.RosterError("roster: this site's identity is not in it; send SITE/request.json to the coordinator")
    roster.usable(new, now=now, own=own, colluding=0, min_sites=0)
    if _text(site / "supernode" / "node.pub") != own.supernode:
        raise roster.RosterError("roster: names another SuperNode key for this site; send the request again")
    _demand_valid(certificate_file, certificate, now=now, else_="ask the coordinator for the federation's authority")
    if proxy_file is not None:
        _demand_valid(proxy_file, proxy, now=now, else_="ask your network's administrators for the new one")
    if old is not None and new.version < old.version:
        raise roster.RosterError(f"roster: version {new.version} is older than {old.version}, which is pinned")
    return Pin(
        roster=new,
        certificate=certificate,
        server=_address(server),
        difference=_difference(old, new),
        objection=_objection(site, new, own, now=now),
        proxy=proxy,
    )


def _demand_valid(path: Path, certificate: bytes, *, now: int, else_: str) -> None:
    with naming(path):
        if not now < certificates.expires(certificate):
            raise DataError(f"has expired; {else_}")


def _objection(site: Path, new: Roster, own: Member, *, now: int) -> str:
    policy = open_site(site).policy
    try:
        roster.usable(new, now=now, own=own, colluding=policy.colluding, min_sites=policy.min_sites)
    except roster.RosterError as error:
        return str(error)
    return ""


def pin(site: Path, agreed: Pin) -> None:
    """From now on this roster, this authority, this server."""
    connection = open_connection(site)
    settings = toml(
        server=agreed.server, runtime=connection.runtime, health=connection.health, memory=connection.memory
    )
    _write(connection.server_root, b"\n".join(filter(None, (agreed.certificate, agreed.proxy))))
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


def _public(path: Path) -> str:
    try:
        return node_key.line_of(path.read_bytes())
    except (OSError, MessageError) as error:
        raise DataError(f"{path}: no usable key; make another with `client init SITE --new-key`") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read; make another with `client init SITE --new-key`") from error


def _keep(path: Path, content: Callable[[], bytes]) -> None:
    if not path.exists():
        _write(path, content())


def _write(path: Path, content: bytes) -> None:
    try:
        write_privately(path, content)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror})") from error
