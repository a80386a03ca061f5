"""Secure aggregation's primitives a second time, slowly, from their specifications: an oracle that shares no code."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from Crypto.Cipher import AES
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

P255 = 2**255 - 19
PRIME = int("115792089237316195423570985008687907853269984665640564039457584007913129640233")  # 2^256 + 297


def x25519(private: bytes, public: bytes) -> bytes:
    """RFC 7748, section 5, the Montgomery ladder as written there."""
    scalar = int.from_bytes(private, "little") & ~7 & ((1 << 255) - 1) | 1 << 254
    x1 = int.from_bytes(public, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = scalar >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P255, x1 * (da - cb) ** 2 % P255
        x2, z2 = aa * bb % P255, e * (aa + 121665 * e) % P255
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P255 - 2, P255) % P255).to_bytes(32, "little")


def public_of(private: bytes) -> bytes:
    return x25519(private, (9).to_bytes(32, "little"))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of 32 bytes."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def two(number: int) -> bytes:
    return bytes((number >> 8, number & 255))


def message_hash(kind: str, text: bytes) -> bytes:
    name = b"fedward/1/" + kind.encode()
    return hashlib.sha256(
        b"DSSEv1 " + str(len(name)).encode() + b" " + name + b" " + str(len(text)).encode() + b" " + text
    ).digest()


def signed_by(public: bytes, kind: str, text: bytes, signature: bytes) -> bool:
    name = b"fedward/1/" + kind.encode()
    pae = b" ".join((b"DSSEv1", str(len(name)).encode(), name, str(len(text)).encode(), text))
    key = ECC.import_key(bytes.fromhex("302a300506032b6570032100") + public)
    try:
        eddsa.new(key, "rfc8032").verify(pae, signature)
    except ValueError:
        return False
    return True


def unseal(sealed: bytes, key: bytes, associated: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=sealed[:12])
    cipher.update(associated)
    return cipher.decrypt_and_verify(sealed[12:-16], sealed[-16:])


def stream(key: bytes, words: int) -> list[int]:
    cipher = AES.new(key, AES.MODE_ECB)
    data = b"".join(cipher.encrypt(block.to_bytes(16, "big")) for block in range((words + 1) // 2))
    return [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(words)]


def secret_of(shares: Mapping[int, bytes]) -> bytes:
    """Newton's divided differences, evaluated at 0."""
    places = list(shares)
    table = [int.from_bytes(shares[place], "big") for place in places]
    for order in range(1, len(places)):
        for i in range(len(places) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) * pow(places[i] - places[i - order], -1, PRIME) % PRIME
    value = 0
    for i in range(len(places) - 1, -1, -1):
        value = (value * (0 - places[i]) + table[i]) % PRIME
    return value.to_bytes(32, "big")


def transcript(step: int, *parts: bytes) -> bytes:
    return hashlib.sha256(f"fedward/1/T{step}".encode() + b"".join(parts)).digest()


def over_list(envelopes: Sequence[Mapping[str, Any]], kind: str) -> bytes:
    hashes = [message_hash(kind, entry["body"].encode()) for entry in sorted(envelopes, key=lambda e: str(e["site"]))]
    return two(len(hashes)) + b"".join(hashes)


def asked(request: bytes) -> Any:
    """What a request of the server says."""
    return json.loads(json.loads(request)["body"])
