"""The page on loopback: what it shows while a run goes on, and what it answers to others."""

import http.client
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small import private_study, tiny_study

from common.study import Study
from server import folder, run_record, status_page
from server.events import EventLog
from server.folder import Folder
from server.run_record import Current
from simulations.loopback import free_ports


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Folder]:
    values = {"name": "test", "hosts": ["localhost"], "listen": "127.0.0.1", "port": 1, "colluding": 0, "min_sites": 2}
    values |= {"loopback": free_ports(4)}
    found = folder.found(tmp_path / "federation", tmp_path / "keys", values=values, now=1_800_000_000)
    with status_page.served(found):
        yield found


def asked(made: Folder, *, method: str = "GET", path: str = "/", host: str = "", mark: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", made.page, timeout=60)
    headers = {"Host": host or f"127.0.0.1:{made.page}"} | ({"If-None-Match": mark} if mark else {})
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def started(study: Study, **changes: Any) -> dict[str, Any]:
    return {
        "event": "started",
        "run": "r",
        "study": study.model_dump(mode="json", by_alias=True),
        "study_hash": study.sha256,
        "backend": "deployment",
        "sites": ["site-0", "site-1"],
        "nominal_patients": {},
        **changes,
    }


def closed(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "attempt": 1,
        "participants": ["site-0"],
        "absent": {"site-1": "refused:budget"},
        "metrics": {"val": {"auc": 0.75, "loss": 0.5, "images": 4}},
        "bytes_up": {"site-0": 2_000_000},
        "bytes_down": {"site-0": 3_000_000},
        "seconds": {"train": 1.0, "sites": {"site-0": 1.0}},
        "audit": {"site-0": f"{7 * number}-" + "ab" * 32},
        **changes,
    }


def test_before_a_run_it_says_so(made: Folder) -> None:
    status, text = asked(made)
    assert status == 200 and "No run has begun yet" in text


def test_a_run_as_it_goes(made: Folder, tmp_path: Path) -> None:
    study = tiny_study(study={"name": "shown", "rounds": 3})
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=3))
    assert "No run has begun yet" in asked(made)[1]
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(started(study))
        text = asked(made)[1]
        assert "shown" in text and "round 1 of 3 is open" in text and "not asked yet" in text
        assert "Round by round" not in text  # no curves without a round
        log.append(closed(1))
        text = asked(made)[1]
        assert (
            "Round by round" in text
            and "round 2 of 3 is open" in text
            and "privacy budget is spent" in text
            and "7-abababab" in text
        )
        assert "5.0\u202fMB" in text and "policy.round_bytes" in text and "0.750" in text
        log.append({"event": "retry", "round": 2, "attempt": 1, "absent": {"site-0": "late", "site-1": "offline"}})
        text = asked(made)[1]
        assert "attempt 2" in text and "too late with its answer" in text
        log.append({"event": "stopped", "reason": "the disk is full"})
        text = asked(made)[1]
        assert "The run stopped: the disk is full" in text and 'data-on="stopped"' in text


def test_epsilon_is_shown_as_it_is_spent(made: Folder, tmp_path: Path) -> None:
    study = private_study(study={"name": "private"})
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=2))
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(started(study, nominal_patients={"site-0": 20, "site-1": 20}))
        log.append(closed(1, metrics={"val": {}}))
    text = asked(made)[1]
    assert "Epsilon spent" in text and "of 8" in text and "at least, at the site that spent most" in text


def test_a_page_that_has_not_changed_is_not_sent_again(made: Folder) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", made.page, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    assert asked(made, mark=answer.headers["ETag"]) == (304, "")
    assert asked(made, mark='"another"')[0] == 200
    assert "script-src 'sha256-" in answer.headers["Content-Security-Policy"]
    assert "unsafe-inline'; script" not in answer.headers["Content-Security-Policy"].replace("style-src", "")
    connection.close()


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def hostile(out: Path) -> None:
    """A run whose study and sites name themselves as an attacker would, as far as a damaged log can."""
    values = started(tiny_study())
    values["study"]["study"] |= {"name": HOSTILE, "classes": [HOSTILE, "b"]}
    values |= {"sites": [HOSTILE, "site-1"], "run": HOSTILE}
    with EventLog(out / "events.jsonl") as log:
        log.append(values)
        audit = {HOSTILE: HOSTILE}
        log.append(closed(1, participants=["site-1"], absent={HOSTILE: HOSTILE}, audit=audit))
        log.append({"event": "stopped", "reason": HOSTILE})


def test_whatever_a_log_says_is_text(made: Folder, tmp_path: Path) -> None:
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=2))
    hostile(tmp_path)
    text = asked(made)[1]
    assert "owned" in text and "can't be shown" not in text
    assert text.count("<script>") == 1 and "<img" not in text and "document.title='owned'" not in text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium: pages are opened in a real browser alone there"
)


def seen(made: Folder, home: Path, *, seconds: int) -> str:
    """The page as a browser has it after so many seconds of its own time."""
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={home / 'profile'}"),
        f"--virtual-time-budget={1000 * seconds}",
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", f"http://127.0.0.1:{made.page}/"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HOME": str(home), "NO_PROXY": "127.0.0.1"},
        check=False,
    )
    return done.stdout


@pytest.mark.e2e
@needs_browser
def test_a_browser_that_has_the_page_open_sees_rounds_as_they_close(
    made: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=3))
    log, sent, page = EventLog(tmp_path / "events.jsonl"), [], status_page._Pages.now
    log.append(started(tiny_study(study={"rounds": 3})))

    def now(pages: Any) -> str:
        """The page; after it was sent, the next round closes."""
        text = page(pages)
        sent.append(text)
        if len(sent) <= 2:
            log.append(closed(len(sent)))
        return text

    monkeypatch.setattr(status_page._Pages, "now", now)
    found = seen(made, tmp_path, seconds=12)
    log.close()
    assert "round 1 of 3 is open" in sent[0] and "2 of 3" not in sent[0]
    assert 'id="live"' in found and "round 3 of 3 is open, since" in found  # the strip, by the script
    assert "2 of 3" in found and "privacy budget is spent" in found and found.count("<svg") >= 3


@pytest.mark.e2e
@needs_browser
def test_no_text_of_a_run_becomes_a_script_in_a_browser(made: Folder, tmp_path: Path) -> None:
    run_record.remember(made, Current(run=1, out=str(tmp_path), rounds=2))
    hostile(tmp_path)
    found = seen(made, tmp_path, seconds=6)
    assert 'id="live"' in found and "<title>owned" not in found and "<img" not in found


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
