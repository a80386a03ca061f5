"""Where the sites' privacy ledgers stood when they last said so: kept for good, and told to all sites with each order.

The server can't make one up: each is signed by its site. That it forgets or hides one is noticed by the sites.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from common.anchor import Head, newest
from common.errors import MessageError, RunError
from server.checkpoint import write_atomically

NAME = "heads.json"


class Heads:
    """The newest head of each site, in a file that outlives runs.

    Guarantees: what is told of a site only goes on; it is on disk before it is told. Of two heads with one number,
    which an honest site never signs, the first is kept. A site that left the roster is told of all the same: sites with
    an older roster remember it. One that came back under another identity begins anew.
    Raises RunError for a file that can't be used.
    """

    def __init__(self, path: Path, identities: Mapping[str, bytes]) -> None:
        self._path, self._identities = path, identities
        try:
            texts = json.loads(path.read_text(encoding="ascii")) if path.exists() else []
            self._newest = newest(head for head in map(Head.of, texts) if self._may_stay(head))
        except (OSError, ValueError, TypeError, MessageError) as error:
            raise RunError(f"{path}: can't be read, or is damaged: remove it; the sites bring it again") from error

    def _may_stay(self, head: Head) -> bool:
        return head.site not in self._identities or head.said_by(self._identities[head.site])

    def told(self) -> tuple[str, ...]:
        """The statements, as orders carry them."""
        return tuple(map(str, self._newest.values()))

    def of(self, site: str) -> str | None:
        """A site's newest, as `client ledger restore --anchor` takes it."""
        head = self._newest.get(site)
        return None if head is None else f"{head.sequence}-{head.hash}"

    def hear(self, statements: Iterable[str]) -> None:
        """Take up what an answer says of ledgers; what is no statement, or not by its site, is passed over."""
        heard = []
        for text in statements:
            with suppress(MessageError):
                head = Head.of(text)
                if head.said_by(self._identities.get(head.site)):
                    heard.append(head)
        found = newest([*self._newest.values(), *heard])
        if found != self._newest:
            self._newest = found
            write_atomically(self._path, [json.dumps(self.told()).encode("ascii")])
