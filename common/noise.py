"""Gaussian noise in whole steps of a grid, from a secret key: the noise that the privacy guarantee rests on."""

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray

from common.crypto.stream import KEY_BYTES, words

_CHUNK = 2**16  # words at a time: the intermediate values stay in the processor's cache
_LARGEST = 2.0**44  # grid steps: times 8.6, the farthest a value can lie, still exact as float64


def fresh_key() -> bytes:
    """A key of 256 bits from the operating system. In production each use of randomness takes a new one."""
    return os.urandom(KEY_BYTES)


def uniform(of: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Each word's upper 53 bits as a number in [0, 1), all multiples of 2^-53 equally likely."""
    numbers: NDArray[np.float64] = (of >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def gaussian(count: int, *, standard_deviation: float, key: bytes) -> NDArray[np.int64]:
    """`count` independent values of N(0, standard_deviation^2), in grid steps, rounded to the nearest integer.

    Added to an integer, such a value is a rounding of integer plus Gaussian: the rounding costs no privacy. What is
    assumed: Box-Muller in float64 is as good as an exact sampler. Its values are finite (53 bits end at 8.57 standard
    deviations) and their low bits are lost in the rounding, which is coarser by far than float64.

    Guarantees: a function of its arguments alone; two keys give independent noise.
    Raises ValueError for a standard deviation that is not a number above 0 and up to 2^44.
    Source: Box and Muller 1958; privacy.md, "Noise" and "On a grid".
    """
    if not 0 < standard_deviation <= _LARGEST:
        raise ValueError(f"standard_deviation = {standard_deviation}: noise needs a number above 0 and up to 2^44")
    noise = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        pairs = (length + 1) // 2
        numbers = torch.from_numpy(uniform(words(key, 2 * pairs, start=start)))
        # 1 - u is in (0, 1]: its logarithm is finite.
        radius = (1 - numbers[:pairs]).log_().mul_(-2).sqrt_().mul_(standard_deviation)
        angle = numbers[pairs:].mul_(2 * math.pi)
        values = torch.cat([radius * angle.cos(), radius * angle.sin()])
        noise[start : start + length] = values.round_().to(torch.int64).numpy()[:length]
    return noise
