"""The ledger's filter: privacy spent at one Renyi order, added exactly, against a limit fixed for life."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self

from common.event import AccountingError, Event, check_limits, exactly
from common.renyi import best_order, rdp_to_epsilon, renyi_limit, sampled_gaussian_rdp


@dataclass(frozen=True, kw_only=True)
class Filter:
    """As long as every release is an event and the events' cost stays at or below `limit`, all that was released is
    together (epsilon, delta)-private for the patients of one pool, whatever the studies were, however they were
    interleaved and however each was chosen after seeing the earlier ones.

    `order`: the one Renyi order of this account; `limit`: in nats, at that order.

    Guarantees: a limit that does not prove (epsilon, delta) can't be made; to JSON and back gives an equal value.

    Raises: AccountingError for a value out of range, NaN included, or a limit above what the order can prove.

    Source: Feldman, Zrnic 2021, "Individual privacy accounting via a Renyi filter", Theorem 4.3 (adaptively chosen
    parameters at one order); Lyu 2022, "Composition theorems for interactive differential privacy" (interleaved);
    conversion: `common.renyi.renyi_limit`.
    """

    epsilon: float
    delta: float
    order: float
    limit: float

    def __post_init__(self) -> None:
        check_limits(epsilon=self.epsilon, delta=self.delta)
        for name in ("order", "limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise AccountingError(f"{name} = {value!r}: a number")
        if not 1 < self.order <= 1e5:
            raise AccountingError(f"order = {self.order!r}: above 1, at most 100000")
        most = renyi_limit(epsilon=self.epsilon, delta=self.delta, order=self.order)
        if not 0 < self.limit <= most * (1 + 1e-12):
            raise AccountingError(
                f"limit = {self.limit!r}: above 0, at most {most!r}, which is all that order {self.order!r} can prove"
            )
        for name in ("epsilon", "delta", "order", "limit"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def of(cls, *, epsilon: float, delta: float) -> Self:
        """The filter for these limits at the order at which a Gaussian that fills them is tight.

        Raises: AccountingError when a limit is out of range.
        """
        check_limits(epsilon=epsilon, delta=delta)
        order = best_order(epsilon=epsilon, delta=delta)
        return cls(
            epsilon=epsilon, delta=delta, order=order, limit=renyi_limit(epsilon=epsilon, delta=delta, order=order)
        )

    def cost(self, events: Iterable[Event]) -> Fraction:
        """What these events take, as an exact sum of their steps' costs.

        Guarantees: the cost of a whole is the sum of the costs of its parts, without rounding; so what fits as a plan
        fits step by step.

        Raises: AccountingError for events of two pools.
        """
        events = tuple(events)
        if len({event.pool for event in events}) > 1:
            raise AccountingError("events of two pools in one account: one account per pool")
        return sum((event.steps * self._step(event) for event in events), Fraction(0))

    def _step(self, event: Event) -> Fraction:
        return Fraction(_rdp(event.sample_rate, event.noise_multiplier, self.order))

    def left(self, spent: Iterable[Event]) -> Fraction:
        """What may still be taken after these events; below 0 if they took too much."""
        return Fraction(self.limit) - self.cost(spent)

    def admits(self, events: Iterable[Event], *, spent: Iterable[Event]) -> bool:
        """Whether these events, all of them, still fit after those that are spent."""
        return self.cost(events) <= self.left(spent)

    def needs(self, plan: Iterable[Event], *, spent: Iterable[Event]) -> float:
        """The share of what is left that a plan takes: 1.16 is too much by 16 %.

        Edge cases: inf when nothing is left; 0 for an empty plan.
        """
        cost, left = self.cost(plan), self.left(spent)
        if not cost:
            return 0.0
        return float(cost / left) if left > 0 else math.inf

    def epsilon_spent(self, spent: Iterable[Event]) -> float:
        """The epsilon at `delta` that this account proves for what is spent; 0 for nothing.

        Guarantees: at most `epsilon` as long as nothing beyond `limit` was admitted.
        """
        cost = self.cost(spent)
        return rdp_to_epsilon(rdp=float(cost), order=self.order, delta=self.delta) if cost else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values under the fields' names."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The filter that `to_json` wrote. Raises AccountingError when a field is missing, unknown or out of range."""
        return cls(**exactly(cls, values))


def rdp_of(event: Mapping[str, Any], /, *, order: float) -> float:
    """What an event, as JSON, costs at a Renyi order, in nats: all its steps.

    Raises AccountingError when it is no event.
    """
    parsed = Event.from_json(event)
    return parsed.steps * _rdp(parsed.sample_rate, parsed.noise_multiplier, order)


@lru_cache(maxsize=1024)
def _rdp(sample_rate: float, noise_multiplier: float, order: float) -> float:
    return sampled_gaussian_rdp(sample_rate=sample_rate, noise_multiplier=noise_multiplier, order=order)
