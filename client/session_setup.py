"""The set-up of one session at a site: fresh keys, then both secrets in shares. Secrets are in memory only."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.crypto.agreement import KeyPair, share_key
from common.crypto.identity import Identity
from common.crypto.sealed import seal
from common.crypto.shares import SECRET_BYTES, seed_commitment, share_commitment, split
from common.errors import MessageError
from common.session import Keys, Shares
from common.transcript import KeyList, Setting


@dataclass(frozen=True, kw_only=True, repr=False)
class Agreed:
    """A key list that the site has checked, and its secrets with each peer, by place."""

    key_list: KeyList
    own: int
    masking: Mapping[int, bytes]
    channel: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True, repr=False)
class Dealt:
    """What a site keeps after it has sent its shares: its own pair of shares, and what its masks are made from. The
    private masking key itself is gone: only its shares are left.
    """

    agreed: Agreed
    message: Shares
    seed: bytes
    own_pair: tuple[bytes, bytes]


class Setup:
    """Keys are made once; shares are dealt once, for one key list."""

    def __init__(self, identity: Identity, site: str, setting: Setting, session: int) -> None:
        self.session = session
        self.dealt: Dealt | None = None
        self._identity, self._site = identity, site
        self._masking, self._channel = KeyPair.new(), KeyPair.new()
        self._seed = os.urandom(SECRET_BYTES)
        self.keys = Keys.sign(
            identity,
            site,
            transcript=setting.transcript(session),
            masking=self._masking.public,
            channel=self._channel.public,
        )

    def agree(self, key_list: KeyList) -> Agreed:
        """The secrets with each peer of a key list; changes nothing.

        Raises MessageError when the site's own entry is not the very message that it sent, when shares were dealt for
        another list, and for a key that gives an all-zero secret.
        """
        own = key_list.places.get(self._site)
        if own is None or key_list.keys[own - 1].signed != self.keys.signed:
            raise MessageError(f"session {self.session}: a list of keys without this site's own message")
        if self.dealt is not None:
            if key_list.transcript != self.dealt.agreed.key_list.transcript:
                raise MessageError(f"session {self.session}: a second list of keys: refused")
            return self.dealt.agreed
        peers = {place: keys for place, keys in enumerate(key_list.keys, start=1) if place != own}
        return Agreed(
            key_list=key_list,
            own=own,
            masking={place: self._masking.agree(keys.masking) for place, keys in peers.items()},
            channel={place: self._channel.agree(keys.channel) for place, keys in peers.items()},
        )

    def deal(self, agreed: Agreed, *, closed: Iterable[bytes]) -> Shares:
        """The share message; the first one again, if there is one."""
        if self.dealt is not None:
            return self.dealt.message
        key_list, own, transcript = agreed.key_list, agreed.own, agreed.key_list.transcript
        holders, threshold = len(key_list.keys), key_list.threshold
        masking = split(self._masking.private, threshold=threshold, holders=holders)
        seed = split(self._seed, threshold=threshold, holders=holders)
        pairs = list(enumerate(zip(masking, seed, strict=True), start=1))
        message = Shares.sign(
            self._identity,
            self._site,
            transcript=transcript,
            sealed=(b"" if place == own else self._seal(agreed, place, b"".join(pair)) for place, pair in pairs),
            commitments=(
                (
                    share_commitment(one, kind="masking", transcript=transcript, dealer=own, holder=place),
                    share_commitment(other, kind="self", transcript=transcript, dealer=own, holder=place),
                )
                for place, (one, other) in pairs
            ),
            seed=seed_commitment(self._seed, transcript=transcript, dealer=own),
            closed=closed,
        )
        self.dealt = Dealt(agreed=agreed, message=message, seed=self._seed, own_pair=pairs[own - 1][1])
        del self._masking, self._channel, self._seed
        return message

    def _seal(self, agreed: Agreed, place: int, text: bytes) -> bytes:
        transcript = agreed.key_list.transcript
        key = share_key(agreed.channel[place], transcript, sender=agreed.own, receiver=place)
        return seal(text, key=key, transcript=transcript, sender=agreed.own, receiver=place)
