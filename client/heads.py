"""Where the privacy ledgers of all sites stood when this site last heard of them: SITE/heads.json.

Orders bring each site's own signed statement; every site keeps the newest and tells them, with its answer to a
proposal and whenever it refuses. So a server that forgets where a ledger stands is told, one that hides it is noticed
by every site that knew, and a site whose ledger is an older copy of all its files reserves nothing.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from client.chain import write_privately
from client.chain_lines import Anchor, ChainError
from client.ledger_records import LedgerError
from client.site import Site
from common.anchor import Head, newest
from common.errors import MessageError

NAME = "heads.json"


def take(site: Site, told: Iterable[str], identities: Mapping[str, bytes]) -> None:
    """Keep what an order tells of the ledgers of sites whose identity keys these are; on disk when this returns.

    Guarantees: what is kept of a site only goes on.
    Raises LedgerError, and keeps what it knew, for an order that shows a ledger as it was before what this site has
    heard of it, or not at all; MessageError for what is no statement; ChainError where the file can't be used.
    """
    known = remembered(site, identities)
    shown = newest(head for head in map(Head.of, told) if head.said_by(identities.get(head.site)))
    for name, old in known.items():
        if name not in shown or not shown[name].follows(old):
            raise LedgerError(
                f"the order does not know that the ledger of {name} has come to record {old.sequence}, which that site"
                " has signed: the server has forgotten it, and learns it with this answer, or it hides it; or that site"
                " has another identity, in a roster that this one has not joined"
            )
    if shown != known:
        try:
            write_privately(_path(site), json.dumps([str(head) for head in shown.values()]).encode("ascii"))
        except OSError as error:
            raise ChainError(
                f"{_path(site)}: can't be written ({error.strerror}); is there free disk space?"
            ) from error


def remembered(site: Site, identities: Mapping[str, bytes]) -> dict[str, Head]:
    """The newest heads that this site has heard of, by site: those that these identities have signed."""
    path = _path(site)
    try:
        heads = [Head.of(text) for text in json.loads(path.read_text(encoding="ascii"))] if path.exists() else []
    except (OSError, ValueError, TypeError, MessageError) as error:
        raise ChainError(f"{path}: can't be read, or is damaged: remove it; the next order brings it again") from error
    return newest(head for head in heads if head.said_by(identities.get(head.site)))


def own(site: Site, public: bytes) -> Anchor | None:
    """Where others have heard that this site's own ledger stands; `public`: its identity. Raises ChainError."""
    head = remembered(site, {site.name: public}).get(site.name)
    return None if head is None else Anchor(sequence=head.sequence, hash=head.hash)


def _path(site: Site) -> Path:
    return site.folder / NAME
