"""Lower bounds on epsilon: against closed forms, published figures and mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest
from scipy import stats

from common.accounting import calibrate, gaussian_mu
from common.event import Event
from simulations.membership import bounds
from simulations.membership.bounds import Rates, free, gaussian, lower_bounds, one_run, upper
from simulations.membership.signal import expected, noise_of, score

DELTA = 1e-5


def test_the_upper_end_is_clopper_and_pearsons() -> None:
    assert float(upper(0, 100)) == pytest.approx(1 - 0.025 ** (1 / 100))
    assert float(upper(7, 7)) == 1 and float(upper(0, 0)) == 1
    for wrong, of in ((3, 20), (19, 20), (250, 500)):
        interval = stats.binomtest(wrong, of).proportion_ci(0.95, method="exact")
        assert float(upper(wrong, of)) == pytest.approx(interval.high)


def test_bounds_from_rates_in_closed_form() -> None:
    rates = Rates(false_alarms=0, absent=100, misses=0, present=100)
    rare = 1 - 0.025 ** (1 / 100)
    assert free(rates, delta=DELTA) == pytest.approx(math.log((1 - DELTA - rare) / rare))
    mu = 2 * stats.norm.isf(rare)  # both errors as rare as this
    epsilon = gaussian(rates, delta=DELTA)
    assert stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(
        -mu / 2 - epsilon / mu
    ) == pytest.approx(DELTA, rel=1e-4)
    blind = Rates(false_alarms=50, absent=100, misses=50, present=100)
    for nothing in (blind, Rates(false_alarms=100, absent=100, misses=0, present=100)):
        assert gaussian(nothing, delta=DELTA) == 0 and free(nothing, delta=DELTA) == 0


def seen(mu: float, canaries: int, rng: np.random.Generator) -> tuple[bounds.Scores, bounds.Present]:
    present = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * present, present


def test_the_gaussian_bound_is_below_the_truth_and_not_far() -> None:
    """A Gaussian mechanism of known epsilon, 200 times: chance admits at most 5 % of bounds above it (16 of 200 at one
    in 100), and one whose mu is 40 % larger is found in most cases."""
    rng, mu = np.random.default_rng(1), gaussian_mu(epsilon=8, delta=DELTA)
    found = np.array([[one.epsilon for one in lower_bounds(*seen(mu, 2000, rng), delta=DELTA)] for _ in range(200)])
    assert (found[:, 0] > 8).sum() <= 16 and 6.2 < found[:, 0].mean() < 7.2
    assert (found[:, 1] > 8).sum() <= 16 and 1 < found[:, 1].mean() < 4
    more = [lower_bounds(*seen(1.4 * mu, 2000, rng), delta=DELTA)[0].epsilon for _ in range(50)]
    assert (np.array(more) > 8).mean() > 0.8


def test_every_other_canary_chooses_and_the_rest_count() -> None:
    present = np.arange(40) % 4 < 2
    scores = np.where(present, 1.0, 0.0)
    scores[1::2] = 0.5  # the threshold of the choosing half is 1: nobody of these is accused or found
    one, other = lower_bounds(scores, present, delta=DELTA)
    for bound in (one, other):
        assert bound.rates == Rates(false_alarms=0, absent=10, misses=10, present=10) and bound.epsilon == 0


def test_scores_that_say_nothing_are_refused() -> None:
    present = np.arange(8) % 4 < 2
    with pytest.raises(ValueError, match="not a number"):
        lower_bounds(np.full(8, np.nan), present, delta=DELTA)
    with pytest.raises(ValueError, match="some must be"):
        lower_bounds(np.zeros(8), np.ones(8, bool), delta=DELTA)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],  # arXiv:2305.08846v1, pages 46 and 28
)
def test_the_one_run_bound_is_that_of_the_paper(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    found = one_run(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert found == pytest.approx(published, abs=1e-3)  # the paper rounds one figure and truncates the other


def test_the_one_run_bound_in_closed_form_and_at_its_ends() -> None:
    right = 0.05 ** (1 / 50)  # all of 50 right happens with probability 0.05
    assert one_run(canaries=50, guesses=50, correct=50, delta=0) == pytest.approx(math.log(right / (1 - right)))
    assert one_run(canaries=50, guesses=50, correct=28, delta=0) == 0
    assert one_run(canaries=50, guesses=50, correct=0, delta=DELTA) == 0
    assert one_run(canaries=10_000, guesses=10_000, correct=10_000, delta=0) > 8
    with pytest.raises(ValueError, match="51 correct"):
        one_run(canaries=60, guesses=50, correct=51, delta=0)


def test_the_one_run_bound_is_below_the_truth_of_randomised_response() -> None:
    """5,000 outcomes of 50 guesses at epsilon 1: at most 5 % of the bounds are above (6.2 % at one in 10,000)."""
    rng = np.random.default_rng(2)
    table = np.array([one_run(canaries=50, guesses=50, correct=right, delta=0) for right in range(51)])
    found = table[rng.binomial(50, 1 / (1 + math.exp(-1)), 5000)]
    assert (found > 1).mean() < 0.062 and found.mean() > 0.3
    assert (table[rng.binomial(50, 1 / (1 + math.exp(-3)), 5000)] > 1).mean() > 0.8


def event(*, steps: int, rate: float, sigma: float = 0.9) -> Event:
    return Event(sample_rate=rate, noise_multiplier=sigma, steps=steps, pool="train")


def test_the_score_of_one_step_is_the_formula() -> None:
    q, sigma, u = 0.25, 0.9, np.random.default_rng(3).normal(size=(5, 7))
    formula = np.log(1 - q + q * np.exp((2 * u - 1) / (2 * sigma**2))).sum(axis=0)
    assert score(u, event(steps=1, rate=q)) == pytest.approx(formula)
    assert score(u, event(steps=1, rate=1.0)) == pytest.approx(((2 * u - 1) / (2 * sigma**2)).sum(axis=0))


def test_the_score_of_several_steps_is_the_likelihood_ratio_of_their_sum() -> None:
    q, sigma, steps, u = 0.3, 0.9, 4, np.random.default_rng(4).normal(size=(3, 6))
    deviation = sigma * math.sqrt(steps)
    inside = sum(stats.binom.pmf(k, steps, q) * stats.norm.pdf(u, k, deviation) for k in range(steps + 1))
    ratio = np.log(inside / stats.norm.pdf(u, 0, deviation)).sum(axis=0)
    assert score(u, event(steps=steps, rate=q)) == pytest.approx(ratio)


def test_noise_ten_percent_short_and_noise_that_returns_are_noticed() -> None:
    rng, planned = np.random.default_rng(5), event(steps=4, rate=0.5)
    right = 1.8 * rng.normal(size=(20, 1000))
    found = noise_of(right, planned)
    assert not found.short and not found.reused and found.promised == pytest.approx(1.8)
    assert noise_of(0.97 * right, planned).short and noise_of(0 * right, planned).short
    assert not noise_of(1.1 * right, planned).short
    again = noise_of(np.repeat(right[:1], 20, axis=0), planned)
    assert again.reused and again.repeated == pytest.approx(1)
    assert noise_of(0 * right, planned).reused
    alone = noise_of(right[:1], planned)
    assert alone.repeated is None and not alone.reused


@pytest.mark.parametrize(("epsilon", "low", "high"), [(8, 4.6, 6.8), (3, 1.2, 2.5), (1, 0.0, 0.8)])
def test_what_is_expected_of_a_hundred_rounds(epsilon: float, low: float, high: float) -> None:
    planned = calibrate(epsilon=epsilon, delta=DELTA, sample_rate=0.25, steps=100)
    one = Event(sample_rate=0.25, noise_multiplier=planned.noise_multiplier, steps=1, pool="train")
    assert low <= expected(one, orders=100, canaries=2000, delta=DELTA) < high
