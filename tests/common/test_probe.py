"""common.probe: what a container's health check asks."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from common import probe

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """A gRPC health endpoint that always answers the same."""
    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health",
        {"Check": grpc.unary_unary_rpc_method_handler(lambda _request, _context: request.param)},
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def process(folder: Path, number: int, *words: str) -> None:
    """An entry of /proc."""
    (folder / str(number)).mkdir()
    (folder / str(number) / "cmdline").write_bytes("".join(f"{word}\0" for word in words).encode())


@pytest.mark.parametrize("endpoint", [SERVING], indirect=True)
def test_an_endpoint_that_serves_and_processes_that_run_are_up(endpoint: str, tmp_path: Path) -> None:
    process(tmp_path, 7, "python", "-P", "-m", "client.worker", "/site")
    assert probe.missing(endpoint, ["client.worker"], processes=tmp_path) == []
    assert probe.missing(endpoint, ["client.worker", "server.gate"], processes=tmp_path) == ["server.gate"]


@pytest.mark.parametrize("endpoint", [NOT_SERVING], indirect=True)
def test_an_endpoint_that_says_something_else_is_not_up(endpoint: str, tmp_path: Path) -> None:
    assert probe.missing(endpoint, [], processes=tmp_path) == [endpoint]


def test_a_module_that_is_only_spoken_of_is_not_taken_for_running(tmp_path: Path) -> None:
    process(tmp_path, 7, "python", "-P", "-m", "common.probe", "127.0.0.1:1", "client.worker")
    process(tmp_path, 8, "tail", "client.worker")
    process(tmp_path, 9, "python", "-m")
    (tmp_path / "10").mkdir()
    assert probe.missing("127.0.0.1:1", ["client.worker"], processes=tmp_path) == ["127.0.0.1:1", "client.worker"]


@pytest.mark.parametrize("endpoint", [SERVING], indirect=True)
def test_the_command_says_what_is_not_up_and_its_exit_code_too(endpoint: str) -> None:
    command = [sys.executable, "-P", "-m", "common.probe", endpoint]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    done = subprocess.run([*command, "no.such_module"], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "not up: no.such_module\n")
