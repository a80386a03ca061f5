"""Stochastic rounding of a site's values to the integers of a lane, with bits from a secret key."""

import math

import numpy as np
from numpy.typing import NDArray

from common.crypto.stream import Stream
from common.errors import DataError
from common.lanes import BLOCK, Encoding


class Rounding:
    """The values of one part of a vector as integers 0 … 2L, block by block, each with 32 bits of the key stream.

    x is scaled to x L / R, taken to the nearest multiple of 2^-f, f = 32 - v, and rounded up with a probability that
    is exactly its fraction: floor(multiple + u), u from 0 to 1 - 2^-f in steps of 2^-f. L is added, so that nothing is
    negative.

    Guarantees: an integer is from 0 to 2L; what lies beyond the range counts as `saturated` and becomes -L or L.
    Value i takes 32-bit number i % value_words of its lane's own stretch of the stream: the parts of a vector don't
    matter. Raises DataError for a value that is NaN or infinite.
    """

    def __init__(self, values: NDArray[np.generic], encoding: Encoding, *, key: bytes, first: int) -> None:
        self.saturated = 0
        self._values, self._encoding = values, encoding
        self._fraction = 32 - encoding.bits
        self._most = float(encoding.limit << self._fraction)
        scale = self._most / encoding.range_
        # R itself must not land beyond L by the last bit of a float64.
        self._scale = scale if scale * encoding.range_ <= self._most else math.nextafter(scale, 0)
        stretch = -(-encoding.value_words // 4) * 2  # words of the stream for a lane, even
        self._streams = [Stream(key, start=lane * stretch + first // 2) for lane in range(encoding.lanes)]
        self._scaled = np.empty(BLOCK, np.float64)
        self._integers = np.empty(BLOCK, np.uint32)
        self._random: NDArray[np.uint64] = np.empty(BLOCK // 2, "<u8")

    def integers(self, lane: int, places: slice) -> NDArray[np.uint32]:
        """The values at `places`, at most a block, as integers. The next call overwrites them."""
        count = places.stop - places.start
        scaled, integers = self._scaled[:count], self._integers[:count]
        if count == 0:
            return integers
        with np.errstate(over="ignore"):  # a float64 that is too large is caught as infinite
            np.multiply(self._values[places], self._scale, out=scaled, dtype=np.float64)
        lowest, highest = float(scaled.min()), float(scaled.max())
        if not -math.inf < lowest <= highest < math.inf:
            where = places.start + int(np.argmin(np.isfinite(scaled)))
            raise DataError(f"value {where} of the vector is {self._values[where]}: only finite numbers are sent")
        if not -self._most <= lowest <= highest <= self._most:
            self.saturated += int(np.count_nonzero(np.abs(scaled) > self._most))
            np.clip(scaled, -self._most, self._most, out=scaled)
        np.rint(scaled, out=scaled)
        np.copyto(integers.view(np.int32), scaled, casting="unsafe")
        # From here modulo 2^32, where the sum of multiple, offset and random bits is below 2^32 again.
        random = self._random[: (count + 1) // 2]
        self._streams[lane].read(random)
        bits = random.view("<u4")[:count]
        bits >>= self._encoding.bits
        bits += self._encoding.limit << self._fraction
        integers += bits
        integers >>= self._fraction
        return integers
