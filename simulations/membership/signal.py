"""What the messages of a site show of one canary: a signal if he was in, and noise in any case.

All is in units of the clip norm, of the sum over patients: times the public divisor of the update, over its step.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from common.event import Event
from simulations.membership.bounds import Scores, lower_bounds

UNLIKELY = 4.0  # standard errors: a measured noise so much below the promise is no accident (1 in 30,000)
_IDEAL_RUNS = 4  # enough to know what to expect within half of its scatter


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise where a canary was left out, as the site sent it: nothing else is there.

    `measured` over `promised`, both standard deviations of an order in clip norms; `repeated`: correlation of one
    order's noise with the next one's (None: there was one order); each with its standard error.
    """

    measured: float
    promised: float
    measured_error: float
    repeated: float | None
    repeated_error: float

    @property
    def short(self) -> bool:
        """Less than promised, by more than chance allows."""
        return not self.measured >= self.promised - UNLIKELY * self.measured_error

    @property
    def reused(self) -> bool:
        """The same noise twice: the difference of two orders would be without."""
        return self.repeated is not None and not abs(self.repeated) <= UNLIKELY * self.repeated_error


def score(seen: Scores, event: Event) -> Scores:
    """How much likelier it is that a canary was in, from what was seen of him in each order: [orders, m] to [m].

    The logarithm of the likelihood ratio: he was drawn in k of an order's n steps, k binomial, and all that is seen is
    the sum. With n = 1: log(1 - q + q exp((2u - 1) / (2 sigma^2))).
    """
    steps, rate = event.steps, event.sample_rate
    drawn = np.arange(steps + 1)
    weights = gammaln(steps + 1) - gammaln(drawn + 1) - gammaln(steps - drawn + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = weights + np.where(drawn > 0, drawn * np.log(rate), 0.0)
        weights = weights + np.where(drawn < steps, (steps - drawn) * np.log1p(-rate), 0.0)
    variance = 2 * steps * event.noise_multiplier**2
    total = np.zeros(seen.shape[1])
    for order in seen:
        total += logsumexp(weights + (2 * np.outer(order, drawn) - drawn**2) / variance, axis=1)
    return total


def noise_of(absent: Scores, event: Event) -> Noise:
    """What the noise looks like where no canary was: [orders, absent canaries]."""
    promised = event.noise_multiplier * math.sqrt(event.steps)
    square = float(np.mean(absent**2))
    pairs = absent[1:] * absent[:-1]
    repeated = None if not pairs.size else float(np.mean(pairs)) / square if square else 1.0
    return Noise(
        measured=math.sqrt(square),
        promised=promised,
        measured_error=promised / math.sqrt(2 * absent.size),
        repeated=repeated,
        repeated_error=1 / math.sqrt(max(1, pairs.size)),
    )


def expected(event: Event, *, orders: int, canaries: int, delta: float) -> float:
    """The Gaussian bound on epsilon, on average, of canaries who are seen with just the noise that was promised."""
    rng, present = np.random.default_rng(), np.arange(canaries) % 4 < 2  # as many of each in either half
    found = []
    for _ in range(_IDEAL_RUNS):
        drawn = rng.binomial(event.steps, event.sample_rate * present, (orders, canaries))
        noise = event.noise_multiplier * math.sqrt(event.steps) * rng.normal(size=drawn.shape)
        found.append(lower_bounds(score(drawn + noise, event), present, delta=delta)[0].epsilon)
    return float(np.mean(found))
