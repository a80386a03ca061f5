"""What the index no longer has leaves the caches, whoever reads, adds or is killed meanwhile."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small import KEY, tiny_study
from typer.testing import CliRunner

from client import index
from client.__main__ import app
from client.cache import Cache, open_cache
from client.cache_shrink import shrink
from common.errors import DataError
from common.study import Study

STUDY = tiny_study(model={"image_size": [8, 10]})


def image(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).integers(0, 200, (1, 8, 10)).astype(np.float32) / 256


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose index has six images."""
    images = {f"{part}_images": np.full((n, 8, 10), n, np.uint8) for part, n in (("train", 4), ("val", 1), ("test", 1))}
    labels = {name.replace("images", "labels"): np.zeros((len(one), 1), np.uint8) for name, one in images.items()}
    np.savez(tmp_path / "a.npz", **images, **labels)
    index.build("medmnist", tmp_path / "a.npz", tmp_path / "site", patient_key=KEY)
    return tmp_path / "site"


def filled(site: Path, study: Study = STUDY) -> tuple[Cache, list[str]]:
    """A cache of the index's images, with others between them; and the ids of the index."""
    own = [row.image for row in index.read(site)]
    cache = open_cache(site / "cache", study)
    cache.add_many({name: image(k) for k, one in enumerate(own) for name in (one, f"gone{k}")})
    return cache, own


def test_only_the_indexs_images_are_left_and_their_space_is_free(site: Path) -> None:
    cache, own = filled(site)
    assert shrink(site, site / "cache") == 6 and shrink(site, site / "cache") == 0
    again = open_cache(site / "cache", STUDY)
    np.testing.assert_array_equal(again.images(own), np.stack([image(k) for k in range(6)]))
    assert (cache.folder / "images.f16").stat().st_size == 6 * 2 * 80
    assert (cache.folder / "images.txt").read_text().splitlines() == own
    assert {path.name for path in cache.folder.iterdir()} == {"images.f16", "images.txt", "settings.json", "lock"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in cache.folder.glob("images.*"))
    with pytest.raises(DataError, match="not in the cache"):
        again.images(["gone1"])


def test_whoever_has_a_cache_open_goes_on_and_may_add(site: Path) -> None:
    cache, own = filled(site)
    fresh = open_cache(site / "cache", STUDY)  # has read no image as yet
    shrink(site, site / "cache")
    for reader in (cache, fresh):
        np.testing.assert_array_equal(reader.images([own[3], "gone3"]), np.stack([image(3)] * 2))
    cache.add_many({"new": image(9)})
    np.testing.assert_array_equal(cache.images(["new", own[5]]), np.stack([image(9), image(5)]))
    np.testing.assert_array_equal(fresh.images(["new", own[5]]), np.stack([image(9), image(5)]))
    with pytest.raises(DataError, match="not in the cache"):
        cache.images(["gone3"])


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_at_any_moment_mixes_no_images(site: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = filled(site)
    calls = 0

    def killed(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        replace(*arguments) if len(arguments) == 2 else None  # type: ignore[arg-type]

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr("client.cache_shrink.sync", killed)
        with pytest.raises(KeyboardInterrupt):
            shrink(site, site / "cache")
    cache = open_cache(site / "cache", STUDY)
    for k, one in enumerate(own):
        for name in {one, f"gone{k}"} & set(cache._positions):
            np.testing.assert_array_equal(cache.images([name])[0], image(k))
    cache.add_many({one: image(k) for k, one in enumerate(own)})
    shrink(site, site / "cache")
    np.testing.assert_array_equal(open_cache(site / "cache", STUDY).images(own), np.stack([image(k) for k in range(6)]))


def test_a_cache_of_unknown_settings_goes_as_a_whole(site: Path) -> None:
    cache, _ = filled(site)
    (cache.folder / "settings.json").write_text("")
    assert shrink(site, site / "cache") == 12 and not cache.folder.exists()


def test_a_full_disk_leaves_the_cache_as_it_was(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = filled(site)
    before = {path.name: path.read_bytes() for path in cache.folder.iterdir()}

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.cache_shrink.sync", full)
    with pytest.raises(DataError, match="No space left"):
        shrink(site, site / "cache")
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == before


def test_the_next_index_takes_the_images_of_a_patient_who_is_gone(tmp_path: Path) -> None:
    from dicom_cases import saved, slice_

    data, site = tmp_path / "data", tmp_path / "site"
    for number, patient in enumerate("PPQ"):
        saved(slice_(number, patient=patient, projection=True), data / patient / f"{number}.dcm")
    data.joinpath("labels.csv").write_text("key,label\nP,a\nQ,b\n")
    line = ["index", str(data), "--out", str(site)]
    assert CliRunner().invoke(app, [*line, "--quiet"]).exit_code == 0
    rows = index.read(site)
    open_cache(site / "cache", STUDY).ensure(rows)
    shutil.rmtree(data / "Q")
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and "cache: 1 preprocessed images" in done.output, done.output
    held = open_cache(site / "cache", STUDY)._positions.keys()
    assert held == {row.image for row in rows if row.source.path[0] == "P"} == {row.image for row in index.read(site)}
