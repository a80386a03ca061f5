"""The released histogram of classes: what one patient adds, and how shares are read."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tasks.counts import ClassCounts

THREE = ClassCounts(classes=("a", "b", "c"))
SHOWN = st.lists(st.frozensets(st.integers(0, 2)), max_size=8)


def test_a_patient_counts_as_one_in_the_classes_of_his_images() -> None:
    assert THREE.part([{1}]).tolist() == [0, 1, 0]
    assert THREE.part([{1}, {1}, {1}, {2}]).tolist() == pytest.approx([0, 0.75, 0.25])
    assert THREE.part([{0, 1}]).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0])
    assert THREE.part([set(), {2}]).tolist() == [0, 0, 0.5]
    assert THREE.part([]).tolist() == [0, 0, 0] == THREE.part([set()]).tolist()


@given(shown=SHOWN)
def test_an_images_vector_has_norm_1_or_0_and_a_mean_of_such_vectors_is_no_longer(shown: list[frozenset[int]]) -> None:
    for one in shown:
        assert np.linalg.norm(THREE.part([one])) == pytest.approx(1.0 if one else 0.0)
    assert np.linalg.norm(THREE.part(shown)) <= THREE.bound * (1 + 1e-12)


def test_shares_are_the_counts_over_their_sum() -> None:
    assert THREE.prior(np.array([50.0, 30.0, 20.0]), noise=10.0) == pytest.approx((0.5, 0.3, 0.2))


def test_a_class_that_noise_could_hide_counts_as_much_as_noise_does() -> None:
    assert THREE.prior(np.array([70.0, -35.0, 3.0]), noise=10.0) == pytest.approx((7 / 9, 1 / 9, 1 / 9))
    assert THREE.prior(np.zeros(3), noise=10.0) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@given(
    total=st.lists(st.floats(-(2.0**31), 2.0**31), min_size=3, max_size=3),
    noise=st.floats(10.0, 1000.0),
)
def test_each_share_is_above_0_and_below_1(total: list[float], noise: float) -> None:
    shares = THREE.prior(np.array(total), noise=noise)
    assert all(0 < share < 1 for share in shares) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_sum_from_which_no_shares_can_be_made_is_refused(value: float) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="no shares of 3 classes"):
        THREE.prior(np.array([1.0, 2.0, value]), noise=10.0)
    with pytest.raises(ValueError, match="no shares of 3 classes"):
        THREE.prior(np.array([1.0, 2.0]), noise=10.0)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_is_none_is_refused(noise: float) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="no shares of 3 classes"):
        THREE.prior(np.array([1.0, 2.0, 3.0]), noise=noise)
