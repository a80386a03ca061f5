"""`client pull` as a person calls it: exit codes, interruption, secrets, and nothing that names a patient."""

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pull_cases import FETCHES, NAME, SOPS, STUDY, Web, files, image, part, served
from typer.testing import CliRunner

from client.__main__ import app
from client.pull import run
from common.errors import FederationError


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(Web()) as found:
        yield found


def command(*words: str | Path) -> tuple[int, str]:
    """Exit code and all that is printed."""
    found = CliRunner().invoke(app, ["pull", *map(str, words), "--rate", "1000"])
    assert found.exception is None or isinstance(found.exception, SystemExit | FederationError), found.exception
    error = str(found.exception) if isinstance(found.exception, FederationError) else ""
    return found.exit_code, found.output + error


MAY = ("--from", "2024-05-01", "--to", "2024-05-01")


def test_the_exit_code_says_how_it_ended_and_no_identifier_is_printed(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "PAUSES", (0.0,))
    caplog.set_level(logging.DEBUG)
    (tmp_path / "list").write_text("P1\n")
    out = tmp_path / "out"
    printed = []
    code, text = command(web.url, *MAY, "--out", out)
    assert code == 0 and "fetched" in text and "--out SITE" in text
    printed.append(text)
    code, text = command(web.url, "--patients", tmp_path / "list", "--out", out, "--json")
    assert code == 0 and json.loads(text)["present"] == 5 and json.loads(text)["complete"] is True
    printed.append(text)
    (tmp_path / "more").write_text("P1\nP2\n")
    for also in (("--out", out), ("--list",)):
        code, text = command(web.url, "--patients", tmp_path / "more", *also, "--json")
        assert code == 3 and json.loads(text)["absent"] == 1 and not json.loads(text).get("complete")
        code, text = command(web.url, "--patients", tmp_path / "more", *also)
        assert code == 3 and "1 of the list" in text
        printed.append(text)
    web.series["00201209"] = 8
    code, text = command(web.url, *MAY, "--out", out, "--json")
    assert code == 3 and json.loads(text)["failed"] == {"not_listed": 3} and json.loads(text)["complete"] is False
    code, text = command(web.url, *MAY, "--out", out)
    assert code == 3 and "missing: not listed" in text and "LimitFindInstances" in text and "Run it again" in text
    printed.append(text)
    web.sops, web.series["00201209"] = [*SOPS, "1.2.3.4.9"], 6
    web.fetch = FETCHES["an error"][0]
    code, text = command(web.url, *MAY, "--out", out, "--json")
    assert code == 3 and json.loads(text)["failed"] == {"failed": 1} and json.loads(text)["complete"] is False
    printed.append(text)
    web.fetch = FETCHES["another image"][0]
    code, text = command(web.url, *MAY, "--out", out)
    assert code == 3 and "refused: wrong uid" in text
    printed.append(text)
    code, text = command(web.url, *MAY, "--modality", "MR", "--out", tmp_path / "none")
    assert code == 4
    code, text = command(web.url, *MAY, "--list")
    assert code == 0 and "2024" in text and "CT" in text
    printed.append(text)
    code, text = command(web.url, *MAY)
    assert code == 1 and "--out is missing" in text
    everything = "".join(printed) + caplog.text.replace(str(tmp_path), "")
    assert not any(name in everything for name in (NAME, "MRN77", "P1", STUDY, *SOPS))


def test_a_question_without_an_answer_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSES", (0.0,))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, hung_up = server.getsockname()[1], threading.Event()

        def hang_up() -> None:
            while not hung_up.is_set():
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            for what in (("--out", tmp_path / "out"), ("--list",)):
                code, text = command(f"http://127.0.0.1:{port}/dicom-web", *MAY, *what)
                assert code == 3 and "1 question had no answer (1 with no connection" in " ".join(text.split())
        finally:
            hung_up.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()
    code, text = command(f"http://127.0.0.1:{port}/dicom-web", *MAY, "--list")
    assert code == 1 and f"127.0.0.1:{port}: no connection" in text


def test_an_interrupted_run_says_what_it_did(web: Web, tmp_path: Path) -> None:
    def interrupting(handler: BaseHTTPRequestHandler, sop: str) -> None:
        if sop == SOPS[3]:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        part(handler, image(sop))

    web.fetch = interrupting
    code, text = command(web.url, *MAY, "--out", tmp_path / "out", "--json")
    assert code == 130 and json.loads(text)["fetched"] == 3 and json.loads(text)["complete"] is False
    assert files(tmp_path / "out") == SOPS[:3]


def test_a_secret_is_read_from_a_file_or_the_environment(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    assert command(web.url, *MAY, "--list", "--token-file", tmp_path / "token")[0] == 0
    assert web.headers[-1]["Authorization"] == "Bearer t0ken"
    monkeypatch.setenv("FEDWARD_PACS_LOGIN", "u:p:q")
    assert command(web.url, *MAY, "--list")[0] == 0
    assert web.headers[-1]["Authorization"] == "Basic dTpwOnE="
    monkeypatch.setenv("FEDWARD_PACS_LOGIN", "secretword")
    code, text = command(web.url, *MAY, "--list")
    assert code == 1 and "secretword" not in text
