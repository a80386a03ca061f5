"""Where the privacy ledgers of all sites stood when this site last heard of them: SITE/heads.json.

Orders bring each site's own signed statements; every site keeps them and tells them, with its answer to a proposal and
whenever it refuses. So a server that forgets where a ledger stands is told, and a site whose ledger is an older copy of
all its files, or goes on from one, is shown what others have of it and reserves nothing.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from client.chain import write_privately
from client.chain_lines import Anchor, ChainError
from client.ledger_records import LedgerError
from client.site import Site
from common.anchor import Head, by_site
from common.errors import MessageError

NAME = "heads.json"


def take(site: Site, told: Iterable[str], identities: Mapping[str, bytes]) -> None:
    """Keep what an order tells of the ledgers of sites whose identity keys these are; on disk when this returns.

    Guarantees: of what was heard of a site nothing is dropped but for a later record.
    Raises LedgerError, and keeps what it knew, for an order that shows nothing of a ledger that could be what this site
    has heard of it, or come after it; MessageError for what is no statement; ChainError where the file can't be used.
    """
    known = remembered(site, identities)
    shown = by_site(head for head in map(Head.of, told) if head.said_by(identities.get(head.site)))
    for name, heads in known.items():
        for old in heads:
            if not any(head.follows(old) for head in shown.get(name, ())):
                raise LedgerError(
                    f"the order does not know that a ledger ({'its own' if name == site.name else 'another site'})"
                    f" has come to record {old.sequence}, as its site has signed: the server has forgotten it, and"
                    " learns it with this answer, or it hides it; or that site has another identity, in a roster that"
                    " this one has not joined"
                )
    if shown != known:
        path, text = _path(site), json.dumps([str(head) for heads in shown.values() for head in heads])
        try:
            write_privately(path, text.encode("ascii"))
        except OSError as error:
            raise ChainError(f"{path}: can't be written ({error.strerror}); is there free disk space?") from error


def remembered(site: Site, identities: Mapping[str, bytes]) -> dict[str, tuple[Head, ...]]:
    """What this site has heard of each ledger: of what these identities have signed."""
    path = _path(site)
    try:
        heads = [Head.of(text) for text in json.loads(path.read_text(encoding="ascii"))] if path.exists() else []
    except (OSError, ValueError, TypeError, MessageError) as error:
        raise ChainError(f"{path}: can't be read, or is damaged: remove it; the next order brings it again") from error
    return by_site(head for head in heads if head.said_by(identities.get(head.site)))


def own(site: Site, public: bytes) -> tuple[Anchor, ...]:
    """Where others have heard that this site's own ledger stands, its newest record first: it contains all of these, or
    is an older copy. `public`: its identity. Raises ChainError.
    """
    heads = remembered(site, {site.name: public}).get(site.name, ())
    found = [Anchor(sequence=head.sequence, hash=head.hash) for head in heads]
    return tuple(sorted(found, key=lambda anchor: -anchor.sequence))


def _path(site: Site) -> Path:
    return site.folder / NAME
