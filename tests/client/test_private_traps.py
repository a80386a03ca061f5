"""Traps of private orders: what others' images, an older ledger or a refused pool must not change."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from control_cases import ask, order
from dp_cases import study_of
from small import private_study, protect, tiny_study, write_site

from client import app as client_app
from client import chain, index, ledger, private
from client.cache import Cache
from client.dataset import open_dataset
from client.dp.patients import MOST_BOXES, Pool
from client.site import open_site
from common.errors import DataError, Reason
from common.tasks.batch import Batch, Objects

STUDY = private_study()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return protect(write_site(tmp_path / "site-0", images=24, seed=0))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    client_app._datasets.clear()
    client_app._models.clear()
    private.check_separable.cache_clear()


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = chain.read(folder / ledger.FOLDER, ledger.NAME).entries
    return [entry.body for entry in entries if entry.kind == kind]


def errors(folder: Path) -> str:
    return (folder / "errors.log").read_text(encoding="utf-8")


def test_a_study_without_privacy_that_was_agreed_to_before_the_ledger_runs_no_more(tmp_path: Path) -> None:
    site, bare = write_site(tmp_path / "site-0", images=24, seed=0), tiny_study()
    assert ask(site, order("propose", bare), bare).reason is Reason.OK
    protect(site)
    for kind in ("update", "evaluate"):
        answer = ask(site, order(kind, bare), bare)
        assert answer.reason is Reason.POLICY and answer.vector is None
    assert "would end the ledger's promise" in errors(site) and not records(site, "unprotected")


@pytest.mark.parametrize("file_lost", [False, True])
def test_a_study_that_ran_without_privacy_before_there_was_a_ledger_is_in_it_when_it_is_opened(
    tmp_path: Path, file_lost: bool
) -> None:
    """Its updates have left: a ledger that began later can't state an epsilon of all studies together."""
    site, bare = write_site(tmp_path / "site-0", images=24, seed=0), tiny_study()
    other = tiny_study(study={"name": "never-run"})
    for study in (bare, other):
        ask(site, order("propose", study), study)
    assert ask(site, order("update", bare), bare).reason is Reason.OK
    ask(site, order("update", other, round=99), other)  # refused: nothing of it has left
    protect(site)
    if file_lost:
        (site / "studies" / f"{bare.sha256}.json").unlink()
    for _ in range(2):
        with private.opened(open_site(site)) as own:
            assert own.state.unprotected == (bare.sha256,)
            assert own.state.statement.startswith("No epsilon can be stated")


def test_a_private_study_whose_file_was_lost_does_not_end_the_ledgers_promise(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.OK
    (folder / "studies" / f"{STUDY.sha256}.json").unlink()
    with private.opened(open_site(folder)) as own:
        assert own.state.unprotected == ()


def test_images_that_one_patient_lacks_are_missing_nobody_else(folder: Path) -> None:
    """The trap: one patient whose image is not in the cache, and an archive that is away, would be nobody at all."""
    site, source = open_site(folder), folder.with_suffix(".npz")
    before = open_dataset(site, STUDY)
    cached = {row.image for images in before.pools.values() for row in images.rows}
    rows = index.read(folder)
    source.rename(source.with_suffix(".away"))
    late = replace(rows[0], image="late", patient="late")
    index.write(folder, [*rows, late], [])
    found = open_dataset(site, STUDY)
    assert {row.image for images in found.pools.values() for row in images.rows} == cached
    assert found.unusable == {"unreadable": 1} and not found.whole and "1 of 25 images" in errors(folder)
    assert len(index.read(folder)) == 25  # what can't be had now is not forgotten


def test_without_room_for_the_cache_what_fits_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written = Cache.add_many, list[str]()

    def full(self: Cache, arrays: Any) -> None:
        if len(arrays) > 1 or len(written) == 20:
            raise DataError("no space")
        whole(self, arrays)
        written.extend(arrays)

    monkeypatch.setattr(Cache, "add_many", full)
    found = open_dataset(open_site(folder), STUDY)
    assert sum(map(len, found.pools.values())) == 20 and found.unusable == {"unreadable": 4}
    with pytest.raises(DataError, match="no space"):
        open_dataset(open_site(folder), tiny_study(model={"image_size": [20, 20]}))


def test_a_study_refused_in_one_pool_sets_nothing_aside_in_another(folder: Path) -> None:
    greedy = private_study(privacy={"epsilon": 1.0, "evaluation": {"epsilon": 40.0}})
    assert ask(folder, order("propose", greedy), greedy).reason is Reason.BUDGET
    assert not records(folder, "allocate")
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK


def test_a_study_that_was_closed_and_comes_back_has_spent_what_it_had(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    allowed = records(folder, "allocate")[0]["parts"][0]["orders"]
    for number in range(1, allowed):
        assert ask(folder, order("update", STUDY, round=1, value=0.01 * number), STUDY).reason is Reason.OK
    with private.opened(open_site(folder)) as own:
        own.close_study(STUDY.sha256)
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    found = [ask(folder, order("update", STUDY, round=1, value=-0.01 * n), STUDY).reason for n in (1, 2)]
    assert found == [Reason.OK, Reason.BUDGET]


def test_an_older_ledger_is_missed_by_the_sites_own_log(folder: Path) -> None:
    state, copy = folder / ledger.FOLDER, folder.parent / "copy"
    ask(folder, order("propose", STUDY), STUDY)
    shutil.copytree(state, copy)
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.OK
    shutil.rmtree(state)
    shutil.copytree(copy, state)
    assert ask(folder, order("update", STUDY, attempt=2), STUDY).reason is Reason.FAILED
    assert "older copy" in errors(folder)


def test_an_image_with_boxes_without_end_makes_a_blank() -> None:
    study = study_of("retinanet")
    for count, raises in ((MOST_BOXES, False), (MOST_BOXES + 1, True)):
        corners = np.tile(np.array([[0, 0, 4, 4]], np.float32), (count, 1))
        boxes = Objects(boxes=corners, classes=np.zeros(count, np.int64))
        images: Any = SimpleNamespace(
            study=study,
            rows=(SimpleNamespace(patient="one"),),
            batch=lambda _chosen, boxes=boxes: Batch(images=torch.zeros(1, 1, 8, 8), objects=(boxes,)),
        )
        with pytest.raises(ValueError, match="more than 1000 boxes") if raises else nullcontext():
            Pool(pool=images).batch(0, np.zeros(1, np.int64))
