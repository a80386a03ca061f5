"""The key stream: known answers, prefixes, offsets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.crypto.stream import keystream, words

KEY = bytes(range(32))


def test_the_stream_is_aes_256_of_the_counter() -> None:
    # FIPS 197, appendix C.3 gives AES-256 of one block; the counter block with that value yields it as key stream.
    block = int.from_bytes(bytes.fromhex("00112233445566778899aabbccddeeff"), "big")
    from common.crypto.stream import _bytes

    assert _bytes(KEY, 16, first_block=block).hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_counting_starts_at_a_zero_block() -> None:
    # AES-256 of the zero block under the zero key: NIST AESAVS, appendix B.4 / C.4 family ("dc95c078...").
    assert keystream(bytes(32), 16).hex() == "dc95c078a2408989ad48a21492842087"


def test_words_are_little_endian() -> None:
    assert words(KEY, 3).tolist() == [int.from_bytes(keystream(KEY, 24)[8 * i : 8 * i + 8], "little") for i in range(3)]


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_shorter_stream_is_the_beginning_of_a_longer_one(one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert keystream(KEY, long)[:short] == keystream(KEY, short)


@given(st.integers(0, 50), st.integers(0, 50))
def test_words_from_a_start_are_those_of_the_whole_stream(start: int, count: int) -> None:
    assert np.array_equal(words(KEY, count, start=2 * start), words(KEY, 2 * start + count)[2 * start :])


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        keystream(key, 1)


def test_odd_or_negative_starts_and_lengths_are_refused() -> None:
    for start in (1, -2):
        with pytest.raises(ValueError, match="even word"):
            words(KEY, 2, start=start)
    with pytest.raises(ValueError, match="-1 bytes"):
        keystream(KEY, -1)
