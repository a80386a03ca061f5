"""A hospital's commands on what is no site folder, or a broken one: one line, exit code 1, JSON as asked."""

import json
from pathlib import Path

import pytest
from control_cases import settle
from refused import ended, refused_with_json, unreadable
from small import write_site

from client import enrolment, supernode
from client.__main__ import main
from common.errors import DataError

HASH = "abcdef0123"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status", "SITE"),
    ("studies", "SITE"),
    ("policy", "SITE"),
    ("policy", "SITE", "--set", "rounds=3"),
    ("studies", "SITE", HASH),
    ("approve", "SITE", HASH),
    ("deny", "SITE", HASH, "--reason", "x"),
    ("doctor", "SITE", "--out", "NEW"),
    ("evaluate", "SITE", "--model", "NEW"),
    ("audit", "verify", "SITE"),
    ("audit", "show", "SITE"),
    ("audit", "sets", "SITE"),
    ("ledger", "show", "SITE"),
    ("quality", "SITE", "--without-images"),
)
WITHOUT_JSON: tuple[tuple[str, ...], ...] = (
    ("up", "SITE"),
    ("up", "SITE", "--only", "supernode"),
    ("up", "SITE", "--only", "worker"),
    ("ledger", "verify", "SITE"),
    ("ledger", "close", "SITE", HASH),
    ("ledger", "create", "SITE", "--epsilon", "1", "--nominal-patients", "10"),
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return settle(write_site(tmp_path / "site", images=6, seed=0))


def words(command: tuple[str, ...], site: Path) -> list[str]:
    return [{"SITE": str(site), "NEW": str(site.parent / "new")}.get(word, word) for word in command]


def absent(site: Path) -> Path:
    return site.parent / "none"


def a_file(site: Path) -> Path:
    return site / "site.toml"


def the_servers(site: Path) -> Path:
    folder = site.parent / "federation"
    folder.mkdir()
    (folder / "federation.toml").write_text("port = 1\n")
    return folder


def empty(site: Path) -> Path:
    (site.parent / "empty").mkdir()
    return site.parent / "empty"


@pytest.mark.parametrize("command", [*COMMANDS, *WITHOUT_JSON], ids=" ".join)
@pytest.mark.parametrize("made", [absent, a_file, the_servers, empty])
def test_what_is_no_site_folder_is_one_line_and_stays_as_it_is(
    site: Path, command: tuple[str, ...], made: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(site)  # type: ignore[operator]
    before = sorted(site.parent.rglob("*"))
    said = ended(main, capsys, *words(command, folder)).error
    assert str(folder) in said
    if made is the_servers and command[0] != "up":
        assert "a federation's folder, which `server init` made" in said
    if command in COMMANDS:
        refused_with_json(main, capsys, *words(command, folder))
    assert sorted(site.parent.rglob("*")) == before


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] not in ("doctor", "audit")], ids=" ".join)
@pytest.mark.parametrize("text", [b"\xff\x00 = [", b"", b'name = "a"\nnmae = 1\n'])
def test_a_garbled_site_toml_is_one_line(
    site: Path, command: tuple[str, ...], text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "site.toml").write_bytes(text)
    assert str(site / "site.toml") in ended(main, capsys, *words(command, site)).error
    refused_with_json(main, capsys, *words(command, site))


@pytest.mark.parametrize("command", [*COMMANDS, *WITHOUT_JSON], ids=" ".join)
def test_a_folder_that_may_not_be_read_is_one_line(
    site: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with unreadable(site):
        assert "Permission denied" in ended(main, capsys, *words(command, site)).error


def test_check_says_it_as_a_finding_and_still_in_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (absent(site), a_file(site), the_servers(site), empty(site)):
        found = ended(main, capsys, "check", folder)
        assert found.code == 1 and len(found.out) == 1 and found.out[0].startswith("FAIL  site")
        (line,) = ended(main, capsys, "check", folder, "--json").out
        assert not json.loads(line)["ready"] and [f["about"] for f in json.loads(line)["findings"]] == ["site"]
    (site / "site.toml").write_bytes(b"\xff")
    (line,) = ended(main, capsys, "check", site, "--json").out
    assert not json.loads(line)["ready"]
    with unreadable(site):
        found = ended(main, capsys, "check", site)
        assert found.code == 1 and "Permission denied" in found.out[0]


def test_the_doctor_takes_a_broken_site_and_names_what_it_could_not_read(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "site.toml").write_bytes(b"\xff")
    found = ended(main, capsys, "doctor", site, "--out", site.parent / "bundle.json")
    assert found.code == 0 and "not readable: settings, ledger, studies; `client check" in found.out[1]
    found = ended(main, capsys, "doctor", site, "--out", site.parent / "again.json", "--json")
    assert json.loads(found.out[0])["not_readable"] == ["settings", "ledger", "studies"]


@pytest.mark.parametrize("what", ["supernode/supernode.toml", "roster.json"])
def test_a_garbled_connection_or_roster_fails_the_preflight(
    site: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "supernode").mkdir()
    (site / what).write_text("{")
    (line,) = ended(main, capsys, "check", site, "--offline", "--json").out
    failed = {f["about"] for f in json.loads(line)["findings"] if f["level"] == "FAIL"}
    assert ("connection" if what.startswith("supernode") else "roster") in failed
    if what.startswith("supernode"):
        assert str(site / what) in ended(main, capsys, "status", site).error


def test_nothing_of_a_site_is_made_in_a_servers_folder(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = the_servers(site)
    before = sorted(folder.rglob("*"))
    for command in (("init", folder, "--name", "a", "--patients", 9), ("index", site, "--out", folder)):
        assert "a federation's folder" in ended(main, capsys, *command).error
    with pytest.raises(DataError):
        enrolment.found(folder, name="a", nominal_patients=9)
    assert sorted(folder.rglob("*")) == before


def test_up_with_settings_that_are_garbled_is_one_line(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "supernode").mkdir()
    path = site / "supernode" / "supernode.toml"
    for text in ("nope", "", supernode.toml(server="a:1", runtime="b:1", health="b:2") + "x = 1\n"):
        path.write_text(text)
        for only in ("both", "supernode", "worker"):
            assert str(path) in ended(main, capsys, "up", site, "--only", only).error


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_site_that_never_had_a_ledger_is_told_how_to_make_one(
    site: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`client ledger create`" in ended(main, capsys, "ledger", command, site).error
