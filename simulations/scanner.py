"""How one site's scanner shifts pixels: the `scanner:STRENGTH` part of a partition."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import StudyError
from common.randomness import stream

MAX_STRENGTH = 4.0
INVERTED_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """A shift of grey values in [0, 1]: blur, gamma, gain and offset, noise, inversion, in turn. Default: none."""

    gain: float = 1.0  # contrast about mid-grey 0.5
    offset: float = 0.0  # brightness, in units of the full range
    gamma: float = 1.0
    noise: float = 0.0  # standard deviation, in units of the full range
    blur: float = 0.0  # standard deviation of a Gaussian, in percent of the image's longer side
    inverted: bool = False  # grey values upside down, as when MONOCHROME1 is overlooked


def draw(strength: float, *, seed: int, site: str) -> Scanner:
    """The scanner of one site: a function of seed and site, its departures proportional to `strength`.

    Strength 0.5 is what well-kept devices of different makers do, 1 neglect, 2 is hardly readable.

    Guarantees: strength 0 is the identity; more strength moves every parameter further from it, in the same direction;
    nothing is inverted below strength 1, from there on each site with probability INVERTED_SHARE.
    Raises StudyError for a strength that is negative, above MAX_STRENGTH or not a number.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise StudyError(f"scanner:{strength:g}: STRENGTH is a number from 0 to {MAX_STRENGTH:g}")
    rng = stream(seed, "scanner", site=site)
    gain, offset, gamma = rng.uniform(-1, 1, size=3)
    noise, blur, inverted = rng.uniform(0, 1, size=3)
    return Scanner(
        gain=math.exp(strength * 0.4 * gain),
        offset=strength * 0.15 * offset,
        gamma=math.exp(strength * 0.5 * gamma),
        noise=strength * 0.06 * noise,
        blur=strength * 1.2 * blur,
        inverted=bool(strength >= 1 and inverted < INVERTED_SHARE),
    )


def apply(images: NDArray[np.float32], scanner: Scanner, rng: np.random.Generator) -> NDArray[np.float32]:
    """Images float32 [n, C, h, w] in [0, 1] as this scanner would have shown them: same shape, type and range.

    Guarantees: the identity scanner returns equal bits and takes nothing from `rng`; the argument is never written to.
    The channels of an image get the same noise, so that grey stays grey. n may be 0.
    """
    if scanner == Scanner():
        return images.copy()
    shown = _blurred(images, scanner.blur / 100 * max(images.shape[-2:]))
    shown = np.clip(shown, 0, 1) ** np.float32(scanner.gamma)
    shown = (shown - np.float32(0.5)) * np.float32(scanner.gain) + np.float32(0.5 + scanner.offset)
    if scanner.noise > 0:
        n, _, height, width = images.shape
        shown += np.float32(scanner.noise) * rng.standard_normal((n, 1, height, width), dtype=np.float32)
    shown = np.clip(shown, 0, 1)
    return 1 - shown if scanner.inverted else shown


def _blurred(images: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Separable Gaussian with edges repeated; sigma in pixels, below 0.05 no change."""
    if sigma < 0.05:
        return images
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        length = images.shape[axis]
        pad = [(reach, reach) if axis == along else (0, 0) for along in range(4)]
        padded = np.pad(images, pad, mode="edge")
        images = np.zeros_like(images)
        for shift, weight in enumerate(weights):
            images += np.float32(weight) * np.take(padded, range(shift, shift + length), axis=axis)
    return images
