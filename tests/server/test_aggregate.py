"""The growing sum and the server's optimisers, against sums in exact fractions and updates written out by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small import tiny_study

from common.errors import MessageError
from common.layout import layout_of
from server import aggregate

FLOATS = hnp.arrays(np.float32, (3, 5), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False))


@given(vectors=FLOATS, order=st.permutations(range(3)))
def test_the_sum_is_the_same_bits_in_every_order_and_within_its_bound(vectors: np.ndarray, order: list[int]) -> None:
    one, other = aggregate.VectorSum(5), aggregate.VectorSum(5)
    for vector in vectors:
        one.add(vector)
    for position in order:
        other.add(vectors[position])
    assert one.total().tobytes() == other.total().tobytes()
    for column, total in zip(vectors.T, one.total(), strict=True):
        exact = sum(Fraction(float(value)) for value in column)
        assert abs(Fraction(float(total)) - exact) <= 3 * Fraction(1, 2**33) + abs(exact) * Fraction(1, 2**52)


def test_blocks_do_not_show() -> None:
    vector = np.random.default_rng(0).normal(size=(1 << 20) + 17).astype(np.float32)
    total = aggregate.VectorSum(vector.size)
    total.add(vector)
    assert np.abs(total.total() - vector).max() <= 2.0**-33


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**31, -(2.0**31)])
def test_what_is_not_finite_or_too_large_is_refused_and_nothing_added(value: float) -> None:
    total = aggregate.VectorSum(2)
    total.add(np.array([1, 2], np.float32))
    with pytest.raises(MessageError):
        total.add(np.array([1, value], np.float32))
    assert total.total().tolist() == [1, 2]


def test_many_large_vectors_can_not_overflow_the_sum() -> None:
    total = aggregate.VectorSum(1)
    vector = np.array([2.0**28], np.float32)
    for _ in range(3):
        total.add(vector)
    with pytest.raises(MessageError, match="too large"):
        total.add(vector)
    assert total.total()[0] == 3 * 2.0**28


def test_another_length_is_refused() -> None:
    with pytest.raises(MessageError, match="3 values"):
        aggregate.VectorSum(2).add(np.zeros(3, np.float32))


def test_the_mean_is_weighted_by_what_the_sites_say_they_weigh() -> None:
    layout = layout_of(tiny_study(), "update")
    zeros = {name: np.zeros(shape) for name, shape in layout.sums}
    total = aggregate.VectorSum(layout.length)
    for weight, value in ((3.0, 1.0), (1.0, 5.0)):
        change = np.full(layout.tensor_length, weight * value, np.float32)
        total.add(layout.pack(change, {**zeros, "weight": np.array(weight)}))
    closed = aggregate.close(total.total(), layout)
    assert closed.mean is not None and np.allclose(closed.mean, (3 * 1 + 1 * 5) / 4)
    assert "weight" not in closed.sums


def test_without_any_weight_there_is_no_mean_and_nothing_changes() -> None:
    layout = layout_of(tiny_study(), "update")
    closed = aggregate.close(np.zeros(layout.length), layout)
    state = aggregate.initial(np.ones(layout.tensor_length, np.float32), tiny_study().aggregation)
    assert closed.mean is None
    assert aggregate.apply(state, closed.mean, tiny_study().aggregation) is state


def test_fedavg_adds_the_mean() -> None:
    aggregation = tiny_study(aggregation={"server_learning_rate": 0.5}).aggregation
    state = aggregate.apply(
        aggregate.initial(np.array([1, 2], np.float32), aggregation), np.array([2.0, -4.0]), aggregation
    )
    assert state.weights.tolist() == [2, 0] and state.weights.dtype == np.float32


def test_server_momentum_accumulates() -> None:
    aggregation = tiny_study(aggregation={"server_momentum": 0.5}).aggregation
    state = aggregate.initial(np.zeros(1, np.float32), aggregation)
    for _ in range(2):
        state = aggregate.apply(state, np.array([1.0]), aggregation)
    assert state.weights.tolist() == [1 + 1.5]


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi"])
def test_adaptive_optimisers_follow_reddi_et_al_2021_algorithm_2(algorithm: str) -> None:
    options = {"algorithm": algorithm, "server_learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    aggregation = tiny_study(aggregation=options).aggregation
    state = aggregate.initial(np.array([1.0], np.float32), aggregation)
    m, v, x = 0.0, 1e-6, 1.0
    for delta in (0.3, -0.2, 0.05):
        state = aggregate.apply(state, np.array([delta]), aggregation)
        m = 0.9 * m + 0.1 * delta
        if algorithm == "fedadam":
            v = 0.99 * v + 0.01 * delta**2
        else:
            v = v - 0.01 * delta**2 * math.copysign(1, v - delta**2)
        x += 0.1 * m / (math.sqrt(v) + 1e-3)
        assert state.weights[0] == pytest.approx(x, rel=1e-6)


def test_weights_that_are_not_finite_are_refused() -> None:
    aggregation = tiny_study(aggregation={"server_learning_rate": 100.0}).aggregation
    state = aggregate.initial(np.array([3e38], np.float32), aggregation)
    with np.errstate(over="ignore"), pytest.raises(MessageError, match="not finite"):
        aggregate.apply(state, np.array([1e37]), aggregation)
