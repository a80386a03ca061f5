"""Frozen privacy events: what a site released about one pool of patients, in the terms that accounts are made of.

The mechanism is always a Gaussian on a Poisson sample of patients; two data sets are neighbours when one has one
patient more. Noise multipliers are in units of the bound on the norm of one patient's part.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from common.errors import FederationError, Reason

UNIT = "patient"
NEIGHBOURS = "add or remove one patient"

Pool = Literal["train", "validation", "test"]

GRID = 2.0**-20  # of the norm's bound: the integers that sums and noise are rounded to
HISTOGRAM_NOISE_MULTIPLIER = 10.0
HISTOGRAM_ORDERS = 2  # charged at most in a study: one, and one more where the sum of the first came to nothing
EPSILON_LIMIT = 50.0  # above it a figure says nothing, and the numerical accountant's grid grows without bound
LEAST_EPSILON, LEAST_DELTA, MOST_DELTA = 0.01, 1e-10, 0.01
LEAST_NOISE, MOST_NOISE = 0.05, 1e6
LEAST_RATE = 1e-6
MOST_STEPS = 1_000_000


class AccountingError(FederationError):
    """A privacy event, limit or plan that can't be accounted for: out of range, too large, or of another pool."""

    code = Reason.POLICY


@dataclass(frozen=True, kw_only=True)
class Event:
    """`steps` equal releases of a sum over `pool`: each patient enters each with probability `sample_rate`,
    independently; parts have norm at most 1 unit; Gaussian noise of `noise_multiplier` units is added to the sum.

    `grid`: the width, in units, of the integers that sum and noise are rounded to before they are added. For
    "gaussian" that is a rounding of the finished sum and costs nothing; a mechanism with noise on the grid needs it.

    Guarantees: a value in range; to JSON and back gives an equal value, bit by bit.

    Raises: AccountingError for a value out of range or of a wrong type, NaN and infinities included.
    """

    mechanism: Literal["gaussian"] = "gaussian"
    sample_rate: float
    noise_multiplier: float
    steps: int
    grid: float = GRID
    pool: Pool

    def __post_init__(self) -> None:
        if self.mechanism != "gaussian":
            raise AccountingError(f"mechanism = {self.mechanism!r}: only 'gaussian' is known")
        if self.pool not in get_args(Pool):
            raise AccountingError(f"pool = {self.pool!r}: one of {', '.join(get_args(Pool))}")
        check_number("sample_rate", self.sample_rate, LEAST_RATE, 1)
        check_number("noise_multiplier", self.noise_multiplier, LEAST_NOISE, MOST_NOISE)
        check_number("grid", self.grid, 2.0**-60, 1)
        check_count("steps", self.steps, 1, MOST_STEPS)
        for name in ("sample_rate", "noise_multiplier", "grid"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Plain values under the fields' names."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The event that `to_json` wrote. Raises AccountingError when a field is missing, unknown or out of range."""
        return cls(**exactly(cls, values))


def histogram_event(*, grid: float = GRID) -> Event:
    """One class histogram of the training pool: each patient adds a vector of norm 1 at most; noise multiplier 10."""
    return Event(sample_rate=1.0, noise_multiplier=HISTOGRAM_NOISE_MULTIPLIER, steps=1, grid=grid, pool="train")


def steps_of(*, rounds: int, spare_rounds: int, local_steps: int) -> int:
    """(rounds + spare_rounds) x local_steps: noised steps that a site may take in a study, failed attempts included.

    Raises: AccountingError for rounds or local steps below 1, spare rounds below 0, or more than a million in all.
    """
    check_count("rounds", rounds, 1, MOST_STEPS)
    check_count("spare_rounds", spare_rounds, 0, MOST_STEPS)
    check_count("local_steps", local_steps, 1, MOST_STEPS)
    steps = (rounds + spare_rounds) * local_steps
    check_count("(rounds + spare_rounds) x local_steps", steps, 1, MOST_STEPS)
    return steps


def check_limits(*, epsilon: float, delta: float) -> None:
    """Raises AccountingError unless epsilon is in [0.01, 50] and delta in [1e-10, 0.01]: what can be computed and
    means something. NaN is neither.
    """
    check_number("epsilon", epsilon, LEAST_EPSILON, EPSILON_LIMIT)
    check_number("delta", delta, LEAST_DELTA, MOST_DELTA)


def check_delta(delta: float, *, nominal_patients: int) -> None:
    """Raises AccountingError when delta is above 1 / (10 x nominal_patients): with much more, a mechanism that
    publishes one whole patient now and then would pass.
    """
    check_count("nominal_patients", nominal_patients, 1, 10**9)
    most = 1 / (10 * nominal_patients)
    if not 0 < delta <= most:
        raise AccountingError(
            f"delta = {delta:g}: at most 1 / (10 x nominal_patients) = {most:g} for {nominal_patients} patients"
        )


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Raises AccountingError unless value is an int or float in [least, most]; NaN is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise AccountingError(f"{name} = {value!r}: a number from {least:g} to {most:g}")


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Raises AccountingError unless value is an int in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise AccountingError(f"{name} = {value!r}: a whole number from {least} to {most}")


def exactly(kind: type, values: object) -> dict[str, Any]:
    """The values of a dataclass's fields: all of them and no others, else AccountingError."""
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or values.keys() != names:
        raise AccountingError(f"{kind.__name__}: needs exactly the fields {', '.join(sorted(names))}")
    return values
