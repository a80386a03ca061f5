"""What the server tells of the sites' ledgers: all that they signed, but for what a site is known to contain."""

from pathlib import Path

import pytest

from common.anchor import Head
from common.crypto.identity import Identity
from common.errors import RunError
from server.heads import MOST, Heads

KEYS = {f"site-{number}": Identity(bytes([number]) * 32) for number in range(3)}
PUBLIC = {name: key.public for name, key in KEYS.items()}


def head(name: str, sequence: int, *, hash: str = "ab" * 32, key: Identity | None = None) -> str:
    return str(Head.sign(key or KEYS[name], site=name, sequence=sequence, hash=hash))


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    return Heads(tmp_path / "heads.json", PUBLIC)


def test_what_is_known_of_each_site_is_told_and_survives_the_process(heads: Heads, tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    assert heads.told() == () and not file.exists()
    heads.hear([head("site-1", 5)], site="site-1")
    heads.hear([head("site-0", 2)], site="site-0")
    for told in (heads.told(), Heads(file, PUBLIC).told()):
        assert told == (head("site-0", 2), head("site-1", 5))


def test_a_head_is_dropped_when_its_site_was_told_of_it_and_followed(heads: Heads) -> None:
    heads.hear([head("site-1", 5)], site="site-1")
    told = heads.told()
    heads.hear([head("site-1", 7)], site="site-1", followed=told)
    assert heads.told() == (head("site-1", 7),)


@pytest.mark.parametrize("later", [head("site-1", 7), head("site-1", 5, hash="cd" * 32), head("site-1", 4)])
def test_a_head_is_not_dropped_because_another_came(heads: Heads, later: str) -> None:
    """Neither a later record, which may come after an older copy, nor another of the same number."""
    heads.hear([head("site-1", 5)], site="site-1")
    heads.hear([later], site="site-1")  # without having followed an order that told of record 5
    assert heads.told() == (head("site-1", 5), later)
    heads.hear([later], site="site-0", followed=heads.told())  # another site's word drops nothing
    assert heads.told() == (head("site-1", 5), later)
    heads.hear([head("site-1", 9)], site="site-1", followed=[later])
    assert heads.told() == (head("site-1", 5), head("site-1", 9))


def test_a_site_that_says_nothing_in_the_place_of_what_it_followed_is_told_of_as_before(heads: Heads) -> None:
    heads.hear([head("site-1", 5)], site="site-1")
    heads.hear([], site="site-1", followed=heads.told())
    assert heads.told() == (head("site-1", 5),)


def test_what_others_remember_of_a_site_is_taken_up(heads: Heads) -> None:
    heads.hear([head("site-1", 5), head("site-2", 1)], site="site-2")
    assert heads.told() == (head("site-1", 5), head("site-2", 1))


def test_one_site_has_a_bounded_place_and_the_first_heads_keep_it(heads: Heads) -> None:
    for number in range(2 * MOST):
        heads.hear([head("site-1", number)], site="site-1")
    assert heads.told() == tuple(head("site-1", number) for number in range(MOST))


def test_the_newest_of_a_site_is_what_a_backup_must_contain(heads: Heads) -> None:
    heads.hear([head("site-1", 7), head("site-1", 5)], site="site-0")
    assert heads.of("site-1") == f"7-{'ab' * 32}" and heads.of("site-0") is None


def test_what_is_no_statement_or_not_by_its_site_is_passed_over(heads: Heads) -> None:
    strangers = Identity.new()
    said = ["", "x", head("site-1", 9, key=KEYS["site-2"]), head("site-7", 1, key=strangers), head("site-1", 5)]
    heads.hear(said, site="site-0")
    assert heads.told() == (head("site-1", 5),)


def test_a_site_that_left_the_roster_is_told_of_all_the_same(heads: Heads, tmp_path: Path) -> None:
    heads.hear([head("site-1", 5)], site="site-1")
    later = Heads(tmp_path / "heads.json", {"site-0": PUBLIC["site-0"]})
    later.hear([head("site-0", 1)], site="site-0")
    assert later.told() == (head("site-0", 1), head("site-1", 5))


def test_a_site_that_came_back_under_another_identity_begins_anew(heads: Heads, tmp_path: Path) -> None:
    heads.hear([head("site-1", 50), head("site-2", 7)], site="site-0")
    anew = Identity(bytes([9]) * 32)
    later = Heads(tmp_path / "heads.json", {**PUBLIC, "site-1": anew.public})
    assert later.told() == (head("site-2", 7),)
    later.hear([head("site-1", 3, key=anew)], site="site-1")
    assert later.told() == (head("site-1", 3, key=anew), head("site-2", 7))


@pytest.mark.parametrize("harm", [b"{", b"[1]", b'["x"]', b"\xff", b"null"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, harm: bytes) -> None:
    (tmp_path / "heads.json").write_bytes(harm)
    with pytest.raises(RunError, match=r"heads\.json: can't be read, or is damaged: remove it"):
        Heads(tmp_path / "heads.json", PUBLIC)


def test_it_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "nowhere" / "heads.json", PUBLIC)
    with pytest.raises(RunError, match="can't be written"):
        heads.hear([head("site-1", 5)], site="site-1")
