"""Masks that cancel: what a session of real sites adds up to, and what leaves each of them."""

import json
from hashlib import sha256
from itertools import product

import numpy as np
import pytest
import second
from numpy.typing import NDArray
from session_cases import ORDER, Federation, names_of, one, refused, wide_of

from common import requests
from common.crypto.agreement import KeyPair
from server.session import Session, SessionFailed

NAMES = names_of(4)

Vectors = dict[str, NDArray[np.uint64]]
Sums = tuple[list[float], list[float]]


@pytest.fixture
def fed() -> Federation:
    """Four sites, one of which may be the server's: t = 3."""
    return Federation(4, colluding=1, min_sites=3)


def opened_and_summed(fed: Federation, session: Session, present: list[str], vectors: Vectors) -> Sums:
    fed.opened(session, present)
    return fed.sum_of(session, vectors)


def outcome(n: int, pattern: tuple[str, ...]) -> None:
    """A session in which each site drops out before step 3, after it, or not at all."""
    fed = Federation(n)
    session = fed.set_up(1)
    t = n // 2 + 1
    survivors = [name for name, fate in zip(names_of(n), pattern, strict=True) if fate != "before"]
    present = [name for name, fate in zip(names_of(n), pattern, strict=True) if fate == "stays"]
    vectors = fed.masked(session, survivors)
    if len(survivors) < max(t, 2) or len(present) < t:
        with pytest.raises(SessionFailed):
            opened_and_summed(fed, session, present, vectors)
        return
    assert opened_and_summed(fed, session, present, vectors) == fed.plain(survivors)
    for name in names_of(n):
        assert [list(opening.survivors) for opening in fed.openings[name]] == [survivors] * (name in present)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_masked_sum_is_the_plain_sum_for_every_pattern_of_drop_outs(n: int) -> None:
    for pattern in product(("stays", "before", "after"), repeat=n):
        outcome(n, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 6])
def test_the_masked_sum_is_the_plain_sum_for_every_pattern_of_drop_outs_of_more_sites(n: int) -> None:
    for pattern in product(("stays", "before", "after"), repeat=n):
        outcome(n, pattern)


def test_sites_that_leave_between_keys_and_shares_are_in_no_mask() -> None:
    fed = Federation(5)
    session = fed.set_up(1, dealers=names_of(5)[1:])
    vectors = fed.masked(session, names_of(5)[2:])
    fed.opened(session, names_of(5)[2:])
    assert fed.sum_of(session, vectors) == fed.plain(names_of(5)[2:])


def test_a_run_of_overlapped_sessions() -> None:
    fed = Federation(4)
    present = [set(NAMES), set(NAMES) - {"site-2"}, set(NAMES), set(NAMES) - {"site-0"}]
    current = fed.set_up(1)
    for number, here in enumerate(present, start=2):
        following = fed.session(number)
        dealers = [
            shares.signed.site
            for shares in requests.read_ask_masked(current.ask_masked(ORDER, next=number), fed.setting).shares
        ]
        survivors = [name for name in dealers if name in here]
        vectors = fed.masked(current, survivors, following)
        for name in set(NAMES) - set(survivors):  # back before B is sent
            fed.take(fed.sites[name].keys(following.ask_keys()), name, None, following)
        fed.opened(current, survivors, following=following)
        for name in set(NAMES) - set(survivors):
            fed.take(fed.sites[name].shares(following.ask_shares()), name, None, following)
        assert fed.sum_of(current, vectors) == fed.plain(survivors)
        current = following


def test_the_second_implementation_masks_to_the_same_words(fed: Federation) -> None:
    session = fed.session(1)
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    private = {name: vars(fed.sites[name]._setup) for name in NAMES}
    secret = {name: (v["_masking"].private, v["_channel"].private, v["_seed"]) for name, v in private.items()}
    request = session.ask_shares()
    for name in NAMES[:3]:
        fed.take(fed.sites[name].shares(request), name, None, session)
    keys = {entry["site"]: json.loads(entry["body"]) for entry in second.asked(request)["keys"]}
    asked = second.asked(session.ask_masked(ORDER))["shares"]
    t1 = second.transcript(1, fed.setting.transcript(1), second.over_list(second.asked(request)["keys"], "keys"))
    t2 = second.transcript(2, t1, ORDER, second.over_list(asked, "shares"))
    vectors = fed.masked(session, NAMES[:3])
    for me, name in enumerate(NAMES[:3], start=1):
        words = [int(word) for word in fed.words(name)]
        masks = [(second.hkdf(secret[name][2], t2, b"fedward/1/self\0" + second.two(me)), 1)]
        for peer, other in enumerate(NAMES[:3], start=1):
            if other != name:
                agreed = second.x25519(secret[name][0], bytes.fromhex(keys[other]["masking"]))
                places = second.two(min(me, peer)) + second.two(max(me, peer))
                masks.append((second.hkdf(agreed, t2, b"fedward/1/pair\0" + places), 1 if me < peer else -1))
        for key, sign in masks:
            stream = second.stream(key, len(words))
            words = [(word + sign * more) % 2**64 for word, more in zip(words, stream, strict=True)]
        assert words == [int(word) for word in vectors[name]]
    # And what the shares say: each peer opens its pair; any three of four give both secrets.
    for me, entry in enumerate(asked, start=1):
        dealt = json.loads(entry["body"])
        pairs = {}
        for peer, other in enumerate(NAMES, start=1):
            if peer != me:
                agreed = second.x25519(secret[other][1], bytes.fromhex(keys[entry["site"]]["channel"]))
                places = second.two(me) + second.two(peer)
                key = second.hkdf(agreed, t1, b"fedward/1/share\0" + places)
                pairs[peer] = second.unseal(bytes.fromhex(dealt["sealed"][peer - 1]), key, t1 + places)
        assert second.secret_of({peer: pair[:33] for peer, pair in pairs.items()}) == secret[entry["site"]][0]
        assert second.secret_of({peer: pair[33:] for peer, pair in pairs.items()}) == secret[entry["site"]][2]


