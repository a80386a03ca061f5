"""What a site keeps of all sites' ledger heads: the newest that their sites have signed, and it only goes on."""

from pathlib import Path

import pytest
from small import write_site

from client import heads
from client.chain_lines import ChainError
from client.ledger_records import LedgerError
from client.site import Site, open_site
from common.anchor import Head
from common.crypto.identity import Identity
from common.errors import MessageError

KEYS = {f"site-{number}": Identity(bytes([number]) * 32) for number in range(3)}
PUBLIC = {name: key.public for name, key in KEYS.items()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return open_site(write_site(tmp_path / "site-0", images=0, seed=0))


def head(name: str, sequence: int, *, hash: str = "ab" * 32, key: Identity | None = None) -> str:
    return str(Head.sign(key or KEYS[name], site=name, sequence=sequence, hash=hash))


def kept(site: Site) -> dict[str, int]:
    known = heads.remembered(site, PUBLIC)
    assert all(len(found) == 1 for found in known.values())
    return {name: found[0].sequence for name, found in known.items()}


def test_what_an_order_tells_is_kept_for_good(site: Site) -> None:
    assert kept(site) == {}
    heads.take(site, [head("site-0", 3), head("site-1", 5)], PUBLIC)
    assert kept(site) == {"site-0": 3, "site-1": 5}
    heads.take(site, [head("site-0", 4), head("site-1", 5), head("site-2", 0)], PUBLIC)
    assert kept(site) == {"site-0": 4, "site-1": 5, "site-2": 0}
    assert (site.folder / heads.NAME).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "told",
    [
        [],
        [head("site-0", 9)],
        [head("site-0", 9), head("site-1", 4)],
        [head("site-0", 9), head("site-1", 5, hash="cd" * 32)],
        [head("site-0", 9), head("site-1", 6, key=KEYS["site-2"])],
    ],
    ids=["nothing", "not this site", "an older one", "another of the same number", "not by that site"],
)
def test_an_order_that_hides_where_a_ledger_stands_is_refused_and_nothing_is_forgotten(
    site: Site, told: list[str]
) -> None:
    heads.take(site, [head("site-0", 3), head("site-1", 5)], PUBLIC)
    with pytest.raises(LedgerError, match=r"has come to record [35], as its site has signed"):
        heads.take(site, told, PUBLIC)
    assert kept(site) == {"site-0": 3, "site-1": 5}


def test_a_statement_that_its_site_did_not_sign_is_not_kept(site: Site) -> None:
    heads.take(site, [head("site-1", 5, key=KEYS["site-2"]), head("site-2", 1)], PUBLIC)
    assert kept(site) == {"site-2": 1}


def test_what_is_no_statement_is_refused(site: Site) -> None:
    with pytest.raises(MessageError):
        heads.take(site, ["site-1 5"], PUBLIC)


def test_heads_of_a_key_that_the_roster_no_longer_has_are_forgotten(site: Site) -> None:
    """A site that begins anew, with another identity, begins with another ledger."""
    heads.take(site, [head("site-1", 5)], PUBLIC)
    anew = Identity(bytes([9]) * 32)
    heads.take(site, [head("site-1", 0, key=anew)], {**PUBLIC, "site-1": anew.public})
    assert kept(site) == {}
    assert [found.sequence for found in heads.remembered(site, {"site-1": anew.public})["site-1"]] == [0]


def test_a_sites_own_head_is_the_one_that_it_has_signed(site: Site) -> None:
    own = KEYS["site-0"].public
    assert heads.own(site, own) == ()
    heads.take(site, [head("site-0", 3), head("site-1", 5), head("site-0", 4, hash="cd" * 32)], PUBLIC)
    assert [(found.sequence, found.hash) for found in heads.own(site, own)] == [(4, "cd" * 32), (3, "ab" * 32)]
    assert heads.own(site, PUBLIC["site-1"]) == ()


def test_of_what_was_heard_of_a_site_nothing_is_dropped_but_for_a_later_record(site: Site) -> None:
    """Two records of one number: a ledger and what went on from an older copy of it. Both are kept, and asked for."""
    both = [head("site-1", 5), head("site-1", 5, hash="cd" * 32)]
    heads.take(site, both[:1], PUBLIC)
    heads.take(site, both, PUBLIC)
    for less in (both[:1], both[1:]):
        with pytest.raises(LedgerError, match="has come to record 5"):
            heads.take(site, less, PUBLIC)
    assert len(heads.remembered(site, PUBLIC)["site-1"]) == 2
    heads.take(site, [head("site-1", 6)], PUBLIC)
    assert kept(site) == {"site-1": 6}


@pytest.mark.parametrize("harm", [b"{", b"[1]", b'["site-1 5"]', b"\xff", b"null"])
def test_a_damaged_file_is_refused_by_name(site: Site, harm: bytes) -> None:
    (site.folder / heads.NAME).write_bytes(harm)
    for call in (lambda: heads.take(site, [], PUBLIC), lambda: heads.own(site, PUBLIC["site-0"])):
        with pytest.raises(ChainError, match=r"heads\.json: can't be read, or is damaged") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert (site.folder / heads.NAME).read_bytes() == harm


def test_a_file_that_cannot_be_written_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heads, "write_privately", full)
    with pytest.raises(ChainError, match="free disk space"):
        heads.take(site, [head("site-1", 5)], PUBLIC)
    assert kept(site) == {}
