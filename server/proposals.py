"""Which node is which site: the study shown to nodes that haven't agreed to it, and what their sites said to it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from common import wire
from common.errors import Reason, RunError
from common.study import Study
from server.exchange import Exchange

PROPOSAL_DEADLINE = 60.0  # seconds: a node that hangs when it is shown the study must not hold up the others
GRACE = 5.0  # seconds for a node that let a proposal expire, once the others have answered and are enough
PATIENT = 10  # how often such a node is shown the study until it has the whole deadline again
Heads = Callable[[], tuple[str, ...]]  # of the sites' privacy ledgers
SitesOf = Callable[[], Mapping[int, str]]


class Proposals:
    """What the nodes of an exchange have said to a study.

    Guarantees: a site of the roster has one node at most, and no other name is heard. Which node that is, `sites_of`
    says, in a deployment by the keys that SuperNodes prove to hold; without it, the first that speaks in the name. A
    node whose answer doesn't come costs the others the deadline at first and every PATIENT times, GRACE in between.
    """

    def __init__(
        self, exchange: Exchange, study: Study, roster: frozenset[str], sites_of: SitesOf | None = None
    ) -> None:
        self._sites, self._study, self._roster, self._sites_of = exchange, study, roster, sites_of
        self._known: Mapping[int, str] = {}
        self._nodes: dict[int, str] = {}
        self._refused: dict[str, Reason] = {}
        self._silent: Counter[int] = Counter()  # how many proposals in a row a node let expire

    @property
    def agreed(self) -> Mapping[int, str]:
        """The site of each node that has agreed."""
        return self._nodes

    def absent(self) -> dict[str, Reason]:
        """All other sites, and why."""
        return dict.fromkeys(self._roster - set(self._nodes.values()), Reason.OFFLINE) | self._refused

    def forget(self, sites: Iterable[str]) -> None:
        """These are shown the study again."""
        lost = set(sites)
        self._nodes = {node: site for node, site in self._nodes.items() if site not in lost}

    def show(self, number: int, attempt: int, *, run: str, heads: Heads) -> None:
        """Show the study before an attempt at a round, and with it `heads`, as they are then.

        Without enough sites online, or enough that have approved the study, a further attempt would fail at once:
        before it they have the study's `round_deadline`.
        """
        agreement, shown = self._study.study, partial(self._show, number, attempt, run, heads)
        if attempt == 1 or not self._sites.wait(
            agreement.min_sites, deadline=agreement.round_deadline, ready=partial(self._settled, shown)
        ):
            shown()

    def _settled(self, show: Callable[[], None]) -> bool:
        """Show the study: whether the quorum is there, or no approval would make it."""
        show()
        pending = sum(reason is Reason.NOT_APPROVED for reason in self._refused.values())
        return not len(self._nodes) < self._study.study.min_sites <= len(self._nodes) + pending

    def _show(self, number: int, attempt: int, run: str, heads: Heads) -> None:
        """To nodes that haven't agreed yet; forget those that are gone."""
        online = self._sites.online()
        self._nodes = {node: site for node, site in self._nodes.items() if node in online}
        self._refused = {}
        order = wire.Order(
            kind="propose",
            round=number,
            attempt=attempt,
            study_hash=self._study.sha256,
            study_json=self._study.canonical,
            run=run,
            heads=heads(),
        )
        self._learn()
        strangers = sorted(online - self._nodes.keys())
        deadline = min(PROPOSAL_DEADLINE, self._study.study.round_deadline)
        awaited = {node for node in strangers if self._silent[node] % PATIENT == 0}
        for received in self._sites.ask(
            dict.fromkeys(strangers, order),
            length=0,
            deadline=deadline,
            enough=lambda: not awaited and len(self._nodes) >= self._study.study.min_sites,
            grace=GRACE,
        ):
            awaited.discard(received.node)
            self._silent[received.node] = self._silent[received.node] + 1 if received.reason is Reason.LATE else 0
            own = self._known.get(received.node)
            site = received.answer.site if received.answer else own
            if self._sites_of is not None and site != own:
                if own is not None:
                    self._refused[own] = Reason.MALFORMED  # it speaks in another's name
                continue
            if site not in self._roster or site in self._nodes.values():
                continue  # nobody we know, or a second node in a site's name
            if received.reason is Reason.OK:
                self._nodes[received.node] = site
                self._refused.pop(site, None)  # said by another node, in its name
            else:
                self._refused[site] = received.reason

    def _learn(self) -> None:
        """Which node is which site; what was known holds while the SuperLink is away, as a key keeps its node."""
        if self._sites_of is not None:
            with suppress(RunError):
                self._known = self._sites_of()
