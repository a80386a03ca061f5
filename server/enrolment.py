"""Who may take part: requests of sites in, a signed roster out."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from common import roster
from common.crypto import identity, node_key
from common.crypto.identity import Identity
from common.errors import DataError, MessageError
from common.roster import Member, Roster, RosterError
from server.folder import Folder, read_request, write


def check(folder: Folder, requests: Mapping[Path, bytes]) -> None:
    """Raises what `add` raises for the first of these requests, by file, that can't be added after those before it, and
    says which.
    """
    members = {member.name: member for member in folder.members()}
    for path, data in requests.items():
        try:
            member = _checked(folder, data, members.values())
        except MessageError as error:
            raise type(error)(f"{path}: {error}; nothing was entered") from error
        members[member.name] = member


def add(folder: Folder, data: bytes) -> tuple[Member, str]:
    """Put a site into the next roster; the site and its request's fingerprint, to compare with the site by voice.

    The same site again, by the same identity, replaces its request. Raises RosterError for a name, identity or
    SuperNode key that another site has and for a SuperNode key that an earlier roster had and this one has not, which
    Flower never lets in again; MessageError for what is no request.
    """
    member = _checked(folder, data, folder.members())
    write(folder.path / "sites" / f"{member.name}.json", data)
    digits = identity.digest("request", data)[:20].hex()
    return member, " ".join(digits[i : i + 4] for i in range(0, 40, 4))


def _checked(folder: Folder, data: bytes, members: Iterable[Member]) -> Member:
    """The site of a request, if it fits the others of the next roster."""
    member = read_request(data)
    node_key.public_pem(member.supernode)
    for other in members:
        same_name, same_identity = other.name == member.name, other.identity == member.identity
        if same_name != same_identity:
            raise RosterError(f"site {member.name}: {other.name} has that name or identity; remove that site first")
        if not same_name and other.supernode == member.supernode:
            raise RosterError(f"site {member.name}: {other.name} has that SuperNode key")
    if member.supernode in folder.revoked():
        raise RosterError(
            f"site {member.name}: its SuperNode key was removed before and is never let in again; have the site run"
            " `client init` with --new-key and send that request"
        )
    return member


def remove(folder: Folder, name: str) -> None:
    """Leave a site out of the next roster. Raises DataError for one that isn't there."""
    if name not in {member.name for member in folder.members()}:
        raise DataError(f"{name!r}: no such site; see `server status`")
    (folder.path / "sites" / f"{name}.json").unlink()


def sign(folder: Folder, keys: Path, *, now: int) -> Roster:
    """The next roster, of all sites that were added, signed by the key that lies off the server; put in force.

    One that does nothing but remove sites keeps its predecessor's expiry: sites take it by themselves. Raises
    RosterError for one that no site would take, DataError without the key.
    """
    try:
        key = Identity((keys / "roster.key").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{keys / 'roster.key'}: can't be used ({error}); this key signs rosters") from error
    before, sites, online = folder.roster(), folder.members(), folder.online_key().public
    if before is not None and before.coordinator != key.public:
        raise RosterError(f"{keys}: not the key that signed the roster in force")
    if before is not None and set(sites) == set(before.sites) and now < before.expires - roster.LIFE // 2:
        same = (before.colluding, before.min_sites, before.server) == (folder.colluding, folder.min_sites, online)
        if same:
            raise RosterError(
                f"the roster in force, version {before.version}, says the same; add or remove sites first"
            )
    fewer = before is not None and set(sites) < set(before.sites)
    made = roster.issue(
        key,
        sites=sites,
        server=online,
        colluding=folder.colluding,
        min_sites=folder.min_sites,
        now=now,
        before=before,
        expires=before.expires if before is not None and fewer and now < before.expires else None,
    )
    write(folder.path / "rosters" / f"{made.version}.json", made.to_bytes())
    write(folder.path / "roster.json", made.to_bytes())
    return made
