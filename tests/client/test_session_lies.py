"""What a server may not show a site, and what the site says to it: every refusal, and the proof of a closed session."""

from collections.abc import Callable

import pytest
from session_cases import ORDER, SERVER, Federation, identity_of, names_of, refused

from client.session import MaskedIn
from common import body, requests
from common.crypto.agreement import KeyPair
from common.crypto.identity import Identity
from common.session import Confirm, Header, Keys, Opened, Shares, answered
from common.transcript import SenderList
from server.session import Session, SessionFailed

NAMES = names_of(4)
T = bytes(range(32))


@pytest.fixture
def fed() -> Federation:
    """Four sites, one of which may be the server's: t = 3."""
    return Federation(4, colluding=1, min_sites=3)


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
