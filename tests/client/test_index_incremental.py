"""A second `client index`: what has changed is seen, however it was changed; what hasn't is not read again."""

import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import saved, slice_
from PIL import Image
from small import full_disk

from client import index, memory, sources
from client.drops import Drop
from client.memory import NAME, Memory, remembered
from common.errors import DataError

KEY = bytes(range(32))
IMAGES = 6


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test can't wait until files are beyond doubt."""
    monkeypatch.setattr(memory, "YOUNG", 0)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Images of three patients with labels and masks, a file that is cut off, and foreign ones."""
    folder = tmp_path / "data"
    for n in range(IMAGES):
        saved(slice_(n, patient=f"SECRET-{n // 2}"), folder / "deep" / f"{n}.dcm")
    labels = "".join(f"1.2.9.3.{n + 1},{('sick', 'well')[n % 2]}\n" for n in range(IMAGES))
    (folder / "labels.csv").write_text("key,label\n" + labels)
    mask(folder, 1, 1)
    mask(folder, 2, 0)
    (folder / "cut.dcm").write_bytes((folder / "deep" / "0.dcm").read_bytes()[:-9])
    (folder / "LICENSE").write_text("text")
    (folder / "empty").touch()
    time.sleep(0.02)  # more than a tick of the file system's clock
    return folder


def mask(folder: Path, number: int, value: int) -> None:
    (folder / "masks").mkdir(exist_ok=True)
    pixels = np.zeros((12, 16), np.uint8)
    pixels[2:5, 3:6] = value
    Image.fromarray(pixels).save(folder / "masks" / f"1.2.9.3.{number}.png")


def content(site: Path) -> dict[str, list[Any]]:
    """All that an index says, in its own order."""
    with closing(sqlite3.connect(site / "index.sqlite")) as database:
        tables = ("image", "dropped", "remark", "agreement")
        found = {name: database.execute(f"SELECT * FROM {name} ORDER BY rowid").fetchall() for name in tables}
    found["image"].sort()
    return found


def label(folder: Path, line: str) -> None:
    with (folder / "labels.csv").open("a", encoding="utf-8") as table:
        table.write(line + "\n")


def indexed(folder: Path, site: Path, **options: Any) -> Memory:
    own = remembered(site, patient_key=KEY)
    index.build("dicom", folder, site, patient_key=KEY, memory=own, **options)
    return own


def assert_like_new(folder: Path, site: Path, **options: Any) -> None:
    index.build("dicom", folder, site.parent / "new", patient_key=KEY, **options)
    assert content(site) == content(site.parent / "new")


def stealthily(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes of the same number, and the time of modification put back."""
    before, data = path.stat(), path.read_bytes()
    assert len(old) == len(new) and old in data
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    third = one.with_suffix(".third")
    one.rename(third)
    other.rename(one)
    third.rename(other)


