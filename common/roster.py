"""The roster: who may take part, signed by the coordinator with a key that lives off the server.

A signature says what the coordinator says. At the first pin a person compares the fingerprint with another hospital or
the contract; from then on a site takes by itself only a roster that does nothing but remove sites.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common import body
from common.crypto import identity
from common.crypto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity
from common.errors import MessageError, Reason

LIFE = 90 * 24 * 3600  # seconds for which a roster is good when it is made
LEAST_HONEST = 2  # sites that are neither the server's nor among the colluding, in every sum
MOST_SITES = 1000  # in a roster; a key list holds fewer
FIRST = bytes(32)  # what the first version names as the one before

_SITE = {"name": str, "identity": str, "supernode": str, "nominal_patients": int}
_ROSTER = {
    "version": int,
    "previous": str,
    "expires": int,
    "colluding": int,
    "min_sites": int,
    "server": str,
    "sites": list,
}


class RosterError(MessageError):
    """A roster that can't be used: forged, expired, too few honest sites, or not what was pinned."""

    code = Reason.ROSTER


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site of the roster. `supernode`: its SuperNode's public key, one line of printable ASCII; `signature`: by its
    own identity over the other fields, so that the coordinator can't change them.
    """

    name: str
    identity: bytes
    supernode: str
    nominal_patients: int
    signature: bytes

    def __post_init__(self) -> None:
        body.name(self.name)
        if not (self.supernode.isascii() and self.supernode.isprintable() and 1 <= len(self.supernode) <= 1024):
            raise RosterError(f"site {self.name}: its SuperNode key is not one line of printable ASCII")
        if not 1 <= self.nominal_patients <= 10**9:
            raise RosterError(f"site {self.name}: nominal_patients = {self.nominal_patients}: 1 to 10^9")
        identity.verify(self.identity, "site", body.write(_statement(self)), self.signature)


def member(key: Identity, *, name: str, supernode: str, nominal_patients: int) -> Member:
    """What a site asks to be entered as: its own statement, signed."""
    values = {"name": name, "identity": key.public.hex(), "supernode": supernode, "nominal_patients": nominal_patients}
    signature = key.sign("site", body.write(values))
    return Member(
        name=name, identity=key.public, supernode=supernode, nominal_patients=nominal_patients, signature=signature
    )


def _statement(site: Member) -> dict[str, Any]:
    return {
        "name": site.name,
        "identity": site.identity.hex(),
        "supernode": site.supernode,
        "nominal_patients": site.nominal_patients,
    }


@dataclass(frozen=True, kw_only=True)
class Roster:
    """A roster whose signatures fit.

    version      1, 2, …
    previous     hash of the version before; zeros for the first
    expires      seconds since 1970, UTC: not to be used from then on
    colluding    c: sites that may work together with the server without harm
    min_sites    sites without which no sum is opened
    server       the key with which the server signs its requests
    sites        by name, all names and identity keys different
    coordinator  the key that signed this; `signature`: its signature

    Guarantees: min_sites - colluding >= 2, and at least `min_sites` sites. Raises RosterError, MessageError.
    """

    version: int
    previous: bytes
    expires: int
    colluding: int
    min_sites: int
    server: bytes
    sites: tuple[Member, ...]
    coordinator: bytes
    signature: bytes

    def __post_init__(self) -> None:
        identity.verify(self.coordinator, "roster", self._body, self.signature)
        if not self.min_sites - self.colluding >= LEAST_HONEST:
            raise RosterError(
                f"roster: min_sites = {self.min_sites} with colluding = {self.colluding} leaves fewer than "
                f"{LEAST_HONEST} honest sites in a sum: raise min_sites"
            )
        if not self.min_sites <= len(self.sites) <= MOST_SITES:
            raise RosterError(
                f"roster: {len(self.sites)} sites; {self.min_sites} (min_sites) to {MOST_SITES} are needed"
            )
        if not body.ascending(tuple(site.name for site in self.sites)):
            raise RosterError("roster: its sites are not in the order of their names, or one is there twice")
        keys = {self.server, self.coordinator, *(site.identity for site in self.sites)}
        if len(keys) != len(self.sites) + 2:
            raise RosterError("roster: one key has two holders")

    @cached_property
    def _body(self) -> bytes:
        return _write(**{name: getattr(self, name) for name in _ROSTER})

    @cached_property
    def sha256(self) -> bytes:
        """What sessions rest on and the next version names: hash of the body and of the key that signed it."""
        return identity.digest("roster-and-key", self.coordinator + self._body)

    @property
    def fingerprint(self) -> str:
        """160 bits to compare by eye, in groups of four digits. No two rosters share one, whoever signed them."""
        digits = self.sha256[:20].hex()
        return " ".join(digits[i : i + 4] for i in range(0, 40, 4))

    @cached_property
    def identities(self) -> dict[str, bytes]:
        """Identity keys by site name."""
        return {site.name: site.identity for site in self.sites}

    @cached_property
    def supernodes(self) -> dict[str, str]:
        """SuperNodes' public keys by site name."""
        return {site.name: site.supernode for site in self.sites}

    def to_bytes(self) -> bytes:
        """The roster as a file."""
        return body.write(
            {
                "coordinator": self.coordinator.hex(),
                "body": self._body.decode("ascii"),
                "signature": self.signature.hex(),
            }
        )


