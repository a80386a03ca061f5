"""The first outputs of the generator MT19937 for many seeds at once: how fast a mask's seed can be searched."""

import numpy as np
from numpy.typing import NDArray


def first_numbers(seeds: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """The first `count` (below 227) outputs of MT19937 for each seed: [count, seeds].

    Source: Matsumoto and Nishimura 1998, initialisation of 2002. Only the words that the outputs need are kept.
    """
    state, kept = seeds.copy(), {}
    for index in range(397 + count):
        if index <= count or index >= 397:
            kept[index] = state.copy()
        state ^= state >> np.uint32(30)
        state *= np.uint32(1812433253)
        state += np.uint32(index + 1)
    found = np.empty((count, len(seeds)), np.uint32)
    for j in range(count):
        joined = (kept[j] & np.uint32(0x80000000)) | (kept[j + 1] & np.uint32(0x7FFFFFFF))
        word = kept[397 + j] ^ (joined >> np.uint32(1)) ^ ((joined & np.uint32(1)) * np.uint32(0x9908B0DF))
        word ^= word >> np.uint32(11)
        word ^= (word << np.uint32(7)) & np.uint32(0x9D2C5680)
        word ^= (word << np.uint32(15)) & np.uint32(0xEFC60000)
        found[j] = word ^ (word >> np.uint32(18))
    return found
