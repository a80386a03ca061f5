"""The server's side of a session: what it takes, whom it blames, what it can know."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from session_cases import ORDER, SERVER, Federation, identity_of, names_of, setting_of

from common import body
from common.crypto.agreement import KeyPair
from common.crypto.identity import Identity
from common.errors import MessageError
from common.session import Keys, Signed, answered, received
from common.transcript import SurvivorList
from server.session import Session, SessionFailed

NAMES = names_of(4)
T = bytes(range(32))


@pytest.fixture
def fed() -> Federation:
    """Four sites, one of which may be the server's: t = 3."""
    return Federation(4, colluding=1, min_sites=3)


def refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(MessageError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def changed(fed: Federation, signed: Signed, **changes: Any) -> Signed:
    """The site's message with other values, signed by it all the same."""
    text = body.write(json.loads(signed.body) | changes)
    signature = identity_of(signed.site).sign(signed.name, text).hex()
    return received(
        {"site": signed.site, "body": text.decode(), "signature": signature}, signed.name, fed.setting.roster
    )


def sent(fed: Federation, data: bytes, site: str, kind: str) -> Signed:
    return answered(data, fed.setting.roster, site=site)[kind]


def test_keys_are_taken_once_and_before_the_list_closes(fed: Federation) -> None:
    session = fed.session(1)
    keys = {name: sent(fed, fed.sites[name].keys(session.ask_keys()), name, "keys") for name in NAMES}
    other = json.loads(keys["site-1"].body)
    for changes, text in (
        ({"transcript": T.hex()}, "another session"),
        ({"masking": other["masking"]}, "there already"),
        ({"channel": other["masking"]}, "there already"),
        ({"masking": T.hex(), "channel": T.hex()}, "there already"),
        ({"masking": "00" * 32}, "all-zero"),
        ({"channel": "01" + "00" * 31}, "all-zero"),
    ):
        session = fed.session(1)
        session.take_keys(keys["site-1"])
        refused(lambda s=session, c=changes: s.take_keys(changed(fed, keys["site-0"], **c)), text)
        assert set(session._keys) == {"site-1"}
    for name in NAMES[:3]:
        session.take_keys(keys[name])
    session.take_keys(keys["site-0"])
    refused(lambda: session.take_keys(changed(fed, keys["site-0"], masking=T.hex())), "second keys")
    assert list(session.key_list.places) == NAMES[:3]
    refused(lambda: session.take_keys(keys["site-3"]), "after the list was closed")


def test_too_few_keys_shares_vectors_or_confirmations_are_an_error_that_says_so(fed: Federation) -> None:
    session = fed.session(1)
    with pytest.raises(SessionFailed, match="0 sites"):
        session.ask_shares()
    with pytest.raises(SessionFailed, match="2 senders"):
        fed.set_up(2, dealers=NAMES[:2]).ask_masked(ORDER)
    session = fed.set_up(3)
    with pytest.raises(SessionFailed, match="no order"):
        session.ask_opening()
    fed.masked(session, NAMES[:2])
    with pytest.raises(SessionFailed, match="2 survivors"):
        session.ask_opening()
    session = fed.set_up(4)
    fed.masked(session, NAMES[:3])
    request = session.ask_opening()
    for name in NAMES[:2]:
        fed.take(fed.sites[name].open(request), name, session)
    with pytest.raises(SessionFailed, match="2 sites confirmed the survivors, 3 are needed"):
        session.ask_reveal()
    with pytest.raises(SessionFailed, match="fewer than 3 shares of site-0, site-1, site-2, site-3"):
        session.streams()


def test_shares_are_taken_once_and_between_the_lists(fed: Federation) -> None:
    session = fed.set_up(1, dealers=NAMES[:3])
    shares = session._shares["site-0"].signed
    late = sent(fed, fed.sites["site-3"].shares(session.ask_shares()), "site-3", "shares")
    session.take_shares(shares)
    good = json.loads(shares.body)
    for changes, text in (({"seed": T.hex()}, "second shares"), ({"transcript": T.hex()}, "second shares")):
        refused(lambda c=changes: session.take_shares(changed(fed, shares, **c)), text)
    refused(lambda: session.take_shares(changed(fed, late, transcript=T.hex())), "another list of keys")
    refused(lambda: session.take_shares(changed(fed, late, sealed=good["sealed"][:3])), "another number")
    refused(lambda: session.take_shares(changed(fed, late, sealed=good["sealed"])), "left out")
    session.ask_masked(ORDER)
    refused(lambda: session.take_shares(late), "after the list was closed")
    with pytest.raises(ValueError, match="another order"):
        session.ask_masked(T)
    refused(lambda: fed.session(2).take_shares(late), "before the keys")


def test_a_vector_is_added_once_and_only_the_one_that_its_header_names(fed: Federation) -> None:
    session = fed.set_up(1)
    request = session.ask_masked(ORDER)
    site, words = fed.sites["site-0"], fed.words("site-0")
    site.order(request)
    header = sent(fed, site.mask(words, session=1), "site-0", "header")
    digest = sha256(words.tobytes()).digest()
    refused(lambda: session.take_header(header, vector=T), "not the one")
    refused(lambda: session.take_header(changed(fed, header, transcript=T.hex()), vector=digest), "another list")
    refused(lambda: session.take_header(changed(fed, header, misfits=["stranger"]), vector=digest), "complains")
    refused(lambda: fed.session(2).take_header(header, vector=digest), "before the order")
    assert session.take_header(header, vector=digest) is True
    assert session.take_header(header, vector=digest) is False
    refused(lambda: session.take_header(changed(fed, header, vector=T.hex()), vector=T), "second header")
    fed.masked(session, NAMES[1:3])
    assert session.survivors.names == tuple(NAMES[:3])
    fed.sites["site-3"].order(request)
    late = fed.words("site-3")
    header = sent(fed, fed.sites["site-3"].mask(late, session=1), "site-3", "header")
    refused(lambda: session.take_header(header, vector=sha256(late.tobytes()).digest()), "after the last")


@pytest.fixture
def opening(fed: Federation) -> tuple[Federation, Session, dict[str, Signed], dict[str, Any]]:
    """site-3 is missing; what the others opened, not yet taken, and the vectors."""
    session = fed.set_up(1)
    vectors = fed.masked(session, NAMES[:3])
    request = session.ask_opening()
    for name in NAMES[:3]:
        fed.take(fed.sites[name].open(request), name, session)
    request = session.ask_reveal()
    opened = {name: sent(fed, fed.sites[name].reveal(request), name, "opened") for name in NAMES[:3]}
    return fed, session, opened, vectors


Opening = tuple[Federation, Session, dict[str, Signed], dict[str, Any]]


def test_a_share_that_is_not_the_dealt_one_is_the_answerers_fault(opening: Opening) -> None:
    fed, session, opened, vectors = opening
    good = json.loads(opened["site-0"].body)
    others = json.loads(opened["site-1"].body)
    for kind, dealer in (("self_mask", "site-0"), ("self_mask", "site-2"), ("masking", "site-3")):
        false = {**good[kind], dealer: others[kind][dealer]}
        refused(
            lambda k=kind, f=false: session.take_opened(changed(fed, opened["site-0"], **{k: f})),
            f"site-0 opened a share of {dealer} that is not the dealt one",
        )
    for changes, text in (
        ({"self_mask": {}}, "other shares than"),
        ({"masking": {}}, "other shares than"),
        ({"masking": good["self_mask"]}, "other shares than"),
        ({"self_mask": {**good["self_mask"], "site-3": good["masking"]["site-3"]}}, "other shares than"),
        ({"transcript": T.hex()}, "not asked"),
    ):
        refused(lambda c=changes: session.take_opened(changed(fed, opened["site-0"], **c)), text)
    assert not session.openable
    for name in NAMES[:3]:
        assert not session.openable
        session.take_opened(opened[name])
    session.take_opened(opened["site-0"])
    refused(lambda: session.take_opened(changed(fed, opened["site-0"], transcript=T.hex())), "not asked")
    assert session.openable and fed.sum_of(session, vectors) == fed.plain(NAMES[:3])


def test_who_was_not_asked_neither_confirms_nor_opens(opening: Opening) -> None:
    fed, session, opened, _ = opening
    confirm = session._confirms["site-0"].signed
    for name, take in (("confirm", session.take_confirm), ("opened", session.take_opened)):
        text = (confirm if name == "confirm" else opened["site-0"]).body.replace(b'"site-0"', b'"site-3"')
        signature = identity_of("site-3").sign(name, text).hex()
        foreign = received({"site": "site-3", "body": text.decode(), "signature": signature}, name, fed.setting.roster)
        refused(lambda t=take, f=foreign: t(f), "not asked")
    refused(lambda: session.take_confirm(changed(fed, confirm, transcript=T.hex())), "not asked")
    session.take_confirm(confirm)


def deal_falsely(fed: Federation, session: Session, dealer: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dealer shares another secret than its own, with commitments that fit the shares."""
    real = __import__("client.session_setup", fromlist=["split"]).split
    order = iter(("masking", "self"))

    def split(secret: bytes, **sizes: int) -> list[bytes]:
        shares: list[bytes] = real(T if next(order) == kind else secret, **sizes)
        return shares

    with monkeypatch.context() as patch:
        patch.setattr("client.session_setup.split", split)
        fed.take(fed.sites[dealer].shares(session.ask_shares()), dealer, None, session)


@pytest.mark.parametrize(("kind", "dealer"), [("self", "site-1"), ("masking", "site-3")])
def test_fitting_shares_of_another_secret_are_the_dealers_fault(
    fed: Federation, kind: str, dealer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = fed.session(1)
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    deal_falsely(fed, session, dealer, kind, monkeypatch)
    for name in NAMES:
        if name != dealer:
            fed.take(fed.sites[name].shares(session.ask_shares()), name, None, session)
    fed.masked(session, NAMES[:3])
    fed.opened(session, NAMES[:3])
    with pytest.raises(SessionFailed, match=f"{dealer} dealt false shares") as caught:
        session.streams()
    assert caught.value.blamed == (dealer,)


def test_shares_that_are_of_no_secret_are_the_dealers_fault(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    session = fed.session(1)
    for name in NAMES:
        fed.take(fed.sites[name].keys(session.ask_keys()), name, None, session)
    with monkeypatch.context() as patch:
        constant = (2**256).to_bytes(33, "big")
        patch.setattr("client.session_setup.split", lambda *_, holders, threshold: [constant] * holders)
        fed.take(fed.sites["site-1"].shares(session.ask_shares()), "site-1", None, session)
    for name in ("site-0", "site-2", "site-3"):
        fed.take(fed.sites[name].shares(session.ask_shares()), name, None, session)
    fed.masked(session, NAMES)
    fed.opened(session, NAMES)
    with pytest.raises(SessionFailed) as caught:
        session.streams()
    assert caught.value.blamed == ("site-1",)


def test_a_false_complaint_names_a_pair_and_costs_one_share(fed: Federation) -> None:
    session = fed.set_up(1)
    request = session.ask_masked(ORDER)
    vectors = {}
    for name in NAMES:
        fed.sites[name].order(request)
        current = fed.sites[name]._current
        assert current is not None
        if name == "site-0":
            current._misfits.append("site-1")
            del current._held["site-1"]
        vectors[name] = fed.words(name)
        header = sent(fed, fed.sites[name].mask(vectors[name], session=1), name, "header")
        session.take_header(header, vector=sha256(vectors[name].tobytes()).digest())
    fed.opened(session, NAMES)
    assert session.complaints == (("site-0", "site-1"),)
    assert fed.sum_of(session, vectors) == fed.plain(NAMES)


def test_complaints_that_leave_too_few_shares_are_named(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    fed.opened(session, NAMES[:3])
    shares = session._opened["site-2"].self_mask
    assert isinstance(shares, dict)
    del shares["site-1"]
    object.__setattr__(session._headers["site-2"], "misfits", ("site-1",))
    assert not session.openable
    with pytest.raises(SessionFailed, match="fewer than 3 shares of site-1; site-2 complains about site-1"):
        session.streams()


def test_no_attribute_of_the_server_gives_a_single_update(opening: Opening) -> None:
    fed, session, opened, vectors = opening
    for name in NAMES[:3]:
        session.take_opened(opened[name])
    # Everything that is 32 or 33 bytes somewhere in the session, tried as a key of every stream.
    found: set[bytes] = set()

    def walk(value: object, depth: int = 0) -> None:
        if isinstance(value, bytes):
            found.add(value)
        elif isinstance(value, dict):
            for each in value.values():
                walk(each, depth + 1)
        elif isinstance(value, list | tuple):
            for each in value:
                walk(each, depth + 1)
        elif isinstance(value, np.ndarray):
            raise AssertionError("a vector is kept")
        elif hasattr(value, "__dict__") and depth < 12 and not isinstance(value, Identity):
            walk(vars(value), depth + 1)

    walk(vars(session))
    streams = session.streams()
    walk(vars(session))
    secrets, _ = session._secrets()
    assert set(secrets) == set(NAMES)
    # The pair masks between survivors come from none of what can be known: their masking keys are not.
    public = {name: session._keys[name].masking for name in NAMES}
    for secret in {*found, *secrets.values()}:
        if len(secret) == 32 and KeyPair.of(secret).public in {public[name] for name in NAMES[:3]}:
            raise AssertionError("a survivor's masking key")
    plain = {name: fed.words(name) for name in NAMES[:3]}
    from common.masking import mask

    for name in NAMES[:3]:
        words = vectors[name].copy()
        mask(words, [(key, -sign) for key, sign in streams])
        assert not np.any(words == plain[name])


def test_the_servers_key_is_the_rosters(fed: Federation) -> None:
    with pytest.raises(ValueError, match="roster names"):
        Session(key=Identity.new(), setting=fed.setting, number=1)
    assert Session(key=SERVER, setting=setting_of(fed.setting.roster), number=1).number == 1


def test_an_honest_server_asks_what_honest_sites_accept(fed: Federation) -> None:
    session = fed.set_up(1)
    fed.masked(session, NAMES)
    assert isinstance(session.survivors, SurvivorList) and isinstance(session.key_list.keys[0], Keys)
    fed.opened(session, NAMES)
    assert session.openable
