"""A server that lies, to the real clients: all that it can show to five sites, and ten thousand rounds at random."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from lying_server import Model, cases
from rounds_at_random import play

from client.session_masked import Masked
from common import requests
from common.crypto import identity

SMALL = [case for case in cases() if case[0] < 5]
FIVE = [case for case in cases() if case[0] == 5]
ROUNDS, WORLDS, PARTS = 5, 2000, 4  # 10,000 rounds


def least(model: Model) -> int:
    smallest, looked = model.smallest()
    assert looked >= 5 and model.answers >= 12
    return smallest


def check(case: tuple[int, int, int]) -> None:
    model = Model(*case)
    assert least(model) == max((model.n + model.c) // 2 + 1, model.min_sites) - model.c


@pytest.mark.parametrize("case", SMALL)
def test_the_smallest_honest_set_whose_sum_opens_is_the_promised_one(case: tuple[int, int, int]) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FIVE)
def test_the_smallest_honest_set_of_five_sites_is_the_promised_one(case: tuple[int, int, int]) -> None:
    check(case)


@pytest.mark.slow
def test_without_the_confirmations_a_smaller_set_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masked, "confirmed_by", lambda self, _: self.confirmed)
    assert least(Model(5, 0, 3)) < 3


@pytest.mark.parametrize("case", [(3, 0, 2), (4, 0, 3), (4, 1, 3)])
def test_a_site_that_answers_twice_opens_a_smaller_set(
    case: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not blind: where each site gives both kinds of share, a single update opens."""

    def both(self: Model, i: int, shown: frozenset[int], survivors: frozenset[int], signers: frozenset[int]) -> Any:
        answer = real(self, i, shown, survivors, signers)
        return type(answer)(masking=answer.self_mask | answer.masking, self_mask=answer.self_mask, opens=answer.opens)

    real = Model._revealed
    monkeypatch.setattr(Model, "_revealed", both)
    assert least(Model(*case)) == 1


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Verify each signature and read each request once, though many sites do: both are functions without state."""
    monkeypatch.setattr(identity, "verify", functools.lru_cache(2000)(identity.verify))
    kept: list[object] = []  # settings, so that no other one gets the same id
    for name in ("shares", "masked", "opening", "reveal"):
        real = getattr(requests, f"read_ask_{name}")
        known: dict[tuple[bytes, int], Any] = {}

        def read(data: bytes, setting: Any, *, real: Any = real, known: dict[tuple[bytes, int], Any] = known) -> Any:
            if len(known) > 500:
                known.clear()
            if (data, id(setting)) not in known:
                kept.append(setting)
                known[data, id(setting)] = real(data, setting)
            return known[data, id(setting)]

        monkeypatch.setattr(requests, f"read_ask_{name}", read)
    yield
    assert kept


def simulate(worlds: range) -> None:
    exact = refused = opened = tight = 0
    for seed in worlds:
        world = play(seed, ROUNDS)
        exact, refused = exact + world.exact, refused + world.refused
        for smallest, promised in world.smallest():
            assert smallest >= promised, f"seed {seed}: {smallest} honest sites in a sum, {promised} promised"
            opened, tight = opened + 1, tight + (smallest == promised)
    # The rounds are not all of one sort: sums, refusals, sums under a lying server, the smallest that is promised.
    assert min(exact, refused, opened - exact, tight) >= len(worlds) // 4


@pytest.mark.usefixtures("read_once")
def test_rounds_at_random_end_in_the_exact_sum_or_in_none() -> None:
    simulate(range(WORLDS, WORLDS + 40))


@pytest.mark.slow
@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_rounds_at_random_end_in_the_exact_sum_or_in_none(part: int) -> None:
    simulate(range(part * WORLDS // PARTS, (part + 1) * WORLDS // PARTS))
