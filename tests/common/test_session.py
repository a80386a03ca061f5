"""Messages, lists and transcripts: what is read is what was signed; hashes are those of a second implementation."""

import json
from typing import Any

import pytest
import second
from session_cases import ORDER, SERVER, Federation, identity_of, names_of, roster_of, setting_of

from common import body, requests
from common.crypto.identity import Identity
from common.crypto.shares import PRIME
from common.errors import MessageError
from common.session import Confirm, Header, Keys, Opened, Shares, Signed, answer, answered, received
from common.transcript import KeyList, SenderList, SurvivorList

NAMES = names_of(3)
ROSTER = roster_of(NAMES)
SETTING = setting_of(ROSTER)
T = bytes(range(32))
H = T.hex()


def signed(name: str, values: dict[str, Any], *, site: str = "site-0", key: Identity | None = None) -> Signed:
    """Any values as a message of this type that the site signed, through the envelope as it travels."""
    text = body.write(values)
    signature = (key or identity_of(site)).sign(name, text)
    return received({"site": site, "body": text.decode(), "signature": signature.hex()}, name, ROSTER)


GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "keys": (Keys, {"transcript": H, "masking": H, "channel": H}),
    "shares": (
        Shares,
        {"transcript": H, "sealed": ["", "ab" * 94], "commitments": [H + H, H + H], "seed": H, "closed": [H]},
    ),
    "header": (Header, {"transcript": H, "vector": H, "misfits": ["site-1"]}),
    "confirm": (Confirm, {"transcript": H}),
    "opened": (Opened, {"transcript": H, "masking": {"site-1": "00" * 33}, "self_mask": {}}),
}

BAD = [
    *(
        (name, key, value)
        for name, (_, good) in GOOD.items()
        for key in good
        for value in (None, 1, "0", "zz", [1], {})
    ),
    ("shares", "sealed", ["ab" * 93]),
    ("shares", "sealed", [1]),
    ("shares", "commitments", [H]),
    ("shares", "closed", [H] * 9),
    ("shares", "closed", ["00"]),
    ("header", "misfits", ["site-1", "site-1"]),
    ("header", "misfits", ["site-2", "site-1"]),
    ("header", "misfits", ["../x"]),
    ("opened", "masking", {"site-1": "00" * 32}),
    ("opened", "masking", {"site-1": PRIME.to_bytes(33, "big").hex()}),
    ("opened", "masking", {"../x": "00" * 33}),
    ("opened", "self_mask", {"site-1": 1}),
]


@pytest.mark.parametrize(("name", "key", "value"), [bad for bad in BAD if bad[2] != GOOD[bad[0]][1][bad[1]]])
def test_malformed_messages_are_refused(name: str, key: str, value: object) -> None:
    kind, good = GOOD[name]
    assert kind.of(signed(name, {"site": "site-0", **good})).transcript == T
    if value == {} and isinstance(good[key], dict):
        return
    with pytest.raises(MessageError):
        kind.of(signed(name, {"site": "site-0", **good, key: value}))


@pytest.mark.parametrize("name", GOOD)
def test_a_message_in_another_sites_name_or_of_another_shape_is_refused(name: str) -> None:
    kind, good = GOOD[name]
    for values in ({"site": "site-1", **good}, good, {"site": "site-0", **good, "more": 1}):
        with pytest.raises(MessageError, match=r"another site's name|keys are not"):
            kind.of(signed(name, values))


def test_envelopes_of_strangers_and_forged_ones_are_refused() -> None:
    good = Keys.sign(identity_of("site-0"), "site-0", transcript=T, masking=T, channel=T).signed.envelope
    assert received(good, "keys", ROSTER).envelope == good
    bad: list[object] = [
        None,
        [],
        good | {"more": ""},
        {"site": "site-0", "body": good["body"]},
        good | {"site": "site-1"},
        good | {"site": "stranger"},
        good | {"signature": "00" * 64},
        good | {"body": good["body"].replace("site-0", "site-1")},
        good | {"body": good["body"] + " "},
        good | {"body": good["body"] + "ä"},
        Keys.sign(Identity.new(), "site-0", transcript=T, masking=T, channel=T).signed.envelope,
    ]
    for envelope in bad:
        with pytest.raises(MessageError):
            received(envelope, "keys", ROSTER)
    with pytest.raises(MessageError, match="signature"):
        received(good, "header", ROSTER)


