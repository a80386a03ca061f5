"""Checkpoints: whole or not there, and only for the study and architecture that they are of."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from server import checkpoint
from server.aggregate import ServerState
from server.checkpoint import Checkpoint

STATE = ServerState(weights=np.array([1, 2], np.float32), momentum=np.array([0.1, 0.2]), second_moment=np.zeros(0))
SAVED = Checkpoint(
    run="r",
    study_hash="s",
    architecture="a",
    round=1,
    state=STATE,
    weights=np.array([1, 2, 3], np.float32),
    kept=np.zeros(0, np.float32),
    kept_score=None,
)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, replace(SAVED, kept=SAVED.weights, kept_score=0.5))
    found = checkpoint.newest(tmp_path, study_hash="s", architecture="a")
    assert found is not None
    assert (found.run, found.round, found.kept_score) == ("r", 1, 0.5)
    for name in ("weights", "kept"):
        assert np.array_equal(getattr(found, name), SAVED.weights)
    assert np.array_equal(found.state.momentum, STATE.momentum) and found.state.momentum.dtype == np.float64


def test_the_released_shares_come_back_bit_by_bit_and_are_none_where_none_were_written(tmp_path: Path) -> None:
    for number, prior in enumerate([(), (1 / 3, 5e-324, math.nextafter(1, 0))]):
        checkpoint.save_checkpoint(tmp_path, replace(SAVED, round=number, prior=prior))
        found = checkpoint.newest(tmp_path, study_hash="s", architecture="a")
        assert found is not None and (found.round, found.prior) == (number, prior)


def test_none_where_nothing_was_written(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent", study_hash="s", architecture="a") is None


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 5):
        checkpoint.save_checkpoint(tmp_path, replace(SAVED, round=number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000003.safetensors", "round-000004.safetensors"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 40])
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, damage: object) -> None:
    for number in (1, 2):
        checkpoint.save_checkpoint(tmp_path, replace(SAVED, round=number))
    newest = tmp_path / "round-000002.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    found = checkpoint.newest(tmp_path, study_hash="s", architecture="a")
    assert found is not None and found.round == 1


def test_when_all_are_damaged_nothing_is_begun_silently(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, SAVED)
    (tmp_path / "round-000001.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="damaged"):
        checkpoint.newest(tmp_path, study_hash="s", architecture="a")


@pytest.mark.parametrize(
    ("study", "architecture", "says"), [("t", "a", "another study"), ("s", "b", "another architecture")]
)
def test_another_study_or_architecture_is_refused(tmp_path: Path, study: str, architecture: str, says: str) -> None:
    checkpoint.save_checkpoint(tmp_path, SAVED)
    with pytest.raises(RunError, match=says):
        checkpoint.newest(tmp_path, study_hash=study, architecture=architecture)


def test_a_failed_write_leaves_the_file_as_it_was_and_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    checkpoint.write_atomically(path, [b"before"])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.write_atomically(path, [b"after, and longer"])
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
