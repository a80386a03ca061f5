"""The site folder: opened whole or refused with one line."""

from pathlib import Path

import pytest
from small import KEY, tiny_study

from client import site as site_module
from client.site import known_study, note_error, open_site, remember, site_toml, split_position
from common.errors import DataError, StudyError


def folder_of(tmp_path: Path, text: str = site_toml("north"), key: bytes = KEY) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "patient.key").write_bytes(key)
    (tmp_path / "site.toml").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_site_folder_opens(tmp_path: Path) -> None:
    site = open_site(folder_of(tmp_path))
    assert (site.name, site.cache, site.patient_key) == ("north", tmp_path / "cache", KEY)


def test_a_folder_that_is_no_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="client index"):
        open_site(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "not valid TOML"),
        ('name = "../x"', "a-z, 0-9 and -"),
        ("", "name = None"),
        ('name = "a"\nnmae = 1', "unknown key nmae"),
        ('name = "a"\n[paths]\ncash = "x"', r"unknown key paths\.cash"),
        ('name = "a"\n[paths]\ncache = 3', r"paths\.cache = 3"),
        ('name = "a"\npaths = 3', "paths = 3"),
    ],
)
def test_a_wrong_site_toml_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_site(folder_of(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="31 bytes instead of 32"):
        open_site(folder_of(tmp_path, key=KEY[:31]))


def test_a_name_that_could_be_a_path_is_refused() -> None:
    for name in ("", "a/b", "A", "a" * 33, "ü"):
        with pytest.raises(DataError):
            site_toml(name)


def test_the_split_depends_on_key_and_patient_and_is_uniform(tmp_path: Path) -> None:
    site = open_site(folder_of(tmp_path))
    positions = [split_position(site, f"patient-{k}") for k in range(4000)]
    assert split_position(site, "patient-0") == positions[0]
    assert min(positions) >= 0 and max(positions) < 1
    # 4,000 draws: each tenth holds 400, standard deviation 19; a keyed hash that favoured any by a fifth would fail.
    assert all(abs(sum(k <= 10 * p < k + 1 for p in positions) - 400) < 80 for k in range(10))


def test_a_study_is_known_only_under_its_own_hash(tmp_path: Path) -> None:
    site, study = open_site(folder_of(tmp_path)), tiny_study()
    assert known_study(site, study.sha256) is None
    remember(site, study)
    assert known_study(site, study.sha256) == study
    (tmp_path / "studies" / f"{study.sha256}.json").write_text(tiny_study(study={"rounds": 9}).canonical)
    assert known_study(site, study.sha256) is None
    for path in ("../site", "", "A" * 64, "0" * 63):
        assert known_study(site, path) is None


def test_an_error_is_written_at_the_site(tmp_path: Path) -> None:
    site = open_site(folder_of(tmp_path))
    note_error(site, "round 2", ValueError("what\nit was"))
    (line,) = (tmp_path / "errors.log").read_text().splitlines()
    assert line.endswith("round 2: ValueError: what it was")


def test_what_a_server_wrote_can_neither_steer_a_terminal_nor_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, log = open_site(folder_of(tmp_path)), tmp_path / "errors.log"
    for error in (StudyError, ValueError):
        note_error(site, "round 1", error("\x1b]0;x\x07\u202e\x9b2J" + "k" * 3_000_000))
    lines = log.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and all(len(line) < 640 and line.isprintable() for line in lines)
    assert log.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(site_module, "LARGEST", log.stat().st_size)
    note_error(site, "round 2", StudyError("later"))
    assert (tmp_path / "errors.old").read_text(encoding="utf-8").splitlines() == lines
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert line.endswith("round 2: StudyError: later")


def test_the_rest_of_a_path_that_was_cut_is_left_out_too(tmp_path: Path) -> None:
    site = open_site(folder_of(tmp_path))
    for length in range(2380, 2410):
        note_error(site, "round 1", ValueError(f"{'/a' * (length // 2)} Doe_Jane.dcm"))
    assert "Doe" not in (tmp_path / "errors.log").read_text(encoding="utf-8")


def test_a_lost_patient_key_is_said_to_be_lost(tmp_path: Path) -> None:
    """And not that there is no site: who made another index would part the patients from their ledger."""
    made = folder_of(tmp_path)
    (made / "keys" / "patient.key").unlink()
    with pytest.raises(DataError, match=r"patient\.key: can't be read .*restore it from your backup"):
        open_site(made)
