"""The bundle for a bug report: useful, and without a name, a path, a key or an identifier."""

import json
import stat
from pathlib import Path

import pytest
from control_cases import ask, order, settle
from small import KEY, private_study, protect, tiny_study, write_site

from client import approval, doctor
from client.redaction import redacted, without_paths
from client.site import note_error, open_site
from common.crypto.identity import Identity
from common.errors import DataError

OFFICER = Identity(bytes(range(32))).public.hex()
PLANTED = (
    "Jane", "DOE", "Müller", "Oncology", "MRN4711", "4711", "19710203", "1971", "1.2.840.113619", "north-general",
    "pacs", "scan7", "mustermann", "a.huber", OFFICER, OFFICER[:16], KEY.hex(),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site named after its hospital, whose errors name patients and files in every way that errors do."""
    made = protect(write_site(tmp_path / "north-general", images=24, seed=0))
    settle(made, privacy="optional", approve="signed", approvers=[OFFICER])
    site = open_site(made)
    for error in (
        DataError("/pacs/Oncology/DOE^Jane/scan7.dcm: can't be read"),
        ValueError("patient 'DOE, Jane' (MRN4711, born 19710203) has no annotation"),
        OSError(2, "No such file", "/pacs/Oncology/scan7.dcm"),
        KeyError("1.2.840.113619.2.55"),
        RuntimeError("Müller's images: out of memory"),
        DataError("mustermann wrote a.huber@example.org about patient 12"),
    ):
        note_error(site, "round 2", error)
    ask(made, order("propose", tiny_study()), tiny_study())
    approval.deny(site, tiny_study(), by="a.huber", reason="asked by Dr. Mustermann of Oncology")
    return made


def test_no_planted_name_is_in_the_bundle(folder: Path, tmp_path: Path) -> None:
    log = (folder / "errors.log").read_text(encoding="utf-8")
    assert "DOE^Jane" in log and "mustermann" in log  # what is to be kept out was there
    doctor.write(folder, tmp_path / "bundle.json")
    text = (tmp_path / "bundle.json").read_text(encoding="ascii")
    assert [name for name in PLANTED if name.lower() in text.lower()] == []
    assert str(tmp_path) not in text and stat.S_IMODE((tmp_path / "bundle.json").stat().st_mode) == 0o600


def test_the_bundle_says_what_a_developer_needs(folder: Path) -> None:
    found = json.loads(json.dumps(doctor.bundle(folder)))
    assert found["versions"]["fedward"] and found["versions"]["torch"]
    assert found["settings"]["policy"]["approve"] == "signed" and found["settings"]["approvers"] == 1
    assert found["index"] == {"files": 1, "used": 1, "images": 20, "patients": 20, "dropped": {}, "findings": {}}
    assert found["ledger"]["left"] == {"train": 1.0, "validation": 1.0, "test": 1.0}
    assert found["audit"]["reasons"] == {"refused:not_approved": 1} and found["studies"] == 1
    assert len(found["errors"]) == 7
    assert any("RuntimeError" in line and "images: out of memory" in line for line in found["errors"])
    assert any("about patient 12" in line for line in found["errors"])
    assert any("waits for one of" in line for line in found["errors"])


def test_a_site_that_is_broken_gives_a_bundle_all_the_same(folder: Path) -> None:
    (folder / "index.sqlite").write_bytes(b"not a database")
    (folder / "site.toml").write_text('name = "north-general"\nJane = 1\n', encoding="utf-8")
    path = folder / "audit" / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    found = doctor.bundle(folder)
    assert {found[part]["error"] for part in ("settings", "index", "ledger", "audit")} == {"DataError", "ChainError"}
    assert "Jane" not in json.dumps(found) and "north-general" not in json.dumps(found)
    assert doctor.bundle(folder / "missing")["errors"] == []


def test_a_file_that_is_there_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        doctor.write(folder, tmp_path / "bundle.json")
    assert (tmp_path / "bundle.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("DataError: /pacs/x/DOE.dcm: can't be read", "DataError: (path) can't be read"),
        ("patient 12 of 150, round 3", "patient 12 of 150, round 3"),
        ("patient Jane, 19710203, of 1971", "patient …, …, of …"),
        ("patient 1971-02-03 and 3.2.71 and 1.2.840.2.55", "patient … and … and …"),
        ("MRN12 A1B2 12MRN", "…"),
        ("Gopi Wutschitz Steinke", "…"),  # stand in docstrings
        ("", ""),
    ],
)
def test_redacted_keeps_fedwards_own_words_and_short_numbers(text: str, left: str) -> None:
    assert redacted(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[Errno 2] No such file or directory: '/a/b/DOE JANE.dcm'", "[Errno 2] No such file or directory: (path)"),
        ("cannot open C:\\scans\\DOE.dcm today", "cannot open (path) today"),
        ("DOE_JANE.png is broken", "(path) is broken"),
        ("patient 17 of Dr. Example", "patient 17 of Dr. Example"),
        ("3.5 of 7.25 images", "3.5 of 7.25 images"),
    ],
)
def test_paths_are_left_out_of_errors_that_nobody_foresaw(text: str, left: str) -> None:
    assert without_paths(text) == left


def test_private_studies_leave_the_ledgers_rest_in_the_bundle(folder: Path) -> None:
    settle(folder, approve="auto")
    ask(folder, order("propose", private_study()), private_study())
    left = doctor.bundle(folder)["ledger"]["left"]
    assert 0 < left["train"] < 1 and left["test"] == 1.0
