"""A secret key as a long row of uniform bits: AES-256 in counter mode."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
_BLOCK_WORDS = 2  # an AES block holds two 64-bit words


def keystream(key: bytes, length: int) -> bytes:
    """The first `length` bytes of AES-256-CTR under `key`, counting blocks from zero.

    Guarantees: equal keys give equal bytes, and a shorter stream is the beginning of a longer one. A key is for one
    use: two uses would see the same bits. Raises ValueError for a key that has not 32 bytes or a negative length.
    Source: NIST SP 800-38A, section 6.5, initial counter block 0.
    """
    return _bytes(key, length, first_block=0)


def words(key: bytes, count: int, *, start: int = 0) -> NDArray[np.uint64]:
    """`count` words of 64 bits, little-endian, of the same stream, from word number `start`, which is even.

    Raises ValueError as `keystream` does, and for an odd or negative start.
    """
    if not (start >= 0 and start % _BLOCK_WORDS == 0):
        raise ValueError(f"a stream is read from an even word onwards, not from word {start}")
    return np.frombuffer(_bytes(key, 8 * count, first_block=start // _BLOCK_WORDS), dtype="<u8").astype(
        np.uint64, copy=False
    )


def _bytes(key: bytes, length: int, *, first_block: int) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes: AES-256 needs {KEY_BYTES}")
    if not length >= 0:
        raise ValueError(f"a stream of {length} bytes")
    encryptor = Cipher(algorithms.AES(key), modes.CTR(first_block.to_bytes(16, "big"))).encryptor()
    return encryptor.update(bytes(length)) + encryptor.finalize()
