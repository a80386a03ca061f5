"""The store of released updates: the same bytes or none."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.chain_lines import ChainError
from client.released import Query, Released

QUERY = Query(study="a" * 64, pool="train", round=3, weights="b" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Released:
    return Released(tmp_path / "released")


def test_what_was_put_is_got_for_the_same_query_only(store: Released) -> None:
    digest = store.put(QUERY, b"update")
    assert store.get(replace(QUERY), digest) == b"update"
    for other in (
        replace(QUERY, study="c" * 64),
        replace(QUERY, pool="test"),
        replace(QUERY, round=4),
        replace(QUERY, weights="c" * 64),
    ):
        assert store.get(other, digest) is None


def test_other_bytes_than_were_put_are_refused(store: Released, tmp_path: Path) -> None:
    digest = store.put(QUERY, b"update")
    (path,) = (tmp_path / "released").iterdir()
    for damage in (b"updatE", b"updat", b""):
        path.write_bytes(damage)
        with pytest.raises(ChainError, match="not what was released"):
            store.get(QUERY, digest)


def test_files_are_for_their_owner_alone(store: Released, tmp_path: Path) -> None:
    store.put(QUERY, b"update")
    (path,) = (tmp_path / "released").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_forgotten_update_is_gone_and_forgetting_twice_is_once(store: Released) -> None:
    digest = store.put(QUERY, b"update")
    store.forget(QUERY)
    store.forget(QUERY)
    assert store.get(QUERY, digest) is None


def test_a_later_round_deletes_the_earlier_ones_of_its_study_in_all_pools(store: Released) -> None:
    queries = {
        "earlier": QUERY,
        "earlier, other pool": replace(QUERY, pool="test"),
        "same round": replace(QUERY, round=10, weights="c" * 64),
        "later": replace(QUERY, round=11),
        "other study": replace(QUERY, study="d" * 64),
    }
    digests = {name: store.put(query, name.encode()) for name, query in queries.items()}
    store.forget_before(replace(QUERY, round=10))
    left = {name for name, query in queries.items() if store.get(query, digests[name]) is not None}
    assert left == {"same round", "later", "other study"}


def test_a_study_of_any_name_is_no_path(store: Released, tmp_path: Path) -> None:
    query = replace(QUERY, study="../../x\0y", pool="/etc")
    digest = store.put(query, b"update")
    assert store.get(query, digest) == b"update"
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "released").write_text("a file")
    with pytest.raises(ChainError, match="can't be written"):
        Released(tmp_path / "released").put(QUERY, b"update")


def test_forgetting_where_nothing_was_ever_stored_is_nothing(store: Released) -> None:
    store.forget(QUERY)
    store.forget_before(QUERY)
