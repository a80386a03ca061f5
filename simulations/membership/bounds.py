"""How much privacy was lost at least, from how well somebody told who was in: lower bounds on epsilon."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import beta, binom

from common.accounting import gaussian_epsilon

LEVEL = 0.05  # chance that a bound is above the truth, at most
MOST = 50.0  # a bound is looked for up to here: beyond, epsilon says nothing
Scores = NDArray[np.float64]
Present = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a threshold on scores made of canaries: wrong guesses among those left out and among those put in."""

    false_alarms: int
    absent: int
    misses: int
    present: int

    @property
    def most_false_alarms(self) -> float:
        """Upper end of the 95 % interval of the rate."""
        return float(upper(self.false_alarms, self.absent))

    @property
    def most_misses(self) -> float:
        """Upper end of the 95 % interval of the rate."""
        return float(upper(self.misses, self.present))


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound on epsilon, and the rates on which it rests."""

    epsilon: float
    rates: Rates


def upper(wrong: NDArray[np.int64] | int, of: int) -> NDArray[np.float64]:
    """Upper end of the two-sided interval for a rate, from numbers of wrong guesses.

    Two such ends, of two rates, both hold with probability 1 - LEVEL.
    Edge case: nothing was guessed, or all wrong: 1.
    Source: Clopper, Pearson 1934.
    """
    wrong = np.asarray(wrong)
    found: NDArray[np.float64] = np.where(
        wrong < of, beta.ppf(1 - LEVEL / 2, wrong + 1, np.maximum(of - wrong, 1)), 1.0
    )
    return found


def gaussian(rates: Rates, *, delta: float) -> float:
    """Epsilon at `delta` of the weakest Gaussian mechanism whose errors can be as rare: mu is at least
    -z(false alarms) - z(misses), z the normal quantile.

    Source: Dong, Roth, Su 2022, "Gaussian differential privacy", Definition 3 and Corollary 1. Nasr et al. 2023, "Tight
    auditing of differentially private machine learning", section 4.2: noised steps are nearly such a mechanism.
    """
    mu = -float(ndtri(rates.most_false_alarms)) - float(ndtri(rates.most_misses))  # -inf where one of them is 1
    return gaussian_epsilon(mu=mu, delta=delta) if mu > 0 else 0.0


def free(rates: Rates, *, delta: float) -> float:
    """Epsilon at `delta` of whatever mechanism: P(miss) + e^epsilon P(false alarm) >= 1 - delta, and the reverse.

    Source: Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy", Theorem 2.1.
    """
    return max(0.0, float(_free(np.array(rates.most_false_alarms), np.array(rates.most_misses), delta)))


def _free(false_alarms: Scores, misses: Scores, delta: float) -> Scores:
    def one(rare: Scores, other: Scores) -> Scores:
        return np.log(np.maximum(1 - delta - other, 1e-300) / rare)

    return np.maximum(one(false_alarms, misses), one(misses, false_alarms))


def lower_bounds(scores: Scores, present: Present, *, delta: float) -> tuple[Bound, Bound]:
    """Bounds on epsilon at `delta`, Gaussian and distribution-free, from scores that are high for who was in [m].

    Every other canary chooses the thresholds, the rest give the rates, so that a choice among many costs nothing. For
    the Gaussian bound the threshold with the fewest wrong guesses: near the middle, where rates are known best, and not
    drawn to the ends by chance. For the other the one with the best bound: it lives on guesses that are rare and sure.

    Guarantees: each is above the truth with probability at most LEVEL; the Gaussian one where the mechanism is.
    Raises ValueError for scores that are not numbers, or where nobody was in, or everybody.
    """
    if np.isnan(scores).any():
        raise ValueError("a canary's score is not a number")
    for half in (present[::2], present[1::2]):
        if not 0 < half.sum() < len(half):
            raise ValueError(f"{half.sum()} of {len(half)} canaries are in: some must be, and some not")
    thresholds = np.unique(scores[::2])
    false_alarms, absent, misses, inside = _wrong(scores[::2], present[::2], thresholds)
    fewest = np.argmin(false_alarms / absent + misses / inside)
    surest = np.argmax(_free(upper(false_alarms, absent), upper(misses, inside), delta))
    one, other = (_judged(scores[1::2], present[1::2], float(thresholds[best])) for best in (fewest, surest))
    return (
        Bound(epsilon=gaussian(one, delta=delta), rates=one),
        Bound(epsilon=free(other, delta=delta), rates=other),
    )


def _wrong(
    scores: Scores, present: Present, thresholds: Scores
) -> tuple[NDArray[np.int64], int, NDArray[np.int64], int]:
    """False alarms at each threshold, of how many, and misses, of how many: who scores as much is guessed to be in."""
    absent, inside = np.sort(scores[~present]), np.sort(scores[present])
    false_alarms = len(absent) - np.searchsorted(absent, thresholds)
    return false_alarms, len(absent), np.searchsorted(inside, thresholds), len(inside)


def _judged(scores: Scores, present: Present, threshold: float) -> Rates:
    false_alarms, absent, misses, inside = _wrong(scores, present, np.array([threshold]))
    return Rates(false_alarms=int(false_alarms[0]), absent=absent, misses=int(misses[0]), present=inside)


def one_run(*, canaries: int, guesses: int, correct: int, delta: float, level: float = LEVEL) -> float:
    """A lower bound on epsilon at `delta`, for whatever mechanism: of `canaries` that fair coins put in or left out,
    somebody guessed `guesses` from one run's outcome, and was right on `correct` of them.

    Guarantees: above the truth with probability at most `level`, however the canaries act on each other; the number of
    guesses must not depend on the coins. 0 where it proves nothing.
    Raises ValueError unless 0 <= correct <= guesses <= canaries.
    Source: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", Theorem 5.2: correct guesses
    are at most as many as of randomised response with epsilon, but for delta.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} correct of {guesses} guesses on {canaries} canaries")

    def excess(epsilon: float) -> float:
        return math.log(max(_p_value(epsilon, canaries, guesses, correct, delta), 1e-300) / level)

    if excess(0.0) >= 0:
        return 0.0
    return MOST if excess(MOST) < 0 else float(brentq(excess, 0.0, MOST, xtol=1e-9))


def _p_value(epsilon: float, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """Most that as many correct guesses can be worth under (epsilon, delta)-privacy."""
    right = 1 / (1 + math.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))  # P(correct - i <= W < correct)
    steepest = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return float(binom.sf(correct - 1, guesses, right)) + 2 * canaries * delta * steepest
