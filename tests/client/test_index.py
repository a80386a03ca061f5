"""The index on disk: what it keeps, what it never says, what a full disk leaves."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import full_disk

from client import index, index_file
from client.__main__ import main
from client.annotations import Finding, Remark
from client.drops import Drop, Dropped
from client.records import Row
from client.sources import Source
from common.annotation import Annotation, Box
from common.errors import DataError

KEY = bytes(range(32))


def row(number: int, **values: Any) -> Row:
    known = Annotation(label="sick", mask=None, boxes=(Box(x1=1, y1=2, x2=3.5, y2=4, name="x"),))
    kept: dict[str, Any] = {
        "image": f"{number:032x}",
        "patient": f"{number // 2:032x}",
        "study": None,
        "source": Source(root=Path("/images"), path=f"{number}.dcm", kind="dicom", item=0),
        "height": 4,
        "width": 6,
        "modality": "DX",
        "scanner": None,
        "burned_in": True,
        "official": None,
        "annotation": known,
        "columns": {"ward": "A"},
    }
    return Row(**kept | values)


def pictures(folder: Path, names: str = "abc") -> Path:
    for seed, name in enumerate(names):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray((rng.random((6, 8)) < 0.5).astype(np.uint8)).save(folder / "masks" / f"{name}.png")
    return folder


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (4, 6), np.uint8)
    first = row(1, annotation=Annotation(mask=mask, mask_names=("a", "b"), boxes=()), study="f" * 32, official="test")
    second = row(2, modality=None, burned_in=None, columns={}, annotation=Annotation())
    index.write(tmp_path, [second, first], [])
    found = index.read(tmp_path)
    assert [r.image for r in found] == [first.image, second.image]
    for before, after in zip((first, second), found, strict=True):
        fields = [name for name in Row.__dataclass_fields__ if name != "annotation"]
        assert all(getattr(before, name) == getattr(after, name) for name in fields)
    assert found[0].annotation.mask is not None and (found[0].annotation.mask == mask).all()
    assert found[0].annotation.mask_names == ("a", "b") and found[0].annotation.boxes == ()
    assert found[1].annotation.mask is None and found[1].annotation.boxes is None and found[1].annotation.label is None
    index.write(tmp_path, [row(3)], [])
    assert index.read(tmp_path)[0].annotation.boxes == (Box(x1=1, y1=2, x2=3.5, y2=4, name="x"),)


def test_used_and_dropped_add_up_to_the_files_found(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    (folder / "images" / "cut.png").write_bytes(b"\x89PNG")
    (folder / "README").write_text("text")
    counts = index.build("auto", folder, tmp_path / "site", patient_key=KEY)
    assert counts.used == counts.images == counts.patients == 3
    assert counts.dropped == {Drop.ANNOTATION_FILE: 3, Drop.NOT_AN_IMAGE: 1, Drop.UNREADABLE: 1}
    assert counts.files == 8 == sum(1 for path in folder.rglob("*") if path.is_file())
    assert [d.path for d in index.dropped(tmp_path / "site") if d.reason is Drop.UNREADABLE] == ["images/cut.png"]


def test_identifiers_are_keyed_hashes_and_stand_nowhere_in_clear(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", "ab")
    (folder / "patients.csv").write_text("file,patient\nimages/a.png,SECRET-17\nimages/b.png,SECRET-17\n")
    index.build("masks", folder, tmp_path / "one", patient_key=KEY)
    index.build("masks", folder, tmp_path / "two", patient_key=KEY)
    index.build("masks", folder, tmp_path / "other", patient_key=KEY[::-1])
    one, two, other = (index.read(tmp_path / name) for name in ("one", "two", "other"))
    assert {r.patient for r in one} == {r.patient for r in two} and len({r.patient for r in one}) == 1
    assert not {r.patient for r in one} & {r.patient for r in other}
    assert [r.image for r in one] == [r.image for r in two] and len({r.image for r in one + other}) == 4
    assert b"SECRET" not in (tmp_path / "one" / "index.sqlite").read_bytes()


def test_a_changed_file_has_another_id_and_the_others_keep_theirs(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    index.build("masks", folder, tmp_path / "site", patient_key=KEY)
    before = {r.source.path: r.image for r in index.read(tmp_path / "site")}
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "images" / "b.png")
    index.build("masks", folder, tmp_path / "site", patient_key=KEY)
    after = {r.source.path: r.image for r in index.read(tmp_path / "site")}
    assert {path for path in before if before[path] != after[path]} == {"images/b.png"}


def test_the_index_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", "abcdefgh")
    for jobs in (1, 4):
        index.build("masks", folder, tmp_path / str(jobs), patient_key=KEY, jobs=jobs)
    one, four = (index.read(tmp_path / name) for name in ("1", "4"))
    assert [(r.image, r.source) for r in one] == [(r.image, r.source) for r in four]


def test_removed_images_are_dropped_with_their_reason(tmp_path: Path) -> None:
    several = [row(n, source=Source(root=Path("/i"), path="many.dcm", kind="dicom", item=n)) for n in range(3)]
    alone = row(7, source=Source(root=Path("/i"), path="one.dcm", kind="dicom"))
    index.write(tmp_path, [*several, alone], [Dropped(path="x", reason=Drop.EMPTY_FILE)])
    index.remove(tmp_path, {several[1].image: Drop.UNREADABLE, alone.image: Drop.CHANGED, "unknown": Drop.CHANGED})
    counts = index.counts(tmp_path)
    assert (counts.used, counts.images, counts.files) == (1, 2, 3)
    assert counts.dropped == {Drop.CHANGED: 1, Drop.EMPTY_FILE: 1}  # many.dcm is still used
    assert counts.dropped_images == {Drop.CHANGED: 1, Drop.UNREADABLE: 1}


def test_remarks_are_kept_and_counted(tmp_path: Path) -> None:
    remark = Remark(finding=Finding.BOX_WITHOUT_AREA, place="a.xml")
    index.write(tmp_path, [row(1)], [remark, remark])
    assert index.remarks(tmp_path) == [remark, remark]
    assert index.counts(tmp_path).findings == {Finding.BOX_WITHOUT_AREA: 2}


def test_an_index_is_for_its_owner_alone(tmp_path: Path) -> None:
    index.write(tmp_path, [row(1)], [])
    assert stat.S_IMODE((tmp_path / "index.sqlite").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["index.sqlite"]


def test_rows_with_one_id_or_several_roots_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same image id"):
        index.write(tmp_path, [row(1), row(1)], [])
    elsewhere = row(2, source=Source(root=Path("/other"), path="2.dcm", kind="dicom"))
    with pytest.raises(DataError, match="one root"):
        index.write(tmp_path, [row(1), elsewhere], [])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_index(tmp_path: Path) -> None:
    index.write(tmp_path, [row(1)], [])
    many = (row(n, annotation=Annotation(label="x" * 1000)) for n in range(500))
    with full_disk(60_000), pytest.raises(DataError, match="can't be written") as caught:
        index.write(tmp_path, many, [])
    assert "\n" not in str(caught.value)
    assert [r.image for r in index.read(tmp_path)] == [row(1).image]
    assert [path.name for path in tmp_path.iterdir()] == ["index.sqlite"]


def test_an_error_while_reading_leaves_the_earlier_index(tmp_path: Path) -> None:
    def failing() -> Iterator[Row]:
        yield row(2)
        raise KeyboardInterrupt

    index.write(tmp_path, [row(1)], [])
    with pytest.raises(KeyboardInterrupt):
        index.write(tmp_path, failing(), [])
    assert len(index.read(tmp_path)) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"not a database at all", None])
def test_a_missing_or_foreign_index_is_an_error_of_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "index.sqlite").write_bytes(content)
    with pytest.raises(DataError, match=r"client index") as caught:
        index.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_index_is_an_error(tmp_path: Path) -> None:
    index.write(tmp_path, [row(n) for n in range(200)], [])
    data = (tmp_path / "index.sqlite").read_bytes()
    (tmp_path / "index.sqlite").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="can't be used"):
        index.read(tmp_path)


def test_an_index_of_another_version_is_an_error(tmp_path: Path) -> None:
    index.write(tmp_path, [row(1)], [])
    with sqlite3.connect(tmp_path / "index.sqlite") as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(DataError, match="version 9, not 4"):
        index.read(tmp_path)


def test_an_empty_index_can_be_written_and_read(tmp_path: Path) -> None:
    index.write(tmp_path, [], [])
    assert index.read(tmp_path) == [] and index.counts(tmp_path).files == 0


def test_a_short_key_or_a_site_among_its_images_is_an_error(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", "a")
    with pytest.raises(DataError, match="key"):
        index.build("masks", folder, tmp_path / "site", patient_key=b"short")
    with pytest.raises(DataError, match="inside"):
        index.build("masks", folder, folder / "site", patient_key=KEY)


def test_replacing_a_row_keeps_its_source(tmp_path: Path) -> None:
    index.write(tmp_path, [replace(row(1), image="own")], [])
    assert index.read(tmp_path)[0].image == "own"


def command(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    root = Path(index.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "100"}
    line = [sys.executable, "-m", "client", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=home, env=environment, check=False)


def test_the_command_makes_a_site_folder_and_keeps_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, site = pictures(tmp_path / "data"), tmp_path / "St. Mary's"
    result = command("index", folder, "--out", site, "--json", home=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    (line,) = result.stdout.splitlines()
    values = json.loads(line)
    assert (values["files"], values["used"], values["images"], values["patients"]) == (6, 3, 3, 3)
    assert values["used"] + sum(values["dropped"].values()) == values["files"]
    key = (site / "keys" / "patient.key").read_bytes()
    assert len(key) == 32 and stat.S_IMODE((site / "keys" / "patient.key").stat().st_mode) == 0o600
    assert 'name = "st-mary-s"' in (site / "site.toml").read_text()
    first = [r.patient for r in index.read(site)]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["client", "index", str(folder), "--out", str(site)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "3 images of 3 patients" in output and "annotation file" in output
    assert (site / "keys" / "patient.key").read_bytes() == key and [r.patient for r in index.read(site)] == first


@pytest.mark.parametrize("kind", ["missing", "empty", "useless", "npz", "inside"])
def test_the_commands_errors_are_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, site = tmp_path / "data", tmp_path / "site"
    if kind != "missing":
        folder.mkdir()
    if kind == "useless":
        (folder / "a.txt").write_text("text")
    if kind == "npz":
        folder = folder / "a.npz"
        folder.write_bytes(b"nothing")
    if kind == "inside":
        site = pictures(folder) / "site"
    monkeypatch.setattr(sys, "argv", ["client", "index", str(folder), "--out", str(site), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert ended.value.code == 1 and output.out == ""
    assert len(output.err.splitlines()) == 1 and output.err.startswith("error: ")


def test_a_second_indexer_waits_for_the_first_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at once in a new folder would each make a key, and one index would not fit the key that stayed."""
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "labels.csv").write_text("key,label\na.png,x\n")
    line = ("index", str(tmp_path / "images"), "--out", str(tmp_path / "site"), "--image-is-patient", "--quiet")
    monkeypatch.setattr("sys.argv", ["client", *line])
    with index_file.alone(tmp_path / "site"), pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1 and "another `client index`" in capsys.readouterr().err
    assert not (tmp_path / "site" / "keys").exists()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0 and index.counts(tmp_path / "site").used == 1
