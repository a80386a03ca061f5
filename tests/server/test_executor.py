"""The server's executor: one at a time in a folder, and nothing but studies is run."""

import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskResponse, PullTaskInputResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.run import RunNotRunningException

from common.errors import RunError
from server import executor

HOLDER = """
import sys, threading, types
from pathlib import Path
from server.executor import alone
with alone(types.SimpleNamespace(path=Path(sys.argv[1])), stop=threading.Event()):
    print("mine", flush=True)
    sys.stdin.read()
"""


def refused(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=httpx.Request("POST", "http://x"), response=httpx.Response(status))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "POLL", 0.05)


def test_a_second_executor_waits_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = SimpleNamespace(path=tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == b"mine\n"
        entered = threading.Event()

        def enter() -> None:
            with executor.alone(folder, stop=threading.Event()):  # type: ignore[arg-type]
                entered.set()

        second = threading.Thread(target=enter, daemon=True)
        second.start()
        time.sleep(0.5)
        assert not entered.is_set()
        first.kill()
        assert entered.wait(10)
        second.join(10)


def test_one_that_is_told_to_stop_does_not_wait(tmp_path: Path) -> None:
    folder, stop = SimpleNamespace(path=tmp_path), threading.Event()
    with executor.alone(folder, stop=threading.Event()):  # type: ignore[arg-type]
        stop.set()
        with executor.alone(folder, stop=stop):  # type: ignore[arg-type]
            pass


class Link:
    """A SuperLink's Runtime API that has one task to give."""

    def __init__(self, kind: str, stop: threading.Event) -> None:
        self.called: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self._kind, self._stop = kind, stop

    def claiming(self) -> AbstractContextManager["Link"]:
        return nullcontext(self)

    def working(self, token: str) -> AbstractContextManager["Link"]:
        assert token == "token"
        return nullcontext(self)

    def AcquireTask(self, request: Any) -> AcquireTaskResponse:
        assert self._kind in request.supported_task_types
        found = AcquireTaskResponse(token="token")
        found.task.type = self._kind
        return found

    def SendTaskHeartbeat(self, _request: Any) -> None:
        """Not looked at."""

    def PullTaskInput(self, _request: Any) -> PullTaskInputResponse:
        self.called.append("PullTaskInput")
        return PullTaskInputResponse()

    def PushTaskOutput(self, request: Any) -> None:
        self.ended.append((request.sub_status, request.details))
        self._stop.set()


@pytest.mark.parametrize("kind", [kind for kind in TaskType if kind != TaskType.SERVER_APP])
def test_a_run_of_any_other_type_ends_as_failed_and_its_input_is_not_even_fetched(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_args: object) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(executor, "app", called)
    stop = threading.Event()
    link = Link(kind, stop)
    executor.work(link, stop=stop)  # type: ignore[arg-type]
    assert link.ended == [("failed", "only studies are run here")] and link.called == []


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RunNotRunningException(), ("stopped", "")),
        (refused(401), ("stopped", "")),
        (refused(500), ("failed", "see the executor's log")),
        (RunError("too few sites"), ("failed", "too few sites")),
        (ValueError("a name"), ("failed", "see the executor's log")),
    ],
)
def test_how_a_run_ended_is_said_to_flower(
    raised: BaseException, said: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def app(_grid: object, _context: object) -> None:
        raise raised

    monkeypatch.setattr(executor, "app", app)
    assert executor._carry_out(None, SimpleNamespace(run_id=1)) == said  # type: ignore[arg-type]
