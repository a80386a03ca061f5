"""Where the sites' privacy ledgers stood when they last said so: kept for good, and told to all sites with each order.

The server can't make one up: each is signed by its site. That it forgets or hides one is noticed by the sites.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.anchor import Head, by_site
from common.errors import MessageError, RunError
from server.checkpoint import write_atomically

NAME = "heads.json"
MOST = 8  # heads of one site; an honest one has two or three between two orders that it follows


class Heads:
    """What is known of each site's ledger, in a file that outlives runs: several heads where nobody can tell whether
    the later record comes after the earlier one, or after an older copy.

    Guarantees: on disk before it is told. A head is dropped when its site, having been told of it, has followed the
    order, which it does only if its ledger contains it; not because another came. A site that left the roster is told
    of all the same: sites with an older roster remember it. One that came back under another identity begins anew.
    Raises RunError for a file that can't be used.
    """

    def __init__(self, path: Path, identities: Mapping[str, bytes]) -> None:
        self._path, self._identities = path, identities
        try:
            texts = json.loads(path.read_text(encoding="ascii")) if path.exists() else []
            self._known = by_site(head for head in map(Head.of, texts) if self._may_stay(head))
        except (OSError, ValueError, TypeError, MessageError) as error:
            raise RunError(f"{path}: can't be read, or is damaged: remove it; the sites bring it again") from error

    def _may_stay(self, head: Head) -> bool:
        return head.site not in self._identities or head.said_by(self._identities[head.site])

    def told(self) -> tuple[str, ...]:
        """The statements, as orders carry them."""
        return tuple(str(head) for heads in self._known.values() for head in heads)

    def of(self, site: str) -> str | None:
        """A site's newest, as `client ledger restore --anchor` takes it."""
        newest = max(self._known.get(site, ()), key=lambda head: head.sequence, default=None)
        return None if newest is None else f"{newest.sequence}-{newest.hash}"

    def hear(self, statements: Iterable[str], *, site: str, followed: Iterable[str] = ()) -> None:
        """Take up what a site says of ledgers, its own and others'; what is no statement, or not by the site that it
        is about, is passed over. `followed`: what the order told that the site has followed; nothing if it refused.
        """
        done = set(followed)
        kept = [head for heads in self._known.values() for head in heads if head.site != site or str(head) not in done]
        for text in statements:
            try:
                head = Head.of(text)
            except MessageError:
                continue
            if head.said_by(self._identities.get(head.site)):
                kept.append(head)
        found = {name: heads[:MOST] for name, heads in by_site(kept).items()}
        if done and site in self._known and site not in found:
            found[site] = self._known[site]  # it has said nothing in the place of what it followed
        if found != self._known:
            self._known = dict(sorted(found.items()))
            write_atomically(self._path, [json.dumps(self.told()).encode("ascii")])
