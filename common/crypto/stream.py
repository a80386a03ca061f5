"""A secret key as a long row of uniform bits: AES-256 in counter mode."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
_BLOCK_WORDS = 2  # an AES block holds two 64-bit words
_ZEROS = memoryview(bytes(2**19))  # what is encrypted: the cipher text of zeros is the key stream


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
    return np.frombuffer(_bytes(key, 8 * count, first_block=_block_of(start)), dtype="<u8").astype(
        np.uint64, copy=False
    )


class Stream:
    """The same stream as `words`, read on and on into arrays that the caller owns: nothing is allocated per read.

    Raises ValueError as `words` does.
    """

    def __init__(self, key: bytes, *, start: int = 0) -> None:
        self._encryptor = _encryptor(key, first_block=_block_of(start))

    def read(self, out: NDArray[np.uint64]) -> None:
        """Overwrite `out`, contiguous words of dtype `<u8`, with the next words of the stream.

        Raises ValueError for another dtype: its bytes would be other words.
        """
        if out.dtype != np.dtype("<u8"):
            raise ValueError(f"a stream is read into little-endian 64-bit words, not into {out.dtype}")
        target = out.view(np.uint8).data
        for first in range(0, len(target), len(_ZEROS)):
            part = target[first : first + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(part)], part)


def _block_of(word: int) -> int:
    if not (word >= 0 and word % _BLOCK_WORDS == 0):
        raise ValueError(f"a stream is read from an even word onwards, not from word {word}")
    return word // _BLOCK_WORDS


def _bytes(key: bytes, length: int, *, first_block: int) -> bytes:
    if not length >= 0:
        raise ValueError(f"a stream of {length} bytes")
    encryptor = _encryptor(key, first_block=first_block)
    return encryptor.update(bytes(length)) + encryptor.finalize()


def _encryptor(key: bytes, *, first_block: int) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes: AES-256 needs {KEY_BYTES}")
    return Cipher(algorithms.AES(key), modes.CTR(first_block.to_bytes(16, "big"))).encryptor()
