"""Masking against a second implementation in Python integers: words, rounding, streams, sums, refusals."""

import hashlib
import itertools
import math
import struct
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from Crypto.Cipher import AES
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import lanes, masking
from common.errors import DataError, MessageError
from common.lanes import BLOCK, Encoding, in_parts
from common.masking import MaskedSum, encode, mask, pack

KEY = bytes(range(32))


def keys(count: int, *, label: int = 0) -> list[bytes]:
    return [bytes([label, k // 256, k % 256]) + bytes(29) for k in range(count)]


def stream(key: bytes, words: int) -> list[int]:
    """The second implementation: pycryptodome's AES, the counter written out."""
    cipher = AES.new(key, AES.MODE_ECB)
    raw = b"".join(cipher.encrypt(block.to_bytes(16, "big")) for block in range((words + 1) // 2))
    return [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(words)]


def packed(integers: Sequence[int], wide: Sequence[float], encoding: Encoding, *, sites: int = 1) -> list[int]:
    """Words written out: integers with their offset in lanes, wide fields, check words; `sites` of them added up."""
    count, width = math.ceil(len(integers) / encoding.lanes), {3: 21, 4: 16}[encoding.lanes]
    bits = width - 1 - math.ceil(math.log2(encoding.sites))
    found = [0] * count
    for place, integer in enumerate(integers):
        found[place % count] += (integer + sites * (2 ** (bits - 1) - 1)) << (width * (place // count))
    return [*found, *(round(field * 65536) % 2**64 for field in wide), sites, 0]


def rounded(value: float, encoding: Encoding, bits: int) -> int:
    """Value to integer by exact fractions, from its 32 random bits."""
    fraction = 32 - encoding.bits
    scaled = Fraction(value) / Fraction(encoding.range_) * encoding.limit
    scaled = max(Fraction(-encoding.limit), min(Fraction(encoding.limit), scaled))
    return math.floor(Fraction(round(scaled * 2**fraction) + (bits >> encoding.bits), 2**fraction))


encodings = st.builds(
    Encoding,
    values=st.integers(0, 40),
    wide=st.integers(1, 4),
    lanes=st.sampled_from([3, 4]),
    range_=st.sampled_from([2.0**-40, 0.1, 1.0, 3.0, 1e6, 2.0**40]),
    sites=st.sampled_from([1, 2, 3, 5, 8, 9, 64, 100, 128]),
)


def draw(encoding: Encoding, seed: int, *, spread: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A site's values within `spread` ranges, some of them zero or at the ends, and its wide fields."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-spread, spread, encoding.values) * encoding.range_
    values[rng.random(encoding.values) < 0.2] = 0
    return values.astype(np.float32), rng.uniform(-1e6, 1e6, encoding.wide - 1)


# The encoding


@pytest.mark.parametrize(
    ("sites", "lanes_", "bits"), [(8, 3, 17), (100, 3, 13), (1, 3, 20), (2, 3, 19), (9, 3, 16), (8, 4, 12), (100, 4, 8)]
)
def test_bits_are_what_the_sites_leave(sites: int, lanes_: int, bits: int) -> None:
    encoding = Encoding(values=1, wide=1, lanes=lanes_, range_=1.0, sites=sites)
    assert encoding.bits == bits and encoding.limit == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("lanes_", [3, 4])
@pytest.mark.parametrize("sites", range(1, 129))
def test_in_a_sum_of_all_sites_the_top_bit_of_each_lane_is_free(sites: int, lanes_: int) -> None:
    encoding = Encoding(values=lanes_, wide=1, lanes=lanes_, range_=1.0, sites=sites)
    assert sites * 2 * encoding.limit < 2 ** ({3: 21, 4: 16}[lanes_] - 1)
    assert sites * (2 * encoding.limit + 1) * 2 > 2 ** ({3: 21, 4: 16}[lanes_] - 2)  # and not two bits


def test_a_unet_takes_at_most_2_7_bytes_a_parameter_and_2_with_four_lanes() -> None:
    for lanes_, bytes_ in ((3, 2.667), (4, 2.0001)):
        encoding = Encoding(values=31_030_593, wide=20, lanes=lanes_, range_=1.0, sites=8)
        assert 8 * encoding.words / encoding.values <= bytes_


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": -1},
        {"values": 2**32 + 1},
        {"wide": 0},
        {"wide": 2**16 + 1},
        {"lanes": 2},
        {"lanes": 5},
        {"range_": 0.0},
        {"range_": -1.0},
        {"range_": math.nan},
        {"range_": math.inf},
        {"range_": 2.0**41},
        {"sites": 0},
        {"sites": 129},
    ],
)
def test_an_encoding_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\d|nan|inf"):
        Encoding(**{"values": 1, "wide": 1, "range_": 1.0, "sites": 3, **wrong})  # type: ignore[arg-type]


def test_the_digest_is_over_all_fields() -> None:
    base = {"values": 7, "wide": 2, "lanes": 3, "range_": 0.5, "sites": 3}
    changes = [{}, {"values": 8}, {"wide": 3}, {"lanes": 4}, {"range_": 0.25}, {"sites": 4}]
    assert len({Encoding(**{**base, **change}).sha256 for change in changes}) == len(changes)  # type: ignore[arg-type]
    fields = (7).to_bytes(8, "big") + (2).to_bytes(4, "big") + b"\3" + (3).to_bytes(2, "big") + struct.pack(">d", 0.5)
    assert Encoding(**base).sha256 == hashlib.sha256(b"fedward/1/encoding\0" + fields).digest()  # type: ignore[arg-type]


# encode and pack


@settings(deadline=None)
@given(encodings, st.integers(0, 2**32))
def test_words_are_those_of_the_second_implementation(encoding: Encoding, seed: int) -> None:
    values, wide = draw(encoding, seed, spread=1.5)
    stretch, width = -(-encoding.value_words // 4) * 2, encoding.value_words
    integers = []
    random = struct.pack(f"<{stretch * encoding.lanes}Q", *stream(KEY, stretch * encoding.lanes))
    for place, value in enumerate(values.tolist()):
        at = 8 * stretch * (place // width) + 4 * (place % width)
        integers.append(rounded(value, encoding, int.from_bytes(random[at : at + 4], "little")))
    saturated = sum(abs(value) > encoding.range_ for value in values.tolist())
    words, found = encode(values, wide, encoding, key=KEY)
    assert found == saturated
    assert words.dtype == np.uint64 and words.tolist() == packed(integers, [*wide, saturated], encoding)
    same = pack(np.array(integers, np.int64), wide, encoding, saturated=saturated)
    assert same.tolist() == words.tolist()


def test_known_words() -> None:
    """By hand: 3 lanes, 2 sites, so v = 19 and L = 262143; 1.0 is 2L in a lane, 0.0 is L, -1.0 is 0."""
    encoding = Encoding(values=3, wide=2, range_=1.0, sites=2)
    words, saturated = encode([1.0, 0.0, -1.0], [-1.5], encoding, key=KEY)
    assert saturated == 0
    assert [hex(word) for word in words.tolist()] == ["0x7fffe7fffe", "0xfffffffffffe8000", "0x0", "0x1", "0x0"]
    mask(words, [(bytes(32), 1)])
    # AES-256 of the zero block under the zero key is dc95c078a2408989 ad48a21492842087, added as little-endian words.
    assert words[0] == (0x7FFFE7FFFE + int.from_bytes(bytes.fromhex("dc95c078a2408989"), "little")) % 2**64
    assert words[1] == (0xFFFFFFFFFFFE8000 + int.from_bytes(bytes.fromhex("ad48a21492842087"), "little")) % 2**64


@settings(deadline=None)
@given(encodings, st.integers(0, 2**32))
def test_a_value_in_the_range_is_off_by_less_than_a_unit_and_zero_is_exact(encoding: Encoding, seed: int) -> None:
    values, wide = draw(encoding, seed)
    values = np.clip(values.astype(np.float64), -encoding.range_, encoding.range_)
    total = MaskedSum(encoding)
    words, saturated = encode(values, wide, encoding, key=KEY)
    total.add(words)
    found, fields = total.values(1)
    assert (np.abs(found - values) < encoding.unit * (1 + 1e-9)).all()
    assert (found[values == 0] == 0).all()
    assert saturated == 0
    assert np.abs(fields - [*wide, 0]).max() <= 2**-17


@pytest.mark.parametrize("sites", [1, 8, 100])
def test_the_mean_over_keys_is_the_value(sites: int) -> None:
    """40,000 keys. The fraction rounded up scatters by at most 0.0025, so 0.0125 are 5 standard deviations. Power: a
    mean that is off by 0.025 of a unit is rejected, and so is rounding to the nearest."""
    encoding = Encoding(values=40_000, wide=1, range_=1.0, sites=sites)
    for fraction in (0.05, 0.25, 0.5, 0.9):
        for whole in (-encoding.limit, -3, 0, encoding.limit - 1):
            values = np.full(encoding.values, (whole + fraction) / encoding.limit)
            total = MaskedSum(encoding)
            total.add(encode(values, [], encoding, key=keys(1, label=whole % 251)[0])[0])
            up = float(np.mean(total.values(1)[0] / encoding.unit)) - whole
            assert abs(up - fraction) < 0.0125


def test_roundings_of_neighbours_lanes_and_blocks_are_independent() -> None:
    encoding = Encoding(values=9 * BLOCK, wide=1, range_=1.0, sites=2)
    total = MaskedSum(encoding)
    total.add(encode(np.full(encoding.values, 0.5 * encoding.unit), [], encoding, key=KEY)[0])
    up = total.values(1)[0].reshape(-1, BLOCK) / encoding.unit
    assert set(np.unique(up)) == {0.0, 1.0}
    assert len({row.tobytes() for row in up}) == 9
    assert np.abs(np.corrcoef(up)[np.triu_indices(9, 1)]).max() < 0.02  # 5 standard deviations
    assert abs(np.corrcoef(up[0, :-1], up[0, 1:])[0, 1]) < 0.02


@pytest.mark.parametrize("range_", [0.1, 0.3, 1.0, 1e-7, 1 / 3, 1e12, 123.456])
def test_the_ends_of_the_range_are_exact_and_what_is_beyond_is_counted(range_: float) -> None:
    encoding = Encoding(values=6, wide=2, range_=range_, sites=8)
    beyond = float(np.nextafter(range_, math.inf) * (1 + 1e-12))
    words, saturated = encode([range_, -range_, beyond, -beyond, 1e3 * range_, 0.0], [5.0], encoding, key=KEY)
    assert saturated == 3
    total = MaskedSum(encoding)
    total.add(words)
    values, wide = total.values(1)
    assert (values / encoding.unit).tolist() == pytest.approx([65535, -65535, 65535, -65535, 65535, 0], abs=1e-9)
    assert wide.tolist() == [5.0, 3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_values_that_are_not_finite_are_refused_at_the_site(value: float, place: int) -> None:
    values = np.zeros(7, np.float32)
    values[place] = value
    with pytest.raises(DataError, match=f"value {place} of the vector is {value}"):
        encode(values, [], Encoding(values=7, wide=1, range_=1.0, sites=3), key=KEY)


def test_a_float64_that_is_too_large_is_refused_as_infinite() -> None:
    with pytest.raises(DataError, match="1e\\+308"):
        encode([1e308], [], Encoding(values=1, wide=1, range_=1.0, sites=3), key=KEY)


@pytest.mark.parametrize("wide", [math.nan, math.inf, -math.inf, 2.0**40, -(2.0**40)])
def test_wide_fields_that_do_not_fit_are_refused_at_the_site(wide: float) -> None:
    with pytest.raises(DataError, match="wide fields"):
        encode([0.5], [1.0, wide], Encoding(values=1, wide=3, range_=1.0, sites=3), key=KEY)


@pytest.mark.parametrize("sites", [1, 128])
def test_the_largest_wide_fields_add_up(sites: int) -> None:
    encoding = Encoding(values=0, wide=3, range_=1.0, sites=sites)
    largest, total = float(np.nextafter(2.0**40, 0)), MaskedSum(encoding)
    for _ in range(sites):
        total.add(encode([], [largest, -largest], encoding, key=KEY)[0])
    assert total.values(sites)[1].tolist() == [sites * largest, -sites * largest, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (3, 0), (2, 2, 2)])
def test_shapes_and_kinds_of_numbers_are_defined(dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.arange(math.prod(shape)) % 2).reshape(shape).astype(dtype)
    encoding = Encoding(values=values.size, wide=1, range_=1.0, sites=3)
    total = MaskedSum(encoding)
    total.add(encode(values, [], encoding, key=KEY)[0])
    assert total.values(1)[0] == pytest.approx(values.reshape(-1).astype(float), abs=1e-12)


def test_values_that_are_not_contiguous_are_taken_in_c_order() -> None:
    values = np.arange(12.0).reshape(3, 4)
    encoding = Encoding(values=12, wide=1, range_=16.0, sites=3)
    one, other = (encode(of, [], encoding, key=KEY)[0] for of in (values.T, np.ascontiguousarray(values.T)))
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize("values", [np.zeros(2, complex), np.zeros(2, object), np.array(["a", "b"])])
def test_other_kinds_are_refused(values: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="dtype"):
        encode(values, [], Encoding(values=2, wide=1, range_=1.0, sites=3), key=KEY)


def test_other_lengths_and_keys_are_refused() -> None:
    encoding = Encoding(values=3, wide=2, range_=1.0, sites=3)
    with pytest.raises(ValueError, match="4 values for an encoding of 3"):
        encode(np.zeros(4), [1.0], encoding, key=KEY)
    for wide in ([], [1.0, 2.0]):
        with pytest.raises(ValueError, match="wide fields for an encoding of 1"):
            encode(np.zeros(3), wide, encoding, key=KEY)
    with pytest.raises(ValueError, match="16 bytes"):
        encode(np.zeros(3), [1.0], encoding, key=KEY[:16])


def test_pack_refuses_what_would_leave_its_lane() -> None:
    encoding = Encoding(values=3, wide=1, range_=1.0, sites=3)
    for integer in (encoding.limit + 1, -encoding.limit - 1, 2**63 - 1, -(2**63)):
        with pytest.raises(ValueError, match="beyond"):
            pack(np.array([0, integer, 0]), [], encoding, saturated=0)
    with pytest.raises(ValueError, match="int32"):
        pack(np.zeros(3, np.int32), [], encoding, saturated=0)
    with pytest.raises(ValueError, match="2 values"):
        pack(np.zeros(2, np.int64), [], encoding, saturated=0)


# Threads and blocks


def test_equal_arguments_give_equal_words_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding(values=3 * (3 * BLOCK + 5) - 1, wide=1, range_=1.0, sites=8)
    values = np.random.default_rng(0).uniform(-1.1, 1.1, encoding.values).astype(np.float32)
    found = []
    for cores in (1, 2, None):
        monkeypatch.setattr(lanes.os, "cpu_count", lambda cores=cores: cores)
        words, saturated = encode(values, [], encoding, key=KEY)
        total = MaskedSum(encoding)
        total.add(words)
        numbers, wide = total.values(1)
        assert wide[-1] == saturated == np.count_nonzero(np.abs(values) > 1)
        mask(words, [(key, 1) for key in keys(2)])
        found.append((words.tobytes(), numbers.tobytes()))
    assert len(set(found)) == 1
    assert np.abs(np.frombuffer(found[0][1]) - np.clip(values, -1, 1)).max() < encoding.unit * 1.000001
    expected = np.array(stream(keys(2)[0], 4 * BLOCK)[: encoding.words], np.uint64)
    unmasked = np.frombuffer(found[0][0], np.uint64).copy()
    mask(unmasked, [(keys(2)[1], -1)])
    assert np.array_equal(unmasked - expected, encode(values, [], encoding, key=KEY)[0])


@pytest.mark.parametrize("words", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 7 * BLOCK + 3])
def test_parts_begin_at_whole_blocks_and_cover_all_words(words: int) -> None:
    parts = in_parts(lambda first, last: (first, last), words)
    assert parts[0][0] == 0 and parts[-1][1] == words
    assert all(first % BLOCK == 0 for first, _ in parts)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))


def test_an_error_in_either_part_is_raised() -> None:
    encoding = Encoding(values=9 * BLOCK, wide=1, range_=1.0, sites=8)
    for place in (0, encoding.values - 1):
        values = np.zeros(encoding.values, np.float32)
        values[place] = math.nan
        with pytest.raises(DataError, match=f"value {place} "):
            encode(values, [], encoding, key=KEY)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_beside_the_words_encoding_takes_less_than_4_mib(spread: float) -> None:
    encoding = Encoding(values=30 * BLOCK, wide=1, range_=1.0, sites=8)
    values = np.random.default_rng(0).uniform(-spread, spread, encoding.values).astype(np.float32)
    encode(values, [], encoding, key=KEY)
    tracemalloc.start()
    words, _ = encode(values, [], encoding, key=KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words.nbytes < peak < words.nbytes + 4 * 2**20


# mask


@settings(deadline=None)
@given(st.integers(0, 50), st.lists(st.sampled_from([1, -1]), max_size=5), st.integers(0, 2**32))
def test_masks_are_the_signed_streams_of_the_second_implementation(words: int, signs: list[int], seed: int) -> None:
    plain = np.random.default_rng(seed).integers(0, 2**64, words, dtype=np.uint64)
    masked, streams = plain.copy(), list(zip(keys(len(signs)), signs, strict=True))
    mask(masked, streams)
    expected = plain.tolist()
    for key, sign in streams:
        expected = [(one + sign * other) % 2**64 for one, other in zip(expected, stream(key, words), strict=True)]
    assert masked.tolist() == expected
    mask(masked, [(key, -sign) for key, sign in reversed(streams)])
    assert masked.tolist() == plain.tolist()


def test_masked_words_are_uniform() -> None:
    """Chi square over the bytes of 32,768 words of zeros, masked: 255 degrees of freedom scatter by 23. Power: one byte
    value that comes half as often again is rejected, and so are words without a mask."""
    encoding = Encoding(values=3 * 32_768, wide=1, range_=1.0, sites=8)
    words, _ = encode(np.zeros(encoding.values), [], encoding, key=KEY)

    def distance(of: NDArray[np.uint64]) -> float:
        counts = np.bincount(of.view(np.uint8), minlength=256)
        return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())

    assert distance(words) > 1e6
    mask(words, [(KEY, 1)])
    assert distance(words) < 255 + 5 * 23
    assert distance(np.concatenate([words, np.zeros(64, np.uint64)])) > 255 + 5 * 23
    other, _ = encode(np.zeros(encoding.values), [], encoding, key=KEY)
    mask(other, [(bytes(32), 1)])
    assert not np.isin(words, other).any()


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(4, np.int64),
        np.zeros(4, np.float64),
        np.zeros(4, ">u8"),
        np.zeros((2, 2), np.uint64),
        np.zeros(8, np.uint64)[::2],
        np.frombuffer(bytes(32), np.uint64),
    ],
)
def test_words_of_another_kind_are_not_masked(words: NDArray[np.uint64]) -> None:
    with pytest.raises(ValueError, match="writeable"):
        mask(words, [(KEY, 1)])


@pytest.mark.parametrize(
    "streams", [[(KEY, 1), (KEY, -1)], [(KEY, 1), (KEY, 1)], [(KEY, 1), (KEY[:16], 1)], [(KEY, 0)], [(KEY, 2)]]
)
def test_streams_that_would_not_mask_change_nothing(streams: list[tuple[bytes, int]]) -> None:
    words = np.zeros(4, np.uint64)
    with pytest.raises(ValueError, match=r"twice|sign|bytes"):
        mask(words, streams)
    assert words.tolist() == [0] * 4


# Sums


def session(encoding: Encoding, sites: int) -> list[list[tuple[bytes, int]]]:
    """Streams by site: its own, and one for each pair that the lower adds and the higher takes away."""
    own = keys(sites, label=1)
    pairs = {(i, j): keys(sites * sites, label=2)[i * sites + j] for i in range(sites) for j in range(i)}
    return [
        [(own[i], 1)]
        + [(pairs[i, j], -1) for j in range(sites) if j < i]
        + [(pairs[j, i], 1) for j in range(sites) if j > i]
        for i in range(sites)
    ]


@settings(deadline=None, max_examples=50)
@given(encodings, st.data())
def test_a_masked_sum_is_the_plain_sum_within_a_unit_each(encoding: Encoding, data: st.DataObject) -> None:
    """Some sites drop out after masking: their pair streams stay in the sum and are taken away by key."""
    sites = data.draw(st.integers(1, min(6, encoding.sites)))
    there = data.draw(st.lists(st.booleans(), min_size=sites, max_size=sites).filter(any))
    streams, total, plain = session(encoding, sites), MaskedSum(encoding), MaskedSum(encoding)
    exact, wide_exact = np.zeros(encoding.values), np.zeros(encoding.wide)
    survivors = [site for site in range(sites) if there[site]]
    gone = {key for site in range(sites) if not there[site] for key, _ in streams[site]}
    for site in survivors:
        values, wide = draw(encoding, site)
        values = np.clip(values.astype(np.float64), -encoding.range_, encoding.range_)
        words, saturated = encode(values, wide, encoding, key=keys(sites, label=3)[site])
        plain.add(words)
        mask(words, streams[site])
        total.add(words)
        exact += values
        wide_exact += [*wide, saturated]
    opened = [(streams[site][0]) for site in survivors]
    opened += [(key, sign) for site in survivors for key, sign in streams[site] if key in gone]
    with pytest.raises(MessageError):
        total.values(len(survivors))
    total.unmask(opened)
    found, wide_found = total.values(len(survivors))
    assert (np.abs(found - exact) < len(survivors) * encoding.unit * (1 + 1e-9)).all()
    assert np.abs(wide_found - wide_exact).max() <= len(survivors) * 2**-17 + 1e-9
    same, wide_same = plain.values(len(survivors))
    assert found.tolist() == same.tolist() and wide_found.tolist() == wide_same.tolist()


@pytest.mark.parametrize("end", [1.0, -1.0])
@pytest.mark.parametrize(("sites", "lanes_"), [(8, 3), (8, 4), (100, 3), (128, 4)])
def test_all_sites_at_an_end_of_the_range_add_up(sites: int, lanes_: int, end: float) -> None:
    encoding = Encoding(values=7, wide=1, lanes=lanes_, range_=1.0, sites=sites)
    total = MaskedSum(encoding)
    for _ in range(sites):
        total.add(encode(np.full(7, end), [], encoding, key=KEY)[0])
    assert total.values(sites)[0] == pytest.approx(np.full(7, end * sites), rel=1e-12)
    with pytest.raises(ValueError, match="room"):
        total.add(encode(np.full(7, end), [], encoding, key=KEY)[0])


def test_zeros_add_up_to_exactly_zero() -> None:
    encoding = Encoding(values=11, wide=1, range_=0.3, sites=100)
    total = MaskedSum(encoding)
    for key in keys(100):
        total.add(encode(np.zeros(11), [], encoding, key=key)[0])
    assert total.values(100)[0].tolist() == [0.0] * 11


@pytest.mark.parametrize(
    "words",
    [np.zeros(6, np.uint64), np.zeros(8, np.uint64), np.zeros((7, 1), np.uint64), np.zeros(7), np.zeros(7, np.int64)],
)
def test_a_vector_of_another_length_or_dtype_is_refused_and_not_added(words: NDArray[np.uint64]) -> None:
    encoding = Encoding(values=12, wide=1, range_=1.0, sites=3)
    total = MaskedSum(encoding)
    with pytest.raises(MessageError, match="not 7 words"):
        total.add(words)
    total.add(encode(np.zeros(12), [], encoding, key=KEY)[0])
    assert total.values(1)[0].tolist() == [0.0] * 12


@pytest.mark.parametrize("sites", [0, -1, 4])
def test_a_sum_over_no_sites_or_too_many_is_refused(sites: int) -> None:
    with pytest.raises(ValueError, match="1 to 3"):
        MaskedSum(Encoding(values=1, wide=1, range_=1.0, sites=3)).values(sites)


def summed(words: Sequence[int], encoding: Encoding, sites: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    total = MaskedSum(encoding)
    total.add(np.array(words, np.uint64))
    return total.values(sites)


@pytest.mark.parametrize("lanes_", [3, 4])
@pytest.mark.parametrize("sites", [1, 3])
def test_each_lane_may_hold_k_times_2l_and_not_one_more(lanes_: int, sites: int) -> None:
    encoding = Encoding(values=2 * lanes_, wide=1, lanes=lanes_, range_=1.0, sites=3)
    most, width = sites * (2**encoding.bits - 2), encoding.lane_bits
    for lane in range(lanes_):
        for word in range(2):
            good = [0, 0, 0, sites, 0]
            good[word] = most << (width * lane)
            values, _ = summed(good, encoding, sites)
            assert values[2 * lane + word] == pytest.approx(sites, rel=1e-12)
            good[word] += 1 << (width * lane)
            with pytest.raises(MessageError, match="lane"):
                summed(good, encoding, sites)


@pytest.mark.parametrize("bit", [63, 42, 62, 21])
def test_bits_behind_the_last_value_must_be_zero(bit: int) -> None:
    encoding = Encoding(values=1, wide=1, range_=1.0, sites=3)
    with pytest.raises(MessageError, match="lane"):
        summed([1 << bit, 0, 1, 0], encoding, 1)
    with pytest.raises(MessageError, match="lane"):
        summed([1 << 63, 0, 1, 0], Encoding(values=3, wide=1, range_=1.0, sites=3), 1)


@pytest.mark.parametrize("tail", [(0, 0), (2, 0), (1, 1), (1, 2**63), (2**63 + 1, 0), (3, 0)])
def test_wrong_check_words_are_refused(tail: tuple[int, int]) -> None:
    with pytest.raises(MessageError, match="masks"):
        summed([0, 0, *tail], Encoding(values=1, wide=1, range_=1.0, sites=3), 1)


@pytest.mark.parametrize("wide", [2**56, 2**64 - 2**56, 2**63])
def test_wide_fields_that_no_site_can_have_sent_are_refused(wide: int) -> None:
    encoding = Encoding(values=0, wide=1, range_=1.0, sites=3)
    with pytest.raises(MessageError, match="masks"):
        summed([wide, 1, 0], encoding, 1)
    assert summed([2**56 - 1, 1, 0], encoding, 1)[1].tolist() == [float(2**40)]


@pytest.mark.parametrize(("values", "lanes_"), [(1, 3), (2, 3), (3, 3), (4, 4)])
def test_garbage_in_the_lanes_passes_with_probability_below_a_half_each(values: int, lanes_: int) -> None:
    """Random value words with right check words, 4,000 times: the number that passes is binomial."""
    encoding = Encoding(values=values, wide=1, lanes=lanes_, range_=1.0, sites=8)
    rng, passed, trials = np.random.default_rng(0), 0, 4000
    for _ in range(trials):
        try:
            summed([int(rng.integers(0, 2**64, dtype=np.uint64)), 0, 8, 0], encoding, 8)
            passed += 1
        except MessageError:
            pass
    assert passed <= trials * 2.0**-lanes_ + 4 * math.sqrt(trials * 2.0**-lanes_)
    if values == lanes_ == 4:  # each lane: 8 (2^12 - 2) + 1 of 2^16
        expected = trials * ((8 * (2**12 - 2) + 1) / 2**16) ** 4
        assert abs(passed - expected) < 5 * math.sqrt(expected)


def test_a_sum_still_masked_is_refused() -> None:
    encoding = Encoding(values=3, wide=1, range_=1.0, sites=8)
    words, _ = encode(np.zeros(3), [], encoding, key=KEY)
    mask(words, [(KEY, 1), (bytes(32), -1)])
    total = MaskedSum(encoding)
    total.add(words)
    for streams in ([(KEY, 1)], [(bytes(32), 1)]):
        total.unmask(streams)
        with pytest.raises(MessageError):
            total.values(1)


def test_a_vector_that_was_added_is_not_kept_and_is_not_changed() -> None:
    encoding = Encoding(values=5, wide=1, range_=1.0, sites=3)
    total, vectors = MaskedSum(encoding), []
    for key in keys(3):
        words, _ = encode(np.full(5, 0.5), [], encoding, key=key)
        mask(words, [(key, 1)])
        vectors.append(words.copy())
        total.add(words)
        assert words.tolist() == vectors[-1].tolist()
    arrays = [held for held in vars(total).values() if isinstance(held, np.ndarray)]
    assert [held.tolist() for held in arrays] == [np.sum(vectors, axis=0, dtype=np.uint64).tolist()]
    assert set(vars(total)) == {"_encoding", "_sum", "_added"}


def test_a_read_only_vector_from_the_wire_can_be_added() -> None:
    encoding = Encoding(values=3, wide=1, range_=1.0, sites=3)
    total = MaskedSum(encoding)
    total.add(np.frombuffer(encode(np.zeros(3), [], encoding, key=KEY)[0].tobytes(), "<u8"))
    assert total.values(1)[0].tolist() == [0.0] * 3


def test_what_masking_offers() -> None:
    assert masking.Encoding is Encoding and masking.WIDE_LIMIT == 2.0**40
