"""The bound on one patient: factors, grid, sum, release."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clip import GRID_STEPS, LARGEST, SLACK, Bounds, GridSum, factors, release, to_grid

ONE = Bounds(clip_norms=(1.0,))


def factor(norm: float, bounds: Bounds = ONE, *, weight: float = 1.0) -> float:
    return float(factors(np.array([[norm]]), bounds, weights=np.array([weight]))[0, 0])


@given(st.sampled_from([0.5, 0.99, 1.0, 1.01, 2.0, 1e-30, 1e30]), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_the_clipped_norm_is_at_most_the_clip_norm_less_the_slack(
    ratio: float, clip_norm: float, weight: float
) -> None:
    norm = clip_norm / ratio
    bounds = Bounds(clip_norms=(clip_norm,))
    clipped = norm * factor(norm, bounds, weight=weight)
    limit = clip_norm * (1 - SLACK)
    assert clipped <= weight * limit * (1 + 1e-12)
    assert clipped == pytest.approx(weight * min(norm, limit), rel=1e-12)


def test_shorter_gradients_keep_their_length_but_for_the_weight() -> None:
    assert factor(0.9) == 1.0 and factor(0.9, weight=0.25) == 0.25
    assert factor(0.0) == 1.0


def test_the_slack_is_the_eighth_of_a_sixteenth() -> None:
    assert factor(1.0) == 1 - 2**-7


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_gives_zero_in_all_groups(norm: float) -> None:
    bounds = Bounds(clip_norms=(1.0, 2.0))
    given = factors(np.array([[0.5, norm], [0.5, 0.5]]), bounds, weights=np.ones(2))
    assert given.tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("weight", [1.0001, -0.1, math.nan, math.inf])
def test_a_weight_outside_zero_to_one_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        factor(0.5, weight=weight)


def test_groups_are_clipped_apart_and_the_sensitivity_is_the_root_of_squares() -> None:
    bounds = Bounds(clip_norms=(3.0, 4.0))
    given = factors(np.array([[30.0, 1.0]]), bounds, weights=np.ones(1))
    assert bounds.sensitivity == 5.0
    assert given[0].tolist() == pytest.approx([0.1 * (1 - SLACK), 1.0])
    longest = np.array([[30.0, 40.0]])
    assert np.linalg.norm(longest * factors(longest, bounds, weights=np.ones(1))) <= 5.0 * (1 - SLACK) * (1 + 1e-12)


@pytest.mark.parametrize("norms", [(), (0.0,), (-1.0,), (math.nan,), (math.inf,), (1.0, 0.0), (2.0**41,)])
def test_clip_norms_that_bound_nothing_are_refused(norms: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="clip norms"):
        Bounds(clip_norms=norms)


def test_the_grid_has_two_to_the_twenty_steps() -> None:
    assert Bounds(clip_norms=(3.0,)).grid == 3.0 * 2**-20
    exact = to_grid(np.array([3.0, -1.5, 0.0, 3.0 * 2**-21 * 0.99, 3.0 * 2**-21 * 1.01]), Bounds(clip_norms=(3.0,)))
    assert exact.steps.tolist() == [2**20, -(2**19), 0, 0, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 10, 1000, 10_000]), st.floats(1e-3, 1e3))
def test_with_one_patient_more_the_sum_differs_by_at_most_the_grid_steps(
    seed: int, size: int, clip_norm: float
) -> None:
    """One clipped patient, added at each position among many, whatever the others are."""
    rng, bounds = np.random.default_rng(seed), Bounds(clip_norms=(clip_norm,))
    gradients = rng.normal(size=(21, size)) * 10.0 ** rng.uniform(-3, 3, (21, 1)) * clip_norm
    scale = factors(np.linalg.norm(gradients, axis=1, keepdims=True), bounds, weights=np.ones(21))
    parts = (gradients * scale).astype(np.float32).astype(np.float64)
    without = to_grid(parts[:20].sum(axis=0), bounds).steps
    for position in range(21):
        order = [*range(position), 20, *range(position, 20)]
        total = np.zeros(size)
        for one in order:
            total += parts[one]
        difference = to_grid(total, bounds).steps - without
        assert np.linalg.norm(difference.astype(np.float64)) <= GRID_STEPS


def test_rounding_at_the_largest_size_is_within_the_slack() -> None:
    assert math.sqrt(LARGEST) < 0.75 * SLACK * GRID_STEPS


def test_a_sum_beyond_the_largest_size_is_refused() -> None:
    with pytest.raises(ValueError, match="slack"):
        to_grid(np.broadcast_to(np.zeros(1), (LARGEST + 1,)), ONE)


def test_release_adds_integers_and_divides_by_the_public_number() -> None:
    exact = GridSum(steps=np.array([2**20, -5, 2**60]), bounds=ONE)
    released = release(exact, np.array([3, 5, 0]), divisor=2.0)
    assert released.dtype == np.float32
    assert released.tolist() == [np.float32((2**20 + 3) / 2**21), 0.0, np.float32(2**39)]


def test_the_release_depends_on_sum_and_noise_through_their_integer_sum_alone() -> None:
    """Low bits say nothing: equal integer sums give equal bits."""
    rng = np.random.default_rng(0)
    total, one, other = (rng.integers(-(2**40), 2**40, 1000) for _ in range(3))
    released = [release(GridSum(steps=part, bounds=ONE), total - part, divisor=3.7).tobytes() for part in (one, other)]
    assert released[0] == released[1]


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.nan, math.inf])
def test_a_divisor_that_is_none_is_refused(divisor: float) -> None:
    with pytest.raises(ValueError, match="divisor"):
        release(GridSum(steps=np.zeros(1, np.int64), bounds=ONE), np.zeros(1, np.int64), divisor=divisor)


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        release(GridSum(steps=np.zeros(2, np.int64), bounds=ONE), np.zeros(1, np.int64), divisor=1.0)
