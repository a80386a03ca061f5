"""Which patients take part in a step, and which of their images: independent secret draws."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.crypto.stream import words
from common.noise import uniform

_OWN_WORDS = 4  # 256 bits of key for each patient


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A patient in this step, with the key of everything random about him: who else is drawn has no part in it."""

    position: int
    key: bytes

    def number(self, purpose: str) -> int:
        """256 bits for one purpose: SHA-256 of key and purpose."""
        return int.from_bytes(hashlib.sha256(self.key + purpose.encode()).digest(), "big")

    def generator(self, purpose: str) -> np.random.Generator:
        """A numpy generator for one purpose, for the choice of images and their augmentation."""
        return np.random.Generator(np.random.PCG64(self.number(purpose)))


def draw(shares: NDArray[np.float64], *, sample_rate: float, key: bytes) -> tuple[Drawn, ...]:
    """Poisson sampling: each patient independently with probability sample_rate x his share, in order of position.

    Guarantees: nobody's probability is above `sample_rate`, which is what the account charges; the number drawn is
    random, and may be 0; equal arguments give equal draws.
    Raises ValueError for a rate outside (0, 1] or a share outside [0, 1].
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate = {sample_rate}: a probability above 0 and up to 1")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a share outside [0, 1]: more than 1 would be drawn more often than is charged")
    count = len(shares)
    bits = words(key, (1 + _OWN_WORDS) * count)
    chosen = np.flatnonzero(uniform(bits[:count]) < sample_rate * shares)
    keys = bits[count:].reshape(count, _OWN_WORDS)
    return tuple(Drawn(position=int(position), key=keys[position].tobytes()) for position in chosen)


def choose(drawn: Drawn, *, images: int, most: int) -> NDArray[np.int64]:
    """Positions of at most `most` of the patient's images, chosen afresh at each draw, each as likely as any other.

    Raises ValueError unless `most` is at least 1.
    """
    if not most >= 1:
        raise ValueError(f"images_per_patient = {most}: at least 1")
    if images <= most:
        return np.arange(images, dtype=np.int64)
    return np.sort(drawn.generator("images").permutation(images)[:most]).astype(np.int64)
