"""Secrets that two sites share without sending them, and the keys that come from a secret: X25519 and HKDF-SHA256.

Every derivation names its purpose and the places of the two sites in the key list, and is salted with the hash of all
that was said before: two sites that were shown different things hold different keys.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import MessageError

KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """An X25519 pair. Guarantees: printing it shows the public key alone."""

    private: bytes = field(repr=False)
    public: bytes

    @cached_property
    def _key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.private)

    @classmethod
    def new(cls) -> Self:
        """A fresh pair from the operating system's generator."""
        return cls.of(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, private: bytes) -> Self:
        """The pair whose private key these 32 bytes are: any are."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(private=private, public=key.public_key().public_bytes_raw())

    def agree(self, peer: bytes) -> bytes:
        """The secret shared with the holder of the public key `peer`.

        Raises MessageError for a key of low order, with which the secret would be zero whatever the private key is.
        Source: RFC 7748, section 6.1.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise MessageError(f"key {peer.hex()[:16]}… gives an all-zero secret: refused") from error


def share_key(secret: bytes, transcript: bytes, *, sender: int, receiver: int) -> bytes:
    """What `sender` encrypts its shares for `receiver` with. `secret`: of their channel keys; `transcript`: T1."""
    return _derive(secret, transcript, b"fedward/1/share\0", sender, receiver)


def pair_key(secret: bytes, transcript: bytes, *, one: int, other: int) -> bytes:
    """The key of the mask that two sites share, equal for both. `secret`: of their masking keys; `transcript`: T2."""
    return _derive(secret, transcript, b"fedward/1/pair\0", min(one, other), max(one, other))


def self_key(seed: bytes, transcript: bytes, *, index: int) -> bytes:
    """The key of a site's own mask. `transcript`: T2."""
    return _derive(seed, transcript, b"fedward/1/self\0", index)


def _derive(secret: bytes, transcript: bytes, purpose: bytes, *places: int) -> bytes:
    """Source: RFC 5869 (HKDF), places as 16 bits big-endian."""
    info = purpose + b"".join(place.to_bytes(2, "big") for place in places)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=transcript, info=info).derive(secret)
