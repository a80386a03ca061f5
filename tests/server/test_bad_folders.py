"""A coordinator's commands on what is no federation's folder, or a broken one: one line, exit code 1, JSON as asked."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from refused import ended, refused_with_json, unreadable
from small import tiny_study, toml_of, write_site

from client import enrolment
from common import processes
from server import folder as folders
from server.__main__ import main
from simulations.loopback import free_ports

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("status", "--follow"),
    ("stop",),
    ("plan", "STUDY"),
    ("run", "STUDY"),
    ("resume", "FOLDER"),
    ("sign", "--keys", "KEYS"),
    ("renew", "--keys", "KEYS"),
    ("add-site", "REQUEST"),
    ("remove-site", "a"),
)
WITHOUT_JSON: tuple[tuple[str, ...], ...] = (("up",),)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A federation without a roster, beside a site that asks."""
    first = free_ports(4)
    values = {"name": "test", "hosts": ["localhost"], "listen": "127.0.0.1", "port": first, "loopback": first + 1}
    values |= {"min_sites": 3, "colluding": 1}
    folders.found(tmp_path / "federation", tmp_path / "keys", values=values, now=1_800_000_000)
    enrolment.found(tmp_path / "site", name="a", nominal_patients=10)
    (tmp_path / "study.toml").write_text(toml_of(tiny_study()), encoding="utf-8")
    return tmp_path / "federation"


def words(command: tuple[str, ...], folder: Path, base: Path) -> list[str]:
    places = {"STUDY": "study.toml", "KEYS": "keys", "REQUEST": "site/request.json", "FOLDER": "none"}
    return [*(str(base / places[word]) if word in places else word for word in command), "--folder", str(folder)]


def absent(made: Path) -> Path:
    return made.parent / "none"


def a_file(made: Path) -> Path:
    return made / "federation.toml"


def a_sites(made: Path) -> Path:
    return write_site(made.parent / "other", images=6, seed=0)


def garbled(made: Path) -> Path:
    (made / "federation.toml").write_bytes(b"\xff\x00 = [")
    return made


def half(made: Path) -> Path:
    (made / "federation.toml").write_text("port = 1\n")
    return made


@pytest.mark.parametrize("command", [*COMMANDS, *WITHOUT_JSON], ids=" ".join)
@pytest.mark.parametrize("harm", [absent, a_file, a_sites, garbled, half])
def test_what_is_no_federations_folder_is_one_line(
    made: Path, command: tuple[str, ...], harm: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = harm(made)
    before = sorted(made.parent.rglob("*"))
    said = ended(main, capsys, *words(command, folder, made.parent)).error
    assert str(folder) in said
    if harm is a_sites:
        assert "a hospital's site folder, which `client` takes" in said
    if command in COMMANDS:
        refused_with_json(main, capsys, *words(command, folder, made.parent))
    assert sorted(made.parent.rglob("*")) == before


@pytest.mark.parametrize("command", [*COMMANDS, *WITHOUT_JSON], ids=" ".join)
def test_a_folder_that_may_not_be_read_is_one_line(
    made: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with unreadable(made):
        said = ended(main, capsys, *words(command, made, made.parent)).error
    assert "Permission denied" in said


@pytest.mark.parametrize("command", [("plan", "STUDY"), ("run", "STUDY")], ids=" ".join)
def test_without_a_roster_it_is_said_how_to_come_to_one(
    made: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "add sites, then `server sign`" in ended(main, capsys, *words(command, made, made.parent)).error
    refused_with_json(main, capsys, *words(command, made, made.parent))


def test_a_roster_of_too_few_sites_is_not_signed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sign = words(("sign", "--keys", "KEYS"), made, made.parent)
    assert "0 sites; 3 (min_sites)" in ended(main, capsys, *sign).error
    added = json.loads(ended(main, capsys, *words(("add-site", "REQUEST"), made, made.parent), "--json").out[0])
    assert list(added["added"]) == ["a"]
    assert "1 sites; 3 (min_sites)" in ended(main, capsys, *sign).error
    removed = ended(main, capsys, *words(("remove-site", "a"), made, made.parent), "--json")
    assert json.loads(removed.out[0]) == {"schema": 1, "removed": "a", "left": []}


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("roster.json", [("status",), ("plan", "STUDY"), ("run", "STUDY"), ("up",), ("sign", "--keys", "KEYS")]),
        ("current.json", [("status",), ("stop",)]),
        ("sites/a.json", [("sign", "--keys", "KEYS"), ("add-site", "REQUEST"), ("remove-site", "a")]),
        ("ca.pem", [("status",), ("up",)]),
    ],
)
def test_a_garbled_file_is_named(
    made: Path, file: str, commands: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    (made / file).write_text("[]")
    for command in commands:
        said = ended(main, capsys, *words(command, made, made.parent)).error
        assert str(made / file) in said and "server.run_record" not in said


def test_a_missing_authority_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "ca.pem").unlink()
    for command in (("status",), ("renew", "--keys", "KEYS")):
        said = ended(main, capsys, *words(command, made, made.parent)).error
        assert str(made / "ca.pem") in said and "restore it from your backup" in said


def test_a_server_that_is_away_is_said_in_one_line_of_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ended(main, capsys, "status", "--folder", made, "--json")
    (line,) = found.out
    assert found.code == 1 and json.loads(line)["superlink"]["serving"] is False
    assert "`server up`" in found.err[-1] and not processes.serving(folders.open_folder(made).health)
