"""How the answers to one attempt at a round are collected: added up as they come, none kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common import kinds, wire
from common.errors import MessageError, Reason
from common.kinds import Answering
from common.layout import layout_of
from common.study import Study
from server import rounds
from server.aggregate import VectorSum
from server.exchange import Exchange, Received


@dataclass(kw_only=True)
class Tally:
    """Bytes and seconds of each site, over all exchanges of an attempt."""

    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, site: str, received: Received) -> None:
        self.bytes_up[site] = self.bytes_up.get(site, 0) + received.bytes_up
        self.bytes_down[site] = self.bytes_down.get(site, 0) + received.bytes_down
        self.seconds[site] = round(self.seconds.get(site, 0.0) + received.seconds, 6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """What an attempt gave: how the round stands, and if it is closed the sum of the sites' vectors, as `layout_of`
    lays it out; how many of the values were cut off before they were encrypted.
    """

    round: rounds.Round
    tally: Tally
    total: NDArray[np.float64]
    saturated: int = 0


class Gathering(Protocol):
    """A way to the sum."""

    def gather(self, nodes: Mapping[int, str], order: wire.Order, state: rounds.Round) -> Gathered:
        """Ask these nodes, each a site, and add up what comes. The order carries the weights."""


class Clear:
    """Vectors in the clear: the server sees each of them, and adds it up at once."""

    def __init__(self, exchange: Exchange, study: Study) -> None:
        self._sites, self._study = exchange, study

    def gather(self, nodes: Mapping[int, str], order: wire.Order, state: rounds.Round) -> Gathered:
        length, tally = layout_of(self._study, answering(order)).length, Tally()
        total, deadline = VectorSum(length), self._study.study.round_deadline
        orders = dict.fromkeys(sorted(nodes, key=nodes.__getitem__), order)
        for received in self._sites.ask(orders, length=length, deadline=deadline):
            site, reason = nodes[received.node], verdict(received, nodes[received.node])
            if reason is Reason.OK and received.answer is not None and received.answer.vector is not None:
                try:
                    total.add(received.answer.vector)
                except MessageError:
                    reason = Reason.MALFORMED
            state = rounds.step(state, rounds.Replied(site=site, reason=reason))
            tally.add(site, received)
            if state.outcome == "abandoned":
                break
        return Gathered(round=state, tally=tally, total=total.total())


def answering(order: wire.Order) -> Answering:
    """The order's kind, if it is answered with a vector. Raises ValueError."""
    kind = kinds.answering(order.kind)
    if kind is None:
        raise ValueError(f"an order of kind {order.kind} has no vector")
    return kind


def verdict(received: Received, site: str) -> Reason:
    """An answer in another site's name is malformed."""
    return Reason.MALFORMED if received.answer is not None and received.answer.site != site else received.reason
