"""A session at a site once its order is there: one vector masked, then one opening, or none.

Secrets are in memory only.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.session_setup import Dealt
from common import masking
from common.crypto.agreement import pair_key, self_key, share_key
from common.crypto.identity import Identity
from common.crypto.sealed import unseal
from common.crypto.shares import SHARE_BYTES, share_commitment
from common.errors import MessageError
from common.session import Confirm, Header, Opened, Shares
from common.transcript import SenderList, SurvivorList


class Masked:
    """Holds the peers' shares and this site's mask keys.

    Guarantees: masks one vector; opens once, or is closed and never opens; either way its secrets are gone then.
    Raises MessageError when the site's own share message is not the one that it sent.
    """

    def __init__(self, identity: Identity, site: str, senders: SenderList, dealt: Dealt) -> None:
        if not any(shares.signed == dealt.message.signed for shares in senders.shares):
            raise MessageError(f"session {senders.key_list.session}: senders of shares without this site's own message")
        self.senders = senders
        self.header: Header | None = None
        self.confirmed: SurvivorList | None = None
        self.opened = False
        self.closed = False
        self._identity, self._site = identity, site
        self._streams: Sequence[tuple[bytes, int]] | None = _streams(senders, dealt)
        self._held: dict[str, tuple[bytes, bytes]] = {site: dealt.own_pair}
        self._misfits = []
        for shares in senders.shares:
            if shares.signed.site != site:
                try:
                    self._held[shares.signed.site] = _pair(shares, dealt)
                except MessageError:
                    self._misfits.append(shares.signed.site)

    @property
    def session(self) -> int:
        return self.senders.key_list.session

    def mask(self, words: NDArray[np.uint64]) -> Header:
        """Mask the encoded vector, in place, and sign what goes with it. Raises MessageError a second time."""
        streams, self._streams = self._streams, None
        if streams is None or self.closed:
            raise MessageError(f"session {self.session}: has masked its one vector, or is closed")
        masking.mask(words, streams)
        self.header = Header.sign(
            self._identity,
            self._site,
            transcript=self.senders.transcript,
            vector=hashlib.sha256(np.ascontiguousarray(words, dtype="<u8").data).digest(),
            misfits=self._misfits,
        )
        return self.header

    def check(self, survivors: SurvivorList) -> None:
        """Raises MessageError unless this site is a survivor, by the very header that it sent, and has answered to no
        other list.
        """
        if self.header is None or not any(header.signed == self.header.signed for header in survivors.headers):
            raise MessageError(f"session {self.session}: survivors without this site's own header")
        if self.closed or self.opened or self.confirmed is not None:
            raise MessageError(f"session {self.session}: has answered already, or is closed")

    def confirm(self, survivors: SurvivorList) -> Confirm:
        """Sign T3, where somebody is missing. From now on the site opens for this list or for none."""
        self.check(survivors)
        self.confirmed = survivors
        return Confirm.sign(self._identity, self._site, transcript=survivors.transcript)

    def confirmed_by(self, confirms: Sequence[Confirm]) -> SurvivorList:
        """The survivors that this site has confirmed, when t of them have confirmed the same. Raises MessageError."""
        survivors = self.confirmed
        if survivors is None or self.closed or self.opened:
            raise MessageError(f"session {self.session}: nothing that this site confirmed is waiting")
        if any(confirm.transcript != survivors.transcript for confirm in confirms):
            raise MessageError(f"session {self.session}: a site confirmed other survivors")
        signers = {confirm.signed.site for confirm in confirms}
        if not signers <= set(survivors.names) or len(signers) < self.senders.key_list.threshold:
            raise MessageError(
                f"session {self.session}: confirmed by {len(signers)} sites; {self.senders.key_list.threshold} of the "
                "survivors are needed"
            )
        return survivors

    def opening(self, survivors: SurvivorList) -> Opened:
        """This site's shares: of the survivors' self-masks, of the missing sites' masking keys; none that did not fit.
        Changes nothing.
        """
        return Opened.sign(
            self._identity,
            self._site,
            transcript=survivors.transcript,
            masking={name: self._held[name][0] for name in survivors.missing if name in self._held},
            self_mask={name: self._held[name][1] for name in survivors.names if name in self._held},
        )

    def end(self, *, opened: bool) -> None:
        """Opened, or closed for good: the secrets go."""
        self.opened, self.closed = opened, not opened
        self._streams = None
        self._held.clear()


def _streams(senders: SenderList, dealt: Dealt) -> list[tuple[bytes, int]]:
    """The keys of this site's masks, with +1 where the stream is added and -1 where it is subtracted."""
    agreed, transcript = dealt.agreed, senders.transcript
    streams = [(self_key(dealt.seed, transcript, index=agreed.own), 1)]
    for name in senders.names:
        place = senders.key_list.places[name]
        if place != agreed.own:
            key = pair_key(agreed.masking[place], transcript, one=agreed.own, other=place)
            streams.append((key, 1 if agreed.own < place else -1))
    return streams


def _pair(shares: Shares, dealt: Dealt) -> tuple[bytes, bytes]:
    """A peer's pair of shares for this site. Raises MessageError unless they fit the peer's commitments."""
    agreed, transcript = dealt.agreed, shares.transcript
    sender, own = agreed.key_list.places[shares.signed.site], agreed.own
    key = share_key(agreed.channel[sender], transcript, sender=sender, receiver=own)
    text = unseal(shares.sealed[own - 1], key=key, transcript=transcript, sender=sender, receiver=own)
    one, other = text[:SHARE_BYTES], text[SHARE_BYTES:]
    commitments = (
        share_commitment(one, kind="masking", transcript=transcript, dealer=sender, holder=own),
        share_commitment(other, kind="self", transcript=transcript, dealer=sender, holder=own),
    )
    if commitments != shares.commitments[own - 1]:
        raise MessageError(f"shares of {shares.signed.site} that are not the committed ones")
    return one, other