def replace_last_byte(path: Path) -> None:
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {  # what happens, and how many files have to be read for it
    "a new image": (lambda d: saved(slice_(8, patient="SECRET-9"), d / "new.dcm"), 1),
    "a new image with a label": (
        lambda d: (
            saved(slice_(8, patient="SECRET-9"), d / "new.dcm"),
            label(d, "1.2.9.3.9,sick"),
        ),
        2,
    ),
    "an image removed": (lambda d: (d / "deep" / "3.dcm").unlink(), 0),
    "an image moved": (lambda d: (d / "deep" / "3.dcm").rename(d / "3.dcm"), 1),
    "two images swapped": (lambda d: swap(d / "deep" / "0.dcm", d / "deep" / "5.dcm"), 2),
    "pixels changed, size and time as before": (lambda d: replace_last_byte(d / "deep" / "1.dcm"), 1),
    "a patient changed, size and time as before": (
        lambda d: stealthily(d / "deep" / "4.dcm", b"SECRET-2", b"SECRET-0"),
        1,
    ),
    "a label changed, size and time as before": (lambda d: stealthily(d / "labels.csv", b"1,sick", b"1,well"), 1),
    "labels gone": (lambda d: (d / "labels.csv").unlink(), 0),
    "a mask changed": (lambda d: mask(d, 2, 1), 1),
    "a new mask": (lambda d: mask(d, 5, 1), 1),
    "a mask gone": (lambda d: (d / "masks" / "1.2.9.3.1.png").unlink(), 0),
    "a mask of another size": (lambda d: Image.new("L", (3, 3)).save(d / "masks" / "1.2.9.3.1.png"), 1),
    "all masks gone": (lambda d: [path.unlink() for path in (d / "masks").iterdir()], 0),
    "a second reader": (
        lambda d: (d / "labels.csv").write_text(
            "key,label,reader\n" + "".join(f"1.2.9.3.{n + 1},sick,a\n1.2.9.3.{n + 1},sick,b\n" for n in range(6))
        ),
        1,
    ),
    "patients named by a table": (
        lambda d: (d / "patients.csv").write_text("file,patient\ndeep/0.dcm,other\ndeep/1.dcm,other\n"),
        1,
    ),
    "the cut file mended": (lambda d: saved(slice_(8, patient="SECRET-0"), d / "cut.dcm"), 0),
    "the empty file filled": (lambda d: (d / "empty").write_text("text"), 1),
    "a duplicate": (lambda d: (d / "again.dcm").write_bytes((d / "deep" / "0.dcm").read_bytes()), 1),
    "the first of duplicates gone": (
        lambda d: ((d / "z.dcm").write_bytes((d / "deep" / "0.dcm").read_bytes()), (d / "deep" / "0.dcm").unlink()),
        1,
    ),
    "a mask's name for an image": (
        lambda d: Image.fromarray(np.eye(12, 16, dtype=np.uint8) * 200).save(d / "deep" / "picture.png"),
        1,
    ),
    "boxes": (
        lambda d: (d / "boxes.json").write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "1.2.9.3.1"}],
                    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]}],
                    "categories": [{"id": 1, "name": "x"}],
                }
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_the_index_is_the_same_as_a_new_one(change: str, archive: Path, tmp_path: Path) -> None:
    happens, read = CHANGES[change]
    indexed(archive, tmp_path / "site")
    indexed(archive, tmp_path / "site")
    before = content(tmp_path / "site")
    happens(archive)
    own = indexed(archive, tmp_path / "site")
    assert_like_new(archive, tmp_path / "site")
    assert content(tmp_path / "site") != before or change == "a mask's name for an image"
    assert own.read <= read + 1  # the cut file, whose fault may have been the disk's, is read each time


def test_without_a_change_nothing_is_read_and_the_index_stays_as_it_is(archive: Path, tmp_path: Path) -> None:
    (archive / "cut.dcm").unlink()
    first = indexed(archive, tmp_path / "site")
    before = (tmp_path / "site" / "index.sqlite").stat()
    second = indexed(archive, tmp_path / "site")
    after = (tmp_path / "site" / "index.sqlite").stat()
    assert (first.read, second.read) == (
        IMAGES + 4,
        0,
    )  # labels.csv, LICENSE, two masks; the empty one says all by its size
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("options", [{"image_is_patient": True}, {"require_annotation": False}, {"fusion": "staple"}])
def test_other_options_make_another_index(options: dict[str, Any], archive: Path, tmp_path: Path) -> None:
    (archive / "labels.csv").write_text("key,label\n1.2.9.3.1,sick\n")
    saved(slice_(8, patient=""), archive / "nobody.dcm")
    indexed(archive, tmp_path / "site")
    before = (tmp_path / "site" / "index.sqlite").stat().st_ino
    indexed(archive, tmp_path / "site", **options)
    assert (tmp_path / "site" / "index.sqlite").stat().st_ino != before
    assert_like_new(archive, tmp_path / "site", **options)


def test_another_folder_is_another_index(archive: Path, tmp_path: Path) -> None:
    indexed(archive, tmp_path / "site")
    archive.rename(tmp_path / "elsewhere")
    assert indexed(tmp_path / "elsewhere", tmp_path / "site").read == IMAGES + 5
    assert {row.source.root for row in index.read(tmp_path / "site")} == {tmp_path / "elsewhere"}


def test_what_was_changed_a_moment_ago_is_read_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "YOUNG", 3600 * 10**9)
    indexed(archive, tmp_path / "site")
    assert indexed(archive, tmp_path / "site").read == IMAGES + 5
    future = time.time_ns() + 10**15
    monkeypatch.setattr(memory, "YOUNG", 0)
    os.utime(archive / "deep" / "0.dcm", ns=(future, future))
    indexed(archive, tmp_path / "site")
    assert indexed(archive, tmp_path / "site").read == 2  # that one, and the cut one


