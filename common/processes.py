"""Processes that are watched: started, kept running, ended together. The one place in `common` that does anything.

`server up` and `client up` each own a few processes, Flower's among them. A process that ends is started again, each
time after a longer wait; when the one that owns them is gone, however it went, they end too.
"""

import contextlib
import errno
import importlib.metadata
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a process is started again: doubled each time
SETTLED = 60.0  # seconds after which a process counts as running well
GRACE = 10.0  # seconds that a process has to end by itself
LOOPBACK = "127.0.0.1"

_PARENT = "FEDWARD_PARENT"  # environment: the process without which a child is not to live
_SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse with status SERVING
_LOG_LIMIT = 10 * 2**20  # bytes of a log from which on it is set aside

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command, its log (what it prints), and what it finds in its environment besides ours."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]


class Watch:
    """Programs that run until `end`. `look` starts again those that have ended; call it a few times a second.

    Guarantees: a program that keeps ending is started at most once a minute after the first few times; after `end` none
    of them runs; a log and the one set aside before it have about 10 MiB each.
    """

    def __init__(self, programs: Sequence[Program], *, say: Say) -> None:
        self._say = say
        self._kept = [_Kept(program) for program in programs]

    def look(self) -> None:
        for kept in self._kept:
            kept.look(self._say)

    def end(self) -> None:
        """All are asked to end, the last started first; who hasn't after GRACE seconds is killed."""
        running = [kept for kept in reversed(self._kept) if kept.process is not None]
        for kept in running:
            kept.ask_to_end()
        deadline = time.monotonic() + GRACE
        for kept in running:
            kept.wait(max(0.0, deadline - time.monotonic()))

    def pids(self) -> dict[str, int]:
        """Numbers of the processes that run, by name."""
        return {kept.program.name: kept.process.pid for kept in self._kept if kept.process is not None}


class _Kept:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self._wait, self._started, self._next = FIRST_WAIT, 0.0, 0.0

    def look(self, say: Say) -> None:
        now = time.monotonic()
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                _bound(self.program.log)
                return
            self.process = None
            self._wait = FIRST_WAIT if now - self._started > SETTLED else min(2 * self._wait, LONGEST_WAIT)
            self._next = now + self._wait
            say(f"{self.program.name} ended ({code}); again in {self._wait:.0f} s; see {self.program.log}")
        if now >= self._next:
            self.process, self._started = _start(self.program), now

    def ask_to_end(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self, seconds: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def _bound(log: Path) -> None:
    """Set a long log aside. Its process goes on writing into the same file, always at its end: the file is emptied, and
    a line that comes between is lost.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_LIMIT:
            shutil.copyfile(log, log.with_suffix(".old"))
            os.truncate(log, 0)


def _start(program: Program) -> subprocess.Popen[bytes]:
    program.log.parent.mkdir(parents=True, exist_ok=True)
    _bound(program.log)
    with program.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - commands that `python` and `flower` below make
            program.command,
            env={**os.environ, **program.environment, _PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the owner, who ends them in order
        )


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this installation, with nothing of the current directory on its path."""
    return (sys.executable, "-P", "-m", module, *arguments)


def flower(command: str, *arguments: str, memory: int = 0, module: str = "common.processes") -> tuple[str, ...]:
    """The command that runs one of Flower's, bound to its owner; with `memory`, in at most so many bytes. `module` is
    one that ends in `run_flower`.
    """
    return python(module, str(memory), command, *arguments)


def quiet_flower() -> dict[str, str]:
    """Environment of Flower's processes: no telemetry, no look for updates, loopback never by a proxy."""
    environment = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return environment | direct_loopback()


def direct_loopback() -> dict[str, str]:
    """Environment in which loopback is never reached by a proxy."""
    found = {}
    for name in ("NO_PROXY", "no_proxy"):
        set_already = [part for part in os.environ.get(name, "").split(",") if part]
        found[name] = ",".join(dict.fromkeys([*set_already, LOOPBACK, "localhost"]))
    return found


def follow_owner() -> None:
    """In a process that a Watch started: end when its owner is gone. Does nothing elsewhere."""
    owner = os.environ.get(_PARENT, "")
    if not owner:
        return

    def follow() -> None:
        while os.getppid() == int(owner):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=follow, name="owner", daemon=True).start()


def serving(address: str, *, timeout: float = 2.0) -> bool:
    """Whether the gRPC health endpoint at host:port says SERVING.

    Source: gRPC Health Checking Protocol, grpc.health.v1.Health/Check, of the server as a whole.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            return bool(check(b"", timeout=timeout) == _SERVING)
        except grpc.RpcError:
            return False


def taken(addresses: Sequence[str], *, patience: float = 0.0) -> list[str]:
    """Those of these host:port on which another program listens still after `patience` seconds: what ran before may be
    about to end.
    """
    until = time.monotonic() + patience
    while (found := [address for address in addresses if not _free(address)]) and time.monotonic() < until:
        time.sleep(0.25)
    return found


def refused(addresses: Sequence[str]) -> tuple[str, str] | None:
    """The first of these host:port on which this machine lets nobody listen, and why: a name or an address that is not
    its own, a port that only the administrator may open.
    """
    for address in addresses:
        if (fault := _fault(address)) is not None:
            return address, fault.strerror or str(fault)
    return None


def _free(address: str) -> bool:
    fault = _fault(address)
    return fault is None or fault.errno != errno.EADDRINUSE


def _fault(address: str) -> OSError | None:
    """What keeps a program from listening on host:port."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            return error
    return None


@contextlib.contextmanager
def stopped_by_signals(*numbers: signal.Signals) -> Iterator[threading.Event]:
    """An event that these signals set, SIGINT and SIGTERM if none is named, so that a loop can end in order."""
    stop = threading.Event()
    numbers = numbers or (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_flower(memory: int, command: str, arguments: Sequence[str]) -> None:
    """Become one of Flower's commands. Its main thread may end while others of it go on, and it would then neither work
    nor be missed: here the process ends with its main thread.
    """
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    follow_owner()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    code = 1
    try:
        code = 0 if entry.load()() is None else 1
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    run_flower(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
