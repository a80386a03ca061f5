"""The ledger's anchors and copies, and the commands that a person moves it with."""

import json
from pathlib import Path
from typing import Any

import pytest
from ledger_cases import KEY, QUERY, Training, allocate, event, left, make, opened
from typer.testing import CliRunner

from client import ledger_copy
from client.chain_lines import Anchor, ChainError, anchor_from
from client.ledger import FOLDER
from client.ledger_cli import app
from client.ledger_records import UNIT, LedgerError
from client.site import site_toml
from common.errors import FederationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "state")


# Anchors and copies


def test_an_older_copy_of_all_files_refuses_once_a_newer_head_is_shown(folder: Path) -> None:
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        old = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        ledger.release(QUERY, event(1.0), Training())
        newest = ledger.anchor
    for path, data in old.items():
        path.write_bytes(data)
    with pytest.raises(LedgerError, match="older copy"):
        opened(folder, anchors=[newest])
    train = Training()
    with opened(folder) as again:
        with pytest.raises(LedgerError, match="older copy"):
            again.demand(newest)
        for call in (
            lambda: again.release(QUERY, event(1.0), train),
            lambda: again.reserve(QUERY, event(1.0)),
            lambda: again.demand(again.anchor) or again.reserve(QUERY, event(1.0)),  # type: ignore[func-returns-value]
        ):
            with pytest.raises(LedgerError, match="older copy"):
                call()
        assert (train.times, again.anchor.sequence) == (0, 1)


def test_an_anchor_of_this_chain_is_accepted_whatever_came_later(folder: Path) -> None:
    with opened(folder) as ledger:
        first = ledger.anchor
        allocate(ledger, each=1.0, orders=4)
        for anchor in (first, ledger.anchor, anchor_from(str(ledger.anchor))):
            ledger.demand(anchor)
        last = ledger.anchor
        assert not ledger.contains(Anchor(sequence=last.sequence + 1, hash=last.hash))
    opened(folder, anchors=[first, last]).close()


