"""Secure aggregation's arithmetic: vectors are encoded, masked, added and unmasked. No key is made here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.crypto.stream import KEY_BYTES, Stream
from common.errors import DataError, MessageError
from common.lanes import BLOCK, CHECKS, Encoding, fill, in_parts, lane_of
from common.rounding import Rounding

__all__ = ["WIDE_LIMIT", "Encoding", "MaskedSum", "encode", "mask", "pack"]

Words = NDArray[np.uint64]

WIDE_LIMIT = 2.0**40  # a site's wide fields lie between -2^40 and 2^40, both excluded
_WIDE_ONE = 2.0**16  # what 1.0 is in a wide field


def encode(values: ArrayLike, wide: ArrayLike, encoding: Encoding, *, key: bytes) -> tuple[Words, int]:
    """A site's vector as words, and how many of its values lay beyond the range.

    values  `encoding.values` numbers of any shape, read in C order: floats up to 64 bits, integers or booleans
    wide    `encoding.wide - 1` numbers; the number of saturated values is put behind them
    key     32 bytes of the CSPRNG for this call alone; who has it knows how each value was rounded

    Guarantees: a value x within the range becomes an integer q with |q unit - x| < unit; 0 becomes 0; over all keys
    the mean of q unit is x within 2^-(33 - v) unit. A value beyond becomes the range's end. A wide field becomes the
    nearest multiple of 2^-16. Equal arguments give equal words, whatever the number of threads. Beside the words it
    takes less than 4 MiB, if the values are contiguous.
    Raises DataError for a value that is NaN or infinite and for a wide field that isn't between -2^40 and 2^40;
    ValueError for another number of values or wide fields, another kind of number, or a key that has not 32 bytes.
    """
    numbers = np.asarray(values).reshape(-1)
    if not np.can_cast(numbers.dtype, np.float64):
        raise ValueError(f"values of dtype {numbers.dtype}: floats up to 64 bits, integers or booleans")
    words = _empty(numbers, encoding)

    def part(first: int, last: int) -> int:
        rounding = Rounding(numbers, encoding, key=key, first=first)
        fill(words, first, last, encoding, rounding.integers)
        return rounding.saturated

    saturated = sum(in_parts(part, encoding.value_words))
    _finish(words, wide, saturated, encoding)
    return words, saturated


def pack(integers: NDArray[np.int64], wide: ArrayLike, encoding: Encoding, *, saturated: int) -> Words:
    """Integers from -L to L as words, as `encode` makes them of values: for who has rounded already.

    Raises ValueError for another number of integers, another dtype than int64, or one beyond L; else as `encode`.
    """
    if integers.dtype != np.int64:
        raise ValueError(f"integers of dtype {integers.dtype}, not int64")
    flat = integers.reshape(-1)
    words = _empty(flat, encoding)

    def offset(_lane: int, places: slice) -> Words:
        some = flat[places]
        if ((some < -encoding.limit) | (some > encoding.limit)).any():
            raise ValueError(f"an integer beyond {encoding.limit}: it would leave its lane")
        return (some + encoding.limit).view(np.uint64)

    fill(words, 0, encoding.value_words, encoding, offset)
    _finish(words, wide, saturated, encoding)
    return words


def mask(words: Words, streams: Sequence[tuple[bytes, int]]) -> None:
    """Add to `words`, in place and modulo 2^64, the AES-256-CTR stream of each 32-byte key times its sign, 1 or -1.

    Guarantees: `mask` with all signs turned gives the words back; the order of streams and the number of threads don't
    matter; nothing is changed when it raises. Without words nothing happens.
    Raises ValueError for words that are not one row of writeable uint64, a key of another length, another sign, or a
    key that comes twice: what is masked twice alike, or masked and unmasked, is not masked.
    """
    if words.dtype != np.uint64 or words.ndim != 1 or not words.flags.c_contiguous or not words.flags.writeable:
        raise ValueError(f"words of dtype {words.dtype}, shape {words.shape}: one contiguous, writeable row of uint64")
    for key, sign in streams:
        if len(key) != KEY_BYTES or sign not in (1, -1):
            raise ValueError(f"a key of {len(key)} bytes with sign {sign}: {KEY_BYTES} bytes, and 1 or -1")
    if len({bytes(key) for key, _ in streams}) != len(streams):
        raise ValueError("the same key twice: each stream masks once")

    def part(first: int, last: int) -> None:
        opened = [(Stream(key, start=first), np.add if sign > 0 else np.subtract) for key, sign in streams]
        random: Words = np.empty(min(BLOCK, last - first), "<u8")
        for begin in range(first, last, BLOCK):
            block = words[begin : min(begin + BLOCK, last)]
            for stream, combine in opened:
                stream.read(random[: len(block)])
                combine(block, random[: len(block)], out=block)

    in_parts(part, len(words))


class MaskedSum:
    """Vectors added up as they come; the masks are taken away from the sum, never from a vector.

    Guarantees: holds one sum and the encoding; a vector that was added is not kept.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._sum: Words = np.zeros(encoding.words, np.uint64)
        self._added = 0

    def add(self, words: Words) -> None:
        """Add one site's words modulo 2^64.

        Raises MessageError for another dtype or length, and adds nothing then; ValueError for more vectors than the
        encoding has room for.
        """
        if words.dtype != np.uint64 or words.shape != self._sum.shape:
            raise MessageError(
                f"a vector of dtype {words.dtype} and shape {words.shape}, not {len(self._sum)} words of uint64"
            )
        if self._added == self._encoding.sites:
            raise ValueError(f"a sum has room for {self._encoding.sites} sites")
        self._sum += words
        self._added += 1

    def unmask(self, streams: Sequence[tuple[bytes, int]]) -> None:
        """Take away what `mask` added with the same streams: signs are those that the sites used.

        Raises ValueError as `mask` does.
        """
        mask(self._sum, [(key, -sign) for key, sign in streams])

    def values(self, sites: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sum over `sites` sites: `encoding.values` values and `encoding.wide` wide fields.

        Guarantees: of vectors made by `encode` whose values were within the range, each value is off the sum of what
        was encoded by less than `sites` units, 0 if all were 0; a wide field is off by at most sites 2^-17.
        A sum that is not of such vectors, or still masked, is refused: a uniform one passes with probability below
        2^-128 for the check words and 1/2 for each lane.
        Raises MessageError then; ValueError for a number of sites that is not from 1 to `encoding.sites`.
        """
        encoding = self._encoding
        if not 1 <= sites <= encoding.sites:
            raise ValueError(f"a sum over {sites} sites: 1 to {encoding.sites}")
        tail = self._sum[encoding.value_words :]
        wide = tail[: encoding.wide].view(np.int64)
        most = sites * (int(WIDE_LIMIT * _WIDE_ONE) - 1)
        if (
            tail[encoding.wide :].tolist() != [sites * check for check in CHECKS]
            or ((wide < -most) | (wide > most)).any()
        ):
            raise MessageError(f"the sum is not of {sites} vectors with all their masks taken away")
        found = np.empty(encoding.values, np.float64)

        def part(first: int, last: int) -> None:
            for begin in range(first, last, BLOCK):
                end = min(begin + BLOCK, last)
                for lane in range(encoding.lanes):
                    integers, places = lane_of(self._sum[begin:end], lane, encoding), encoding.places(lane, begin, end)
                    count = places.stop - places.start
                    if (integers[:count] > sites * 2 * encoding.limit).any() or integers[count:].any():
                        raise MessageError(f"a lane of the sum is more than {sites} vectors can give")
                    np.subtract(
                        integers[:count].view(np.int64), sites * encoding.limit, out=found[places], casting="unsafe"
                    )
                    found[places] *= encoding.unit

        in_parts(part, encoding.value_words)
        return found, wide / _WIDE_ONE


def _empty(flat: NDArray[np.generic], encoding: Encoding) -> Words:
    if flat.size != encoding.values:
        raise ValueError(f"{flat.size} values for an encoding of {encoding.values}")
    return np.empty(encoding.words, np.uint64)


def _finish(words: Words, wide: ArrayLike, saturated: int, encoding: Encoding) -> None:
    fields = np.append(np.asarray(wide, np.float64).reshape(-1), saturated)
    if fields.size != encoding.wide:
        raise ValueError(f"{fields.size - 1} wide fields for an encoding of {encoding.wide - 1} and the saturated")
    if not (np.abs(fields) < WIDE_LIMIT).all():
        raise DataError(f"wide fields {fields.tolist()}: each must be a number between -2^40 and 2^40")
    words[encoding.value_words : -len(CHECKS)] = np.rint(fields * _WIDE_ONE).astype(np.int64).view(np.uint64)
    words[-len(CHECKS) :] = CHECKS
