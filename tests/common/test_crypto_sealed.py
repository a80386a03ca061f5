"""The sealed channel: only the text that was sealed, for whom and where it was sealed, comes out."""

import pytest
import second
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto.sealed import OVERHEAD, seal, unseal
from common.errors import MessageError

KEY, T = bytes(range(32)), bytes(range(32, 64))
PLACE = {"key": KEY, "transcript": T, "sender": 1, "receiver": 2}


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_the_text_comes_back_and_out_of_a_second_implementation(text: bytes) -> None:
    sealed = seal(text, key=KEY, transcript=T, sender=1, receiver=2)
    assert len(sealed) == len(text) + OVERHEAD
    assert unseal(sealed, key=KEY, transcript=T, sender=1, receiver=2) == text
    assert second.unseal(sealed, KEY, T + second.two(1) + second.two(2)) == text


def test_every_bit_counts() -> None:
    sealed = seal(b"text", key=KEY, transcript=T, sender=1, receiver=2)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError, match="place 1 to place 2"):
            unseal(bytes(changed), key=KEY, transcript=T, sender=1, receiver=2)
    for cut in range(len(sealed)):
        with pytest.raises(MessageError, match="can't be opened"):
            unseal(sealed[:cut], key=KEY, transcript=T, sender=1, receiver=2)


@pytest.mark.parametrize(
    ("key", "transcript", "sender", "receiver"),
    [(KEY[::-1], T, 1, 2), (KEY, T[::-1], 1, 2), (KEY, T, 2, 2), (KEY, T, 1, 3), (KEY, T, 2, 1)],
)
def test_another_key_transcript_or_place_is_refused(key: bytes, transcript: bytes, sender: int, receiver: int) -> None:
    sealed = seal(b"text", key=KEY, transcript=T, sender=1, receiver=2)
    with pytest.raises(MessageError, match="can't be opened"):
        unseal(sealed, key=key, transcript=transcript, sender=sender, receiver=receiver)


def test_the_same_text_is_never_sealed_alike() -> None:
    assert len({seal(b"text", key=KEY, transcript=T, sender=1, receiver=2)[:12] for _ in range(100)}) == 100
