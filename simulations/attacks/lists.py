"""Attacks on what a session rests on: who takes part, by which keys, and what they were asked."""

from dataclasses import replace

import numpy as np

from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.session import HASH
from simulations.attacks.finding import Finding
from simulations.attacks.liar import ORDER, VICTIM, Liar, Puppet

OTHER_ORDER = b"another order".ljust(HASH, b"\0")


def split_keys() -> Finding:
    """Show the victim two lists of keys, and half of its peers each of them: in the one it survives and its self-mask
    is opened, in the other it goes missing and its masking key is.
    """
    liar = Liar(5, min_sites=2)
    keys = liar.keys(1, liar.names)
    shown = [liar.key_list(1, [keys[f"site-{place}"] for place in places]) for places in ((0, 1, 2), (0, 3, 4))]
    stays, leaves = (liar.shares(key_list, key_list.places) for key_list in shown)
    if VICTIM in stays:
        senders = liar.sender_list(shown[0], stays.values())
        headers = liar.masked(senders, stays)
        liar.open(liar.survivor_list(senders, headers.values()), headers)
    if VICTIM not in leaves:  # it has refused: its message to the others may do
        leaves = {**leaves, VICTIM: stays[VICTIM]}
    senders = liar.sender_list(shown[1], leaves.values())
    headers = liar.masked(senders, ["site-3", "site-4"])
    confirms = liar.open(liar.survivor_list(senders, headers.values()), headers)
    liar.reveal(shown[1], confirms.values(), confirms)
    return liar.finding(VICTIM, detail="five sites, two lists of three that share the victim")


def split_orders() -> Finding:
    """Give the victim's peers weights from which training changes nothing (all units dead), so that the sum is the
    victim's update. Source: Pasquini, Francati, Ateniese 2022, "Eluding Secure Aggregation in Federated Learning via
    Model Inconsistency".
    """
    liar = Liar(4, min_sites=3)
    key_list = liar.key_list(1, liar.keys(1, liar.names).values())
    shares = liar.shares(key_list, liar.names).values()
    orders = [liar.sender_list(key_list, shares, order=order) for order in (ORDER, OTHER_ORDER)]
    peers = [name for name in liar.names if name != VICTIM]
    nothing = {name: np.zeros_like(liar.updates[name]) for name in peers}
    headers = liar.masked(orders[0], [VICTIM]) | liar.masked(orders[1], peers, updates=nothing)
    liar.open(liar.survivor_list(orders[0], headers.values()), [VICTIM])
    liar.open(liar.survivor_list(orders[1], headers.values()), peers)
    return liar.finding(
        *liar.names,
        read=liar.loot.sum_of(*liar.names),
        truth=liar.updates[VICTIM],
        detail="four sites in one session, one with another order; wanted: the sum, which is the victim's update",
    )


def forged_keys() -> Finding:
    """Show the victim keys that the server made in its peers' names: unsigned, then with a signature of its own."""
    liar = Liar(4, min_sites=3)
    forger = Identity.new()
    puppets = [Puppet.new(name, forger) for name in liar.names if name != VICTIM]
    return _alone(liar, puppets, detail="three peers' keys made by the server; nobody but the victim was asked")


def strangers() -> Finding:
    """Fill the session with sites of the server's own invention, each with an identity that fits its signatures."""
    liar = Liar(3, min_sites=3)
    puppets = [Puppet.new(f"stranger-{place}", Identity.new()) for place in range(2)]
    return _alone(liar, puppets, detail="the victim and two sites that are not in its roster")


def _alone(liar: Liar, puppets: list[Puppet], *, detail: str) -> Finding:
    """A session of the victim and nobody: its shares come to the server."""
    own, invented = liar.keys(1, [VICTIM]), [puppet.keys(liar, 1) for puppet in puppets]
    unsigned = [replace(keys, signed=replace(keys.signed, signature=bytes(SIGNATURE_BYTES))) for keys in invented]
    for others in (unsigned, invented):
        key_list = liar.key_list(1, [*own.values(), *others])
        dealt = liar.shares(key_list, [VICTIM])
        if dealt:
            break
    else:
        return liar.finding(VICTIM, detail=detail)
    for puppet in puppets:
        puppet.unseal(liar, key_list, dealt[VICTIM])
    senders = liar.sender_list(key_list, [*dealt.values(), *(puppet.shares(key_list) for puppet in puppets)])
    liar.masked(senders, [VICTIM])
    return liar.finding(VICTIM, detail=detail)
