"""Attacks on the last step: whose masks a site helps to take off."""

from simulations.attacks.finding import Finding
from simulations.attacks.liar import VICTIM, Liar


def split_survivors() -> Finding:
    """Show five sites different lists of survivors, each long enough: self-masks of two sites, and the masking keys of
    the three others, could come out from three sites each.

    No choice of lists gives the sum of one site alone: 4 keys from 3 sites each are 12 shares, and 5 sites that each
    miss at most 2 others open 10. The two that it could give are fewer than the three that are promised, and either of
    them can subtract its own part.
    """
    liar = Liar(5, min_sites=3)
    key_list, senders = liar.set_up()
    headers = liar.masked(senders, liar.names)
    shown = {"site-0": 2, "site-1": 3, "site-2": 2, "site-3": 3, "site-4": 4}  # beside sites 0 and 1
    for third in set(shown.values()):
        survivors = liar.survivor_list(senders, [headers[f"site-{place}"] for place in (0, 1, third)])
        asked = [name for name, place in shown.items() if place == third]
        confirms = liar.open(survivors, asked)
        liar.reveal(key_list, confirms.values(), asked)
    return liar.finding(
        VICTIM, "site-1", detail="five sites, three lists of three survivors; wanted: the sum of two sites"
    )


def both_shares() -> Finding:
    """Ask for the shares of everybody's self-mask, then name the victim as missing and ask for its masking key."""
    liar = Liar(4, min_sites=3)
    key_list, senders = liar.set_up()
    headers = liar.masked(senders, liar.names)
    peers = [name for name in liar.names if name != VICTIM]
    confirms = liar.open(liar.survivor_list(senders, headers.values()), liar.names)
    confirms = liar.open(liar.survivor_list(senders, [headers[name] for name in peers]), peers)
    liar.reveal(key_list, confirms.values(), peers)
    return liar.finding(VICTIM, detail="three peers, each asked for both shares of one site")


def own_sum() -> Finding:
    """Name survivors that are fewer than needed: to the victim itself alone, to each peer itself and the victim."""
    liar = Liar(4, min_sites=3)
    key_list, senders = liar.set_up()
    headers = liar.masked(senders, liar.names)
    for name in liar.names:
        survivors = liar.survivor_list(senders, [headers[each] for each in sorted({VICTIM, name})])
        confirms = liar.open(survivors, [name])
        liar.reveal(key_list, confirms.values(), [name])
    return liar.finding(VICTIM, detail="four sites, lists of one and two survivors; three are needed")