def test_the_anchor_on_another_disk_refuses_an_older_copy(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "anchor"
    with opened(folder, anchor_file=kept) as ledger:
        old = {path: path.read_bytes() for path in folder.iterdir()}
        allocate(ledger, each=1.0, orders=4)
        assert kept.read_text() == f"1-{ledger.anchor.hash}\n"
    opened(folder, anchor_file=kept).close()
    away = kept.rename(tmp_path / "away")  # its disk isn't mounted
    with pytest.raises(ChainError, match="not there; is its disk"):
        opened(folder, anchor_file=kept)
    assert not kept.exists()
    away.rename(kept)
    for path, data in old.items():
        path.write_bytes(data)
    with pytest.raises(LedgerError, match="older copy"):
        opened(folder, anchor_file=kept)
    kept.write_text("edited")
    with pytest.raises(ChainError, match="is no anchor"):
        opened(folder, anchor_file=kept)
    with pytest.raises(ChainError, match="is its disk there"):
        opened(folder, anchor_file=tmp_path / "unmounted" / "anchor")


def test_a_backup_is_restored_where_an_anchor_says_that_it_is_the_newest(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "copy", tmp_path / "other"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        ledger.release(QUERY, event(1.0), Training())
        anchor = ledger_copy.backup(folder, file, patient_key=KEY)
        assert anchor == ledger.anchor
    with pytest.raises(LedgerError, match="nothing shows that this copy"):
        ledger_copy.restore(other, file, patient_key=KEY, anchor=None)
    with pytest.raises(LedgerError, match="don't belong together"):
        ledger_copy.restore(other, file, patient_key=bytes(32), anchor=anchor)
    assert not other.exists()
    ledger_copy.restore(other, file, patient_key=KEY, anchor=anchor)
    with opened(other) as again:
        assert again.state.reserved["train"] == UNIT
        again.demand(anchor)
        assert again.release(QUERY, event(1.0), lambda: b"anew") == b"anew"  # stored updates are not in a copy
        assert again.state.reserved["train"] == 2 * UNIT


def test_a_backup_older_than_the_anchor_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.backup(folder, file, patient_key=KEY)
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        newest = ledger.anchor
    with pytest.raises(LedgerError, match="an older copy"):
        ledger_copy.restore(tmp_path / "other", file, patient_key=KEY, anchor=newest)
    assert not (tmp_path / "other").exists()


def test_a_copy_that_was_cut_or_edited_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        anchor = ledger.anchor
    ledger_copy.backup(folder, file, patient_key=KEY)
    whole = file.read_bytes()
    for place in [*range(0, len(whole), 9), *range(len(whole) - 80, len(whole))]:
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            file.write_bytes(data)
            with pytest.raises(FederationError):
                ledger_copy.restore(tmp_path / "other", file, patient_key=KEY, anchor=anchor)
    assert not (tmp_path / "other").exists()


def test_a_moved_ledger_goes_on_elsewhere_and_is_closed_here(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "copy", tmp_path / "other"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        with pytest.raises(ChainError, match="another process"):
            ledger_copy.move(folder, file, patient_key=KEY)
    ledger_copy.move(folder, file, patient_key=KEY)
    with pytest.raises(LedgerError, match="moved to another machine"):
        opened(folder)
    file.unlink()  # lost on the way: another copy of the closed ledger
    anchor = ledger_copy.move(folder, file, patient_key=KEY)
    assert anchor.sequence == 2
    ledger_copy.restore(other, file, patient_key=KEY, anchor=None)
    with opened(other) as again:
        assert left(again) == 6
        again.reserve(QUERY, event(1.0))
    with pytest.raises(ChainError, match="exists already"):
        ledger_copy.restore(other, file, patient_key=KEY, anchor=None)


def test_one_moved_copy_on_two_machines_is_told_apart_by_its_heads(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.move(folder, file, patient_key=KEY)
    one, two = (ledger_copy.restore(tmp_path / name, file, patient_key=KEY, anchor=None) for name in ("one", "two"))
    assert one.sequence == two.sequence
    with opened(tmp_path / "two") as ledger, pytest.raises(LedgerError, match="older copy"):
        ledger.demand(one)


def test_a_restore_that_was_killed_before_its_own_record_can_be_repeated(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.move(folder, file, patient_key=KEY)
    ledger_copy.restore(folder, file, patient_key=KEY, anchor=None)  # as the kill left it: the copy, and nothing more
    opened(folder).close()


def test_a_backup_never_overwrites(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    for call in (ledger_copy.backup, ledger_copy.move):
        with pytest.raises(ChainError, match="exists already"):
            call(folder, tmp_path / "copy", patient_key=KEY)
    opened(folder).close()  # and the ledger was not closed for it


# The command


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = tmp_path / "north"
    (made / "keys").mkdir(parents=True)
    (made / "keys" / "patient.key").write_bytes(KEY)
    (made / "site.toml").write_text(site_toml("north"))
    make(made / FOLDER)
    return made


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_show_prints_what_is_spent_set_aside_and_left_while_the_client_runs(site: Path) -> None:
    with opened(site / FOLDER) as ledger:
        allocate(ledger, each=1.0, orders=4)
        ledger.reserve(QUERY, event(1.0))
        shown = json.loads(run("show", site, "--json"))
        assert shown["pools"]["train"] == {"spent": 0.1, "allocated": 0.3, "left": 0.6}
        assert shown["pools"]["test"] == {"spent": 0.0, "allocated": 0.0, "left": 1.0}
        assert shown["limit"] == {"epsilon": 8.0, "delta": 1e-5, "order": 3.86, "value": 10.0}
        assert (shown["anchor"], shown["records"], shown["protected"]) == (str(ledger.anchor), 3, True)
        text = run("show", site)
        assert "10.00%" in text and str(ledger.anchor) in text and "epsilon at most 8" in text
        assert run("verify", site, "--anchor", ledger.anchor).startswith("ok: 3 records")


def test_verify_refuses_what_was_edited_and_an_anchor_that_is_not_there(site: Path) -> None:
    assert run("verify", site).startswith("ok: 1 records")
    with pytest.raises(LedgerError, match="does not contain"):
        run("verify", site, "--anchor", f"0-{'0' * 20}")
    path = site / FOLDER / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1e-05", b"1e-06"))
    with pytest.raises(ChainError, match="not the one that the head names"):
        run("verify", site)


def test_backup_move_and_restore_as_commands(site: Path, tmp_path: Path) -> None:
    said = run("backup", site, tmp_path / "copy")
    anchor = said.split()[-1]
    run("move", site, tmp_path / "moved")
    assert "Closed" in run("show", site)
    for name, options in (("copy", ["--anchor", anchor]), ("moved", [])):
        other = tmp_path / f"other-{name}"
        (other / "keys").mkdir(parents=True)
        (other / "keys" / "patient.key").write_bytes(KEY)
        (other / "site.toml").write_text(site_toml("north"))
        assert "goes on at" in run("restore", other, tmp_path / name, *options)
        opened(other / FOLDER).close()


def test_each_command_tells_scripts_what_it_did(site: Path, tmp_path: Path) -> None:
    with opened(site / FOLDER) as running:
        allocate(running, each=1.0, orders=4)
        anchor = str(running.anchor)

    def told(*arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(*arguments, "--json"))
        assert found.pop("schema") == 1
        return found

    assert told("verify", site) == {"records": 2, "anchor": anchor, "torn": False}
    assert told("backup", site, tmp_path / "copy") == {"file": str(tmp_path / "copy"), "anchor": anchor}
    assert told("close", site, QUERY.study) == {"closed": QUERY.study}
    assert told("move", site, tmp_path / "moved")["file"] == str(tmp_path / "moved")
    (site / FOLDER).rename(tmp_path / "before")
    assert told("restore", site, tmp_path / "copy", "--anchor", anchor)["anchor"].startswith("2-")  # what restored it