def test_a_session_that_was_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(1000))

    def fixed(length: int) -> bytes:
        return sha256(b"fixed %d" % next(counter)).digest()[:length]

    monkeypatch.setattr(KeyPair, "new", classmethod(lambda cls: cls.of(fixed(32))))
    for place in ("client.session_setup.os.urandom", "common.crypto.sealed.os.urandom"):
        monkeypatch.setattr(place, fixed)
    monkeypatch.setattr("common.crypto.shares.secrets.randbelow", lambda _: int.from_bytes(fixed(32)))
    fed = Federation(3)
    session = fed.set_up(1)
    request = session.ask_masked(ORDER)
    digests = []
    for name in names_of(3):
        words = np.zeros(4, dtype=np.uint64)
        fed.sites[name].order(request)
        fed.sites[name].mask(words, session=1)
        digests.append(words.tobytes().hex()[:32])
    assert digests == KNOWN


KNOWN = [
    "2fcc9aa1b8e0a0f3560ec98b19b43660",
    "1f1ebbc02e2fcea578168c5cd1bdb99b",
    "3df259cfd008374713e8a3358a9a6018",
]


# What leaves


def test_masked_vectors_are_uniform_and_no_two_sessions_alike() -> None:
    fed = Federation(3)
    seen = []
    for number in (1, 2):
        session = fed.set_up(number)
        request = session.ask_masked(ORDER)
        words = np.zeros(40_000, dtype=np.uint64)
        fed.sites["site-0"].order(request)
        fed.sites["site-0"].mask(words, session=number)
        bits = np.unpackbits(words.view(np.uint8))
        counts = np.bincount(words.view(np.uint8), minlength=256)
        # 2,560,000 bits: five standard deviations are 4000; 255 degrees of freedom: 5 sigma of chi-squared is 368.
        assert abs(int(bits.sum()) - bits.size // 2) < 4000
        assert ((counts - 1250.0) ** 2 / 1250.0).sum() < 368
        seen.append(words)
    assert not np.any(seen[0] == seen[1])


def test_a_restarted_site_has_left_the_session_at_every_step(fed: Federation) -> None:
    session = fed.set_up(1)
    ask_keys, ask_shares, ask_masked = session.ask_keys(), session.ask_shares(), session.ask_masked(ORDER)
    fed.masked(session, NAMES[:3])
    ask_opening = session.ask_opening()
    restarted = fed.site("site-0")
    refused(lambda: restarted.shares(ask_shares), "not the one that this site sets up")
    refused(lambda: restarted.order(ask_masked), "not the one that this site sets up")
    refused(lambda: restarted.mask(fed.words("site-0"), session=1), "no order")
    refused(lambda: restarted.open(ask_opening), "not the newest")
    keys = one(restarted.keys(ask_keys), fed, "site-0", "keys")
    assert keys != one(fed.sites["site-0"].keys(ask_keys), fed, "site-0", "keys")
    refused(lambda: restarted.shares(ask_shares), "own message")
    for name in NAMES[:2]:
        fed.take(fed.sites[name].open(ask_opening), name, session)
    fed.take(fed.sites["site-2"].open(ask_opening), "site-2", session)
    ask_reveal = session.ask_reveal()
    for call in (restarted.open, restarted.reveal):
        refused(lambda call=call: call(ask_opening if call == restarted.open else ask_reveal), "not the newest")


def test_secrets_are_not_printed_and_go_when_the_session_ends(fed: Federation) -> None:
    session = fed.set_up(1)
    site = fed.sites["site-0"]
    assert not hasattr(site._setup, "_masking") and not hasattr(site._setup, "_seed")
    fed.masked(session, NAMES)
    assert site._current is not None and site._current._streams is None and site._setup is None
    assert set(site._current._held) == set(NAMES)
    fed.opened(session, NAMES)
    assert site._current._held == {}


def test_wide_numbers_differ_between_sites() -> None:
    assert len({float(wide_of(name)[0]) for name in names_of(6)}) == 6
