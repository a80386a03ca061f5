"""Shamir's shares: t give the secret, t - 1 say nothing, commitments know a changed one."""

import random
from collections import Counter
from itertools import combinations

import pytest
import second
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto import shares
from common.crypto.shares import PRIME, combine, in_field, seed_commitment, share_commitment, split
from common.errors import MessageError

T = bytes(range(32))


def test_the_modulus_is_the_first_prime_above_2_to_the_256() -> None:
    def is_prime(number: int) -> bool:
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            power = pow(base, odd, number)
            if power in (1, number - 1):
                continue
            if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
                return False
        return True

    assert [n for n in range(2**256 + 1, PRIME + 1, 2) if is_prime(n)] == [PRIME] == [second.PRIME]


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.integers(0, 4), st.randoms())
def test_any_threshold_of_shares_gives_the_secret(
    secret: bytes, threshold: int, more: int, draw: random.Random
) -> None:
    dealt = dict(enumerate(split(secret, threshold=threshold, holders=threshold + more), start=1))
    assert all(in_field(share) for share in dealt.values())
    chosen = {place: dealt[place] for place in draw.sample(sorted(dealt), threshold)}
    assert combine(chosen) == second.secret_of(chosen) == secret


def test_every_subset_of_five_gives_the_secret_and_no_smaller_one() -> None:
    secret = b"\xff" * 32
    dealt = dict(enumerate(split(secret, threshold=3, holders=5), start=1))
    for count in (3, 4, 5):
        for places in combinations(dealt, count):
            assert combine({place: dealt[place] for place in places}) == secret
    for places in combinations(dealt, 2):
        assert guess({place: dealt[place] for place in places}) != secret


def guess(some: dict[int, bytes]) -> bytes | None:
    try:
        return combine(some)
    except MessageError:
        return None


def test_fewer_shares_are_independent_of_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the field of 11 elements, all polynomials: two of three shares take each of the 121 values equally often.
    monkeypatch.setattr(shares, "PRIME", 11)
    seen: dict[int, Counter[tuple[bytes, ...]]] = {}
    for secret in (0, 7):
        seen[secret] = Counter()
        for first in range(11):
            for other in range(11):
                coefficients = iter((first, other))
                monkeypatch.setattr(shares.secrets, "randbelow", lambda _, c=coefficients: next(c))
                dealt = split(secret.to_bytes(32, "big"), threshold=3, holders=3)
                seen[secret][tuple(dealt[:2])] += 1
    assert seen[0] == seen[7] and set(seen[0].values()) == {1} and len(seen[0]) == 121


def test_coefficients_are_drawn_below_the_prime_for_each_secret_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(shares.secrets, "randbelow", lambda most: drawn.append(most) or 1)  # type: ignore[func-returns-value]
    split(bytes(32), threshold=4, holders=5)
    assert drawn == [PRIME] * 3


def test_shares_of_two_deals_differ() -> None:
    assert not set(split(bytes(32), threshold=2, holders=5)) & set(split(bytes(32), threshold=2, holders=5))


@pytest.mark.parametrize(("secret", "threshold", "holders"), [(31, 1, 1), (33, 1, 1), (32, 0, 1), (32, 3, 2)])
def test_what_is_no_sharing_is_refused(secret: int, threshold: int, holders: int) -> None:
    with pytest.raises(ValueError, match=r"a secret of|shares: at least"):
        split(bytes(secret), threshold=threshold, holders=holders)


def test_a_number_that_is_no_secret_is_refused() -> None:
    with pytest.raises(MessageError, match="not of one secret"):
        combine({1: (2**256).to_bytes(33, "big")})


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_what_is_no_share_is_known(share: bytes) -> None:
    assert not in_field(share)
    assert in_field((PRIME - 1).to_bytes(33, "big"))


def test_a_commitment_names_all_that_a_share_is() -> None:
    share = bytes(33)
    commitments = {
        share_commitment(share, kind="masking", transcript=T, dealer=1, holder=2),
        share_commitment(share, kind="self", transcript=T, dealer=1, holder=2),
        share_commitment(share, kind="self", transcript=T[::-1], dealer=1, holder=2),
        share_commitment(share, kind="self", transcript=T, dealer=2, holder=2),
        share_commitment(share, kind="self", transcript=T, dealer=1, holder=3),
        share_commitment(b"\1" + share[1:], kind="self", transcript=T, dealer=1, holder=2),
        seed_commitment(share, transcript=T, dealer=1),
        seed_commitment(share, transcript=T, dealer=2),
        seed_commitment(share, transcript=T[::-1], dealer=1),
        seed_commitment(b"\1" + share[1:], transcript=T, dealer=1),
    }
    assert len(commitments) == 10
