"""The parts of pulling by themselves: names, selections, parts of an answer, the pace, the folder."""

import signal
import socket
import stat
import time
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pull_cases import SERIES, SOPS, STUDY, instance

from client.pull.archive import Fault, Instance, Missing, is_uid
from client.pull.folder import Folder
from client.pull.line import Line
from client.pull.multipart import boundary_of, single_part
from client.pull.pace import Late, Pace, is_open, read_hours, within
from client.pull.selection import Selection, matches, read_entries
from common.errors import DataError


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../1", "1..2", "1.2/3", "1.2.", ".1", "1.2\n", "1.2\0", "１.２", "1" * 65, "1.2 ", "-1", "1.a"],
)
def test_what_is_no_uid_never_becomes_a_name(text: str) -> None:
    assert not is_uid(text)
    with pytest.raises(Missing):
        Instance(study=STUDY, series=SERIES, sop=text)


def test_uids_are_names() -> None:
    assert is_uid("2.25.329800735698586629295641978511506172918") and is_uid("1.02.3") and is_uid("1")


@given(st.text("ab*?", max_size=7), st.text("abAB", max_size=7))
@settings(deadline=None)
def test_wildcards_match_as_the_plain_definition(pattern: str, text: str) -> None:
    def plain(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return plain(p[1:], t) or bool(t and plain(p, t[1:]))
        return bool(t) and p[0] in ("?", t[0]) and plain(p[1:], t[1:])

    assert matches(pattern, text) == (pattern == "" or plain(pattern, text.lower()))


def test_no_pattern_is_slow() -> None:
    started = time.monotonic()
    assert not matches("*a" * 32, "a" * 31 + "b" * 10_000)
    assert time.monotonic() - started < 1


def test_questions_are_asked_day_by_day_and_lists_entry_by_entry() -> None:
    days = list(Selection(since=date(2024, 2, 28), until=date(2024, 3, 1), modalities=frozenset({"CT"})).questions())
    assert [one["StudyDate"] for one in days] == ["20240228", "20240229", "20240301"]
    assert {one["ModalitiesInStudy"] for one in days} == {"CT"}
    named = list(Selection(entries=("a", "b"), key="AccessionNumber").questions())
    assert [one["AccessionNumber"] for one in named] == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"since": date(2024, 1, 2), "until": date(2024, 1, 1)},
        {"since": date(2024, 1, 2)},
        {"entries": ("1",), "modalities": frozenset({"C*"})},
        {"entries": ("1",), "study_description": "a\\b"},
    ],
)
def test_a_selection_that_makes_no_sense_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Selection(**wrong)


@pytest.mark.parametrize(
    "text", ["MRN1\nMR*\n", "MRN1\nM?\n", "MRN1\na\\b\n", "MRN1\n" + "x" * 65, "\n\n", "MRN1\na\x07b"]
)
def test_a_list_with_wildcards_is_an_error_that_quotes_no_entry(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError) as error:
        read_entries(tmp_path / "list")
    assert "MRN1" not in str(error.value)


PART = b"\r\n--frontier\r\nContent-Type: application/dicom\r\n\r\nDATA\r\n--front!\r\nMORE\r\n--frontier--\r\n"


@given(st.lists(st.integers(0, len(PART)), max_size=12), st.integers(0, 2))
@settings(deadline=None)
def test_a_part_comes_whole_however_it_is_cut(cuts: list[int], skipped: int) -> None:
    edges = [skipped - skipped % 2, *sorted(max(cut, 2) for cut in cuts), len(PART)]
    pieces = [PART[a:b] for a, b in pairwise(edges)]
    assert b"".join(single_part(pieces, b"frontier")) == b"DATA\r\n--front!\r\nMORE"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (PART[:-12], Fault.BROKE_OFF),
        (PART[:60], Fault.BROKE_OFF),
        (b"", Fault.BROKE_OFF),
        (b"x" * 200_000, Fault.MALFORMED),
        (PART.replace(b"\r\n\r\nDATA", b"\r\nDATA" + b"h" * 200_000), Fault.MALFORMED),
        (PART.replace(b"frontier--", b"frontier\r\n\r\nsecond\r\n--frontier--"), Fault.MALFORMED),
        (PART.replace(b"--frontier\r\nC", b"--frontierX\r\nC"), Fault.MALFORMED),
    ],
)
def test_a_malformed_answer_is_missing(body: bytes, fault: Fault) -> None:
    with pytest.raises(Missing) as error:
        list(single_part([body[k : k + 65536] for k in range(0, len(body), 65536)], b"frontier"))
    assert error.value.fault == fault


