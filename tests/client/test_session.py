"""One site's side of secure aggregation: masks that cancel, secrets that stay, and every refusal."""

import json
from collections.abc import Callable
from hashlib import sha256
from itertools import product

import numpy as np
import pytest
import second
from numpy.typing import NDArray
from session_cases import ORDER, SERVER, Federation, identity_of, names_of, roster_of, setting_of, wide_of

from client.session import MaskedIn, Opening, Sessions
from common import body, requests
from common.crypto.agreement import KeyPair
from common.crypto.identity import Identity
from common.errors import MessageError
from common.roster import RosterError
from common.session import Confirm, Header, Keys, Opened, Shares, answered
from common.transcript import KeyList, SenderList, SurvivorList
from server.session import Session, SessionFailed

NAMES = names_of(4)
T = bytes(range(32))

Vectors = dict[str, NDArray[np.uint64]]
Sums = tuple[list[float], list[float]]


@pytest.fixture
def fed() -> Federation:
    """Four sites, one of which may be the server's: t = 3."""
    return Federation(4, colluding=1, min_sites=3)


def refused(call: Callable[[], object], text: str = "") -> None:
    with pytest.raises(MessageError, match=text or None) as caught:
        call()
    assert "\n" not in str(caught.value)


def one(data: bytes, fed: Federation, site: str, kind: str) -> bytes:
    """The body of one message of an answer."""
    return answered(data, fed.setting.roster, site=site)[kind].body


# Sums


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


# Once


def test_the_same_request_gets_the_same_bytes(fed: Federation) -> None:
    session, following = fed.session(1), fed.session(2)
    site = fed.sites["site-0"]
    assert site.keys(session.ask_keys()) == site.keys(session.ask_keys())
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    assert site.shares(session.ask_shares()) == site.shares(session.ask_shares())
    for name in NAMES:
        fed.take(fed.sites[name].shares(session.ask_shares()), name, None, session)
    vectors = fed.masked(session, NAMES[:3], following)
    again = site.order(session.ask_masked(ORDER, next=2))
    assert again.answer is not None and again.words is not None and np.array_equal(again.words, vectors["site-0"])
    header = answered(again.answer, fed.setting.roster, site="site-0")["header"]
    assert session.take_header(header, vector=sha256(vectors["site-0"].tobytes()).digest()) is False
    assert one(site.keys(following.ask_keys()), fed, "site-0", "keys") == one(again.answer, fed, "site-0", "keys")
    request = session.ask_opening(following.key_list)
    assert site.open(request) == site.open(request)
    shares = one(site.open(request), fed, "site-0", "shares")
    assert one(site.shares(following.ask_shares()), fed, "site-0", "shares") == shares
    for name in NAMES[:3]:
        fed.take(fed.sites[name].open(request), name, session, following)
    assert site.reveal(session.ask_reveal()) == site.reveal(session.ask_reveal())
    assert len(fed.openings["site-0"]) == 1


def test_another_request_of_the_same_exchange_is_refused(fed: Federation) -> None:
    session = fed.set_up(1)
    site, key = fed.sites["site-0"], SERVER
    fewer = KeyList(setting=fed.setting, session=1, keys=session.key_list.keys[:3])
    refused(lambda: site.shares(requests.ask_shares(key, fewer)), "another request|second list")
    request = session.ask_masked(ORDER)
    site.order(request)
    shares = session._senders.shares if session._senders else ()
    for order, chosen in ((T, shares), (ORDER, shares[:3])):
        senders = SenderList(key_list=session.key_list, order=order, shares=chosen)
        refused(lambda senders=senders: site.order(requests.ask_masked(key, senders, next=0)), "second order")
    refused(lambda: site.order(session.ask_masked(ORDER, next=2)), "second order")
    fed.masked(session, NAMES)
    refused(lambda: site.mask(fed.words("site-0"), session=1), "one vector")
    headers = session.survivors.headers
    without = [SurvivorList(senders=session.survivors.senders, headers=headers[:3]), session.survivors]
    lists = [requests.ask_opening(key, fed.setting, 1, survivors=each, next_list=None) for each in without]
    site.open(lists[0])
    refused(lambda: site.open(lists[1]), "another request")
    refused(lambda: site.open(session.ask_closing()), "another request")


