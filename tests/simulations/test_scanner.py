"""The scanner shift: what strength means, and what it never does to an image."""

import math
from itertools import pairwise

import numpy as np
import pytest

from common.errors import StudyError
from simulations.scanner import INVERTED_SHARE, Scanner, apply, draw

SITES = [f"site-{n}" for n in range(400)]


def _images(n: int = 3, channels: int = 1, size: int = 32) -> np.ndarray:
    return np.random.default_rng(5).random((n, channels, size, size), dtype=np.float32)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_strength_zero_is_the_identity_bit_for_bit_and_draws_nothing() -> None:
    images, rng = _images() ** np.float32(5), _rng()  # small values too, which lose bits when anything is added
    shown = apply(images, draw(0, seed=1, site="site-3"), rng)
    assert shown.tobytes() == images.tobytes()
    assert rng.random() == _rng().random()


@pytest.mark.parametrize("strength", [0.1, 0.5, 1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 1, 32, 24), (2, 3, 17, 40), (0, 1, 16, 16), (1, 1, 1, 1)])
def test_shape_type_and_range_are_kept_and_the_argument_is_never_written_to(strength: float, shape: tuple) -> None:
    images = np.random.default_rng(5).random(shape, dtype=np.float32)
    before = images.copy()
    for site in SITES[:10]:
        shown = apply(images, draw(strength, seed=1, site=site), _rng())
        assert shown.shape == shape and shown.dtype == np.float32
        assert np.all((shown >= 0) & (shown <= 1))
    assert np.array_equal(images, before)


def test_a_scanner_is_a_function_of_seed_and_site() -> None:
    assert draw(1, seed=1, site="site-0") == draw(1, seed=1, site="site-0")
    assert len({draw(0.5, seed=seed, site=site) for seed in (1, 2) for site in SITES[:50]}) == 100


def test_more_strength_moves_every_parameter_in_proportion() -> None:
    for site in SITES[:20]:
        weak, strong = draw(0.4, seed=2, site=site), draw(0.8, seed=2, site=site)
        assert strong.offset == pytest.approx(2 * weak.offset)
        assert strong.noise == pytest.approx(2 * weak.noise)
        assert strong.blur == pytest.approx(2 * weak.blur)
        assert math.log(strong.gain) == pytest.approx(2 * math.log(weak.gain))
        assert math.log(strong.gamma) == pytest.approx(2 * math.log(weak.gamma))


def test_more_strength_changes_images_more() -> None:
    images = _images()
    means = [
        np.mean([np.abs(apply(images, draw(s, seed=3, site=site), _rng()) - images).mean() for site in SITES[:40]])
        for s in (0, 0.25, 0.5, 1, 2)
    ]
    assert means[0] == 0
    assert all(more > 1.2 * less for less, more in pairwise(means[1:]))


def test_nothing_is_inverted_below_strength_one_and_one_site_in_four_from_there_on() -> None:
    assert not any(draw(0.99, seed=4, site=site).inverted for site in SITES)
    inverted = {site for site in SITES if draw(1, seed=4, site=site).inverted}
    # 400 sites: standard deviation 8.7 of 100 expected; half or twice the share is more than 5 deviations away.
    assert abs(len(inverted) - INVERTED_SHARE * len(SITES)) < 35
    assert inverted == {site for site in SITES if draw(2, seed=4, site=site).inverted}


def test_each_step_does_what_its_name_says() -> None:
    grey = np.full((1, 1, 20, 20), 0.4, np.float32)
    assert apply(grey, Scanner(gain=1.5), _rng()) == pytest.approx(0.35)
    assert apply(grey, Scanner(offset=0.1), _rng()) == pytest.approx(0.5)
    assert apply(grey, Scanner(gamma=2), _rng()) == pytest.approx(0.16)
    assert apply(grey, Scanner(inverted=True), _rng()) == pytest.approx(0.6)
    assert apply(grey, Scanner(blur=10), _rng()) == pytest.approx(0.4, abs=1e-5)
    large = np.full((1, 1, 200, 200), 0.5, np.float32)
    assert apply(large, Scanner(noise=0.05), _rng()).std() == pytest.approx(0.05, rel=0.03)


def test_blur_spreads_a_point_as_a_gaussian_of_the_stated_width() -> None:
    point = np.zeros((1, 1, 101, 101), np.float32)
    point[0, 0, 50, 50] = 1
    spread = apply(point, Scanner(blur=200 / 101), _rng())[0, 0]  # percent of 101 pixels: 2 pixels
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    variance = (spread.sum(axis=0) * (np.arange(101) - 50) ** 2).sum()
    assert variance == pytest.approx(4, rel=0.03)


def test_grey_stays_grey_in_colour_images() -> None:
    grey = np.repeat(_images(), 3, axis=1)
    shown = apply(grey, draw(1, seed=1, site="site-1"), _rng())
    assert np.array_equal(shown[:, 0], shown[:, 1]) and np.array_equal(shown[:, 0], shown[:, 2])


@pytest.mark.parametrize("strength", [-0.1, 4.1, math.nan, math.inf])
def test_a_strength_outside_the_allowed_range_is_refused_in_one_line(strength: float) -> None:
    with pytest.raises(StudyError, match=r"^scanner:.*from 0 to 4$"):
        draw(strength, seed=1, site="site-0")