@pytest.mark.parametrize(
    "text", ["", "text/html", "multipart/related", "multipart/related; boundary=", "multipart/mixed; boundary=a"]
)
def test_other_types_of_answers_are_failures_that_may_pass(text: str) -> None:
    with pytest.raises(Missing) as error:
        boundary_of(text)
    assert error.value.fault == Fault.FAILED
    assert boundary_of('Multipart/Related; type="application/dicom"; boundary="a b"') == b"a b"


def test_the_pace_is_kept() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(rate=4, clock=lambda: now[0], sleep=sleep)
    times = []
    for _ in range(9):
        pace.wait()
        times.append(now[0])
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.25] * 8)


def test_outside_the_hours_it_waits() -> None:
    clock, told = [datetime(2024, 1, 1, 17, 59)] * 3 + [datetime(2024, 1, 1, 19, 0)], []
    slept: list[float] = []
    Pace(rate=1, hours=(19, 6), sleep=slept.append, now=lambda: clock.pop(0), on_wait=told.append).wait()
    assert slept == [20, 20, 20] and told == [(19, 6)]
    assert [is_open((19, 6), datetime(2024, 1, 1, hour)) for hour in (18, 19, 23, 0, 5, 6)] == [0, 1, 1, 1, 1, 0]
    assert [is_open((8, 17), datetime(2024, 1, 1, hour)) for hour in (7, 8, 16, 17)] == [0, 1, 1, 0]
    assert read_hours("19-24") == (19, 0)
    for wrong in ("19", "19-25", "7-7", "a-b", "-1-5"):
        with pytest.raises(DataError):
            read_hours(wrong)


def test_nothing_takes_longer_than_within() -> None:
    started = time.monotonic()
    before = signal.getsignal(signal.SIGALRM)
    near, far = socket.socketpair()
    with near, far, pytest.raises(Late), within(0.2):
        near.recv(1)
    assert 0.1 < time.monotonic() - started < 2
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_line_ends_with_its_bytes_and_its_time() -> None:
    now = [0.0]
    near, far = socket.socketpair()
    with near, far:
        line = Line(near, timeout=1, clock=lambda: now[0])
        line.allow(seconds=10, size=5)
        far.sendall(b"12345678")
        assert (line.recv(100), line.recv(100), line.used_up) == (b"12345", b"", True)
        line.allow(seconds=10, size=100)
        now[0] = 11
        assert (line.recv(100), line.used_up) == (b"", False)
        line.allow(seconds=10, size=100)
        assert line.recv(100) == b"678"
        with pytest.raises(TimeoutError):
            line.recv(1)


# The folder


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    with Folder(path=tmp_path / "out") as folder:
        (folder.incoming / "image").write_bytes(b"x")
        folder.keep(folder.incoming / "image", instance())
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name.endswith(".dcm")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_folder_of_other_things_or_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(DataError, match="not empty"), Folder(path=tmp_path):
        pass
    with (
        Folder(path=tmp_path / "out"),
        pytest.raises(DataError, match="another pull"),
        Folder(path=tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize(
    "torn", [b'{"complete": "1.2.3/1.2.3.4", "ima', b"\xff\xfe", b"[]\n{}\n7\nnull\n", b'{"refused": "../../x/y"}\n']
)
def test_a_torn_journal_costs_questions_only(tmp_path: Path, torn: bytes) -> None:
    with Folder(path=tmp_path / "out") as folder:
        folder.finish(f"{STUDY}/{SERIES}", 1)
        folder.refuse(instance(), Fault.TOO_LARGE)
    with (tmp_path / "out" / "journal.jsonl").open("ab") as file:
        file.write(torn)
    with Folder(path=tmp_path / "out") as folder:
        assert folder.complete == {f"{STUDY}/{SERIES}": 1}
        assert folder.refused == {f"{STUDY}/{SERIES}": {SOPS[0]: Fault.TOO_LARGE}}
        folder.finish("1.9/1.9.1", 3)
    with Folder(path=tmp_path / "out") as folder:
        assert folder.complete["1.9/1.9.1"] == 3
