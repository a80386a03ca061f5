"""One site's side of secure aggregation: each answer once, numbers that rise, and its own policy."""

from hashlib import sha256

import numpy as np
import pytest
from session_cases import ORDER, SERVER, Federation, identity_of, names_of, one, refused, roster_of, setting_of

from client.session import Opening, Sessions
from common import requests
from common.errors import MessageError
from common.roster import RosterError
from common.session import answered
from common.transcript import KeyList, SenderList, SurvivorList

NAMES = names_of(4)
OTHER = bytes(range(32))


@pytest.fixture
def fed() -> Federation:
    """Four sites, one of which may be the server's: t = 3."""
    return Federation(4, colluding=1, min_sites=3)


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
    for order, chosen in ((OTHER, shares), (ORDER, shares[:3])):
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