def issue(
    key: Identity,
    *,
    sites: Iterable[Member],
    server: bytes,
    colluding: int,
    min_sites: int,
    now: int,
    before: Roster | None = None,
    expires: int | None = None,
) -> Roster:
    """The next version, signed by the coordinator's key; it expires after 90 days where nothing else is said.

    Raises RosterError for one that no site would take.
    """
    fields: dict[str, Any] = {
        "version": 1 if before is None else before.version + 1,
        "previous": FIRST if before is None else before.sha256,
        "expires": now + LIFE if expires is None else expires,
        "colluding": colluding,
        "min_sites": min_sites,
        "server": server,
        "sites": tuple(sorted(sites, key=lambda site: site.name)),
    }
    signature = key.sign("roster", _write(**fields))
    return Roster(**fields, coordinator=key.public, signature=signature)


def _write(
    *,
    version: int,
    previous: bytes,
    expires: int,
    colluding: int,
    min_sites: int,
    server: bytes,
    sites: tuple[Member, ...],
) -> bytes:
    """What the coordinator signs."""
    return body.write(
        {
            "version": version,
            "previous": previous.hex(),
            "expires": expires,
            "colluding": colluding,
            "min_sites": min_sites,
            "server": server.hex(),
            "sites": [_statement(site) | {"signature": site.signature.hex()} for site in sites],
        }
    )


def parse(data: bytes) -> Roster:
    """The roster of a file: all signatures fit, all values in range. Whether it is *the* roster is for `accepts`, or at
    the first pin for a person, to say. Raises RosterError, MessageError.
    """
    outer = body.read(data, {"coordinator": str, "body": str, "signature": str}, limit=2 * body.LIMIT)
    coordinator, signature = (
        body.binary(outer["coordinator"], KEY_BYTES),
        body.binary(outer["signature"], SIGNATURE_BYTES),
    )
    try:
        signed = outer["body"].encode("ascii")
    except UnicodeEncodeError as error:
        raise RosterError("roster: not in ASCII") from error
    identity.verify(coordinator, "roster", signed, signature)
    values = body.read(signed, _ROSTER)
    return Roster(
        version=body.whole(values["version"], least=1, most=2**31),
        previous=body.binary(values["previous"], len(FIRST)),
        expires=body.whole(values["expires"], most=2**40),
        colluding=body.whole(values["colluding"], most=MOST_SITES),
        min_sites=body.whole(values["min_sites"], most=MOST_SITES),
        server=body.binary(values["server"], KEY_BYTES),
        sites=tuple(map(_member, values["sites"])),
        coordinator=coordinator,
        signature=signature,
    )


def _member(entry: object) -> Member:
    values = body.fields(entry, _SITE | {"signature": str})
    return Member(
        name=body.name(values["name"]),
        identity=body.binary(values["identity"], KEY_BYTES),
        supernode=values["supernode"],
        nominal_patients=values["nominal_patients"],
        signature=body.binary(values["signature"], SIGNATURE_BYTES),
    )


def usable(roster: Roster, *, now: int, own: Member, colluding: int, min_sites: int) -> None:
    """Raises RosterError for a roster that this site does not work under: expired, itself missing or described
    otherwise, or below its own lowest c or `min_sites`.
    """
    if not now < roster.expires:
        raise RosterError("roster: expired; ask the coordinator for the next version")
    if own not in roster.sites:
        raise RosterError(f"roster: site {own.name} is not in it as it described itself")
    if roster.colluding < colluding or roster.min_sites < min_sites:
        raise RosterError(
            f"roster: colluding = {roster.colluding}, min_sites = {roster.min_sites}; this site asks for at least "
            f"{colluding} and {min_sites} ([policy] of site.toml), and refuses every order of secure aggregation"
        )


def accepts(old: Roster, new: Roster, *, now: int) -> bool:
    """Whether a site takes `new` in the place of `old` by itself: it does nothing but remove sites.

    That is: the version one higher, naming the old one's hash; the same coordinator, server key, c and `min_sites`; at
    least one site gone, none new or changed; not expired, and not valid for longer. Anything else waits for a person.
    """
    same = ("coordinator", "server", "colluding", "min_sites")
    return (
        new.version == old.version + 1
        and new.previous == old.sha256
        and all(getattr(new, name) == getattr(old, name) for name in same)
        and set(new.sites) < set(old.sites)
        and now < new.expires <= old.expires
    )


def threshold(sites: int, colluding: int) -> int:
    """t: shares that give a secret back, for a key list of so many sites. With it, sites + colluding < 2 t: everybody's
    share of one kind and the colluding sites' of both kinds are not t of each.
    """
    return (sites + colluding) // 2 + 1
