"""Attacks on the masks themselves: to have one twice, and to guess its key."""

import math
import time
from collections.abc import Iterator, Mapping

import numpy as np

from common.crypto.stream import KEY_BYTES, words
from common.errors import RunError
from common.lanes import CHECKS
from common.masking import encode, mask
from simulations.attacks.finding import Finding
from simulations.attacks.liar import VICTIM, Liar, Puppet, Update
from simulations.attacks.loot import Words, decoded

YEAR = 365.25 * 24 * 3600  # seconds


def replay() -> Finding:
    """Send an old session's messages again: to have two updates under the same masks, an old key whose private half was
    opened, or an old sum opened once more.
    """
    liar = Liar(4, min_sites=3)
    key_list, senders = liar.set_up(1)
    headers = liar.masked(senders, liar.names[:3])  # the fourth goes missing: its masking key is opened
    later = {name: update[::-1].copy() for name, update in liar.updates.items()}
    again = liar.masked(senders, [VICTIM], updates=later)
    if again == {VICTIM: headers[VICTIM]}:
        liar.said.append(f"{VICTIM}: the answer to the same order, given again: the very bytes that it had sent before")
    survivors = liar.survivor_list(senders, headers.values())
    confirms = liar.open(survivors, headers)
    liar.reveal(key_list, confirms.values(), headers)
    fresh = liar.keys(2, liar.names)
    liar.keys(1, liar.names)
    old = next(keys for keys in key_list.keys if keys.signed.site == liar.names[3])
    liar.shares(liar.key_list(2, [fresh[name] for name in liar.names[:3]] + [old]), [VICTIM])
    true = liar.key_list(2, fresh.values())
    following = liar.sender_list(true, liar.shares(true, liar.names).values())
    liar.masked(following, liar.names, updates=later)
    liar.masked(senders, [VICTIM], updates=later)
    liar.open(survivors, headers)
    liar.reveal(key_list, confirms.values(), headers)
    return liar.finding(
        read=liar.loot.difference(VICTIM),
        truth=later[VICTIM].astype(np.float64) - liar.updates[VICTIM],
        detail="all of a session's requests and one site's old keys; wanted: the change of an update between rounds",
    )


def search_key(bits: int) -> Finding:
    """Try keys for the one mask that is left on an update. All else keeps to the protocol: of three sites one is the
    server's, and the victim's self-mask was opened, as for each survivor.

    Tried are the 2^bits keys whose other bits are zero, so that a key of few bits would be found, and the mask of an
    earlier session. The two check words at an update's end are known: a wrong key fits with probability 2^-128.
    """
    liar = Liar(3, min_sites=3, colluding=1)
    victim, colluding, _ = liar.names
    friend = Puppet.new(colluding, liar.identities[colluding])
    nothing = {name: np.zeros_like(update) for name, update in liar.updates.items()}
    (one, _), (other, _) = (_one_mask(liar, friend, session, nothing) for session in (1, 2))
    left, key_bits = _one_mask(liar, friend, 3, liar.updates)
    start = time.perf_counter()
    masks = [words(key, len(left)) for key in _fitting(left, bits)]
    rate = 2**bits / (time.perf_counter() - start)
    zero, _ = encode(nothing[victim], [], liar.encoding, key=bytes(32))
    read = (decoded(left - stream, liar.encoding) for stream in [*masks, one - zero])
    years = math.log10(2.0**key_bits / rate / YEAR)
    return liar.finding(
        read=next((values for values in read if values is not None), None),
        truth=liar.updates[victim],
        brief=f"a search of all 2^{key_bits} keys takes 10^{years:.0f} years",
        detail=f"2^{bits} keys tried, {rate:,.0f} a second on one core; a key has {key_bits} bits;"
        f" of {len(one)} words of two sessions' masks {int((one == other).sum())} are alike",
    )


def _one_mask(liar: Liar, friend: Puppet, session: int, updates: Mapping[str, Update]) -> tuple[Words, int]:
    """The victim's vector with no mask on it but the one that it shares with the honest site, and how many bits the
    keys of the others had.
    """
    own = liar.keys(session, [VICTIM, liar.names[2]])
    key_list = liar.key_list(session, [*own.values(), friend.keys(liar, session)])
    dealt = liar.shares(key_list, own)
    friend.unseal(liar, key_list, dealt[VICTIM])
    senders = liar.sender_list(key_list, [*dealt.values(), friend.shares(key_list)])
    headers = liar.masked(senders, own, updates=updates)
    liar.open(liar.survivor_list(senders, [*headers.values(), friend.header(senders)]), own)
    taken = liar.loot.newest(VICTIM)
    known = None if taken is None else liar.loot.streams(taken, within=(VICTIM, liar.names[2]))
    if taken is None or known is None:
        raise RunError("the server should know all masks of this update but one, and does not")
    left = taken.words.copy()
    mask(left, [(key, -sign) for key, sign in known])
    return left, 8 * min(len(key) for key, _ in known)


def _fitting(left: Words, bits: int) -> Iterator[bytes]:
    """The keys below 2^bits whose stream, taken away, leaves the check words."""
    first = (len(left) - len(CHECKS)) // 2 * 2
    wanted = (left[-len(CHECKS) :] - np.array(CHECKS, np.uint64)).tolist()
    for number in range(2**bits):
        key = number.to_bytes(KEY_BYTES, "little")
        if words(key, len(left) - first, start=first)[-len(CHECKS) :].tolist() == wanted:
            yield key
