"""The page on loopback: what it shows while a run goes on, and what it answers to others."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import free_ports
from small import tiny_study

from server import folder, run_record, status_page
from server.events import EventLog
from server.folder import Folder
from server.run_record import Current


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Folder]:
    values = {"name": "test", "hosts": ["localhost"], "listen": "127.0.0.1", "port": 1, "colluding": 0, "min_sites": 2}
    values |= {"loopback": free_ports(4)}
    found = folder.found(tmp_path / "federation", tmp_path / "keys", values=values, now=1_800_000_000)
    with status_page.served(found):
        yield found


def asked(made: Folder, *, method: str = "GET", path: str = "/", host: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", made.page, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{made.page}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_before_a_run_it_says_so(made: Folder) -> None:
    status, text = asked(made)
    assert status == 200 and "No run has begun yet" in text


def test_a_run_as_it_goes(made: Folder, tmp_path: Path) -> None:
    study = tiny_study(study={"name": "shown"})
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=2))
    assert "No run has begun yet" in asked(made)[1]
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(
            {
                "event": "started",
                "run": "r",
                "study": study.model_dump(mode="json", by_alias=True),
                "study_hash": study.sha256,
                "backend": "deployment",
                "sites": ["site-0", "site-1"],
                "nominal_patients": {},
            }
        )
        assert "shown" in asked(made)[1]
        log.append(
            {
                "event": "round",
                "round": 1,
                "attempt": 1,
                "participants": ["site-0"],
                "absent": {"site-1": "refused:budget"},
                "metrics": {"val": {"auc": 0.75, "loss": 0.5, "images": 4}},
                "bytes_up": {"site-0": 10},
                "bytes_down": {"site-0": 10},
                "seconds": {"train": 1.0, "sites": {"site-0": 1.0}},
            }
        )
        text = asked(made)[1]
    assert "site-1" in text and "budget" in text and "<script" not in text


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/x", "", 404),
        ("GET", "/", "evil.example.org", 404),
        ("GET", "/", "127.0.0.1", 404),
        ("POST", "/", "", 501),
        ("GET", "/../../etc/passwd", "", 404),
    ],
)
def test_nothing_else_is_answered(made: Folder, method: str, path: str, host: str, status: int) -> None:
    assert asked(made, method=method, path=path, host=host)[0] == status


def test_a_damaged_log_is_a_line_and_not_an_end(made: Folder, tmp_path: Path) -> None:
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=2))
    (tmp_path / "events.jsonl").write_text("nonsense\n")
    assert "can't be shown" in asked(made)[1].replace("&#39;", "'")
