"""Several cohorts of one hospital: a patient who is in one never enters another, whatever is moved, killed or lost."""

import hashlib
import hmac
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refused import Ended, ended
from small import write_npz

from client import apart, check, index, index_file, known, ledger_copy, memory
from client.__main__ import main
from client.chain_lines import ChainError
from client.drops import Drop
from client.finding import Level
from client.ledger import FOLDER
from client.site import open_site, site_toml
from common.errors import FederationError

Cap = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test can't wait until files are beyond doubt."""
    monkeypatch.setattr(memory, "YOUNG", 0)


def archive(folder: Path, patients: str, *, named: bool = True) -> Path:
    """A folder with one picture for each letter, of the patient of that name."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).iterdir():
            if old.stem not in patients:
                old.unlink()
    for letter in patients:
        if not (folder / "images" / f"{letter}.png").exists():
            pixels = np.random.default_rng(ord(letter)).integers(0, 255, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{letter}.png")
            Image.fromarray(np.ones((6, 8), np.uint8)).save(folder / "masks" / f"{letter}.png")
    if named:
        lines = "".join(f"images/{letter}.png,Patient {letter}\n" for letter in patients)
        (folder / "patients.csv").write_text("file,patient\n" + lines)
    time.sleep(0.02)  # more than a tick of the file system's clock
    return folder


def run(capsys: Cap, images: Path, site: Path, *options: object) -> Ended:
    return ended(main, capsys, "index", images, "--out", site, *options)


def indexed(capsys: Cap, images: Path, site: Path, *options: object) -> str:
    """Who is in the index then, as letters."""
    found = run(capsys, images, site, *options)
    assert found.code == 0, found
    return letters(site)


def letters(site: Path) -> str:
    return "".join(sorted(Path(row.source.path).stem for row in index.read(site)))


def by_hand(site: Path, patient: str) -> str:
    """The keyed hash of a patient, as the design says it."""
    parts = [b"patient", patient.encode()]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new((site / "keys" / "patient.key").read_bytes(), message, hashlib.sha256).hexdigest()[:32]


def on_list(site: Path, patients: str = "abcdefghijkl") -> str:
    """Who is listed, as letters, read by hand."""
    lines = (site / "patients" / "known.jsonl").read_text().splitlines()
    found = {one for line in lines for one in json.loads(line)["body"].get("patients", ())}
    hashes = {by_hand(site, f"Patient {letter}"): letter for letter in patients}
    assert found <= hashes.keys()
    return "".join(sorted(hashes[one] for one in found))


def started(*words: object) -> subprocess.Popen[str]:
    """A process of its own, of the rooms that this test is of."""
    environment = {**os.environ, "PYTHONPATH": str(Path(index.__file__).parents[1])}
    line = [sys.executable, *map(str, words)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def create(capsys: Cap, site: Path) -> Ended:
    return ended(main, capsys, "ledger", "create", site, "--epsilon", 10, "--nominal-patients", 20)


@pytest.fixture
def two(tmp_path: Path, capsys: Cap) -> tuple[Path, Path, Path]:
    """An archive of patients a to d, of whom a and b are in the first site and c and d in the second."""
    images, first, second = archive(tmp_path / "data", "ab"), tmp_path / "first", tmp_path / "second"
    assert indexed(capsys, images, first) == "ab"
    archive(images, "abcd")
    assert indexed(capsys, images, second, "--other-cohort", first) == "cd"
    return images, first, second


# The list of one folder


def test_every_patient_who_was_ever_indexed_is_listed_for_the_owner_alone(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    assert on_list(site) == "ab"
    assert indexed(capsys, archive(images, "bc"), site) == "bc" and on_list(site) == "abc"
    assert stat.S_IMODE((site / "patients").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (site / "patients").iterdir()} == {0o600}
    assert "Patient" not in (site / "patients" / "known.jsonl").read_text()


def test_nobody_is_ever_taken_out(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    before = (site / "patients" / "known.jsonl").read_bytes()
    indexed(capsys, archive(images, "c"), site)
    after = (site / "patients" / "known.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    indexed(capsys, images, site, "--anew")  # nobody new: not a byte
    assert (site / "patients" / "known.jsonl").read_bytes() == after


def test_who_is_in_the_index_is_in_the_list_before_it(tmp_path: Path, capsys: Cap) -> None:
    """kill -9 when the new index is whole and not yet in its place."""
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    archive(images, "abc")
    die = (
        "index.os.replace = lambda *names: os.kill(os.getpid(), 9) if names[1].name == 'index.sqlite' else real(*names)"
    )
    code = (
        f"import os, sys\nfrom client import index\nfrom client.__main__ import main\nreal = os.replace\n{die}\nmain()"
    )
    with started("-c", code, "index", images, "--out", site) as process:
        assert process.wait() == -signal.SIGKILL
    assert letters(site) == "ab" and on_list(site) == "abc"
    assert indexed(capsys, images, site) == "abc" and on_list(site) == "abc"


def test_a_torn_last_line_is_mended_and_what_it_tore_is_listed_again(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    with (site / "patients" / "known.jsonl").open("ab") as file:
        file.write(b'{"kind":"patients","sequence":1,"previous":"')
    assert known.read(site, patient_key=open_site(site).patient_key).patients
    assert indexed(capsys, archive(images, "abc"), site) == "abc"
    who = known.read(site, patient_key=open_site(site).patient_key).patients
    assert who == {by_hand(site, f"Patient {letter}") for letter in "abc"}


def edited(site: Path) -> None:
    path = site / "patients" / "known.jsonl"
    path.write_bytes(path.read_bytes().replace(by_hand(site, "Patient a").encode(), b"0" * 32))


def cut(site: Path) -> None:
    path = site / "patients" / "known.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def gone(site: Path) -> None:
    shutil.rmtree(site / "patients")


def headless(site: Path) -> None:
    (site / "patients" / "known.head").unlink()


def readable(site: Path) -> None:
    (site / "patients" / "known.jsonl").chmod(0o644)


def foreign(site: Path) -> None:
    (site / "keys" / "patient.key").write_bytes(bytes(32))


DAMAGES = (edited, cut, gone, headless, readable, foreign)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_list_that_was_edited_or_lost_is_noticed(tmp_path: Path, capsys: Cap, damage: Callable[[Path], None]) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    damage(site)
    before = (site / "index.sqlite").read_bytes()
    error = run(capsys, archive(images, "abc"), site).error
    assert "patients" in error
    assert (site / "index.sqlite").read_bytes() == before
    found = [one for one in check.run(site, now=time.time()) if one.about == "cohorts"]
    assert [one.level for one in found] == [Level.FAIL]


def test_a_list_older_than_the_index_is_refused(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    shutil.copytree(site / "patients", tmp_path / "old")
    indexed(capsys, archive(images, "bc"), site)
    gone(site)
    shutil.copytree(tmp_path / "old", site / "patients")
    assert "older than this site's index" in run(capsys, images, site).error


def unmarked(site: Path) -> None:
    """As a version without lists has left it."""
    shutil.rmtree(site / "patients")
    with closing(sqlite3.connect(site / "index.sqlite", isolation_level=None)) as database:
        database.execute("DELETE FROM meta WHERE key IN ('listed', 'compared')")
        database.execute("PRAGMA user_version = 2")


def test_a_folder_from_before_there_were_lists_begins_one_with_its_index(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    create(capsys, site)
    unmarked(site)
    found = run(capsys, archive(images, "c"), site)
    assert found.code == 0 and any("2 of the earlier index were taken up" in line for line in found.out)
    assert on_list(site) == "abc"


def test_beside_a_ledger_no_empty_list_is_begun(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    assert create(capsys, site).code == 0
    unmarked(site)
    (site / "index.sqlite").unlink()
    assert "missing: restore it" in run(capsys, images, site).error
    assert not (site / "patients").exists()


def test_a_ledger_begins_with_a_list(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    assert ended(main, capsys, "init", site, "--name", "a", "--patients", 20).code == 0
    assert create(capsys, site).code == 0 and (site / "patients" / "known.jsonl").exists()
    assert indexed(capsys, images, site) == "ab"


def test_a_new_key_beside_an_old_list_is_refused(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    (site / "keys" / "patient.key").unlink()
    assert "restore the key" in run(capsys, images, site).error
    assert not (site / "keys" / "patient.key").exists()


def test_a_site_alone_has_the_index_that_it_would_have_without_a_list(tmp_path: Path, capsys: Cap) -> None:
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    index.build("masks", images, tmp_path / "plain", patient_key=open_site(site).patient_key)
    assert [(r.image, r.patient) for r in index.read(site)] == [
        (r.image, r.patient) for r in index.read(tmp_path / "plain")
    ]
    assert "other_cohorts" not in (site / "site.toml").read_text()


# Several


def test_a_patient_of_one_cohort_never_enters_the_other_whichever_named_it(
    two: tuple[Path, Path, Path], capsys: Cap
) -> None:
    images, first, second = two
    assert indexed(capsys, images, first) == "ab"  # nothing given: the second is named in the first's site.toml
    assert indexed(capsys, images, second) == "cd"
    archive(images, "abcde")
    assert indexed(capsys, images, first) == "abe" and indexed(capsys, images, second) == "cd"
    archive(images, "abcdef")
    assert indexed(capsys, images, second) == "cdf" and indexed(capsys, images, first) == "abe"
    assert (on_list(first), on_list(second)) == ("abe", "cdf")


def test_who_left_the_archive_never_enters_the_other_either(two: tuple[Path, Path, Path], capsys: Cap) -> None:
    images, first, second = two
    indexed(capsys, archive(images, "bcd"), first)
    assert letters(first) == "b"
    assert indexed(capsys, archive(images, "abcd"), second) == "cd"


def test_both_folders_name_each_other(two: tuple[Path, Path, Path]) -> None:
    _, first, second = two
    assert open_site(first).other_cohorts == (second,) and open_site(second).other_cohorts == (first,)
    written = (first / "site.toml").read_text().splitlines()
    (line,) = (line for line in written if line.startswith("other_cohorts"))
    assert "\n".join(one for one in written if one != line) + "\n" == site_toml("first")


def test_a_third_cohort_is_kept_apart_from_those_that_its_neighbour_names(
    two: tuple[Path, Path, Path], tmp_path: Path, capsys: Cap
) -> None:
    images, first, second = two
    archive(images, "abcdef")
    third = tmp_path / "third"
    assert indexed(capsys, images, third, "--other-cohort", second) == "ef"
    assert indexed(capsys, images, first) == "ab" and indexed(capsys, images, second) == "cd"
    assert set(open_site(first).other_cohorts) == {second, third}


def test_files_that_are_remembered_are_compared_too(two: tuple[Path, Path, Path], capsys: Cap) -> None:
    images, first, second = two
    assert indexed(capsys, archive(images, "abcdef"), first) == "abef"
    indexed(capsys, images, second)
    archive(images, "abcdefg")
    assert indexed(capsys, images, second) == "cdg"
    found = run(capsys, images, first, "--json")
    assert json.loads(found.out[0])["read"] == 3  # g, its mask, patients.csv
    again = run(capsys, images, first, "--json")
    assert json.loads(again.out[0])["read"] == 0 and letters(first) == "abef"


def test_an_unchanged_archive_is_compared_anew_when_another_cohort_is_named(tmp_path: Path, capsys: Cap) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    images, others = archive(tmp_path / "data", "ab"), archive(tmp_path / "others", "bc")
    assert (indexed(capsys, images, first), indexed(capsys, others, second)) == ("ab", "bc")
    assert "1 of its patients" in run(capsys, images, first, "--other-cohort", second).error
    assert indexed(capsys, images, first, "--other-cohort", second, "--give-up-shared") == "a"


def test_a_name_that_was_taken_out_of_one_folder_is_written_again(two: tuple[Path, Path, Path], capsys: Cap) -> None:
    images, first, second = two
    (first / "site.toml").write_text(site_toml("first"))
    for _ in range(2):  # with nothing else to do as well
        assert indexed(capsys, images, second) == "cd"
        assert open_site(first).other_cohorts == (second,)
        (first / "site.toml").write_text(site_toml("first"))


def test_images_of_other_cohorts_are_counted_and_said(two: tuple[Path, Path, Path], capsys: Cap) -> None:
    images, first, second = two
    (images / "labels.csv").write_text("key,label\nimages/a.png,x\nimages/c.png,y\n")
    found = run(capsys, images, second)
    assert any("other cohort: 2 files are of patients whom the ledger of another cohort counts" in x for x in found.out)
    assert any(str(first) in line for line in found.out)
    counts = index.counts(second)
    assert counts.dropped[Drop.OTHER_COHORT] == 2 and not counts.findings
    assert counts.used + sum(counts.dropped.values()) == counts.files == sum(p.is_file() for p in images.rglob("*"))
    assert {d.path for d in index.dropped(second) if d.reason is Drop.OTHER_COHORT} == {"images/a.png", "images/b.png"}


def test_an_image_without_identifier_is_known_by_its_content(tmp_path: Path, capsys: Cap) -> None:
    images = archive(tmp_path / "data", "ab", named=False)
    indexed(capsys, images, tmp_path / "first")
    archive(images, "abc", named=False)
    (images / "images" / "a.png").rename(images / "images" / "z.png")
    (images / "masks" / "a.png").rename(images / "masks" / "z.png")
    assert indexed(capsys, images, tmp_path / "second", "--other-cohort", tmp_path / "first") == "c"


def test_arrays_are_compared_too(tmp_path: Path, capsys: Cap) -> None:
    file, first, second = write_npz(tmp_path / "a.npz", images=4, seed=0), tmp_path / "first", tmp_path / "second"
    larger = write_npz(tmp_path / "b.npz", images=6, seed=0)
    assert run(capsys, file, first).code == 0
    assert run(capsys, larger, second, "--other-cohort", first).code == 0
    assert index.counts(second).images == 2 and index.counts(second).dropped_images == {Drop.OTHER_COHORT: 4}


def moved(site: Path) -> None:
    site.rename(site.with_name("away"))


def keyless(site: Path) -> None:
    (site / "keys" / "patient.key").unlink()


def not_toml(site: Path) -> None:
    (site / "site.toml").write_text("[")


@pytest.mark.parametrize("harm", [moved, keyless, not_toml, *DAMAGES])
def test_where_another_cohort_can_not_be_read_nothing_is_indexed(
    two: tuple[Path, Path, Path], capsys: Cap, harm: Callable[[Path], None]
) -> None:
    images, first, second = two
    harm(first)
    before = (second / "index.sqlite").read_bytes(), (second / "patients" / "known.jsonl").read_bytes()
    error = run(capsys, archive(images, "abcde"), second).error
    assert str(first) in error and "can't be read" in error
    assert ((second / "index.sqlite").read_bytes(), (second / "patients" / "known.jsonl").read_bytes()) == before
    found = [one for one in check.run(second, now=time.time()) if one.about == "cohorts"]
    assert [one.level for one in found] == [Level.FAIL] and str(first) in found[0].text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "can't be read"),
        ("no site", "not a site folder"),
        ("itself", "can't be another cohort too"),
        ("a copy", "has the patient key of another cohort"),
    ],
)
def test_what_is_no_other_cohort_is_refused(tmp_path: Path, capsys: Cap, kind: str, says: str) -> None:
    images, site, other = archive(tmp_path / "data", "ab"), tmp_path / "site", tmp_path / "other"
    indexed(capsys, images, site)
    if kind == "no site":
        other.mkdir()
    if kind == "a copy":
        shutil.copytree(site, other)
    error = run(capsys, images, site, "--other-cohort", site if kind == "itself" else other).error
    assert str(site) in error and says in error
    assert "other_cohorts" not in (site / "site.toml").read_text()
    assert kind != "nothing" or not other.exists()


def test_a_name_that_can_not_be_written_indexes_nobody(tmp_path: Path, capsys: Cap) -> None:
    images, first, second = archive(tmp_path / "data", "ab"), tmp_path / "first", tmp_path / "second"
    indexed(capsys, images, first)
    text = (first / "site.toml").read_text()
    (first / "site.toml").write_text('paths = { cache = "cache" }\n' + text.replace('[paths]\ncache = "cache"\n', ""))
    error = run(capsys, archive(images, "abc"), second, "--other-cohort", first).error
    assert "other_cohorts in [paths] must name" in error and str(second) in error
    assert not (second / "index.sqlite").exists() and on_list(second) == ""


# Who is in two already


@pytest.fixture
def overlapping(tmp_path: Path, capsys: Cap) -> tuple[Path, Path, Path]:
    """Two sites made without a word of each other: a and b in the first, b and c in the second."""
    images, first, second = archive(tmp_path / "data", "ab"), tmp_path / "first", tmp_path / "second"
    assert indexed(capsys, images, first) == "ab"
    assert indexed(capsys, archive(images, "bc"), second) == "bc"
    return archive(images, "abc"), first, second


def test_patients_in_both_are_an_answer_to_give_and_nothing_is_changed_before(
    overlapping: tuple[Path, Path, Path], capsys: Cap
) -> None:
    images, first, second = overlapping
    before = {path: path.read_bytes() for path in second.rglob("*") if path.is_file() and path.name != "headers.sealed"}
    error = run(capsys, images, second, "--other-cohort", first).error
    assert "1 of its patients are in another cohort too" in error and "--give-up-shared" in error
    assert {path: path.read_bytes() for path in before} == before
    assert "other_cohorts" not in (first / "site.toml").read_text()


def test_patients_in_both_leave_both(overlapping: tuple[Path, Path, Path], capsys: Cap) -> None:
    images, first, second = overlapping
    assert indexed(capsys, images, second, "--other-cohort", first, "--give-up-shared") == "c"
    assert "--give-up-shared" in run(capsys, images, first).error
    assert indexed(capsys, images, first, "--give-up-shared") == "a"
    assert indexed(capsys, images, first) == "a" and indexed(capsys, images, second) == "c"


# Two at once


@pytest.mark.slow
def test_of_two_that_begin_at_once_no_patient_is_taken_twice(
    two: tuple[Path, Path, Path], tmp_path: Path, capsys: Cap
) -> None:
    images, first, second = two
    archive(images, "abcdefgh")
    both = [started("-m", "client", "index", images, "--out", site) for site in (first, second)]
    said = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes and all(
        code == 0 or "another `client index` is at work" in text for code, text in zip(codes, said, strict=True)
    )
    assert not set(on_list(first)) & set(on_list(second))
    assert set(letters(first) + letters(second)) >= set("abcd")


def test_while_one_is_indexed_the_others_wait(two: tuple[Path, Path, Path], tmp_path: Path, capsys: Cap) -> None:
    images, first, second = two
    for held, waits in ((first, second), (second, first)):
        with apart.locked(held, []):
            assert "another `client index`" in run(capsys, images, waits).error
    with apart.locked(tmp_path / "third", [first]):
        assert "another `client index`" in run(capsys, images, second).error


def test_the_order_of_locks_is_one_for_all(two: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, first, second = two
    taken: list[list[Path]] = []

    @contextmanager
    def alone(folder: Path) -> Iterator[None]:
        taken[-1].append(folder)
        yield

    monkeypatch.setattr(index_file, "alone", alone)
    for site in (first, second):
        taken.append([])
        with apart.locked(site, []):
            pass
    assert taken[0] == taken[1] and set(taken[0]) == {first, second}


def test_a_kill_between_the_two_names_leaves_nobody_in_two(tmp_path: Path, capsys: Cap) -> None:
    images, first, second = archive(tmp_path / "data", "ab"), tmp_path / "first", tmp_path / "second"
    indexed(capsys, images, first)
    archive(images, "abcd")
    code = (
        "import os\nfrom client import apart\nfrom client.__main__ import main\nreal = apart.name_cohorts\n"
        "def once(*a):\n    real(*a)\n    os.kill(os.getpid(), 9)\napart.name_cohorts = once\nmain()"
    )
    with started("-c", code, "index", images, "--out", second, "--other-cohort", first) as process:
        assert process.wait() == -signal.SIGKILL
    assert on_list(second) == "" and open_site(second).other_cohorts == (first,)
    assert indexed(capsys, images, second) == "cd"
    assert open_site(first).other_cohorts == (second,)


# The ledger


def test_a_ledger_is_refused_until_the_index_was_compared_with_each_other_cohort(tmp_path: Path, capsys: Cap) -> None:
    images, first, second = archive(tmp_path / "data", "ab"), tmp_path / "first", tmp_path / "second"
    indexed(capsys, images, first)
    indexed(capsys, images, second)
    text = (second / "site.toml").read_text()
    (second / "site.toml").write_text(text.replace("[paths]", '[paths]\nother_cohorts = ["../first"]'))
    error = create(capsys, second).error
    assert "not compared with" in error and str(first) in error
    assert not (second / FOLDER).exists()
    found = [one for one in check.run(second, now=time.time()) if one.about == "cohorts"]
    assert [one.level for one in found] == [Level.FAIL]
    archive(images, "abc")
    assert indexed(capsys, images, second, "--give-up-shared") == "c"
    assert create(capsys, second).code == 0


def test_the_preflight_says_which_other_cohorts_there_are(two: tuple[Path, Path, Path]) -> None:
    _, first, second = two
    (line,) = (one for one in check.run(second, now=time.time()) if one.about == "cohorts")
    assert line.level is Level.PASS and str(first) in line.text
    (line,) = (one for one in check.run(first, now=time.time()) if one.about == "cohorts")
    assert line.level is Level.FAIL and "not compared" in line.text  # until its own next index


# Copies


def restored(site: Path, file: Path, to: Path, anchor: str | None = None) -> None:
    (to / "keys").mkdir(parents=True, exist_ok=True)
    shutil.copy(site / "keys" / "patient.key", to / "keys")
    shutil.copy(site / "site.toml", to)
    ledger_copy.restore(to / FOLDER, file, patient_key=open_site(to).patient_key, anchor=None)


@pytest.fixture
def left(tmp_path: Path, capsys: Cap) -> Path:
    """A site with a ledger, of whose patients one has left."""
    images, site = archive(tmp_path / "data", "ab"), tmp_path / "site"
    indexed(capsys, images, site)
    assert create(capsys, site).code == 0
    indexed(capsys, archive(images, "b"), site)
    return site


def test_a_copy_of_the_ledger_holds_the_list(left: Path, tmp_path: Path, capsys: Cap) -> None:
    assert ended(main, capsys, "ledger", "move", left, tmp_path / "copy").code == 0
    restored(left, tmp_path / "copy", tmp_path / "other")
    assert on_list(tmp_path / "other") == "ab"
    assert indexed(capsys, tmp_path / "data", tmp_path / "other") == "b"


def test_a_restored_list_never_replaces_a_newer_one_and_is_never_older(left: Path, tmp_path: Path, capsys: Cap) -> None:
    shutil.copytree(left / "patients", tmp_path / "old")
    indexed(capsys, archive(tmp_path / "data", "bc"), left)
    ledger_copy.move(left / FOLDER, tmp_path / "copy", patient_key=open_site(left).patient_key)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "old", other / "patients")
    with pytest.raises(ChainError, match="newer one"):
        restored(left, tmp_path / "copy", other)
    assert not (other / FOLDER).exists()
    shutil.rmtree(other)
    indexed(capsys, archive(tmp_path / "data", "bcd"), left)
    shutil.copytree(left / "patients", other / "patients")
    restored(left, tmp_path / "copy", other)
    assert on_list(other) == "abcd"


def test_a_copy_with_a_list_that_was_cut_or_edited_anywhere_is_refused(left: Path, tmp_path: Path) -> None:
    key = open_site(left).patient_key
    ledger_copy.move(left / FOLDER, tmp_path / "copy", patient_key=key)
    whole = (tmp_path / "copy").read_bytes()
    for place in range(0, len(whole), 41):
        for bad in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            (tmp_path / "bad").write_bytes(bad)
            with pytest.raises(FederationError):
                ledger_copy.restore(tmp_path / "other" / FOLDER, tmp_path / "bad", patient_key=key, anchor=None)
    assert not (tmp_path / "other").exists()


def test_a_copy_without_a_list_says_so(left: Path, tmp_path: Path, capsys: Cap) -> None:
    unmarked(left)
    found = ended(main, capsys, "ledger", "backup", left, tmp_path / "copy")
    assert found.code == 0 and "has no list of known patients" in " ".join(found.out)
