"""Agreed secrets and derived keys, against a second implementation."""

import os

import pytest
import second

from common.crypto.agreement import KeyPair, pair_key, self_key, share_key
from common.errors import MessageError

T = bytes(range(32))
KNOWN = [  # computed by the second implementation: share, pair and self key of a zero secret
    "3e27d40f5c2dceb78068e90273b5192c541de0973eea250db8f2dc0f52c8f120",
    "b661ea9c8aa9cc1f21f3b7311664cad3a26746d44d1956eded573550e3d729b7",
    "49f6ff8199f9d449e38a28664ede25fd513bb9dcefba605bcdc34a63c4a1eee1",
]
# Points of order 1, 2, 4, 8 and their other encodings: Bernstein, "Curve25519", "May the Curve25519 key be a zero?"
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_two_sites_agree_and_a_second_implementation_with_them() -> None:
    for _ in range(5):
        one, other = KeyPair.new(), KeyPair.new()
        assert one.agree(other.public) == other.agree(one.public) == second.x25519(one.private, other.public)
        assert one.public == second.public_of(one.private)


def test_any_32_bytes_are_a_private_key() -> None:
    for private in (bytes(32), b"\xff" * 32):
        assert KeyPair.of(private).public == second.public_of(private)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_an_all_zero_secret_is_refused(point: str) -> None:
    assert second.x25519(bytes(range(32)), bytes.fromhex(point)) == bytes(32)
    with pytest.raises(MessageError, match="all-zero"):
        KeyPair.new().agree(bytes.fromhex(point))


def test_keys_are_those_that_the_second_implementation_derives() -> None:
    secret = os.urandom(32)
    places = second.two(3) + second.two(258)
    assert share_key(secret, T, sender=3, receiver=258) == second.hkdf(secret, T, b"fedward/1/share\0" + places)
    assert pair_key(secret, T, one=258, other=3) == second.hkdf(secret, T, b"fedward/1/pair\0" + places)
    assert self_key(secret, T, index=3) == second.hkdf(secret, T, b"fedward/1/self\0" + second.two(3))


def test_keys_that_were_written_down() -> None:
    secret = bytes(32)
    assert [
        share_key(secret, T, sender=1, receiver=2).hex(),
        pair_key(secret, T, one=1, other=2).hex(),
        self_key(secret, T, index=1).hex(),
    ] == KNOWN


def test_every_purpose_direction_and_transcript_has_its_own_key() -> None:
    secret = bytes(32)
    keys = {
        share_key(secret, T, sender=1, receiver=2),
        share_key(secret, T, sender=2, receiver=1),
        share_key(secret, T[::-1], sender=1, receiver=2),
        pair_key(secret, T, one=1, other=2),
        pair_key(secret, T, one=1, other=3),
        pair_key(secret, T[::-1], one=1, other=2),
        self_key(secret, T, index=1),
        self_key(secret, T, index=2),
        self_key(secret, T[::-1], index=1),
    }
    assert len(keys) == 9
    assert pair_key(secret, T, one=1, other=2) == pair_key(secret, T, one=2, other=1)


def test_printing_a_pair_shows_the_public_key_alone() -> None:
    pair = KeyPair.new()
    assert repr(pair.private) not in repr(pair) and repr(pair.public) in repr(pair)
