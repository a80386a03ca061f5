"""How a vector becomes 64-bit words: small integers in lanes that a sum doesn't leave, and wide fields behind them."""

import hashlib
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**16  # words at a time: what is in between stays in the processor's cache
CHECKS = (1, 0)  # the last two words of every site: they add up to the number of sites, and to nothing
_MOST_SITES = 2**7  # so many wide fields below 2^56 add up to less than 2^63

Integers = NDArray[np.uint32] | NDArray[np.uint64]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The public shape of a vector, the same for all sites and part of what they sign.

    Words in this order: the values in lanes, `wide` words for numbers that need more room, the check words 1 and 0.
    The last wide field is the number of saturated values, which `encode` counts: its caller gives `wide - 1` numbers.
    Value i is in lane i // value_words (lane 0 is the lowest) of word i % value_words; lanes behind the last value are
    0, and so is the top bit of a word of three lanes.

    values  numbers in the vector, at most 2^32
    wide    wide fields with the number of saturated values, 1 to 2^16
    lanes   values to a word: 3 of 21 bits or 4 of 16 bits
    range_  R: values are clipped to -R … R; between 2^-40 and 2^40
    sites   n_max, most vectors that are ever in one sum, 1 to 128

    Guarantees: in a sum of `sites` vectors the top bit of each lane is free.
    Raises ValueError for anything out of these bounds. Source: secure-aggregation.md, "Encoding".
    """

    values: int
    wide: int
    lanes: int = 3
    range_: float
    sites: int

    def __post_init__(self) -> None:
        if not (0 <= self.values <= 2**32 and 1 <= self.wide <= 2**16):
            raise ValueError(f"{self.values} values and {self.wide} wide fields: at most 2^32, and 1 to 2^16")
        if self.lanes not in (3, 4):
            raise ValueError(f"lanes = {self.lanes}: 3 or 4 values to a word")
        if not 2.0**-40 <= self.range_ <= 2.0**40:
            raise ValueError(f"range = {self.range_}: a number between 2^-40 and 2^40")
        if not 1 <= self.sites <= _MOST_SITES:
            raise ValueError(f"{self.sites} sites: 1 to {_MOST_SITES}")

    @property
    def lane_bits(self) -> int:
        """Width of a lane."""
        return 64 // self.lanes

    @property
    def bits(self) -> int:
        """v: one site's integer, offset, is at most 2^v - 2."""
        return self.lane_bits - 1 - (self.sites - 1).bit_length()

    @property
    def limit(self) -> int:
        """L: integers lie in -L … L, and L is added to them in the lane."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def unit(self) -> float:
        """What an integer 1 stands for: R / L."""
        return self.range_ / self.limit

    @property
    def value_words(self) -> int:
        """Words that hold the values."""
        return -(-self.values // self.lanes)

    @property
    def words(self) -> int:
        """Words of a vector, 8 bytes each."""
        return self.value_words + self.wide + len(CHECKS)

    @property
    def sha256(self) -> bytes:
        """Digest over all fields, big-endian and of fixed width."""
        fields = struct.pack(">QIBHd", self.values, self.wide, self.lanes, self.sites, self.range_)
        return hashlib.sha256(b"fedward/1/encoding\0" + fields).digest()

    def places(self, lane: int, first: int, last: int) -> slice:
        """Which values words `first` to `last` hold in a lane: one each, but for fewer or none at the end."""
        start, stop = (min(lane * self.value_words + word, self.values) for word in (first, last))
        return slice(start, stop)


def fill(
    words: NDArray[np.uint64], first: int, last: int, encoding: Encoding, integers: Callable[[int, slice], Integers]
) -> None:
    """Overwrite words `first` to `last`, which hold values, by what `integers(lane, places)` gives for each block.

    Within a lane it is asked in rising order; its answer, from 0 to 2L, is used up before it is asked again.
    """
    for begin in range(first, last, BLOCK):
        block = words[begin : min(begin + BLOCK, last)]
        block[:] = 0
        for lane in reversed(range(encoding.lanes)):
            np.left_shift(block, encoding.lane_bits, out=block)
            places = encoding.places(lane, begin, begin + len(block))
            some = block[: places.stop - places.start]
            np.bitwise_or(some, integers(lane, places), out=some)


def lane_of(block: NDArray[np.uint64], lane: int, encoding: Encoding) -> NDArray[np.uint64]:
    """What these words hold in a lane. The last lane comes with all bits above it."""
    shifted: NDArray[np.uint64] = block >> np.uint64(lane * encoding.lane_bits)
    if lane < encoding.lanes - 1:
        shifted &= np.uint64(2**encoding.lane_bits - 1)
    return shifted


def in_parts(work: Callable[[int, int], Result], words: int) -> list[Result]:
    """`work(first, last)` over all words: in two threads where there are two cores and more than one block.

    Each part begins at a whole block. Raises what `work` raises.
    """
    if words <= BLOCK or (os.cpu_count() or 1) < 2:
        return [work(0, words)]
    middle = max(1, words // BLOCK // 2) * BLOCK
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (0, middle), (middle, words)))
