"""A server that lies to real clients: it shows each of them what it likes, and notes what comes out.

Lists are written as requests without any check of the server's own. What the lists hash to is computed by the code that
sites use, so that a weakness in there is one for both.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.session import Sessions
from common import body
from common.crypto.agreement import KeyPair, share_key
from common.crypto.identity import Identity
from common.crypto.sealed import unseal
from common.crypto.shares import SHARE_BYTES, Kind
from common.errors import MessageError
from common.masking import Encoding, encode
from common.roster import issue, member
from common.session import HASH, SEALED, Confirm, Header, Keys, Opened, Shares, Signed, answered
from common.transcript import KeyList, SenderList, Setting, SurvivorList
from simulations.attacks.finding import Finding, judged
from simulations.attacks.loot import Loot, Taken

FEDWARD = "Fedward"
VICTIM = "site-0"
ORDER = b"order".ljust(HASH, b"\0")
VALUES, RANGE = 100, 4.0
Update = NDArray[np.float32]
List = TypeVar("List", KeyList, SenderList, SurvivorList)


class Liar:
    """A federation of n honest sites, `site-0` the victim, and the server that they talk to.

    updates  what each site would send in the clear
    said     refusals so far, one line each
    """

    def __init__(self, n: int, *, min_sites: int, colluding: int = 0) -> None:
        names = [f"site-{place}" for place in range(n)]
        identities = {name: Identity.new() for name in names}
        self.server = Identity.new()
        sites = [member(identities[name], name=name, supernode="simulated", nominal_patients=100) for name in names]
        self.roster = issue(
            Identity.new(),
            sites=sites,
            server=self.server.public,
            colluding=colluding,
            min_sites=min_sites,
            now=int(time.time()),
        )
        study, layout, run = (os.urandom(HASH) for _ in range(3))
        self.setting = Setting(
            roster=self.roster, study=study, layout=layout, run=run, min_sites=min_sites, most_sites=8
        )
        self.encoding = Encoding(values=VALUES, wide=1, range_=RANGE, sites=8)
        self.updates: dict[str, Update] = {
            name: np.random.default_rng(place).uniform(-RANGE / 2, RANGE / 2, VALUES).astype(np.float32)
            for place, name in enumerate(names)
        }
        self.identities = identities  # a server has those of colluding sites
        self.sites = {name: self._site(identities[name], name) for name in names}
        self.loot = Loot(encoding=self.encoding)
        self.said: list[str] = []

    def _site(self, identity: Identity, name: str) -> Sessions:
        return Sessions(
            identity=identity,
            site=name,
            setting=self.setting,
            min_sites=self.setting.min_sites,
            opened=lambda _opening: None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sites)

    def keys(self, session: int, names: Iterable[str]) -> dict[str, Keys]:
        """Exchange K."""
        request = self._request("ask-keys", session, roster=self.roster.sha256.hex())
        sent = {name: self._ask(name, Sessions.keys, request) for name in names}
        return {name: Keys.of(messages["keys"]) for name, messages in sent.items() if messages}

    def key_list(self, session: int, keys: Iterable[Keys]) -> KeyList:
        """A list that nobody has checked, as the next two are."""
        return unchecked(KeyList, setting=self.setting, session=session, keys=_by_name(keys))

    def sender_list(self, key_list: KeyList, shares: Iterable[Shares], *, order: bytes = ORDER) -> SenderList:
        return unchecked(SenderList, key_list=key_list, order=order, shares=_by_name(shares))

    def survivor_list(self, senders: SenderList, headers: Iterable[Header]) -> SurvivorList:
        return unchecked(SurvivorList, senders=senders, headers=_by_name(headers))

    def shares(self, shown: KeyList, names: Iterable[str]) -> dict[str, Shares]:
        """Exchange S."""
        request = self._request("ask-shares", shown.session, keys=_envelopes(shown.keys))
        sent = {name: self._ask(name, Sessions.shares, request) for name in names}
        return {name: Shares.of(messages["shares"]) for name, messages in sent.items() if messages}

    def masked(
        self, shown: SenderList, names: Iterable[str], *, updates: Mapping[str, Update] | None = None
    ) -> dict[str, Header]:
        """Exchange A, at a site as in `client.secure`: an order that it has answered gets the answer that it got."""
        session = shown.key_list.session
        values = {"order": shown.order.hex(), "shares": _envelopes(shown.shares), "next": 0}
        request, headers = self._request("ask-masked", session, **values), {}
        for name in names:

            def call(site: Sessions, request: bytes, name: str = name) -> bytes:
                invitation = site.order(request)
                if invitation.answer is not None and invitation.words is not None:
                    words, sent = invitation.words, invitation.answer
                else:
                    update = (updates or self.updates)[name]
                    words, _ = encode(update, [], self.encoding, key=os.urandom(32))
                    sent = site.mask(words, session=session)
                self.loot.taken.append(Taken(site=name, senders=shown, words=words.copy()))
                return sent

            messages = self._ask(name, call, request)
            if messages:
                headers[name] = Header.of(messages["header"])
        return headers

    def open(self, shown: SurvivorList, names: Iterable[str]) -> dict[str, Confirm]:
        """Exchange B: openings are noted, confirmations returned."""
        key_list = shown.senders.key_list
        request = self._request("ask-opening", key_list.session, headers=_envelopes(shown.headers), next=0, keys=[])
        confirms = {}
        for name in names:
            messages = self._ask(name, Sessions.open, request)
            if "opened" in messages:
                self.loot.opened(key_list, Opened.of(messages["opened"]))
            if "confirm" in messages:
                confirms[name] = Confirm.of(messages["confirm"])
        return confirms

    def reveal(self, key_list: KeyList, confirms: Iterable[Confirm], names: Iterable[str]) -> None:
        """Exchange C."""
        request = self._request("ask-reveal", key_list.session, confirms=_envelopes(confirms))
        for name in names:
            messages = self._ask(name, Sessions.reveal, request)
            if messages:
                self.loot.opened(key_list, Opened.of(messages["opened"]))

    def set_up(self, session: int = 1) -> tuple[KeyList, SenderList]:
        """K and S without a lie."""
        key_list = self.key_list(session, self.keys(session, self.names).values())
        return key_list, self.sender_list(key_list, self.shares(key_list, self.names).values())

    def finding(self, *sites: str, detail: str, brief: str = "", read: Any = None, truth: Any = None) -> Finding:
        """Whether the sum of these sites' updates alone can be read now; or whether `read` is `truth`."""
        if truth is None:
            read, truth = self.loot.sum_of(*sites), sum(self.updates[site].astype(np.float64) for site in sites)
        tolerance = max(len(sites), 2) * self.encoding.unit
        return judged(read, truth, tolerance=tolerance, against=FEDWARD, detail=detail, brief=brief, said=self.said)

    def _request(self, kind: str, session: int, **values: Any) -> bytes:
        text = body.write({"run": self.setting.run.hex(), "session": session, **values})
        return body.write({"body": text.decode("ascii"), "signature": self.server.sign(kind, text).hex()})

    def _ask(self, name: str, call: Callable[[Sessions, bytes], bytes], request: bytes) -> dict[str, Signed]:
        """A site's messages; none where it refuses."""
        try:
            return answered(call(self.sites[name], request), self.roster, site=name)
        except MessageError as error:
            self.said.append(f"{name}: {error}")
            return {}


