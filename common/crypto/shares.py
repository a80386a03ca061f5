"""Secrets in shares: t of n give a secret back, t - 1 say nothing about it. With commitments, so that a share that was
changed is known for one.

Arithmetic is in Python integers, whose time depends on their size: the secrets are fresh for each session, and nobody
else measures time inside the process.
"""

import hashlib
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from common.errors import MessageError

PRIME = 2**256 + 297  # the smallest above 2^256: every 32-byte secret is below it
SECRET_BYTES = 32
SHARE_BYTES = 33

Kind = Literal["masking", "self"]
_KINDS: dict[Kind, bytes] = {"masking": b"\0", "self": b"\1"}


def split(secret: bytes, *, threshold: int, holders: int) -> list[bytes]:
    """One share for each place 1 … `holders`: the values there of a random polynomial that is the secret at 0.

    Guarantees: any `threshold` of them give the secret, fewer are independent of it.
    Raises ValueError for a secret that has not 32 bytes, or unless 1 <= threshold <= holders < 2^16.
    Source: Shamir 1979, "How to share a secret".
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes: {SECRET_BYTES} are shared")
    if not 1 <= threshold <= holders < 2**16:
        raise ValueError(f"{threshold} of {holders} shares: at least 1, at most all, fewer than 65536")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = []
    for place in range(1, holders + 1):
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * place % PRIME
        shares.append(((value + int.from_bytes(secret, "big")) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret that these shares, by place, are of: exactly as many as its threshold.

    Raises MessageError when what they give is no secret; that they are shares of one secret, the caller checks.
    """
    places = tuple(sorted(shares))
    numbers = [int.from_bytes(shares[place], "big") for place in places]
    secret = sum(weight * number for weight, number in zip(_weights(places), numbers, strict=True)) % PRIME
    if secret >= 2**256:
        raise MessageError(f"the shares of places {places} are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0, once for each set of places."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def in_field(share: bytes) -> bool:
    """Whether these are the bytes of a share: 33, a number below the prime."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def share_commitment(share: bytes, *, kind: Kind, transcript: bytes, dealer: int, holder: int) -> bytes:
    """SHA-256 over the share and what it is: T1, of which secret, whose, for whom. A share is a random number of 256
    bits, so the hash hides it.
    """
    places = dealer.to_bytes(2, "big") + holder.to_bytes(2, "big")
    return hashlib.sha256(b"fedward/1/share-commitment\0" + transcript + _KINDS[kind] + places + share).digest()


def seed_commitment(seed: bytes, *, transcript: bytes, dealer: int) -> bytes:
    """SHA-256 over a self-mask's seed, T1 and whose it is."""
    return hashlib.sha256(b"fedward/1/seed-commitment\0" + transcript + dealer.to_bytes(2, "big") + seed).digest()
