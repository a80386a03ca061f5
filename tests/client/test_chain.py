"""The chained file: on disk when `append` returns, and everything that no crash explains is refused."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from small import full_disk

from client import chain
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, agreed, anchor_from, first_line, verified

NAME = "log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A chain of four entries."""
    made = tmp_path / "state"
    chain.install(made, NAME, first_line("first", {"n": 0}))
    with Chain(made, NAME) as log:
        for n in (1, 2, 3):
            log.append("more", {"n": n})
    return made


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: for tests that open a file a thousand times."""
    monkeypatch.setattr("client.chain.os.fsync", lambda _: None)


def numbers(folder: Path) -> list[Any]:
    return [entry.body.get("n", entry.kind) for entry in chain.read(folder, NAME).entries]


def text(folder: Path) -> Path:
    return folder / f"{NAME}.jsonl"


def head(folder: Path) -> Path:
    return folder / f"{NAME}.head"


def test_what_is_appended_is_read_in_order_by_number_and_by_another_writer(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        entry = log.append("more", {"n": 4})
        assert (entry.sequence, log.anchor) == (4, entry.anchor)
    assert numbers(folder) == [0, 1, 2, 3, 4]


def test_files_are_for_their_owner_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        (f"{NAME}.jsonl", f"{NAME}.head", f"{NAME}.lock"), 0o600
    )


def test_line_then_head_are_synced_before_append_returns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_write, real_replace, real_sync = os.write, os.replace, os.fsync
    with Chain(folder, NAME) as log:
        monkeypatch.setattr("client.chain.os.write", lambda *a: calls.append("write") or real_write(*a))  # type: ignore[func-returns-value]
        monkeypatch.setattr("client.chain.os.replace", lambda *a: calls.append("rename") or real_replace(*a))  # type: ignore[func-returns-value]

        def sync(descriptor: int) -> None:
            calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
            real_sync(descriptor)

        monkeypatch.setattr("client.chain.os.fsync", sync)
        log.append("more", {"n": 4})
    assert calls == ["write", f"sync {NAME}.jsonl", "write", f"sync .{NAME}.head.new", "rename", "sync state"]


def test_a_file_that_can_not_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.write_privately(tmp_path / "file", b"before")
    with full_disk(100), pytest.raises(OSError, match="no room for the whole file"):
        chain.write_privately(tmp_path / "file", bytes(200))
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patched:

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patched.setattr(f"client.chain.os.{call}", full)
            with pytest.raises(OSError, match="No space left"):
                chain.write_privately(tmp_path / "file", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


def test_the_folder_is_synced_when_the_chain_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr("client.chain.os.fsync", sync)
    chain.install(tmp_path / "state", NAME, first_line("first", {}))
    assert synced[-2:] == ["state", tmp_path.name]


def test_heads_hide_their_content(tmp_path: Path) -> None:
    heads = set()
    for name in ("a", "b"):
        chain.install(tmp_path / name, NAME, first_line("first", {"n": 0}))
        heads.add(head(tmp_path / name).read_bytes())
    assert len(heads) == 2


def test_a_second_writer_is_refused_with_one_line(folder: Path) -> None:
    with Chain(folder, NAME):
        with pytest.raises(ChainError, match="another process has it open") as caught:
            Chain(folder, NAME)
        assert "\n" not in str(caught.value)
        assert numbers(folder) == [0, 1, 2, 3]  # reading needs no lock
    Chain(folder, NAME).close()


def test_a_forked_child_may_not_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chain(folder, NAME) as log:
        monkeypatch.setattr("client.chain.os.getpid", lambda: -1)
        for call in (lambda: log.append("more", {}), log.verify_again):
            with pytest.raises(ChainError, match="another process"):
                call()
    assert numbers(folder) == [0, 1, 2, 3]


def test_a_chain_that_exists_is_never_replaced(folder: Path) -> None:
    before = text(folder).read_bytes()
    with pytest.raises(ChainError, match="exists already"):
        chain.install(folder, NAME, first_line("first", {}))
    assert text(folder).read_bytes() == before


def test_a_head_without_its_chain_binds_what_is_put_beside_it(folder: Path) -> None:
    whole = text(folder).read_bytes()
    text(folder).unlink()
    older = b"\n".join(whole.split(b"\n")[:2]) + b"\n"
    for data in (older, first_line("first", {})):
        with pytest.raises(ChainError, match="use a newer copy"):
            chain.install(folder, NAME, data)
    chain.install(folder, NAME, whole)
    assert numbers(folder) == [0, 1, 2, 3]


def test_a_making_that_was_killed_after_its_head_can_be_repeated(tmp_path: Path) -> None:
    made = tmp_path / "state"
    chain.install(made, NAME, first_line("first", {}))
    text(made).unlink()
    chain.install(made, NAME, first_line("first", {}))
    assert len(chain.read(made, NAME).entries) == 1


def cut_last(folder: Path) -> None:
    lines = text(folder).read_bytes().split(b"\n")
    text(folder).write_bytes(b"\n".join(lines[:-2]) + b"\n")


def swap(folder: Path) -> None:
    lines = text(folder).read_bytes().split(b"\n")
    text(folder).write_bytes(b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]))


def rewrite(folder: Path) -> None:
    """A chain that verifies, from the first line on another."""
    text(folder).write_bytes(first_line("first", {"n": 0}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_last, "truncated"),
        (swap, "record 1 was edited"),
        (rewrite, "truncated"),
        (lambda folder: text(folder).write_bytes(b""), "truncated"),
        (lambda folder: text(folder).unlink(), "log.jsonl: missing"),
        (lambda folder: head(folder).unlink(), "log.head: missing"),
        (lambda folder: head(folder).write_bytes(b""), "log.head: names no record"),
        (lambda folder: head(folder).write_bytes(b"\xff\n"), "log.head: names no record"),
        (lambda folder: head(folder).write_text(f"3-{'0' * 64}\n"), "not the one that the head names"),
        (lambda folder: head(folder).write_text(f"{'9' * 5000}-{'0' * 64}\n"), "names no record"),
        (lambda folder: text(folder).write_bytes(b"x\n" + text(folder).read_bytes()), "record 0 was edited"),
        (lambda folder: text(folder).open("ab").write(b"x\ny\n"), "record 4 was edited"),
        (lambda folder: text(folder).chmod(0o640), "others may enter or read it"),
        (lambda folder: head(folder).chmod(0o604), "others may enter or read it"),
        (lambda folder: folder.chmod(0o750), "others may enter or read it"),
        (lambda folder: (folder / f"{NAME}.lock").chmod(0o620), "others may enter or read it"),
        (lambda folder: text(folder).rename(folder / "x") and text(folder).symlink_to(folder / "x"), "neither file"),
    ],
)
def test_what_no_crash_explains_is_refused_and_named(
    folder: Path, damage: Callable[[Path], object], says: str, recwarn: Any
) -> None:
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ChainError, match=says) as caught:
        Chain(folder, NAME)
    assert "\n" not in str(caught.value)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before or after == {**before, f"{NAME}.lock": b""}
    recwarn.clear()  # files that the table left to the collector


def test_a_head_that_is_two_records_behind_is_refused(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        old = head(folder).read_bytes()
        log.append("more", {"n": 4})
        log.append("more", {"n": 5})
    head(folder).write_bytes(old)
    with pytest.raises(ChainError, match="goes on 2 records behind its head"):
        Chain(folder, NAME)


def test_a_head_that_is_one_record_behind_is_moved_on(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        old = head(folder).read_bytes()
        log.append("more", {"n": 4})
    head(folder).write_bytes(old)
    with Chain(folder, NAME) as log:
        assert head(folder).read_text() == f"4-{log.anchor.hash}\n"
    assert numbers(folder) == [0, 1, 2, 3, 4]


def refused(folder: Path, *, data: bytes | None = None, named: bytes | None = None) -> bool:
    try:
        whole = text(folder).read_bytes() if data is None else data
        agreed(text(folder), whole, head(folder).read_bytes() if named is None else named)
    except ChainError:
        return True
    return False


def test_every_edit_of_one_byte_is_refused(folder: Path) -> None:
    for path, argument in ((text(folder), "data"), (head(folder), "named")):
        whole = path.read_bytes()
        for place, byte in enumerate(whole):
            for other in {byte ^ 1, byte ^ 0x20, 0x0A, 0x20} - {byte}:
                assert refused(folder, **{argument: whole[:place] + bytes([other]) + whole[place + 1 :]})
    assert not refused(folder)


def test_every_missing_or_doubled_byte_and_every_cut_is_refused(folder: Path) -> None:
    whole = text(folder).read_bytes()
    for place in range(len(whole)):
        assert refused(folder, data=whole[:place] + whole[place + 1 :])
        assert refused(folder, data=whole[:place])
        if place < len(whole) - 1:  # the last newline twice is an empty line behind all records: nothing is lost
            assert refused(folder, data=whole[: place + 1] + whole[place:])


def torn(folder: Path, keep: int) -> bytes:
    """The last line cut at an offset and its head not written, as a power failure leaves them. Returns the piece."""
    lines = text(folder).read_bytes().split(b"\n")
    text(folder).write_bytes(b"\n".join(lines[:-2]) + b"\n" + lines[-2][:keep])
    _, before = lines[-3], verified(text(folder), b"\n".join(lines[:-2]) + b"\n").entries[-1].anchor
    head(folder).write_text(f"{before.sequence}-{before.hash}\n")
    return lines[-2][:keep]


def test_a_last_line_torn_at_any_byte_is_closed_and_followed_by_a_repair(folder: Path, no_disk: None) -> None:
    whole, named = text(folder).read_bytes(), head(folder).read_bytes()
    for keep in range(len(whole.split(b"\n")[-2]) + 1):
        text(folder).write_bytes(whole)
        head(folder).write_bytes(named)
        piece = torn(folder, keep)
        found = chain.read(folder, NAME)
        assert (len(found.entries), found.tail) == (3, piece)
        if keep % 8:
            continue
        with Chain(folder, NAME) as log:
            log.append("more", {"n": 9})
        assert numbers(folder) == ([0, 1, 2, "repair", 9] if keep else [0, 1, 2, 9])
        assert piece in text(folder).read_bytes()  # lines never change


def test_a_repair_torn_at_any_byte_is_repaired_itself(folder: Path, no_disk: None) -> None:
    torn(folder, 40)
    before, named = text(folder).read_bytes(), head(folder).read_bytes()
    Chain(folder, NAME).close()
    repair = text(folder).read_bytes()[len(before) :]
    assert repair.startswith(b'\n{"kind":"repair"')
    for keep in [*range(24), *range(24, len(repair) + 1, 9), len(repair) - 1]:
        text(folder).write_bytes(before + repair[:keep])
        head(folder).write_bytes(named)
        with Chain(folder, NAME) as log:
            log.append("more", {"n": 9})
        assert numbers(folder) == [0, 1, 2, "repair", 9]
        if keep in (3, 60):  # voided lines can't be edited either
            data = text(folder).read_bytes()
            for place in range(len(before) - 40, len(data)):
                assert refused(folder, data=data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_a_repair_voids_no_record_that_was_whole_before_another(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        lines = text(folder).read_bytes().split(b"\n")[2:4]
        body = {"torn": hashlib.sha256(b"\n".join(lines)).hexdigest(), "lines": 2}
        log.append("repair", body)
    assert numbers(folder) == [0, 1, 2, 3, "repair"]


def fail_write(error: int | None) -> Callable[..., int]:
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        if error is None:
            return real(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(error, os.strerror(error))

    return write


@pytest.mark.parametrize("error", [None, errno.ENOSPC, errno.EIO])
def test_a_failed_or_short_write_is_a_refusal_and_the_file_is_verified_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    with Chain(folder, NAME) as log:
        with monkeypatch.context() as patch:
            patch.setattr("client.chain.os.write", fail_write(error))
            with pytest.raises(ChainError, match="can't be written") as caught:
                log.append("more", {"n": 4})
        assert "\n" not in str(caught.value)
        assert not log.usable
        with pytest.raises(ChainError, match="not verified"):
            log.append("more", {"n": 5})
        log.verify_again()
        log.append("more", {"n": 6})
    assert numbers(folder) == [0, 1, 2, 3, *(["repair"] if error is None else []), 6]


def test_a_head_that_is_written_short_is_a_refusal_and_the_record_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, iter(range(99))
    with Chain(folder, NAME) as log:
        with monkeypatch.context() as patch:
            patch.setattr("client.chain.os.write", lambda at, data: real(at, data) if next(calls) == 0 else 0)
            with pytest.raises(ChainError, match="no room for the whole file"):
                log.append("more", {"n": 4})
        assert not log.usable and head(folder).read_text().startswith("3-")
        log.verify_again()
    assert numbers(folder) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_failed_sync_is_a_refusal_and_the_record_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """0: of the line; 1: of the head; 2: of the folder."""
    real, calls = os.fsync, iter(range(99))

    def sync(descriptor: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    with Chain(folder, NAME) as log:
        with monkeypatch.context() as patch:
            patch.setattr("client.chain.os.fsync", sync)
            with pytest.raises(ChainError, match="Input/output error"):
                log.append("more", {"n": 4})
        assert not log.usable
        log.verify_again()
        assert head(folder).read_text().startswith("4-")
    assert numbers(folder) == [0, 1, 2, 3, 4]


def test_a_full_disk_refuses_until_there_is_room(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        with full_disk(text(folder).stat().st_size + 100):
            for attempt in (lambda: log.append("more", {"n": 4}), log.verify_again, log.verify_again):
                with pytest.raises(ChainError, match="can't be written"):
                    attempt()
        log.verify_again()
        log.append("more", {"n": 5})
    assert numbers(folder) == [0, 1, 2, 3, "repair", 5]


def test_a_file_changed_while_in_use_is_noticed(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        with text(folder).open("ab") as file:
            file.write(b"x")
        with pytest.raises(ChainError, match="changed while in use"):
            log.append("more", {"n": 4})
    assert numbers(folder) == [0, 1, 2, 3]


def test_a_file_exchanged_while_in_use_is_noticed(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        whole, named = text(folder).read_bytes(), head(folder).read_bytes()
        log.append("more", {"n": 4})
        (folder / "old").write_bytes(whole)
        (folder / "old").chmod(0o600)
        (folder / "old").replace(text(folder))
        head(folder).write_bytes(named)
        with pytest.raises(ChainError, match="changed while in use"):
            log.append("more", {"n": 5})
        with pytest.raises(ChainError, match=r"record 4-.* is gone"):
            log.verify_again()


def test_what_is_not_plain_json_is_refused_and_nothing_is_written(folder: Path) -> None:
    with Chain(folder, NAME) as log:
        for value in (float("nan"), {1}):
            with pytest.raises(ChainError, match="not plain JSON"):
                log.append("more", {"n": value})
        log.append("more", {"n": 4})
    assert numbers(folder) == [0, 1, 2, 3, 4]


def test_an_anchor_is_contained_by_number_and_hash_also_shortened(folder: Path) -> None:
    contents = chain.read(folder, NAME)
    for entry in contents.entries:
        assert contents.contains(entry.anchor)
        assert contents.contains(anchor_from(str(entry.anchor)))
    last = contents.entries[-1].anchor
    for other in (
        Anchor(sequence=4, hash=last.hash),
        Anchor(sequence=2, hash=last.hash),
        Anchor(sequence=-1, hash=last.hash),
        Anchor(sequence=3, hash=last.hash[:5]),
        Anchor(sequence=3, hash=""),
    ):
        assert not contents.contains(other)


@pytest.mark.parametrize(
    "text", ["", "3", "3-", "3-12ab", f"-3-{'0' * 64}", f"3-{'0' * 65}", f"3-{'x' * 64}", "²-" + "0" * 64]
)
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(ChainError, match="is no anchor"):
        anchor_from(text)


def test_a_clock_that_runs_backwards_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Past:
        @staticmethod
        def now(zone: Any) -> Any:
            return datetime(1970, 1, 1, tzinfo=zone)

    with Chain(folder, NAME) as log:
        monkeypatch.setattr("client.chain_lines.datetime", Past)
        log.append("more", {"n": 4})
    entries = chain.read(folder, NAME).entries
    assert [entry.sequence for entry in entries] == [0, 1, 2, 3, 4]
    assert entries[-1].time < entries[-2].time
    assert json.loads(text(folder).read_bytes().split(b"\n")[4])["time"].startswith("1970")
