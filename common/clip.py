"""From per-patient gradients to an integer sum whose sensitivity is known, and from there to what may be released.

The guarantee rests on these functions and on `common.noise`. In the order of use: `factors` bounds each patient, the
caller adds the scaled gradients up in float64, `to_grid` rounds the sum to whole steps of a public grid, `release`
adds noise in whole steps and only then divides by a public number.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLACK = 2.0**-7  # share of the clip norm that is not used
GRID_STEPS = 2**20  # steps of the grid that make up the sensitivity
LARGEST = 36_000_000  # values in a sum whose rounding the slack can pay


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long one patient's contribution may be: one clip norm for each group of parameters (mostly there is one).

    Noise is calibrated to `sensitivity`; gradients are clipped to the clip norm times (1 - 2^-7). The 0.8 % in between,
    8,192 grid steps, pay for everything that arithmetic adds to a patient's contribution: rounding the sum to the grid
    (at most sqrt(values) steps, 6,000 at the largest size allowed), norms and sums in float32 within a micro-batch
    (about 1e-5), and other patients whose results change in the last bits because the micro-batches are cut elsewhere.
    """

    clip_norms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.clip_norms or not all(2.0**-40 <= norm <= 2.0**40 for norm in self.clip_norms):
            raise ValueError(f"clip norms {self.clip_norms}: at least one, each between 2^-40 and 2^40")

    @property
    def sensitivity(self) -> float:
        """Most that one patient can change the sum, in L2 norm: root of the sum of the squared clip norms."""
        return math.hypot(*self.clip_norms)

    @property
    def grid(self) -> float:
        """Size of one step of the grid; public."""
        return self.sensitivity / GRID_STEPS


@dataclass(frozen=True, kw_only=True, eq=False)
class GridSum:
    """A sum over patients in whole steps of `bounds.grid`. Not for release: it holds no noise.

    Guarantees: with one patient more or less it differs by at most GRID_STEPS in L2 norm.
    """

    steps: NDArray[np.int64]
    bounds: Bounds


def factors(norms: NDArray[np.float64], bounds: Bounds, *, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each patient's gradient is multiplied by, [patients, groups], from its L2 norms [patients, groups].

    Guarantees: norm x factor <= clip norm x (1 - 2^-7) x weight in each group; gradients within that bound keep their
    length but for the weight; the patient's weight in [0, 1] multiplies what is clipped already.
    Edge cases: a norm of 0 gives the weight; one that is infinite or not a number gives 0 in all groups.
    Raises ValueError for a weight outside [0, 1].
    """
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError("a weight outside [0, 1]: more than 1 would break the bound")
    limits = np.asarray(bounds.clip_norms) * (1 - SLACK)
    usable = np.isfinite(norms).all(axis=1, keepdims=True)
    lengths = np.where(usable, norms, 1.0)
    scale = np.minimum(1.0, np.divide(limits, lengths, out=np.ones_like(lengths), where=lengths > 0))
    return np.where(usable, scale * weights[:, None], 0.0)


def to_grid(total: NDArray[np.float64], bounds: Bounds) -> GridSum:
    """The sum of clipped gradients in whole steps of the grid, each value rounded to the nearest.

    Raises ValueError for more than 36 million values: the rounding could be longer than the slack.
    """
    if total.size > LARGEST:
        raise ValueError(f"{total.size} values: the slack of the clip pays for the rounding of {LARGEST} at most")
    return GridSum(steps=np.rint(total / bounds.grid).astype(np.int64), bounds=bounds)


def release(exact: GridSum, noise: NDArray[np.int64], *, divisor: float) -> NDArray[np.float32]:
    """Sum plus noise, added as integers, then divided by the public divisor: what may leave the site.

    Raises ValueError for a divisor that is not a positive number, or noise of another shape.
    """
    if not 0 < divisor < math.inf:
        raise ValueError(f"divisor = {divisor}: sample_rate x nominal_patients is a positive number")
    if noise.shape != exact.steps.shape:
        raise ValueError(f"noise of shape {noise.shape} for a sum of shape {exact.steps.shape}")
    return ((exact.steps + noise) * (exact.bounds.grid / divisor)).astype(np.float32)
