"""Watched processes: started again with longer and longer waits, ended together, and with their owner."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common import processes
from common.processes import Program, Watch


def program(folder: Path, code: str, *, name: str = "test") -> Program:
    return Program(name=name, command=(sys.executable, "-c", code), log=folder / f"{name}.log", environment={"X": "1"})


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def until(true: object, *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_program_that_ends_is_started_again_after_longer_and_longer_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(processes, "LONGEST_WAIT", 0.3)
    said: list[str] = []
    watch = Watch([program(tmp_path, "print('begun')")], say=said.append)
    until(lambda: watch.look() or len(said) >= 5)
    watch.end()
    assert (tmp_path / "test.log").read_text().count("begun") >= 4
    waits = [line.split("again in ")[1].split(" s")[0] for line in said]
    assert len(waits) >= 5 and watch.pids() == {}


def test_all_end_together_and_who_does_not_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 1.0)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    watch = Watch([program(tmp_path, deaf, name="deaf"), program(tmp_path, "import time; time.sleep(60)")], say=print)
    watch.look()
    pids = watch.pids()
    until(lambda: "up" in (tmp_path / "deaf.log").read_text())
    watch.end()
    assert len(pids) == 2 and all(gone(pid) for pid in pids.values())


def test_a_log_that_grows_while_its_process_runs_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOG_LIMIT", 10_000)
    talk = "import time\nfor n in range(10**6): print(n, 'x' * 500, flush=True); time.sleep(0.01)"
    watch, log = Watch([program(tmp_path, talk)], say=print), tmp_path / "test.log"
    most, kept = 0, set[str]()

    def look() -> bool:
        nonlocal most
        watch.look()
        most = max(most, log.stat().st_size)
        old = log.with_suffix(".old")
        kept.update(old.read_text().split()[:1] if old.exists() else ())
        return len(kept) >= 3

    try:
        until(look)
        assert most < 60_000 and not log.read_bytes().startswith(b"\0")  # the process writes at the new end
    finally:
        watch.end()


def test_a_child_ends_with_its_owner(tmp_path: Path) -> None:
    child = "from common import processes; import time; processes.follow_owner(); time.sleep(60)"
    code = f"""
import sys, time
from pathlib import Path
from common.processes import Program, Watch
watch = Watch([Program(name="c", command=(sys.executable, "-c", {child!r}), log=Path({str(tmp_path / "c.log")!r}),
                       environment={{}})], say=print)
watch.look()
print(watch.pids()["c"], flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(processes.__file__).parent.parent
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    time.sleep(1.5)
    assert not gone(pid)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    until(lambda: gone(pid))


@pytest.mark.slow
def test_a_flower_command_runs_within_its_memory_and_ends_with_its_main_thread(tmp_path: Path) -> None:
    environment = {**os.environ, **processes.quiet_flower()}
    said = subprocess.run(
        processes.flower("flower-supernode", "--version"), capture_output=True, text=True, env=environment, timeout=60
    )
    assert said.returncode == 0 and "1.41" in said.stdout
    tight = subprocess.run(
        processes.flower("flower-supernode", "--version", memory=200 * 2**20),
        capture_output=True,
        env=environment,
        timeout=60,
    )
    assert tight.returncode != 0


def test_nobody_serves_where_nobody_listens() -> None:
    assert not processes.serving("127.0.0.1:1", timeout=0.5)


def test_loopback_never_goes_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example.org")
    assert processes.quiet_flower()["NO_PROXY"] == "intranet.example.org,127.0.0.1,localhost"


def test_a_port_that_is_taken_is_named_and_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = f"127.0.0.1:{door.getsockname()[1]}"
        assert processes.taken((address,)) == [address]
        threading.Timer(0.4, door.close).start()
        assert processes.taken((address,), patience=20.0) == []
    assert processes.taken(("127.0.0.1:0", "[::1]:0")) == []


def test_an_address_that_is_not_this_machines_is_named_with_the_reason() -> None:
    assert processes.refused(("127.0.0.1:0", "0.0.0.0:0")) is None
    address, why = processes.refused(("127.0.0.1:0", "192.0.2.1:9092")) or ("", "")
    assert address == "192.0.2.1:9092" and why
    assert (processes.refused(("nowhere.invalid:9092",)) or ("",))[0] == "nowhere.invalid:9092"
    assert processes.taken(("192.0.2.1:9092",)) == []
