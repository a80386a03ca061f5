"""The sealed channel for shares: AES-256-GCM under a key for one direction between two sites of one key list."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import MessageError

_NONCE = 12
OVERHEAD = _NONCE + 16  # bytes by which a sealed text is longer


def seal(text: bytes, *, key: bytes, transcript: bytes, sender: int, receiver: int) -> bytes:
    """Nonce, then text and tag. The nonce is random; a key seals one text.

    Source: NIST SP 800-38D; associated data are T1 and both places in the key list, 16 bits each.
    """
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, text, _associated(transcript, sender, receiver))


def unseal(sealed: bytes, *, key: bytes, transcript: bytes, sender: int, receiver: int) -> bytes:
    """The text. Raises MessageError when one bit of it, of the transcript or of a place is another."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _associated(transcript, sender, receiver))
    except (InvalidTag, ValueError) as error:
        raise MessageError(f"shares from place {sender} to place {receiver} can't be opened") from error


def _associated(transcript: bytes, sender: int, receiver: int) -> bytes:
    return transcript + sender.to_bytes(2, "big") + receiver.to_bytes(2, "big")