def test_shares_are_dealt_for_one_list_even_if_it_comes_in_another_way(fed: Federation) -> None:
    first, following = fed.set_up(1), fed.session(2)
    fed.masked(first, NAMES, following)
    fed.sites["site-0"].open(first.ask_opening(following.key_list))
    fewer = KeyList(setting=fed.setting, session=2, keys=following.key_list.keys[:3])
    refused(lambda: fed.sites["site-0"].shares(requests.ask_shares(SERVER, fewer)), "second list of keys")
    fed.sites["site-0"].shares(following.ask_shares())


def test_a_site_opens_one_list_only_even_if_it_is_asked_in_another_way(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    current = fed.sites["site-0"]._current
    assert current is not None
    some = SurvivorList(senders=session.survivors.senders, headers=session.survivors.headers[:3])
    current.confirm(some)
    refused(lambda: current.check(session.survivors), "answered already")
    refused(lambda: current.confirm(some), "answered already")


# Numbers


def test_numbers_only_rise_and_are_used_once(fed: Federation) -> None:
    site = fed.sites["site-0"]
    site.keys(fed.session(5).ask_keys())
    for number in (1, 4):
        refused(lambda number=number: site.keys(fed.session(number).ask_keys()), "was used")
    site.keys(fed.session(6).ask_keys())
    refused(lambda: Sessions._begin(site, 5), "was used")


def test_only_the_newest_session_is_answered(fed: Federation) -> None:
    first, following = fed.set_up(1), fed.session(2)
    fed.masked(first, NAMES[:3], following)
    opening = first.ask_opening(following.key_list)
    for name in NAMES[:3]:
        fed.take(fed.sites[name].open(opening), name, first, following)
    order = following.ask_masked(ORDER)
    fed.sites["site-0"].order(order)
    refused(lambda: fed.sites["site-0"].open(opening), "not the newest")
    refused(lambda: fed.sites["site-0"].reveal(first.ask_reveal()), "not the newest")
    refused(lambda: fed.sites["site-0"].order(first.ask_masked(ORDER, next=2)), "not the one that this site sets up")
    fed.take(fed.sites["site-1"].reveal(first.ask_reveal()), "site-1", first)
    assert fed.openings["site-0"] == [] and len(fed.openings["site-1"]) == 1


def test_an_order_without_shares_is_refused(fed: Federation) -> None:
    session = fed.set_up(1)
    request = session.ask_masked(ORDER)
    late = fed.site("site-0")
    late.keys(session.ask_keys())
    refused(lambda: late.order(request), "before this site has sent shares")


# Lies


def forged(fed: Federation, name: str, number: int = 1, **changes: bytes) -> Keys:
    values = {"masking": KeyPair.new().public, "channel": KeyPair.new().public, **changes}
    return Keys.sign(identity_of(name), name, transcript=fed.setting.transcript(number), **values)


def test_lists_of_keys_that_a_server_may_not_show(fed: Federation) -> None:
    session = fed.session(1)
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    keys, site = session.key_list.keys, fed.sites["site-0"]
    own = keys[0]

    def shown(*chosen: Keys) -> Callable[[], bytes]:
        envelopes = [each.signed.envelope for each in chosen]
        text = body.write({"run": fed.setting.run.hex(), "session": 1, "keys": envelopes})
        request = body.write({"body": text.decode(), "signature": SERVER.sign("ask-shares", text).hex()})
        return lambda: site.shares(request)

    refused(shown(*keys[1:]), "own message")
    refused(shown(forged(fed, "site-0"), *keys[1:]), "own message")
    refused(shown(*keys[:2]), "2 sites")
    refused(shown(own, keys[2], keys[1], keys[3]), "order of its sites")
    refused(shown(own, own, *keys[1:]), "order of its sites")
    refused(shown(own, forged(fed, "site-1", number=2), *keys[2:]), "another session")
    refused(shown(own, forged(fed, "site-1", masking=own.masking), *keys[2:]), "twice")
    refused(shown(own, forged(fed, "site-1", channel=own.channel), *keys[2:]), "twice")
    refused(shown(own, forged(fed, "site-1", masking=keys[2].masking), *keys[2:]), "twice")
    refused(shown(own, forged(fed, "site-1", masking=bytes(32)), *keys[2:]), "all-zero")
    refused(shown(own, forged(fed, "site-1", channel=bytes(32)), *keys[2:]), "all-zero")
    stranger = Keys.sign(Identity.new(), "site-1", transcript=own.transcript, masking=T, channel=T[::-1])
    refused(shown(own, stranger, *keys[2:]), "signature")
    shown(*keys)()


def test_lists_of_senders_that_a_server_may_not_show(fed: Federation) -> None:
    session = fed.set_up(1)
    others = Federation(4, colluding=1, min_sites=3).set_up(1)
    key_list = session.key_list
    shares = SenderList(
        key_list=key_list, order=ORDER, shares=requests.read_ask_masked(session.ask_masked(ORDER), fed.setting).shares
    ).shares
    foreign = requests.read_ask_masked(others.ask_masked(ORDER), fed.setting).shares
    site = fed.sites["site-0"]

    def shown(*chosen: Shares) -> Callable[[], object]:
        values = {"order": ORDER.hex(), "shares": [each.signed.envelope for each in chosen], "next": 0}
        text = body.write({"run": fed.setting.run.hex(), "session": 1, **values})
        request = body.write({"body": text.decode(), "signature": SERVER.sign("ask-masked", text).hex()})
        return lambda: site.order(request)

    refused(shown(*shares[1:]), "own message")
    again = Shares.sign(
        identity_of("site-0"),
        "site-0",
        transcript=key_list.transcript,
        sealed=shares[0].sealed,
        commitments=shares[0].commitments,
        seed=T,
        closed=(),
    )
    refused(shown(again, *shares[1:]), "own message")
    refused(shown(*shares[:2]), "2 senders")
    refused(shown(shares[0], *shares), "order of its sites")
    refused(shown(shares[0], foreign[1], *shares[2:]), "another list of keys")
    shown(*shares)()


def test_lists_of_survivors_that_a_server_may_not_show(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    senders, headers, site = session.survivors.senders, session.survivors.headers, fed.sites["site-0"]

    def shown(*chosen: Header) -> Callable[[], bytes]:
        values = {"headers": [each.signed.envelope for each in chosen], "next": 0, "keys": []}
        text = body.write({"run": fed.setting.run.hex(), "session": 1, **values})
        request = body.write({"body": text.decode(), "signature": SERVER.sign("ask-opening", text).hex()})
        return lambda: site.open(request)

    def header(name: str, transcript: bytes = senders.transcript) -> Header:
        return Header.sign(identity_of(name), name, transcript=transcript, vector=T, misfits=())

    refused(shown(*headers[1:]), "own header")
    refused(shown(header("site-0"), *headers[1:]), "own header")
    refused(shown(*headers[:2]), "2 survivors")
    refused(shown(headers[0], headers[1], header("site-1"), headers[2]), "order of its sites")
    refused(shown(headers[0], header("site-1", T), *headers[2:]), "another list of senders")
    refused(shown(*headers, header("stranger")), "not in the roster")
    assert fed.openings["site-0"] == []
    shown(*headers)()


def test_a_site_that_has_masked_nothing_opens_nothing(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES[1:])
    fed.sites["site-0"].order(session.ask_masked(ORDER))
    refused(lambda: fed.sites["site-0"].open(session.ask_opening()), "own header")


@pytest.fixture
def confirmed(fed: Federation) -> tuple[Federation, Session, list[Confirm]]:
    """site-3 is missing, the others have confirmed that."""
    session = fed.set_up(1)
    fed.masked(session, NAMES[:3])
    request = session.ask_opening()
    confirms = []
    for name in NAMES[:3]:
        sent = fed.sites[name].open(request)
        assert set(answered(sent, fed.setting.roster, site=name)) == {"confirm"}
        confirms.append(Confirm.of(answered(sent, fed.setting.roster, site=name)["confirm"]))
        fed.take(sent, name, session)
    return fed, session, confirms


def test_nothing_opens_before_t_sites_of_the_list_have_confirmed_it(
    confirmed: tuple[Federation, Session, list[Confirm]],
) -> None:
    fed, session, confirms = confirmed
    site, t3 = fed.sites["site-0"], session.survivors.transcript

    def shown(*chosen: Confirm) -> Callable[[], bytes]:
        return lambda: site.reveal(requests.ask_reveal(SERVER, fed.setting, 1, chosen))

    missing = Confirm.sign(identity_of("site-3"), "site-3", transcript=t3)
    other = Confirm.sign(identity_of("site-2"), "site-2", transcript=T)
    refused(shown(), "confirmed by 0")
    refused(shown(*confirms[:2]), "confirmed by 2")
    refused(shown(*confirms[:2], confirms[1]), "confirmed by 2")
    refused(shown(*confirms[:2], other), "other survivors")
    refused(shown(*confirms[:2], missing), "confirmed by 3|3 of the survivors")
    refused(shown(*confirms, missing), "survivors are needed")
    assert fed.openings["site-0"] == []
    opened = Opened.of(answered(shown(*confirms)(), fed.setting.roster, site="site-0")["opened"])
    assert set(opened.self_mask) == set(NAMES[:3]) and set(opened.masking) == {"site-3"}


def test_confirmations_without_a_question_open_nothing(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    t3 = session.survivors.transcript
    confirms = [Confirm.sign(identity_of(name), name, transcript=t3) for name in NAMES]
    request = requests.ask_reveal(SERVER, fed.setting, 1, confirms)
    refused(lambda: fed.sites["site-0"].reveal(request), "nothing that this site confirmed")
    fed.opened(session, NAMES)
    refused(lambda: fed.sites["site-0"].reveal(request), "nothing that this site confirmed")


def test_when_all_survive_only_self_masks_are_opened(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    sent = answered(fed.sites["site-0"].open(session.ask_opening()), fed.setting.roster, site="site-0")
    opened = Opened.of(sent["opened"])
    assert set(sent) == {"opened"} and opened.masking == {} and set(opened.self_mask) == set(NAMES)


def test_every_changed_byte_of_a_request_is_refused(fed: Federation) -> None:
    session = fed.session(1)
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    request = session.ask_shares()
    for place in range(0, len(request), 7):
        for changed in (request[:place], request[:place] + bytes((request[place] ^ 1,)) + request[place + 1 :]):
            refused(lambda changed=changed: fed.sites["site-0"].shares(changed))
    fed.sites["site-0"].shares(request)


def test_a_refused_request_changes_nothing(confirmed: tuple[Federation, Session, list[Confirm]]) -> None:
    fed, session, _ = confirmed
    for name in NAMES[:3]:
        for call in ("keys", "shares", "order", "open", "reveal"):
            refused(lambda name=name, call=call: getattr(fed.sites[name], call)(b"{}"))
        fed.take(fed.sites[name].reveal(session.ask_reveal()), name, session)
    assert session.openable


# Shares that don't fit


def dealt_wrongly(fed: Federation, session: Session, dealer: str, *, swap: bool) -> None:
    """Give the session shares of `dealer` of which site-0's don't fit: another's text, or another commitment."""
    site = fed.sites[dealer]
    shares = Shares.of(answered(site.shares(session.ask_shares()), fed.setting.roster, site=dealer)["shares"])
    sealed, commitments = list(shares.sealed), list(shares.commitments)
    if swap:
        sealed[0] = sealed[1]
    else:
        commitments[0] = commitments[0][::-1]
    values = {"sealed": sealed, "commitments": commitments, "seed": shares.seed, "closed": ()}
    false = Shares.sign(identity_of(dealer), dealer, transcript=shares.transcript, **values)
    session.take_shares(false.signed)
    assert site._setup is not None and site._setup.dealt is not None
    object.__setattr__(site._setup.dealt, "message", false)


@pytest.mark.parametrize("swap", [True, False])
def test_shares_that_do_not_fit_are_complained_about_and_not_opened(swap: bool) -> None:
    fed = Federation(5)
    names = names_of(5)
    session = fed.session(1)
    for name in names:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    dealt_wrongly(fed, session, "site-3", swap=swap)
    for name in names:
        if name != "site-3":
            fed.take(fed.sites[name].shares(session.ask_shares()), name, None, session)
    vectors = fed.masked(session, names[:4])
    fed.opened(session, names[:4])
    assert session.complaints == (("site-0", "site-3"),)
    assert "site-3" not in session._opened["site-0"].self_mask
    assert fed.sum_of(session, vectors) == fed.plain(names[:4])


# Closing


def closed_in(data: bytes, fed: Federation, site: str) -> tuple[bytes, ...]:
    return Shares.of(answered(data, fed.setting.roster, site=site)["shares"]).closed


def test_closed_unanswered_is_proved_by_t_sites_and_not_by_fewer(fed: Federation) -> None:
    first, following = fed.set_up(1), fed.session(2)
    fed.masked(first, NAMES[:2], following)  # two of t = 3: too few
    masked_in = fed.sites["site-0"].order(first.ask_masked(ORDER, next=2)).masked_in
    with pytest.raises(SessionFailed):
        first.ask_opening()
    for name in NAMES[2:]:
        fed.take(fed.sites[name].keys(following.ask_keys()), name, None, following)
    closing = first.ask_closing(following.key_list)
    sent = [fed.sites[name].open(closing) for name in NAMES[:2]]
    sent += [fed.sites[name].shares(following.ask_shares()) for name in NAMES[2:]]
    for name, data in zip(NAMES, sent, strict=True):
        assert closed_in(data, fed, name) == (first.key_list.transcript,)
        fed.take(data, name, None, following)
    refused(
        lambda: fed.sites["site-0"].open(requests.ask_opening(SERVER, fed.setting, 1, survivors=None, next_list=None))
    )
    invitation = fed.sites["site-0"].order(following.ask_masked(ORDER))
    assert invitation.proves_closed(masked_in)
    assert MaskedIn.from_json(masked_in.to_json()) == masked_in
    shares = invitation.senders.shares

    def proved(*sites: int, earlier: MaskedIn = masked_in) -> bool:
        chosen = tuple(shares[i] for i in sites)
        senders = SenderList.__new__(SenderList)
        object.__setattr__(senders, "shares", chosen)
        return type(invitation)(**{**vars(invitation), "senders": senders}).proves_closed(earlier)

    assert proved(0, 1, 2) and proved(1, 2, 3)
    assert not proved(0, 1) and not proved(0, 0, 0)
    facts = vars(masked_in)
    assert not proved(0, 1, 2, earlier=MaskedIn(**{**facts, "keys": T.hex()}))
    assert not proved(0, 1, 2, earlier=MaskedIn(**{**facts, "roster": T.hex()}))
    assert not proved(0, 1, 2, earlier=MaskedIn(**{**facts, "sites": ("site-0", "site-1", "gone")}))


def test_a_session_that_was_opened_is_never_called_closed(fed: Federation) -> None:
    first, following = fed.set_up(1), fed.session(2)
    fed.masked(first, NAMES, following)
    request = first.ask_opening(following.key_list)
    for name in NAMES:
        assert closed_in(fed.sites[name].open(request), fed, name) == ()
    later = fed.set_up(3)
    assert all(shares.closed == (following.key_list.transcript,) for shares in later._shares.values())


def test_what_was_called_closed_is_never_opened(confirmed: tuple[Federation, Session, list[Confirm]]) -> None:
    fed, session, _ = confirmed
    reveal = session.ask_reveal()
    following = fed.set_up(2)
    assert all(shares.closed == (session.key_list.transcript,) for shares in following._shares.values())
    for name in NAMES[:3]:
        refused(lambda name=name: fed.sites[name].reveal(reveal), "nothing that this site confirmed")
        assert fed.openings[name] == []
    third = fed.set_up(3)  # the second had no order: called closed as well, and never masked for
    assert third._shares["site-0"].closed == (session.key_list.transcript, following.key_list.transcript)
    refused(lambda: fed.sites["site-0"].order(following.ask_masked(ORDER)), "not the one that this site sets up")


def test_a_closed_session_masks_nothing(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.sites["site-0"].order(session.ask_masked(ORDER))
    fed.set_up(2)
    refused(lambda: fed.sites["site-0"].mask(fed.words("site-0"), session=1), "closed")


def test_an_order_closes_the_session_before_it(fed: Federation) -> None:
    first, second_one = fed.set_up(1), fed.session(2)
    fed.masked(first, NAMES[:3], second_one)
    opening = first.ask_opening(second_one.key_list)
    for name in NAMES[:3]:
        fed.take(fed.sites[name].open(opening), name, first, second_one)
    fed.masked(second_one, NAMES[:3])
    third = fed.set_up(3, NAMES[:3])
    assert third._shares["site-0"].closed == (first.key_list.transcript, second_one.key_list.transcript)


# The ledger and the policy


def test_the_ledger_hears_of_an_opening_before_it_exists(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    site = fed.sites["site-0"]

    def fails(_: Opening) -> None:
        assert site._answers.get(("open", 1)) is None
        raise OSError("disk full")

    site._opened = fails
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            site.open(session.ask_opening())
    heard: list[Opening] = []
    site._opened = heard.append
    assert set(answered(site.open(session.ask_opening()), fed.setting.roster, site="site-0")) == {"opened"}
    assert heard == [Opening(session=1, order=ORDER, survivors=tuple(NAMES), missing=())]


def test_a_site_may_ask_for_more_sites_than_the_study() -> None:
    fed = Federation(4)
    fed.sites["site-0"] = fed.site("site-0", min_sites=4)
    strict = fed.sites["site-0"]
    session = fed.set_up(1)
    fed.masked(session, NAMES[:3])
    refused(lambda: strict.open(session.ask_opening()), "policy asks for 4")
    session = fed.set_up(2, dealers=NAMES[:3])
    refused(lambda: strict.order(session.ask_masked(ORDER)), "policy asks for 4")
    session = fed.session(3)
    for name in NAMES[:3]:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    refused(lambda: strict.shares(session.ask_shares()), "policy asks for 4")
    with pytest.raises(ValueError, match="at least the setting's 2"):
        fed.site("site-0", min_sites=1)


def test_survivors_that_changed_by_few_sites_are_refused_where_the_policy_says_so() -> None:
    fed = Federation(5, min_change=2)

    def survive(number: int, names: list[str]) -> None:
        session = fed.set_up(number)
        fed.masked(session, names)
        fed.opened(session, names)

    names = names_of(5)
    survive(1, names)
    survive(2, names)
    with pytest.raises(MessageError, match="fewer than 2"):
        survive(3, names[:4])
    survive(4, names[:3])
    with pytest.raises(MessageError, match="fewer than 2"):  # from the first sum, though not from the last
        survive(5, names[1:])
    survive(6, names)


def test_a_site_that_is_not_in_the_roster_by_its_identity_takes_no_part() -> None:
    setting = setting_of(roster_of(NAMES))
    for identity, name in ((identity_of("site-1"), "site-0"), (identity_of("stranger"), "stranger")):
        with pytest.raises(RosterError, match="not in the roster"):
            Sessions(identity=identity, site=name, setting=setting, min_sites=2, opened=lambda _: None)


def test_wide_numbers_differ_between_sites() -> None:
    assert len({float(wide_of(name)[0]) for name in names_of(6)}) == 6
