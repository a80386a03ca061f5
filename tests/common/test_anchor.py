"""The statement about a site's log: nobody else's, for this order alone, always of one length."""

import pytest

from common import anchor
from common.crypto.identity import Identity
from common.errors import MessageError

KEY = Identity(bytes(range(32)))
ORDER, HASH = "1" * 64, "ab" * 32


def attest(sequence: int = 41, *, key: Identity = KEY) -> str:
    return anchor.attest(key, site="site-0", order=ORDER, sequence=sequence, hash=HASH)


def read(text: str, *, site: str = "site-0", order: str = ORDER) -> str:
    return anchor.attested(text, public=KEY.public, site=site, order=order)


@pytest.mark.parametrize("sequence", [0, 41, 999_999_999])
def test_what_was_stated_is_read(sequence: int) -> None:
    assert read(attest(sequence)) == f"{sequence}-{HASH}"


def test_every_statement_has_the_same_length() -> None:
    assert len({len(attest(sequence)) for sequence in (0, 41, 999_999_999)}) == 1
    with pytest.raises(ValueError, match="lines"):
        attest(10**9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text.replace("000000041", "000000040"),
        lambda text: text.replace("abab", "abac", 1),
        lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
        lambda text: text.upper(),
        lambda text: text + " ",
        lambda text: "",
        lambda text: attest(key=Identity.new()),
    ],
)
def test_what_the_site_did_not_sign_is_refused(wrong: object) -> None:
    with pytest.raises(MessageError):
        read(wrong(attest()))  # type: ignore[operator]


def test_it_holds_for_one_site_and_one_order() -> None:
    for changed in ({"site": "site-1"}, {"order": "2" * 64}):
        with pytest.raises(MessageError):
            read(attest(), **changed)


def test_its_form_is_checked_where_messages_are_read() -> None:
    assert anchor.well_formed("") and anchor.well_formed(attest())
    assert not anchor.well_formed(attest()[:-1]) and not anchor.well_formed("41-" + HASH)
