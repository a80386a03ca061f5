"""Who says what: Ed25519 identities, and signatures over a body together with its type."""

import hashlib
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import MessageError

KEY_BYTES = 32
SIGNATURE_BYTES = 64


class Identity:
    """A signing key. Whoever makes one from bytes got them from a file that only its owner can read.

    Guarantees: printing it shows the public key alone.
    """

    def __init__(self, private: bytes) -> None:
        if len(private) != KEY_BYTES:
            raise ValueError(f"a private key of {len(private)} bytes: Ed25519 needs {KEY_BYTES}")
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def new(cls) -> Self:
        """A fresh identity from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def private_bytes(self) -> bytes:
        """The 32 bytes to keep in a file with mode 0600."""
        return self._key.private_bytes_raw()

    def sign(self, name: str, body: bytes) -> bytes:
        """The signature, 64 bytes, over the body as a message of this type."""
        return self._key.sign(pae(name, body))

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()})"


def pae(name: str, body: bytes) -> bytes:
    """What is signed and hashed: the type `fedward/1/<name>` and the body, each with its length before it.

    Guarantees: two pairs of type and body never give the same bytes.
    Source: DSSE protocol 1.0, "Signature Definition": PAE(type, body).
    """
    kind = f"fedward/1/{name}".encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def digest(name: str, body: bytes) -> bytes:
    """H(m) of secure aggregation: SHA-256 over `pae`."""
    return hashlib.sha256(pae(name, body)).digest()


def verify(public: bytes, name: str, body: bytes, signature: bytes) -> None:
    """Raises MessageError unless the holder of `public` signed exactly this body as a message of this type."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, pae(name, body))
    except (InvalidSignature, ValueError) as error:
        raise MessageError(f"a {name} message whose signature is not by {public.hex()[:16]}…: refused") from error