def test_answers_hold_messages_of_one_site() -> None:
    keys = [Keys.sign(identity_of(name), name, transcript=T, masking=T, channel=T).signed for name in NAMES]
    confirm = Confirm.sign(identity_of("site-0"), "site-0", transcript=T).signed
    assert answered(answer(keys[0], confirm), ROSTER, site="site-0") == {"keys": keys[0], "confirm": confirm}
    assert answered(answer(), ROSTER, site="site-0") == {}
    for data in (
        answer(keys[1]),
        answer(keys[1], confirm),
        b"[]",
        body.write({"ask-keys": keys[0].envelope}),
        body.write({"header": keys[0].envelope}),
        answer(keys[0])[:-1],
    ):
        with pytest.raises(MessageError):
            answered(data, ROSTER, site="site-0")


def test_transcripts_are_those_of_a_second_implementation() -> None:
    fed = Federation(3)
    session = fed.set_up(7)
    fed.masked(session, NAMES[:2])
    keys, senders = second.asked(session.ask_shares())["keys"], second.asked(session.ask_masked(ORDER))["shares"]
    headers = second.asked(session.ask_opening())["headers"]
    setting = fed.setting
    roster = second.message_hash(
        "roster-and-key",
        bytes.fromhex(json.loads(setting.roster.to_bytes())["coordinator"])
        + json.loads(setting.roster.to_bytes())["body"].encode(),
    )
    zero = second.transcript(0, roster, setting.study, setting.layout, setting.run, bytes(7) + b"\x07")
    one = second.transcript(1, zero, second.over_list(keys, "keys"))
    two = second.transcript(2, one, ORDER, second.over_list(senders, "shares"))
    three = second.transcript(3, two, second.over_list(headers, "header"))
    assert setting.transcript(7) == zero and session.key_list.transcript == one
    assert session.survivors.senders.transcript == two and session.survivors.transcript == three


def test_t0_knows_every_field() -> None:
    settings = [
        SETTING,
        setting_of(ROSTER, run=b"other"),
        setting_of(roster_of(NAMES, min_sites=3)),
    ]
    changed = [type(SETTING)(**{**vars(SETTING), name: b"\xff" * 32}) for name in ("study", "layout", "run")]
    hashes = {each.transcript(number) for each in (*settings, *changed) for number in (1, 2, 256)}
    assert len(hashes) == 18


def test_settings_that_contradict_themselves_are_refused() -> None:
    for changes in ({"run": b"short"}, {"study": b""}, {"min_sites": 1}, {"most_sites": 1}, {"most_sites": 2**15}):
        with pytest.raises(ValueError, match=r"32 bytes|min_sites"):
            type(SETTING)(**{**vars(SETTING), **changes})


def keys_of(name: str, *, number: int = 1, masking: bytes = b"", channel: bytes = b"") -> Keys:
    return Keys.sign(
        identity_of(name),
        name,
        transcript=SETTING.transcript(number),
        masking=masking or (name + "m").encode().ljust(32),
        channel=channel or (name + "c").encode().ljust(32),
    )


def key_list(*keys: Keys) -> KeyList:
    return KeyList(setting=SETTING, session=1, keys=keys)


def test_key_lists_ascend_rest_on_t0_and_hold_a_key_once() -> None:
    one, two, three = map(keys_of, NAMES)
    assert key_list(one, two, three).places == {"site-0": 1, "site-1": 2, "site-2": 3}
    bad = [
        (),
        (one,),
        (two, one),
        (one, one),
        (one, keys_of("site-1", number=2)),
        (one, keys_of("site-1", masking=one.masking)),
        (one, keys_of("site-1", masking=one.channel)),
        (one, keys_of("site-1", channel=one.masking)),
        (one, keys_of("site-1", masking=T, channel=T)),
    ]
    for keys in bad:
        with pytest.raises(MessageError):
            key_list(*keys)
    small = type(SETTING)(**{**vars(SETTING), "most_sites": 2})
    with pytest.raises(MessageError, match="3 sites"):
        KeyList(setting=small, session=1, keys=(one, two, three))


@pytest.fixture(scope="module")
def lists() -> tuple[KeyList, SenderList, SurvivorList]:
    fed = Federation(4, colluding=1, min_sites=3)
    session = fed.set_up(1)
    fed.masked(session, names_of(4))
    return session.key_list, session.survivors.senders, session.survivors


