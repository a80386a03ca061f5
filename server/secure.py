"""Gathering under secure aggregation: two exchanges a round, three where somebody is missing; the server reads sums.

The exchanges' names are those of secure-aggregation's schedule: K and S set a session up, A brings the masked vectors,
B opens their sum and sets up the next session, C opens it where B has found somebody missing.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common import secure, wire
from common.errors import MessageError, Reason
from common.kinds import Answering
from common.masking import MaskedSum
from common.session import Signed, answered
from common.study import Study
from common.transcript import KeyList
from server import rounds
from server.exchange import Credentials, Exchange, Received
from server.gathering import Gathered, Tally, answering, verdict
from server.session import Session, SessionFailed

GRACE = 5.0  # seconds for which openings are waited for that aren't needed, so that their sites stay in the session
Take = Callable[[str, wire.Answer, dict[str, Signed]], None]  # a site's answer to one exchange, its messages verified


class Secure:
    """The sessions of one run.

    Guarantees: nothing in here gives a single site's vector; a vector is added to the masked sum and not kept. A
    session is opened once, or closed. An attempt that can't be finished is a round that failed, and the next attempt
    has another session.
    """

    def __init__(self, exchange: Exchange, study: Study, own: Credentials, *, run: str) -> None:
        self._sites, self._study, self._key, self._roster = exchange, study, own.key, own.roster
        self._setting = secure.setting_of(study, own.roster, run=run)
        self._number = int(time.time() * 1000)  # numbers rise also when a run is resumed
        self._ready: Session | None = None
        self._blamed: set[str] = set()

    def gather(self, nodes: Mapping[int, str], order: wire.Order, state: rounds.Round) -> Gathered:
        attempt = _Attempt(self, {node: site for node, site in nodes.items() if site not in self._blamed}, order, state)
        for site in self._blamed & set(nodes.values()):
            attempt.replied(site, Reason.MALFORMED)
        try:
            session, self._ready = self._ready, None
            following = self.new_session()
            if session is None or not session.ready:
                session, following = attempt.set_up(following), self.new_session()
            total = attempt.masked(session, following)
            gathered = attempt.opened(session, following, total)
            self.take_up(following)
            return gathered
        except SessionFailed as error:
            self._blamed |= set(error.blamed)
            attempt.state = rounds.step(attempt.state, rounds.Failed(why=str(error)))
            return Gathered(round=attempt.state, tally=attempt.tally, total=np.zeros(0))

    def take_up(self, session: Session) -> None:
        """Go on with this session at the next attempt, if it is ready then."""
        self._ready = session

    def new_session(self) -> Session:
        """A session with a number that was never used."""
        self._number += 1
        return Session(key=self._key, setting=self._setting, number=self._number)

    def ask(
        self, orders: Mapping[int, wire.Order], *, words: int, most: float, enough: Callable[[], bool]
    ) -> Iterable[Received]:
        """One exchange. At the round's deadline, or after `most` seconds, the rest is late."""
        deadline = min(self._study.study.round_deadline, most)
        return self._sites.ask(orders, length=words, deadline=deadline, enough=enough, grace=GRACE)

    def messages(self, answer: wire.Answer) -> dict[str, Signed]:
        """The protocol's messages in an answer. Raises MessageError."""
        return answered(answer.session, self._roster, site=answer.site)

    def empty_sum(self, kind: Answering) -> MaskedSum:
        """Zeros, for answers to orders of this kind."""
        return MaskedSum(secure.encoding_of(self._study, kind, sites=len(self._roster.sites)))

    def words(self, kind: Answering) -> int:
        """Words of an answer to orders of this kind."""
        return secure.encoding_of(self._study, kind, sites=len(self._roster.sites)).words

    def read(self, total: MaskedSum, kind: Answering, *, sites: int) -> tuple[NDArray[np.float64], int]:
        """The sum over so many sites, its masks taken away, and how many values were cut off."""
        try:
            return secure.from_sum(total, self._study, kind, self._roster, sites=sites)
        except MessageError as error:
            raise SessionFailed(str(error)) from error


