"""What a site knows of its federation: its identity, how it described itself, and the roster that it has pinned."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from client.chain import write_privately
from common.crypto.identity import KEY_BYTES, Identity
from common.errors import DataError, naming
from common.roster import Member, Roster, RosterError, member, parse, usable

KEY, ROSTER = Path("keys", "identity.key"), Path("roster.json")


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A site's place in its federation, as of a moment."""

    identity: Identity
    own: Member
    roster: Roster


def make_identity(site: Path) -> Identity:
    """The site's signing key, made where there is none; an existing one is kept. Raises DataError."""
    path = site / KEY
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_privately(path, Identity.new().private_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror})") from error
    return identity_of(site)


def identity_of(site: Path) -> Identity:
    """The site's signing key. Raises DataError where there is none, or somebody else could read it."""
    path = site / KEY
    try:
        if path.stat().st_mode & 0o077:
            raise DataError(f"{path}: readable for others; make it the worker's alone: chmod 600")
        private = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}): the site has not joined a federation") from error
    if len(private) != KEY_BYTES:
        raise DataError(f"{path}: {len(private)} bytes instead of {KEY_BYTES}; restore it from your backup")
    return Identity(private)


def speaks_as(site: Path) -> Identity | None:
    """The key that signs the site's answers; None for a site that was never given one. Raises DataError."""
    return identity_of(site) if (site / KEY).exists() else None


def described(site: Path, *, name: str, supernode: str, nominal_patients: int) -> Member:
    """The site's own, signed entry for a roster: the same for the same numbers."""
    return member(make_identity(site), name=name, supernode=supernode, nominal_patients=nominal_patients)


def pin(site: Path, roster: Roster) -> None:
    """Take this roster from now on; who calls it has compared the fingerprint, or `accepts` has. Raises DataError."""
    try:
        write_privately(site / ROSTER, roster.to_bytes())
    except OSError as error:
        raise DataError(f"{site / ROSTER}: can't be written ({error.strerror})") from error


def pinned(site: Path) -> Roster | None:
    """The roster that the site has pinned; None where it has none. Raises RosterError or MessageError for a file that
    isn't one.
    """
    with contextlib.suppress(FileNotFoundError), naming(site / ROSTER):
        return parse((site / ROSTER).read_bytes())
    return None


def membership(site: Path, *, name: str, now: int, colluding: int = 0, min_sites: int = 0) -> Membership:
    """The site's place under its pinned roster. `colluding`, `min_sites`: lowest that the site's policy takes.

    Raises RosterError where it has pinned none, or this one can't be used now; DataError without an identity.
    """
    roster, identity = pinned(site), identity_of(site)
    if roster is None:
        raise RosterError(f"{site}: has pinned no roster: join the federation first")
    own = next((entry for entry in roster.sites if entry.name == name and entry.identity == identity.public), None)
    if own is None:
        raise RosterError(f"roster: site {name} is not in it by this site's identity: ask the coordinator")
    usable(roster, now=now, own=own, colluding=colluding, min_sites=min_sites)
    return Membership(identity=identity, own=own, roster=roster)
