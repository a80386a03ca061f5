"""Curves from few bins, against closed forms and one-by-one counts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from common.tasks.noisy_curves import area_under_roc, average_precision, bin_of, ratio


@given(st.floats(1e-12, 1 - 1e-12), st.integers(2, 64))
def test_bins_are_uniform_in_the_logit_from_minus_6_to_6(score: float, score_bins: int) -> None:
    place = (math.log(score) - math.log1p(-score) + 6) / 12 * score_bins
    if abs(place - round(place)) > 1e-6:
        assert bin_of(score, score_bins=score_bins) == min(max(math.floor(place), 0), score_bins - 1)


def test_the_outermost_bins_are_open_and_an_edge_belongs_above() -> None:
    scores = [0.0, 1e-30, 0.4999999, 0.5, 1 - 1e-9, 1.0, -3.0, 1e30]
    assert bin_of(scores, score_bins=8).tolist() == [0, 0, 3, 4, 7, 7, 0, 7]


@pytest.mark.parametrize("area", [0.6, 0.75, 0.85, 0.93, 0.97])
@pytest.mark.parametrize(("score_bins", "spread", "error"), [(8, 2.0, 0.0015), (8, 1.0, 0.016), (16, 1.0, 0.0015)])
def test_the_area_is_close_to_that_of_normal_logits(area: float, score_bins: int, spread: float, error: float) -> None:
    """Binormal model: AUC = Phi(distance / sqrt 2)."""
    distance = float(ndtri(area)) * math.sqrt(2)
    edges = np.linspace(-6, 6, score_bins + 1)
    edges[[0, -1]] = -math.inf, math.inf
    ones, others = (np.diff(ndtr(edges / spread - sign * distance / 2)) for sign in (1, -1))
    assert float(area_under_roc(300 * ones, 700 * others)) == pytest.approx(area, abs=error)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_the_area_is_pairs_in_order_half_of_ties_and_a_twelfth_of_neighbours(seed: int, score_bins: int) -> None:
    ones, others = np.random.default_rng(seed).normal(3, 1, (2, score_bins))
    won = 0.0
    for i in range(score_bins):
        for j in range(score_bins):
            share = 1.0 if i > j else 0.5 if i == j else 0.0
            share += {1: 1 / 12, -1: -1 / 12}.get(i - j, 0.0)
            won += ones[i] * others[j] * share
    assert float(area_under_roc(ones, others)) == pytest.approx(won / (ones.sum() * others.sum()), rel=1e-9)


def test_noise_leaves_the_numerator_of_the_area_unbiased_and_nothing_is_clamped() -> None:
    """A negative bin counts as it is: sums of two noised halves are read as the noised whole."""
    ones, others = np.array([-1.0, 2.0, 5.0]), np.array([4.0, 3.0, -0.5])
    clamped = float(area_under_roc(np.maximum(ones, 0), np.maximum(others, 0)))
    assert float(area_under_roc(ones, others)) != pytest.approx(clamped, abs=0.01)


def test_an_area_needs_both_kinds() -> None:
    areas = area_under_roc(np.array([[1.0, 1], [0, 0], [-1, 0], [1, 1]]), np.array([[0.0, 0], [1, 1], [1, 1], [-2, 1]]))
    assert np.isnan(areas).all()


def test_average_precision_of_known_counts() -> None:
    """Lowest bin first. Highest: 4 hits of 4; middle: 3 of 6, precision 1 to 0.7; lowest: 1 of 10, 0.7 to 0.4."""
    true, false = np.array([1.0, 3.0, 4.0]), np.array([9.0, 3.0, 0.0])
    assert average_precision(true, false, 10.0) == pytest.approx((4 * 1 + 3 * 0.85 + 1 * 0.55) / 10)


def test_precision_is_kept_in_0_to_1_and_hits_are_not() -> None:
    assert average_precision(np.array([5.0]), np.array([-1.0]), 10.0) == pytest.approx(0.5)
    assert average_precision(np.array([-5.0, 8.0]), np.array([0.0, 0.0]), 10.0) == pytest.approx(0.3)
    assert average_precision(np.array([-5.0]), np.array([2.0]), 10.0) == 0.0
    assert math.isnan(average_precision(np.array([5.0]), np.array([1.0]), 0.0))


def test_a_ratio_without_a_whole_is_not_a_number() -> None:
    assert ratio(1.0, 4.0) == 0.25
    assert all(math.isnan(ratio(1.0, whole)) for whole in (0.0, -1.0, math.nan))
