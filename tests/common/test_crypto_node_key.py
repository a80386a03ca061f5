"""The SuperNode's key, against Flower's own reading of it."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from common.crypto import node_key
from common.errors import MessageError


def test_the_private_file_is_an_openssh_p384_key_and_the_line_its_public_half() -> None:
    private, line = node_key.generate()
    key = serialization.load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    assert node_key.public_pem(line) == public_key_to_bytes(key.public_key())
    assert "\n" not in line and line.isascii()


def test_signed_is_what_flower_signs() -> None:
    private, line = node_key.generate()
    key = serialization.load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = sign_message(key, b"2026-01-01T00:00:00+00:00")
    assert node_key.signed(line, b"2026-01-01T00:00:00+00:00", signature)
    assert not node_key.signed(line, b"2026-01-01T00:00:01+00:00", signature)
    assert not node_key.signed(node_key.generate()[1], b"2026-01-01T00:00:00+00:00", signature)
    assert not node_key.signed(line, b"2026-01-01T00:00:00+00:00", b"")


def test_another_kind_of_key_or_line_is_refused() -> None:
    ssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    other = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*ssh).decode()
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*ssh).decode()
    line = node_key.generate()[1]
    for bad in (other, p256, "", line + " comment", line + "\n", " " + line, line[:-4], "ü" + line, line + "x" * 2000):
        with pytest.raises(MessageError):
            node_key.public_pem(bad)