class _Attempt:
    """One attempt at a round: the exchanges, and what came of each site."""

    def __init__(self, run: Secure, nodes: dict[int, str], order: wire.Order, state: rounds.Round) -> None:
        self.state, self.tally = state, Tally()
        self._run, self._nodes, self._order = run, nodes, order
        self._kind = answering(order)

    def replied(self, site: str, reason: Reason) -> None:
        self.state = rounds.step(self.state, rounds.Replied(site=site, reason=reason))

    def set_up(self, session: Session) -> Session:
        """K and S: keys of everybody who is there, then their shares. Raises SessionFailed with too few of either."""
        self._exchange(
            self._all(self._nodes, "keys", session.ask_keys()), lambda _s, _a, m: session.take_keys(m["keys"])
        )
        listed = self._of(session.key_list.places)
        blob = session.ask_shares()
        self._exchange(self._all(listed, "shares", blob), lambda _s, _a, m: session.take_shares(m["shares"]))
        return session

    def masked(self, session: Session, following: Session) -> MaskedSum:
        """A: the sum of the masked vectors; keys for the next session, of those who were away as well."""
        digest = bytes.fromhex(self._order.sha256)
        blob, total = session.ask_masked(digest, next=following.number), self._run.empty_sum(self._kind)
        asked = replace(self._order, session=blob)
        orders = dict.fromkeys(self._of(session.holders), asked)
        strays = {node: site for node, site in self._nodes.items() if node not in orders}
        orders |= self._all(strays, "keys", following.ask_keys())

        def take(site: str, answer: wire.Answer, messages: dict[str, Signed]) -> None:
            if answer.words is None:
                following.take_keys(messages["keys"])
                return
            vector = hashlib.sha256(np.ascontiguousarray(answer.words, dtype="<u8").data).digest()
            if session.take_header(messages["header"], vector=vector):
                total.add(answer.words)
            self.replied(site, Reason.OK)
            if "keys" in messages:
                following.take_keys(messages["keys"])

        def lost() -> bool:
            return self.state.outcome == "abandoned"

        self._exchange(orders, take, words=self._run.words(self._kind), enough=lost)
        for site in strays.values():
            self.replied(site, Reason.LATE)  # was away when the session was set up
        return total

    def opened(self, session: Session, following: Session, total: MaskedSum) -> Gathered:
        """B, and C where somebody is missing: the sum without its masks, and shares of the next session. With too few
        survivors B closes the session; raises SessionFailed then, and where too few open it.
        """
        self._re_enter(session, following)
        listed: KeyList | None = None
        with contextlib.suppress(SessionFailed):  # too few keys: the next session is set up when it is needed
            listed = following.key_list
        try:
            survivors = session.survivors
        except SessionFailed:
            self._close(session, following, listed)
            raise
        asked = self._of(survivors.names)
        orders = self._all(asked, "open", session.ask_opening(listed))
        orders |= self._strays(following, listed, asked)

        def take(_site: str, _answer: wire.Answer, messages: dict[str, Signed]) -> None:
            _take_shares(following, messages)
            if "opened" in messages:
                session.take_opened(messages["opened"])
            if "confirm" in messages:
                session.take_confirm(messages["confirm"])

        self._exchange(orders, take, enough=lambda: session.openable or session.confirmed)
        if survivors.missing:
            reveal = self._all(self._of(session.confirmers), "reveal", session.ask_reveal())
            self._exchange(reveal, lambda _s, _a, m: session.take_opened(m["opened"]), enough=lambda: session.openable)
        total.unmask(session.streams())
        values, saturated = self._run.read(total, self._kind, sites=len(survivors.names))
        return Gathered(round=self.state, tally=self.tally, total=values, saturated=saturated)

    def _re_enter(self, session: Session, following: Session) -> None:
        """K for those whose vector is missing, if they are back already: so they miss this round alone."""
        missing = self._of(set(session.holders) - set(session.masked))
        if missing:
            asked = self._all(missing, "keys", following.ask_keys())
            self._exchange(asked, lambda _s, _a, m: following.take_keys(m["keys"]), most=GRACE)

    def _close(self, session: Session, following: Session, listed: KeyList | None) -> None:
        """B where too few survived: nothing of the session is ever opened, and the next one is set up all the same."""
        asked = self._of(session.masked)  # others could not: they have not had the order
        orders = self._all(asked, "open", session.ask_closing(listed)) | self._strays(following, listed, asked)
        self._exchange(orders, lambda _s, _a, messages: _take_shares(following, messages))
        self._run.take_up(following)

    def _strays(self, following: Session, listed: KeyList | None, asked: Iterable[int]) -> dict[int, wire.Order]:
        """S for sites that are in the next session and have no part in opening this one."""
        if listed is None:
            return {}
        strays = {node: site for node, site in self._of(listed.places).items() if node not in set(asked)}
        return self._all(strays, "shares", following.ask_shares())

    def _of(self, sites: Iterable[str]) -> dict[int, str]:
        """Nodes of these sites, by the sites' names."""
        wanted = set(sites)
        return dict(sorted(((node, site) for node, site in self._nodes.items() if site in wanted), key=lambda x: x[1]))

    def _all(self, nodes: Mapping[int, str], kind: wire.Kind, session: bytes) -> dict[int, wire.Order]:
        """One order of the protocol for all these nodes."""
        order = replace(self._order, kind=kind, weights=None, weights_hash="", prior=(), heads=(), session=session)
        return dict.fromkeys(nodes, order)

    def _exchange(
        self,
        orders: Mapping[int, wire.Order],
        take: Take,
        *,
        words: int = 0,
        most: float = math.inf,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ask, and take what comes. A site whose answer is refused has no part in what follows."""
        for received in self._run.ask(orders, words=words, most=most, enough=enough):
            site, reason = self._nodes[received.node], verdict(received, self._nodes[received.node])
            self.tally.add(site, received)
            if reason is Reason.OK and received.answer is not None:
                try:
                    take(site, received.answer, self._run.messages(received.answer))
                except (MessageError, KeyError):
                    reason = Reason.MALFORMED
            if reason is not Reason.OK:
                self.replied(site, reason)


def _take_shares(following: Session, messages: Mapping[str, Signed]) -> None:
    if "shares" in messages:
        following.take_shares(messages["shares"])
