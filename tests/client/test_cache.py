"""The cache: right as far as it says, whatever was killed, cut or added meanwhile."""

import fcntl
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import cache as caches
from client import index, sources
from client.cache import Cache, open_cache
from client.drops import Drop
from client.preprocess import to_model
from client.records import Row
from common.errors import DataError
from common.study import Study, parse


def study(size: tuple[int, int] = (8, 10), channels: int = 1, **preprocessing: Any) -> Study:
    return parse(
        {
            "study": {"schema": 1, "name": "s", "task": "classification", "classes": ("a", "b"), "rounds": 1},
            "model": {"name": "cnn", "image_size": size, "channels": channels},
            "preprocessing": preprocessing,
            "training": {"local_epochs": 1},
        },
        where="test",
    )


def image(seed: int, channels: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values that float16 holds exactly, so that what comes back must be equal."""
    values = np.random.default_rng(seed).integers(0, 1025, (channels, 8, 10)) / 1024
    return values.astype(np.float32)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(5):
        values = np.random.default_rng(seed).integers(0, 255, (16, 20, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{seed}.png")
    index.build(
        "dicom", folder, tmp_path / "site", patient_key=bytes(32), image_is_patient=True, require_annotation=False
    )
    return index.read(tmp_path / "site")


def test_images_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, study())
    cache.add_many({"a": image(1)})
    cache.add_many({"b": image(2), "c": image(3)})
    found = cache.images(["c", "a", "c"])
    assert found.dtype == np.float32 and found.shape == (3, 1, 8, 10)
    np.testing.assert_array_equal(found, np.stack([image(3), image(1), image(3)]))
    assert cache.images([]).shape == (0, 1, 8, 10)


def test_the_cache_holds_what_preprocessing_gives_to_float16(tmp_path: Path, rows: list[Row]) -> None:
    how = study(channels=3)
    cache = open_cache(tmp_path / "cache", how)
    assert cache.ensure(rows) == {}
    for row in rows:
        expected = to_model(sources.pixels(row.source, window="dicom"), how)
        np.testing.assert_allclose(cache.images([row.image])[0], expected, atol=5e-4)


def test_a_second_ensure_reads_and_writes_nothing(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cache(tmp_path / "cache", study()).ensure(rows[:3])
    cache = open_cache(tmp_path / "cache", study())
    cache.ensure(rows)
    before = {path: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    monkeypatch.setattr(sources, "images", None)
    assert cache.ensure(rows) == {}
    assert {path: path.stat().st_mtime_ns for path in cache.folder.iterdir()} == before


def test_images_that_cannot_be_decoded_are_named_and_the_others_cached(tmp_path: Path, rows: list[Row]) -> None:
    damaged, changed, gone, *fine = rows
    place = damaged.source.root
    (place / damaged.source.path).write_bytes((place / damaged.source.path).read_bytes()[:200])
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(place / changed.source.path)
    (place / gone.source.path).unlink()
    cache = open_cache(tmp_path / "cache", study())
    expected = {damaged.image: Drop.UNREADABLE, changed.image: Drop.CHANGED, gone.image: Drop.UNREADABLE}
    assert cache.ensure(rows) == expected
    assert len(cache.images([row.image for row in fine])) == 2


def test_an_unmounted_folder_is_an_error_and_drops_nothing(tmp_path: Path, rows: list[Row]) -> None:
    rows[0].source.root.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is not there"):
        open_cache(tmp_path / "cache", study()).ensure(rows)


def test_only_what_changes_values_makes_another_cache(tmp_path: Path) -> None:
    same = {open_cache(tmp_path, s).folder for s in (study(), study(mean=0.1, std=0.9))}
    others = [
        study((10, 8)),
        study(channels=3),
        study(window="percentile"),
        study(window=(1.0, 2.0)),
        study(aspect="stretch"),
    ]
    assert len(same) == 1 and len({open_cache(tmp_path, s).folder for s in others} | same) == 6


def test_an_image_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, study())
    cache.add_many({"a": image(1)})
    cache.add_many({"a": image(2), "b": image(3)})
    np.testing.assert_array_equal(cache.images(["a", "b"]), np.stack([image(1), image(3)]))


def test_readers_see_what_others_add(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path, study()), open_cache(tmp_path, study())
    first.add_many({"a": image(1)})
    second.images(["a"])
    first.add_many({"b": image(2)})
    second.add_many({"c": image(3)})
    np.testing.assert_array_equal(second.images(["b"])[0], image(2))
    np.testing.assert_array_equal(first.images(["c", "a"]), np.stack([image(3), image(1)]))


def _add_twenty(folder: Path, start: int) -> None:
    cache = open_cache(folder, study())
    for number in range(start, start + 20):
        cache.add_many({str(number): image(number)})


def test_processes_can_add_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_twenty, args=(tmp_path, start)) for start in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = open_cache(tmp_path, study()).images([str(number) for number in range(30)])
    np.testing.assert_array_equal(found, np.stack([image(number) for number in range(30)]))


def test_adding_waits_while_another_process_adds(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, study())
    adding = threading.Thread(target=cache.add_many, args=({"a": image(1)},))
    with (cache.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        adding.start()
        adding.join(0.2)
        assert adding.is_alive() and not (cache.folder / "images.f16").stat().st_size
    adding.join(10)
    np.testing.assert_array_equal(cache.images(["a"])[0], image(1))


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_between_any_two_writes_loses_at_most_what_was_being_added(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path, study())
    cache.add_many({"a": image(1)})
    calls = 0

    def killed(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        for name, seed in (("b", 2), ("c", 3)):
            try:
                cache.add_many({name: image(seed)})
            except KeyboardInterrupt:
                break
    with (cache.folder / "images.txt").open("a") as file:
        file.write("half a li")
    again = open_cache(tmp_path, study())
    again.add_many({"d": image(4)})
    for name, seed in (("a", 1), ("d", 4)):
        np.testing.assert_array_equal(open_cache(tmp_path, study()).images([name])[0], image(seed))
    held = (cache.folder / "images.txt").read_text().splitlines()
    for name, seed in (("b", 2), ("c", 3)):
        if name in held:
            np.testing.assert_array_equal(again.images([name])[0], image(seed))


def test_a_cache_cut_short_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, study())
    cache.add_many({"a": image(1), "b": image(2)})
    with (cache.folder / "images.f16").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match="cut short"):
        open_cache(tmp_path, study())


def test_a_full_disk_leaves_the_cache_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path, study())
    cache.add_many({"a": image(1)})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left"):
            cache.add_many({"b": image(2)})
    assert (cache.folder / "images.f16").stat().st_size == 160 and (cache.folder / "images.txt").read_text() == "a\n"
    cache.add_many({"b": image(3)})
    np.testing.assert_array_equal(cache.images(["b"])[0], image(3))


@pytest.mark.parametrize("array", [image(1)[0], image(1) + 1, image(1) * np.nan, image(1)[:, :4]])
def test_only_images_of_the_right_shape_and_range_are_added(tmp_path: Path, array: Any) -> None:
    with pytest.raises(DataError, match="shape"):
        open_cache(tmp_path, study()).add_many({"a": array})


@pytest.mark.parametrize("name", ["", "a\nb", "\u20ac"])
def test_an_id_is_a_printable_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="id"):
        open_cache(tmp_path, study()).add_many({name: image(1)})


def test_an_unknown_image_is_an_error(tmp_path: Path) -> None:
    cache: Cache = open_cache(tmp_path, study())
    with pytest.raises(DataError, match="not in the cache"):
        cache.images(["a"])


def test_many_images_of_one_file_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: dict[str, Any] = {}
    for part, count in {"train": 9, "val": 2, "test": 3}.items():
        arrays[f"{part}_images"] = np.random.default_rng(count).integers(0, 255, (count, 8, 10), np.uint8)
        arrays[f"{part}_labels"] = np.zeros((count, 1), np.uint8)
    np.savez(tmp_path / "a.npz", **arrays)
    index.build("auto", tmp_path / "a.npz", tmp_path / "site", patient_key=bytes(32))
    found = index.read(tmp_path / "site")
    monkeypatch.setattr(caches, "_PART", 4)
    monkeypatch.setattr(caches, "_WAVE", 2)
    cache = open_cache(tmp_path / "cache", study())
    assert cache.ensure(found) == {}
    for row in found:
        expected = arrays[row.source.array][row.source.item] / 255
        np.testing.assert_allclose(cache.images([row.image])[0, 0], expected, atol=5e-4)
