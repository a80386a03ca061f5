"""Where chains stand: a form of constant length, and statements about ledgers that nobody but their site can make."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import anchor
from common.anchor import Head, by_site
from common.crypto.identity import Identity
from common.errors import MessageError

KEY = Identity(bytes(range(32)))
HASH = "ab" * 32


def head(sequence: int = 41, *, key: Identity = KEY, site: str = "site-0", hash: str = HASH) -> Head:
    return Head.sign(key, site=site, sequence=sequence, hash=hash)


@pytest.mark.parametrize("sequence", [0, 41, 999_999_999])
def test_a_record_comes_back_as_it_was_written(sequence: int) -> None:
    assert anchor.plain(anchor.line(sequence, HASH)) == f"{sequence}-{HASH}"
    assert Head.of(str(head(sequence))) == head(sequence)
    assert head(sequence).said_by(KEY.public)


def test_every_record_is_written_with_the_same_length() -> None:
    assert len({len(anchor.line(sequence, HASH)) for sequence in (0, 41, 999_999_999)}) == 1
    assert len({len(str(head(sequence))) for sequence in (0, 41, 999_999_999)}) == 1
    for impossible in (10**9, -1):
        with pytest.raises(ValueError, match="records"):
            anchor.line(impossible, HASH)


@pytest.mark.parametrize("text", ["", "41-" + HASH, anchor.line(41, HASH)[:-1], anchor.line(41, HASH) + " ", "x"])
def test_what_is_no_place_in_a_log_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        anchor.plain(text)


@pytest.mark.parametrize(
    "wrong", [lambda text: text[:-1], lambda text: text.upper(), lambda text: text + " ", lambda text: "",
              lambda text: text.replace("site-0", "../x"), lambda text: text.replace("site-0 ", "")],
)  # fmt: skip
def test_what_is_no_statement_is_refused(wrong: object) -> None:
    with pytest.raises(MessageError):
        Head.of(wrong(str(head())))  # type: ignore[operator]


@pytest.mark.parametrize(
    "changed", [{"site": "site-1"}, {"sequence": 40}, {"hash": "ac" + HASH[2:]}, {"signature": bytes(64)}]
)
def test_what_the_site_did_not_sign_is_not_said_by_it(changed: dict[str, object]) -> None:
    assert not replace(head(), **changed).said_by(KEY.public)  # type: ignore[arg-type]


def test_it_is_said_by_one_key_and_by_nobody_without_one() -> None:
    assert not head(key=Identity.new()).said_by(KEY.public)
    assert not head().said_by(None)


def test_a_statement_about_a_ledger_is_no_other_kind_of_message() -> None:
    body = b'{"line":"%s","site":"site-0"}' % anchor.line(41, HASH).encode()
    assert Head.of(str(replace(head(), signature=KEY.sign("ledger-head", body)))).said_by(KEY.public)
    assert not replace(head(), signature=KEY.sign("answer", body)).said_by(KEY.public)


def test_a_later_record_follows_and_the_same_one_and_no_other() -> None:
    assert head(42).follows(head(41)) and head(41).follows(head(41))
    assert not head(40).follows(head(41))
    assert not head(41, hash="cd" * 32).follows(head(41))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from(["11" * 32, "22" * 32]))))
def test_heads_are_kept_by_site_none_twice_in_the_order_in_which_they_came(told: list[tuple[str, int, str]]) -> None:
    heads = [Head(site=site, sequence=number, hash=hash, signature=bytes(64)) for site, number, hash in told]
    kept = by_site(heads)
    assert list(kept) == sorted({head.site for head in heads})
    for site, own in kept.items():
        expected: list[Head] = []
        for one in heads:
            if one.site == site and one not in expected:
                expected.append(one)
        assert list(own) == expected
