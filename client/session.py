"""One site's side of secure aggregation: all sessions of a run, from keys to openings.

A session rests on what this site was shown, and a server may show each site something else: every list is verified, the
site's own entry in it is the very message that it sent, and what two sites were shown differently they hold different
keys for. Knows nothing of networks, files or studies; what it has to remember beyond a restart is `MaskedIn`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from client.session_masked import Masked
from client.session_setup import Setup
from common import requests
from common.crypto.identity import Identity
from common.errors import MessageError
from common.roster import RosterError, threshold
from common.session import MOST_CLOSED, Signed, answer
from common.transcript import SenderList, Setting, SurvivorList


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A sum that this site is about to open: for the ledger and the audit log, before the answer exists."""

    session: int
    order: bytes
    survivors: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MaskedIn:
    """Public facts of the session in which an update was masked, to keep beside the stored update; hashes in hex."""

    roster: str
    keys: str  # T1
    sites: tuple[str, ...]  # of the key list
    threshold: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote, read from this site's own disk."""
        values = json.loads(text)
        return cls(**values | {"sites": tuple(values["sites"])})


@dataclass(frozen=True, kw_only=True, eq=False)
class Invitation:
    """An order whose session this site has joined: to be masked for, or answered as before.

    answer, words  where it was answered already: the very same bytes again
    """

    session: int
    order: bytes  # SHA-256 of the order, to compare with the order that came along
    masked_in: MaskedIn
    senders: SenderList
    answer: bytes | None = None
    words: NDArray[np.uint64] | None = None

    def proves_closed(self, earlier: MaskedIn) -> bool:
        """Whether t sites of that session's key list have signed that they closed it unanswered, so that no sum of it
        can ever exist: a stored update that was masked in it may be masked again, for the same order.
        """
        signers = {shares.signed.site for shares in self.senders.shares if bytes.fromhex(earlier.keys) in shares.closed}
        return earlier.roster == self.masked_in.roster and len(signers & set(earlier.sites)) >= earlier.threshold