def test_a_clock_that_went_back_makes_everything_doubtful(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(archive, tmp_path / "site")
    past = time.time_ns() - 10**12
    monkeypatch.setattr(time, "time_ns", lambda: past)
    assert indexed(archive, tmp_path / "site").read == IMAGES + 5


def test_labels_changed_while_they_are_read_are_read_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading a table and taking its digest it becomes another one."""
    whole = sources.open_annotations

    def opened(*arguments: Any, **options: Any) -> Any:
        found = whole(*arguments, **options)
        time.sleep(0.02)
        stealthily(archive / "labels.csv", b"1,sick", b"1,well")
        return found

    monkeypatch.setattr(sources, "open_annotations", opened)
    indexed(archive, tmp_path / "site")
    monkeypatch.setattr(sources, "open_annotations", whole)
    indexed(archive, tmp_path / "site")
    assert_like_new(archive, tmp_path / "site")
    assert {row.annotation.label for row in index.read(tmp_path / "site") if row.source.path == "deep/0.dcm"} == {
        "well"
    }


def test_an_image_that_could_not_be_decoded_gets_another_chance(archive: Path, tmp_path: Path) -> None:
    indexed(archive, tmp_path / "site")
    lost = index.read(tmp_path / "site")[0].image
    index.remove(tmp_path / "site", {lost: Drop.UNREADABLE})
    indexed(archive, tmp_path / "site")
    assert lost in {row.image for row in index.read(tmp_path / "site")}


@pytest.mark.parametrize("damage", ["gone", "cut", "foreign"])
def test_a_damaged_index_is_made_anew(damage: str, archive: Path, tmp_path: Path) -> None:
    indexed(archive, tmp_path / "site")
    path = tmp_path / "site" / "index.sqlite"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"no database")
    assert indexed(archive, tmp_path / "site").read == 1
    assert_like_new(archive, tmp_path / "site")


@pytest.mark.parametrize("damage", ["gone", "cut", "a bit", "another key", "another version"])
def test_a_memory_that_is_not_whole_counts_as_none(
    damage: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(archive, tmp_path / "site")
    path = tmp_path / "site" / NAME
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-20])
    elif damage == "a bit":
        path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    elif damage == "another version":
        monkeypatch.setattr(memory, "VERSION", memory.VERSION + 1)
    key = KEY[::-1] if damage == "another key" else KEY
    own = remembered(tmp_path / "site", patient_key=key)
    index.build("dicom", archive, tmp_path / "site", patient_key=key, memory=own)
    assert own.read == IMAGES + 5


def test_identifiers_are_not_in_the_memory_but_sealed(archive: Path, tmp_path: Path) -> None:
    indexed(archive, tmp_path / "site")
    data = (tmp_path / "site" / NAME).read_bytes()
    assert b"SECRET" not in data and b"1.2.9" not in data
    assert stat.S_IMODE((tmp_path / "site" / NAME).stat().st_mode) == 0o600
    indexed(archive, tmp_path / "site")
    assert (tmp_path / "site" / NAME).read_bytes()[:16] != data[:16]  # each is sealed under a key of its own


def test_a_run_that_is_broken_off_is_not_lost(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sources.scan

    def broken(*arguments: Any, **options: Any) -> Iterator[Any]:
        for position, item in enumerate(whole(*arguments, **options)):
            if position == IMAGES:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(sources, "scan", broken)
    with pytest.raises(KeyboardInterrupt):
        indexed(archive, tmp_path / "site")
    monkeypatch.setattr(sources, "scan", whole)
    assert indexed(archive, tmp_path / "site").read <= IMAGES + 5 - 4  # at least the four images that were yielded
    assert_like_new(archive, tmp_path / "site")


def test_a_full_disk_costs_the_memory_alone(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(archive, tmp_path / "site")

    whole = memory.write_privately

    def full(path: Path, data: bytes) -> None:
        with full_disk(100):
            whole(path, data)

    monkeypatch.setattr(memory, "write_privately", full)
    saved(slice_(8, patient="SECRET-9"), archive / "new.dcm")
    label(archive, "1.2.9.3.9,sick")
    indexed(archive, tmp_path / "site")
    assert len(index.read(tmp_path / "site")) == IMAGES + 1
    assert not [path for path in (tmp_path / "site").iterdir() if NAME in path.name]  # no half of it either


def test_a_missing_folder_is_an_error_and_the_index_stays(archive: Path, tmp_path: Path) -> None:
    indexed(archive, tmp_path / "site")
    with pytest.raises(DataError, match="no such"):
        indexed(tmp_path / "nowhere", tmp_path / "site")
    assert len(index.read(tmp_path / "site")) == IMAGES


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_stamp_tells_files_apart_by_their_edges(place: int, tmp_path: Path) -> None:
    """Where a file system keeps no honest times."""
    edges = []
    for change in (0, 1):
        data = bytearray(3 * memory.EDGE)
        data[place] ^= change
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as file:
            edges.append(memory.stamp_of(file).edges)
            assert file.tell() == 0
    assert edges[0] != edges[1]
