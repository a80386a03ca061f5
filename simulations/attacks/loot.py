"""What a lying server has been given, and the best that it can make of it: a site's update, if its masks can be had.

No attack reads in a way of its own: each one collects, and here is tried whether that is enough.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.crypto.agreement import KeyPair, pair_key, self_key
from common.crypto.shares import Kind, combine
from common.errors import MessageError
from common.masking import Encoding, MaskedSum, encode, mask
from common.session import Opened
from common.transcript import KeyList, SenderList

Words = NDArray[np.uint64]
Read = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """A masked vector, and the senders whose masks are on it."""

    site: str
    senders: SenderList
    words: Words


@dataclass(kw_only=True)
class Loot:
    """Everything that came out.

    shares   of a dealer's secret, by dealer, kind and key list (T1): each holder's place and share
    private  masking keys whose private half the server has, by the public half
    """

    encoding: Encoding
    taken: list[Taken] = field(default_factory=list)
    shares: dict[tuple[str, Kind, bytes], dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    private: dict[bytes, bytes] = field(default_factory=dict)

    def share(self, key_list: KeyList, dealer: str, kind: Kind, *, holder: int, share: bytes) -> None:
        """Note a share; as soon as t of a masking key are there, the key."""
        found = self.shares[dealer, kind, key_list.transcript]
        found[holder] = share
        secret = self._secret(key_list, dealer, kind) if kind == "masking" else None
        if secret is not None:
            self.private[KeyPair.of(secret).public] = secret

    def opened(self, key_list: KeyList, opened: Opened) -> None:
        """Note all shares of an opening."""
        holder = key_list.places[opened.signed.site]
        for dealer, share in opened.masking.items():
            self.share(key_list, dealer, "masking", holder=holder, share=share)
        for dealer, share in opened.self_mask.items():
            self.share(key_list, dealer, "self", holder=holder, share=share)

    def sum_of(self, *sites: str) -> Read | None:
        """The sum of these sites' newest vectors without any other; None where a mask on it can't be taken off."""
        total = np.zeros(self.encoding.words, np.uint64)
        for site in sites:
            taken = self.newest(site)
            streams = None if taken is None else self.streams(taken, within=sites)
            if taken is None or streams is None:
                return None
            total += taken.words
            mask(total, [(key, -sign) for key, sign in streams])
        return decoded(total, self.encoding, sites=len(sites))

    def newest(self, site: str) -> Taken | None:
        """A site's newest vector."""
        return next((taken for taken in reversed(self.taken) if taken.site == site), None)

    def difference(self, site: str) -> Read | None:
        """The difference of two vectors of a site that came with the same masks, the later minus the earlier; None
        where no two did. With twice the words of zeros, so that no lane is negative.
        """
        mine = [each for each in self.taken if each.site == site]
        for place, later in enumerate(mine):
            for earlier in mine[:place]:
                if later.senders.transcript == earlier.senders.transcript and (later.words != earlier.words).any():
                    nothing = (np.zeros(self.encoding.values), np.zeros(self.encoding.wide - 1))
                    zero, _ = encode(*nothing, self.encoding, key=bytes(32))
                    return decoded(later.words - earlier.words + zero + zero, self.encoding, sites=2)
        return None

    def streams(self, taken: Taken, *, within: Iterable[str]) -> list[tuple[bytes, int]] | None:
        """The masks on a vector but for those with sites of `within`, as they were added; None if one is unknown."""
        senders = taken.senders
        places, transcript = senders.key_list.places, senders.transcript
        own, public = places[taken.site], {keys.signed.site: keys.masking for keys in senders.key_list.keys}
        seed = self._secret(senders.key_list, taken.site, "self")
        if seed is None:
            return None
        streams = [(self_key(seed, transcript, index=own), 1)]
        for peer in set(senders.names) - {taken.site, *within}:
            one, other = public[taken.site], public[peer]
            if one not in self.private:
                one, other = other, one
            if one not in self.private:
                return None
            secret = KeyPair.of(self.private[one]).agree(other)
            key = pair_key(secret, transcript, one=own, other=places[peer])
            streams.append((key, 1 if own < places[peer] else -1))
        return streams

    def _secret(self, key_list: KeyList, dealer: str, kind: Kind) -> bytes | None:
        """What t shares of one key list give; None for fewer."""
        found = self.shares[dealer, kind, key_list.transcript]
        if len(found) < key_list.threshold:
            return None
        try:
            return combine(dict(sorted(found.items())[: key_list.threshold]))
        except MessageError:
            return None


def decoded(words: Words, encoding: Encoding, *, sites: int = 1) -> Read | None:
    """The values of an unmasked sum; None where these words are no sum of so many vectors."""
    total = MaskedSum(encoding)
    total.add(words)
    try:
        return total.values(sites)[0]
    except MessageError:
        return None
