"""The event log: on disk when `append` returns, whole lines only, and a summary that is a function of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from small import full_disk

from common.errors import RunError
from server.events import EventLog, effective, read, summary

STARTED = {
    "event": "started", "time": 0.0, "run": "r", "study": {"study": {"name": "xray"}}, "study_hash": "h",
    "backend": "inprocess", "sites": ["site-0", "site-1"],
}  # fmt: skip


def a_round(number: int, auc: float | None = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "event": "round", "time": float(number), "round": number, "attempt": 1, "participants": ["site-0"],
        "absent": {"site-1": "offline"}, "metrics": {"val": {"auc": auc}}, "bytes_up": {"site-0": 3},
        "bytes_down": {"site-0": 4}, "seconds": {"train": 1.0}, **more,
    }  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_what_is_appended_is_read_in_order_also_by_a_second_writer(path: Path) -> None:
    with EventLog(path) as log:
        log.append(STARTED)
        log.append(a_round(1))
    with EventLog(path) as log:
        log.append({"event": "finished", "time": 9.0})
    assert read(path) == [STARTED, a_round(1), {"event": "finished", "time": 9.0}]


def test_an_event_is_one_line_whatever_its_text(path: Path) -> None:
    with EventLog(path) as log:
        log.append({"event": "stopped", "time": 1.0, "reason": "a\nb\u2028c \ud800"})
    assert path.read_bytes().count(b"\n") == 1
    assert read(path)[0]["reason"] == "a\nb\u2028c \ud800"


def test_time_is_now_unless_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.events.time.time", lambda: 12.5)
    with EventLog(path) as log:
        log.append({"event": "finished"})
        log.append({"event": "finished", "time": 1.0})
    assert [event["time"] for event in read(path)] == [12.5, 1.0]


@pytest.mark.parametrize("torn", [b'{"event":"rou', b'{"event":"finished","time":1}', b"\xff\x00"])
def test_a_torn_last_line_is_left_out_before_and_after_it_is_closed(path: Path, torn: bytes) -> None:
    with EventLog(path) as log:
        log.append(STARTED)
    with path.open("ab") as file:
        file.write(torn)
    assert read(path) == [STARTED]
    with EventLog(path) as log:
        assert read(path) == [STARTED]
        log.append(a_round(1))
    assert read(path) == [STARTED, a_round(1)]
    assert torn + b"\n" in path.read_bytes()  # lines never change


def test_a_line_that_no_crash_explains_is_refused_with_its_number(path: Path) -> None:
    path.write_bytes(json.dumps(STARTED).encode() + b'\n{"event"\n' + json.dumps(STARTED).encode() + b"\n")
    with pytest.raises(RunError, match="line 2 "):
        read(path)


@pytest.mark.parametrize("line", [b"3", b"[]", b"{}", b'{"event":7}'])
def test_a_line_that_is_no_event_is_refused(path: Path, line: bytes) -> None:
    path.write_bytes(line + b"\n")
    with pytest.raises(RunError, match="line 1 "):
        read(path)


def test_a_missing_log_is_one_clear_line(path: Path) -> None:
    with pytest.raises(RunError, match=r"can't be read.*folder of a run"):
        read(path)
    with pytest.raises(RunError, match="can't be opened"):
        EventLog(path / "no" / "folder")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_is_not_plain_json_is_refused_and_nothing_is_written(path: Path, value: Any) -> None:
    with EventLog(path) as log:
        with pytest.raises(RunError, match="'round' is not plain JSON"):
            log.append({"event": "round", "metrics": value})
        log.append(STARTED)
    assert read(path) == [STARTED]


def test_a_full_disk_is_an_error_of_one_line_and_the_log_can_be_opened_again(path: Path) -> None:
    with full_disk(100):
        log = EventLog(path)
        log.append({"event": "a", "time": 0})
        for attempt in ("can't be written", "closed"):
            with pytest.raises(RunError, match=attempt) as caught:
                log.append({"event": "long", "text": "x" * 100})
            assert "\n" not in str(caught.value)
    assert path.stat().st_size == 100  # torn
    assert read(path) == [{"event": "a", "time": 0}]


def test_after_a_full_disk_the_log_goes_on_when_there_is_room(path: Path) -> None:
    with full_disk(50), EventLog(path) as log, pytest.raises(RunError):
        log.append({"event": "long", "text": "x" * 100})
    with EventLog(path) as log:
        log.append({"event": "a", "time": 0})
    assert read(path) == [{"event": "a", "time": 0}]


def test_an_event_is_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with EventLog(path) as log:
        real = __import__("os").write
        monkeypatch.setattr("server.events.os.write", lambda *a: calls.append("write") or real(*a))
        monkeypatch.setattr("server.events.os.fsync", lambda _: calls.append("fsync"))
        log.append(STARTED)
    assert calls == ["write", "fsync"]


def test_a_resumed_run_voids_later_rounds_and_its_old_end() -> None:
    final = {"event": "final", "val": {}, "test": {}}
    retry = {"event": "retry", "round": 3, "attempt": 1, "absent": {}}
    events = [STARTED, a_round(1), a_round(2, 0.1), retry, a_round(3), final, {"event": "stopped", "reason": ""}]
    events += [{"event": "resumed", "round": 1}, a_round(2, 0.9)]
    assert effective(events) == [STARTED, a_round(1), {"event": "resumed", "round": 1}, a_round(2, 0.9)]
    found = summary(events)
    assert [(r["round"], r["metrics"]["val"]["auc"]) for r in found["rounds"]] == [(1, 0.5), (2, 0.9)]
    assert found["final"] == {}


def test_a_second_start_voids_all_before_it() -> None:
    assert effective([STARTED, a_round(1), STARTED, a_round(1, 0.7)]) == [STARTED, a_round(1, 0.7)]


def test_the_summary_is_what_architecture_says_from_events_alone() -> None:
    final = {"event": "final", "time": 5.0, "val": {"auc": None}, "test": {"auc": 0.9}}
    found = summary([STARTED, a_round(1, None), final, {"event": "finished", "time": 6.0}])
    assert found == {
        "schema": 1,
        "study": {"name": "xray", "hash": "h"},
        "backend": "inprocess",
        "rounds": [
            {
                "round": 1, "participants": ["site-0"], "absent": {"site-1": "offline"},
                "metrics": {"val": {"auc": None}}, "bytes_up": {"site-0": 3}, "bytes_down": {"site-0": 4},
                "seconds": {"train": 1.0},
            }
        ],
        "final": {"val": {"auc": None}, "test": {"auc": 0.9}},
    }  # fmt: skip


def test_a_log_without_a_start_is_refused() -> None:
    for events in ([], [a_round(1)]):
        with pytest.raises(RunError, match="no start"):
            summary(events)
