"""Identities: what is signed, what is refused."""

import pytest
import second
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto.identity import Identity, digest, pae, verify
from common.errors import MessageError

KEY = Identity(bytes(range(32)))


def test_pae_is_that_of_dsse() -> None:
    # DSSE protocol 1.0 shows PAE("http://example.com/HelloWorld", "hello world"); here the type is always ours.
    assert pae("keys", b"hello world") == b"DSSEv1 14 fedward/1/keys 11 hello world"
    assert pae("x", b"") == b"DSSEv1 11 fedward/1/x 0 "


def test_the_public_key_is_that_of_rfc_8032() -> None:
    # RFC 8032, section 7.1, test 1.
    key = Identity(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_second_implementation_accepts_the_signature_and_finds_the_same_hash(body: bytes) -> None:
    assert second.signed_by(KEY.public, "keys", body, KEY.sign("keys", body))
    assert digest("keys", body) == second.message_hash("keys", body)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 63), st.integers(0, 7))
def test_every_bit_of_the_signature_counts(body: bytes, byte: int, bit: int) -> None:
    signature = bytearray(KEY.sign("keys", body))
    verify(KEY.public, "keys", body, bytes(signature))
    signature[byte] ^= 1 << bit
    with pytest.raises(MessageError, match="signature"):
        verify(KEY.public, "keys", body, bytes(signature))


def test_another_body_type_or_key_is_refused() -> None:
    signature = KEY.sign("keys", b"body")
    for public, name, body in (
        (KEY.public, "keys", b"bodY"),
        (KEY.public, "header", b"body"),
        (Identity.new().public, "keys", b"body"),
        (bytes(31), "keys", b"body"),
    ):
        with pytest.raises(MessageError, match="signature"):
            verify(public, name, body, signature)
    for short in (b"", signature[:63], signature + b"\0"):
        with pytest.raises(MessageError, match="signature"):
            verify(KEY.public, "keys", b"body", short)


def test_printing_an_identity_shows_the_public_key_alone() -> None:
    assert KEY.private_bytes().hex() not in repr(KEY) and KEY.public.hex() in repr(KEY)


def test_identities_are_fresh_and_come_back_from_their_bytes() -> None:
    one, other = Identity.new(), Identity.new()
    assert one.public != other.public
    assert Identity(one.private_bytes()).public == one.public
    with pytest.raises(ValueError, match="31 bytes"):
        Identity(bytes(31))