@dataclass(frozen=True, kw_only=True)
class Puppet:
    """A site that is the server: its keys are signed by whoever the server has the key of."""

    name: str
    identity: Identity
    masking: KeyPair
    channel: KeyPair

    @classmethod
    def new(cls, name: str, identity: Identity) -> Self:
        return cls(name=name, identity=identity, masking=KeyPair.new(), channel=KeyPair.new())

    def keys(self, liar: Liar, session: int) -> Keys:
        liar.loot.private[self.masking.public] = self.masking.private
        transcript = liar.setting.transcript(session)
        return Keys.sign(
            self.identity,
            self.name,
            transcript=transcript,
            masking=self.masking.public,
            channel=self.channel.public,
        )

    def shares(self, key_list: KeyList) -> Shares:
        """Nothing in them: whoever opens them complains, and goes on."""
        places, own = len(key_list.keys), key_list.places[self.name]
        return Shares.sign(
            self.identity,
            self.name,
            transcript=key_list.transcript,
            sealed=[b"" if place == own else os.urandom(SEALED) for place in range(1, places + 1)],
            commitments=[(bytes(HASH), bytes(HASH))] * places,
            seed=bytes(HASH),
            closed=(),
        )

    def header(self, senders: SenderList) -> Header:
        """Of a vector that nobody will ask for."""
        return Header.sign(self.identity, self.name, transcript=senders.transcript, vector=bytes(HASH), misfits=())

    def unseal(self, liar: Liar, key_list: KeyList, dealt: Shares) -> None:
        """Note the pair of shares that somebody dealt to this site."""
        dealer, own = key_list.places[dealt.signed.site], key_list.places[self.name]
        secret = self.channel.agree(key_list.keys[dealer - 1].channel)
        key = share_key(secret, key_list.transcript, sender=dealer, receiver=own)
        text = unseal(dealt.sealed[own - 1], key=key, transcript=key_list.transcript, sender=dealer, receiver=own)
        pair: dict[Kind, bytes] = {"masking": text[:SHARE_BYTES], "self": text[SHARE_BYTES:]}
        for kind, share in pair.items():
            liar.loot.share(key_list, dealt.signed.site, kind, holder=own, share=share)


def unchecked(kind: type[List], **fields: Any) -> List:
    """A list whose constructor has not looked at it."""
    made = kind.__new__(kind)
    vars(made).update(fields)
    return made


def _by_name(messages: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(messages, key=lambda message: message.signed.site))


def _envelopes(messages: Iterable[Any]) -> list[dict[str, str]]:
    return [message.signed.envelope for message in messages]