def test_sender_lists_ascend_rest_on_t1_and_are_long_enough(lists: tuple[KeyList, SenderList, SurvivorList]) -> None:
    keys, senders, _ = lists
    shares = senders.shares
    assert keys.needed == keys.threshold == 3
    SenderList(key_list=keys, order=ORDER, shares=shares[:3])
    other = Federation(4, colluding=1, min_sites=3).set_up(1).ask_masked(ORDER)
    foreign = requests.read_ask_masked(other, keys.setting).shares[0]

    def resigned(**changes: Any) -> Shares:
        values = json.loads(shares[0].signed.body) | changes
        text = body.write(values)
        signature = identity_of("site-0").sign("shares", text).hex()
        envelope = {"site": "site-0", "body": text.decode(), "signature": signature}
        return Shares.of(received(envelope, "shares", keys.setting.roster))

    good = json.loads(shares[0].signed.body)
    bad = [
        shares[:2],
        shares[::-1],
        (shares[0], *shares),
        (foreign, *shares[1:]),
        (resigned(transcript=H), *shares[1:]),
        (resigned(sealed=good["sealed"][:3]), *shares[1:]),
        (resigned(commitments=good["commitments"][:3]), *shares[1:]),
        (resigned(sealed=["", "", *good["sealed"][2:]]), *shares[1:]),
        (resigned(sealed=[good["sealed"][1], *good["sealed"][1:]]), *shares[1:]),
    ]
    for wrong in bad:
        with pytest.raises(MessageError):
            SenderList(key_list=keys, order=ORDER, shares=wrong)
    with pytest.raises(MessageError, match="digest"):
        SenderList(key_list=keys, order=b"", shares=shares)


def test_survivor_lists_ascend_rest_on_t2_and_are_long_enough(lists: tuple[KeyList, SenderList, SurvivorList]) -> None:
    keys, senders, survivors = lists
    headers = survivors.headers
    assert SurvivorList(senders=senders, headers=headers[1:]).missing == ("site-0",) and survivors.missing == ()

    def header(site: str, transcript: bytes = senders.transcript, misfits: tuple[str, ...] = ()) -> Header:
        return Header.sign(identity_of(site), site, transcript=transcript, vector=T, misfits=misfits)

    bad = [
        headers[:2],
        headers[::-1],
        (headers[0], *headers),
        (header("site-0", transcript=T), *headers[1:]),
        (*headers, header("stranger")),
        (header("site-0", misfits=("site-0",)), *headers[1:]),
        (header("site-0", misfits=("stranger",)), *headers[1:]),
    ]
    for wrong in bad:
        with pytest.raises(MessageError):
            SurvivorList(senders=senders, headers=wrong)
    fewer = SenderList(key_list=keys, order=ORDER, shares=senders.shares[:3])
    with pytest.raises(MessageError, match="another list of senders"):
        SurvivorList(
            senders=fewer,
            headers=(*(header(n, fewer.transcript) for n in names_of(3)), header("site-3", fewer.transcript)),
        )


def test_requests_of_others_than_the_server_are_refused() -> None:
    good = requests.ask_keys(SERVER, SETTING, 5)
    assert requests.read_ask_keys(good, SETTING).session == 5
    bad = [
        requests.ask_keys(Identity.new(), SETTING, 5),
        requests.ask_keys(SERVER, setting_of(ROSTER, run=b"other"), 5),
        requests.ask_keys(SERVER, setting_of(roster_of(NAMES[:2])), 5),
        requests.ask_keys(SERVER, SETTING, 0),
        requests.ask_keys(SERVER, SETTING, 2**53),
        requests.ask_opening(SERVER, SETTING, 5, survivors=None, next_list=None),
        good[:-1],
        b"{}",
        good.replace(b"5", b"6"),
        good.replace(b"session", "sessiön".encode("latin-1")),
        good.replace(b"session", b"sessi\\u00f6n"),
    ]
    for request in bad:
        with pytest.raises(MessageError):
            requests.read_ask_keys(request, SETTING)


def raw(name: str, **values: object) -> bytes:
    text = body.write({"run": SETTING.run.hex(), "session": 5, **values})
    return body.write({"body": text.decode(), "signature": SERVER.sign(name, text).hex()})


def test_a_next_session_comes_later_and_with_its_keys() -> None:
    assert requests.read_ask_opening(raw("ask-opening", headers=[], next=0, keys=[]), SETTING).closes
    for following, keys in ((5, []), (4, []), (6, []), (0, [keys_of("site-0").signed.envelope]), (-1, []), (True, [])):
        with pytest.raises(MessageError):
            requests.read_ask_opening(raw("ask-opening", headers=[], next=following, keys=keys), SETTING)
    for following in (5, 4, -1, 2**53):
        with pytest.raises(MessageError):
            requests.read_ask_masked(raw("ask-masked", order=H, shares=[], next=following), SETTING)
