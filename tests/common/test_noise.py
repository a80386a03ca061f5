"""Noise: its distribution, its independence, its grid, and what it is refused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from common import noise
from common.crypto.stream import words
from common.noise import fresh_key, gaussian, uniform

KEY = bytes(range(32))
STEPS = 2.0**20


def values(count: int, *, key: bytes = KEY, standard_deviation: float = STEPS) -> np.ndarray:  # type: ignore[type-arg]
    return gaussian(count, standard_deviation=standard_deviation, key=key)


def variance_passes(sample: np.ndarray) -> bool:  # type: ignore[type-arg]
    """A million values: their variance scatters by 0.14 %, so 0.6 % are more than 4 standard deviations."""
    return bool(abs(float(np.mean((sample / STEPS) ** 2)) - 1) < 0.006)


def test_the_variance_is_right_and_one_percent_more_or_less_fails() -> None:
    sample = values(1_000_000)
    assert variance_passes(sample)
    # 1 % in the standard deviation is 2 % in the variance; 1 % in the variance alone is found, too.
    for wrong in (0.99, 1.01, math.sqrt(0.99), math.sqrt(1.01)):
        assert not variance_passes(sample * wrong)
    assert abs(float(np.mean(sample / STEPS))) < 0.005


def test_the_values_are_normal() -> None:
    """Kolmogorov on 200,000 values. Power: a standard deviation that is 5 % off, or a uniform in the place of a normal
    value in 2 % of cases, is rejected at 0.001."""
    sample = values(200_000) / STEPS
    assert stats.kstest(sample, "norm").pvalue > 0.001
    for wrong in (0.95, 1.05):
        assert stats.kstest(sample * wrong, "norm").pvalue < 0.001
    spoilt = sample.copy()
    spoilt[::50] = 4 * uniform(words(KEY, len(spoilt[::50]) // 2 * 2)) - 0.5
    assert stats.kstest(spoilt, "norm").pvalue < 0.001


def test_both_halves_of_box_muller_and_neighbours_are_uncorrelated() -> None:
    sample = values(65_536) / STEPS
    half = len(sample) // 2
    for one, other in ((sample[:half], sample[half:]), (sample[:-1], sample[1:])):
        assert abs(float(np.corrcoef(one, other)[0, 1])) < 0.025  # 4.5 standard deviations
        assert abs(float(np.corrcoef(one**2, other**2)[0, 1])) < 0.025


def test_noise_is_a_function_of_its_arguments_alone() -> None:
    torch.manual_seed(1)
    one = values(1000)
    torch.manual_seed(2)
    assert np.array_equal(one, values(1000))
    assert np.array_equal(values(100_001)[:65_536], values(65_536))


def test_two_keys_give_independent_noise() -> None:
    one, other = (values(65_536, key=key) / STEPS for key in (KEY, bytes(32)))
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 0.02


def test_fresh_keys_come_from_the_operating_system_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({fresh_key() for _ in range(100)}) == 100
    asked: list[int] = []
    monkeypatch.setattr(noise.os, "urandom", lambda count: asked.append(count) or bytes(count))
    assert fresh_key() == bytes(32) and asked == [32]


def test_chunks_never_repeat_the_stream() -> None:
    sample = values(4 * 65_536).reshape(4, -1)
    assert len({row.tobytes() for row in sample}) == 4
    assert np.abs(np.corrcoef(sample)[np.triu_indices(4, 1)]).max() < 0.02


def test_values_are_integers_of_the_closed_form() -> None:
    """Box and Muller, written out with Python's own floats."""
    numbers = [(int(word) >> 11) * 2.0**-53 for word in words(KEY, 4)]
    expected = [
        round(1000 * math.sqrt(-2 * math.log(1 - numbers[i])) * turn(2 * math.pi * numbers[2 + i]))
        for turn in (math.cos, math.sin)
        for i in (0, 1)
    ]
    assert gaussian(4, standard_deviation=1000.0, key=KEY).tolist() == expected


def test_the_ends_of_the_uniform_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0.0, 1 - 2.0**-53]
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(noise, "words", lambda _key, count, start=0, word=word: np.full(count, word, np.uint64))
        assert np.abs(values(10)).max() <= 8.58 * STEPS


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, 2.0**45])
def test_a_standard_deviation_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="standard_deviation"):
        values(1, standard_deviation=wrong)


def test_no_values_and_odd_counts() -> None:
    assert values(0).shape == (0,)
    assert values(65_537).shape == (65_537,)
