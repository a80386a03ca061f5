"""The sum as it grows, and the server's optimisers: all that the server computes from what sites send."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import MessageError
from common.layout import Layout
from common.metrics import Sums
from common.parts import Aggregation

FRACTION_BITS = 32  # of the fixed-point numbers in which vectors are added
_LIMIT = 2.0 ** (62 - FRACTION_BITS)
_BLOCK = 1 << 20  # values at a time, so that adding needs no second vector's memory


class VectorSum:
    """Sites' vectors added as they arrive, in memory that does not depend on how many there are.

    Guarantees: the sum is the same bits in whatever order the vectors come (64-bit integers with 32 fractional bits are
    added, and integer addition has no rounding); it differs from the exact sum by at most 2^-33 per vector and value; a
    vector that could overflow the sum is refused before anything is added.
    Raises MessageError for a vector of another length, one that isn't finite, or one too large.
    """

    def __init__(self, length: int) -> None:
        self._sum = np.zeros(length, np.int64)
        self._bound = 0.0

    def add(self, vector: NDArray[np.float32]) -> None:
        """Add one site's vector."""
        if vector.shape != self._sum.shape:
            raise MessageError(f"a vector of {vector.size} values for a sum of {self._sum.size}")
        largest = float(np.max(np.abs(vector), initial=0.0))
        if not self._bound + largest < _LIMIT:  # so written that NaN is refused
            raise MessageError("values not finite, or too large to be added")
        self._bound += largest
        for start in range(0, vector.size, _BLOCK):
            block = vector[start : start + _BLOCK].astype(np.float64)
            self._sum[start : start + _BLOCK] += np.rint(block * 2.0**FRACTION_BITS).astype(np.int64)

    def total(self) -> NDArray[np.float64]:
        """The sum so far."""
        return self._sum / 2.0**FRACTION_BITS


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundSum:
    """A closed round: mean update of the sites, its total weight, and the metric sums."""

    mean: NDArray[np.float64] | None  # None when no site had anything to give
    sums: Sums


def close(total: NDArray[np.float64], layout: Layout, *, public_weight: float = 0.0) -> RoundSum:
    """Divide the weighted updates by the weights' sum: the one that the sites sent, or under `[privacy]` the public one
    of the sites in the sum. A total weight of 0 (no site had training data) leaves no mean.
    """
    sums = layout.unpack_sums(total[layout.tensor_length :])
    weight = float(sums.pop("weight", np.asarray(public_weight)))
    mean = total[: layout.tensor_length] / weight if weight > 0 and layout.tensors else None
    return RoundSum(mean=mean, sums=sums)


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """What the server's optimiser carries from round to round: trained weights float32 [n], moments float64 [n] or
    empty.
    """

    weights: NDArray[np.float32]
    momentum: NDArray[np.float64]
    second_moment: NDArray[np.float64]


def initial(weights: NDArray[np.float32], aggregation: Aggregation) -> ServerState:
    """The state before round 1. Only the moments that the algorithm uses take memory."""
    adaptive = aggregation.algorithm in ("fedadam", "fedyogi")
    n = weights.size
    return ServerState(
        weights=weights,
        momentum=np.zeros(n if adaptive or aggregation.server_momentum > 0 else 0),
        second_moment=np.full(n, aggregation.tau**2) if adaptive else np.zeros(0),
    )


def apply(state: ServerState, mean: NDArray[np.float64] | None, aggregation: Aggregation) -> ServerState:
    """The weights after a round whose mean update is `mean` (local minus global); unchanged when there is none.

    Source: FedAvg: McMahan et al. 2017; server momentum: Hsu et al. 2019; FedAdam, FedYogi: Reddi et al. 2021,
    algorithm 2 (second moment starts at tau^2, no bias correction).
    """
    if mean is None:
        return state
    rate, momentum, second = aggregation.server_learning_rate, state.momentum, state.second_moment
    if aggregation.algorithm in ("fedadam", "fedyogi"):
        squared = mean**2
        momentum = aggregation.beta1 * momentum + (1 - aggregation.beta1) * mean
        if aggregation.algorithm == "fedadam":
            second = aggregation.beta2 * second + (1 - aggregation.beta2) * squared
        else:
            second = second - (1 - aggregation.beta2) * squared * np.sign(second - squared)
        change = rate * momentum / (np.sqrt(second) + aggregation.tau)
    elif aggregation.server_momentum > 0:
        momentum = aggregation.server_momentum * momentum + mean
        change = rate * momentum
    else:
        change = rate * mean
    weights = (state.weights.astype(np.float64) + change).astype(np.float32)
    if not math.isfinite(float(np.sum(weights, dtype=np.float64))):
        raise MessageError("the new weights are not finite: lower the learning rates")
    return ServerState(weights=weights, momentum=momentum, second_moment=second)
