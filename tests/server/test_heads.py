"""What the server tells of the sites' ledgers: the newest that each has signed, on disk before it is told."""

from pathlib import Path

import pytest

from common.anchor import Head
from common.crypto.identity import Identity
from common.errors import RunError
from server.heads import Heads

KEYS = {f"site-{number}": Identity(bytes([number]) * 32) for number in range(3)}
PUBLIC = {name: key.public for name, key in KEYS.items()}


def head(name: str, sequence: int, *, hash: str = "ab" * 32, key: Identity | None = None) -> str:
    return str(Head.sign(key or KEYS[name], site=name, sequence=sequence, hash=hash))


def test_the_newest_of_each_site_is_told_and_survives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    heads = Heads(file, PUBLIC)
    assert heads.told() == () and not file.exists()
    heads.hear([head("site-1", 5), head("site-0", 2)])
    heads.hear([head("site-1", 4), head("site-0", 3)])
    for told in (heads.told(), Heads(file, PUBLIC).told()):
        assert told == (head("site-0", 3), head("site-1", 5))


def test_of_two_heads_with_one_number_the_first_is_kept(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.json", PUBLIC)
    heads.hear([head("site-1", 5)])
    heads.hear([head("site-1", 5, hash="cd" * 32)])
    assert heads.told() == (head("site-1", 5),)


def test_what_is_no_statement_or_not_by_its_site_is_passed_over(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.json", PUBLIC)
    strangers = Identity.new()
    heads.hear(["", "x", head("site-1", 9, key=KEYS["site-2"]), head("site-7", 1, key=strangers), head("site-1", 5)])
    assert heads.told() == (head("site-1", 5),)


def test_a_site_that_left_the_roster_is_told_of_all_the_same(tmp_path: Path) -> None:
    Heads(tmp_path / "heads.json", PUBLIC).hear([head("site-1", 5)])
    later = Heads(tmp_path / "heads.json", {"site-0": PUBLIC["site-0"]})
    later.hear([head("site-0", 1)])
    assert later.told() == (head("site-0", 1), head("site-1", 5))


def test_a_site_that_came_back_under_another_identity_begins_anew(tmp_path: Path) -> None:
    Heads(tmp_path / "heads.json", PUBLIC).hear([head("site-1", 50), head("site-2", 7)])
    anew = Identity(bytes([9]) * 32)
    later = Heads(tmp_path / "heads.json", {**PUBLIC, "site-1": anew.public})
    assert later.told() == (head("site-2", 7),)
    later.hear([head("site-1", 3, key=anew)])
    assert later.told() == (head("site-1", 3, key=anew), head("site-2", 7))


@pytest.mark.parametrize("harm", [b"{", b"[1]", b'["x"]', b"\xff", b"null"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, harm: bytes) -> None:
    (tmp_path / "heads.json").write_bytes(harm)
    with pytest.raises(RunError, match=r"heads\.json: can't be read, or is damaged: remove it"):
        Heads(tmp_path / "heads.json", PUBLIC)


def test_it_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "nowhere" / "heads.json", PUBLIC)
    with pytest.raises(RunError, match="can't be written"):
        heads.hear([head("site-1", 5)])
