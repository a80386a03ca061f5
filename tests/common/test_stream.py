"""The key stream: known answers, prefixes, offsets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.crypto.stream import Stream, keystream, words

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


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(0, 20))
def test_reading_on_gives_the_words_of_the_whole_stream(counts: list[int], start: int) -> None:
    stream, found = Stream(KEY, start=2 * start), []
    for count in counts:
        out = np.empty(count, "<u8")
        stream.read(out)
        found += out.tolist()
    assert found == words(KEY, sum(counts), start=2 * start).tolist()


def test_a_read_longer_than_the_zeros_goes_on_where_it_was() -> None:
    out = np.empty(2**17 + 3, "<u8")
    Stream(KEY).read(out)
    assert np.array_equal(out, words(KEY, len(out)))


def test_a_stream_refuses_what_words_refuses_and_words_of_another_kind() -> None:
    with pytest.raises(ValueError, match="even word"):
        Stream(KEY, start=1)
    with pytest.raises(ValueError, match="31 bytes"):
        Stream(KEY[:31])
    for dtype in (">u8", "<i8", "<u4", "<f8"):
        with pytest.raises(ValueError, match="little-endian"):
            Stream(KEY).read(np.empty(2, dtype))