class Sessions:
    """The site's state: at most one session that has its order, and one in set-up behind it.

    Guarantees: numbers only rise. Each message is made once; the same request again gets the same bytes, another one of
    the same exchange and session a refusal. An order closes all older sessions for good, and so does a list of keys
    outside an opening. A refused request changes nothing. `opened` has returned before an opening exists.
    Raises: MessageError for every refusal. RosterError when the site is not in the roster by this identity. ValueError
    for a `min_sites` below the setting's.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        site: str,
        setting: Setting,
        min_sites: int,
        opened: Callable[[Opening], None],
        min_change: int = 0,
        survivors_before: Iterable[frozenset[str]] = (),
    ) -> None:
        """`min_sites`: this site's own, at least the setting's. `min_change`: refuse to open when the survivors differ
        from those of an opened sum by fewer sites, but not by none; `survivors_before`: of sums opened earlier.
        """
        if setting.roster.identities.get(site) != identity.public:
            raise RosterError(f"site {site} is not in the roster by its identity: ask the coordinator")
        if not min_sites >= setting.min_sites:
            raise ValueError(f"min_sites = {min_sites}: at least the setting's {setting.min_sites}")
        self._identity, self._site, self._setting = identity, site, setting
        self._min_sites, self._min_change, self._opened = min_sites, min_change, opened
        self._seen = list(survivors_before)
        self._highest = 0
        self._setup: Setup | None = None
        self._current: Masked | None = None
        self._invitation: tuple[bytes, int, Invitation] | None = None  # request's digest, next session
        self._closed: list[bytes] = []  # T1 of sessions closed unanswered, newest last
        self._answers: dict[tuple[str, int], tuple[bytes, bytes]] = {}  # request's digest, answer

    def keys(self, request: bytes) -> bytes:
        """Exchange K: fresh keys for a new session."""
        ask = requests.read_ask_keys(request, self._setting)
        return self._once("keys", ask, lambda: answer(self._begin(ask.session).keys.signed))

    def shares(self, request: bytes) -> bytes:
        """Exchange S: shares for a list of keys. Dealing them closes an older session that this site has not opened."""
        ask = requests.read_ask_shares(request, self._setting)

        def make() -> bytes:
            setup = self._in_setup(ask.session)
            self._enough(len(ask.key_list.keys), "keys")
            agreed = setup.agree(ask.key_list)
            if setup.dealt is None:
                self._close()
            return answer(setup.deal(agreed, closed=self._closed).signed)

        return self._once("shares", ask, make)

    def order(self, request: bytes) -> Invitation:
        """Exchange A, first half: the senders of shares are verified and all older sessions closed."""
        ask = requests.read_ask_masked(request, self._setting)
        if self._invitation is not None and self._invitation[2].session == ask.session:
            if self._invitation[0] != ask.sha256:
                raise MessageError(f"session {ask.session}: a second order: refused")
            return self._invitation[2]
        dealt = self._in_setup(ask.session).dealt
        if dealt is None:
            raise MessageError(f"session {ask.session}: an order before this site has sent shares")
        key_list = dealt.agreed.key_list
        senders = SenderList(key_list=key_list, order=ask.order, shares=ask.shares)
        self._enough(len(senders.names), "shares")
        masked = Masked(self._identity, self._site, senders, dealt)
        self._close()
        self._setup, self._current = None, masked
        self._answers = {key: value for key, value in self._answers.items() if key[1] >= ask.session}
        facts = MaskedIn(
            roster=self._setting.roster.sha256.hex(),
            keys=key_list.transcript.hex(),
            sites=tuple(key_list.places),
            threshold=threshold(len(key_list.keys), self._setting.roster.colluding),
        )
        invitation = Invitation(session=ask.session, order=ask.order, masked_in=facts, senders=senders)
        self._invitation = (ask.sha256, ask.next, invitation)
        return invitation

    def mask(self, words: NDArray[np.uint64], *, session: int) -> bytes:
        """Exchange A, second half: the encoded vector, masked in place, and the answer that goes with it. The words are
        kept, for the same request again, until the next order.
        """
        if self._current is None or self._invitation is None or self._current.session != session:
            raise MessageError(f"session {session}: has no order, or is closed")
        messages = [self._current.mask(words).signed]
        request, following, invitation = self._invitation
        if following > self._highest or (self._setup is not None and self._setup.session == following):
            messages.append(self._begin(following).keys.signed)
        sent = answer(*messages)
        again = Invitation(**{**vars(invitation), "answer": sent, "words": words})
        self._invitation = (request, following, again)
        return sent

    def open(self, request: bytes) -> bytes:
        """Exchange B: the opening, or the confirmation where somebody is missing, or the session closed; and shares for
        the next session.
        """
        ask = requests.read_ask_opening(request, self._setting)

        def make() -> bytes:
            current = self._ordered(ask.session)
            survivors = None if ask.closes else SurvivorList(senders=current.senders, headers=ask.headers)
            if survivors is not None:
                self._check(current, survivors)
            following = ask.next_list
            if following is None or self._site not in following.places:
                setup = agreed = None
            else:
                self._enough(len(following.keys), "keys")
                setup = self._in_setup(following.session)
                agreed = setup.agree(following)
            if survivors is None:
                self._close()
            messages = []
            if setup is not None and agreed is not None:
                messages.append(setup.deal(agreed, closed=self._closed).signed)
            if survivors is not None:
                confirms = bool(survivors.missing)
                messages.append(current.confirm(survivors).signed if confirms else self._open(current, survivors))
            return answer(*messages)

        return self._once("open", ask, make)

    def reveal(self, request: bytes) -> bytes:
        """Exchange C: the opening, when t survivors have confirmed what this site has confirmed."""
        ask = requests.read_ask_reveal(request, self._setting)

        def make() -> bytes:
            current = self._ordered(ask.session)
            return answer(self._open(current, current.confirmed_by(ask.confirms)))

        return self._once("reveal", ask, make)

    def _once(self, exchange: str, ask: requests.Ask, make: Callable[[], bytes]) -> bytes:
        """The answer to this exchange of this session, made once. A refusal is no answer."""
        key = (exchange, ask.session)
        if key not in self._answers:
            self._answers[key] = (ask.sha256, make())
        request, sent = self._answers[key]
        if request != ask.sha256:
            raise MessageError(f"session {ask.session}: another request after the one that was answered: refused")
        return sent

    def _begin(self, session: int) -> Setup:
        """The set-up with this number: the one that is under way, or a new one in its place."""
        if self._setup is None or self._setup.session != session:
            if session <= self._highest:
                raise MessageError(f"session {session}: was used; this site has seen number {self._highest}")
            self._forget_setup()
            self._setup = Setup(self._identity, self._site, self._setting, session)
            self._highest = session
        return self._setup

    def _in_setup(self, session: int) -> Setup:
        if self._setup is None or self._setup.session != session:
            raise MessageError(f"session {session}: is not the one that this site sets up")
        return self._setup

    def _ordered(self, session: int) -> Masked:
        if self._current is None or self._current.session != session:
            raise MessageError(f"session {session}: is not the newest that this site has an order for")
        return self._current

    def _enough(self, sites: int, what: str) -> None:
        if sites < self._min_sites:
            raise MessageError(f"{what} of {sites} sites: this site's policy asks for {self._min_sites}")

    def _check(self, current: Masked, survivors: SurvivorList) -> None:
        """Raises MessageError unless this site may help to open the sum over these survivors."""
        current.check(survivors)
        self._enough(len(survivors.names), "headers")
        for before in self._seen:
            if 0 < len(before ^ set(survivors.names)) < self._min_change:
                raise MessageError(
                    f"session {current.session}: survivors that differ by fewer than {self._min_change} sites from "
                    "those of an opened sum"
                )

    def _open(self, current: Masked, survivors: SurvivorList) -> Signed:
        """The opening. `opened` first: what it forgets is never masked again."""
        message = current.opening(survivors).signed
        self._opened(
            Opening(
                session=current.session,
                order=current.senders.order,
                survivors=survivors.names,
                missing=survivors.missing,
            )
        )
        current.end(opened=True)
        self._seen.append(frozenset(survivors.names))
        return message

    def _close(self) -> None:
        """Close the session that has its order, unless it was opened: nothing of it is ever opened then."""
        if self._current is not None and not self._current.opened and not self._current.closed:
            self._current.end(opened=False)
            self._note_closed(self._current.senders.key_list.transcript)

    def _forget_setup(self) -> None:
        """Leave a set-up without its order: this site holds nobody's shares of it, and never will."""
        if self._setup is not None and self._setup.dealt is not None:
            self._note_closed(self._setup.dealt.agreed.key_list.transcript)
        self._setup = None

    def _note_closed(self, transcript: bytes) -> None:
        self._closed = [*self._closed, transcript][-MOST_CLOSED:]
