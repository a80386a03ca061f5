"""A whole federation on this machine, with the commands that operators type: the proof for a newcomer that it works.

One server and four hospitals, each its own processes, over TLS on loopback; made-up DICOM archives; a study with
patient-level privacy and encrypted updates. Everything is stopped at the end, whatever happens.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from common.errors import RunError
from common.study import load
from simulations.datasets import materialise, parse_spec

Say = Callable[[str], None]
SITES = 4  # with three, encrypted sums of at least three sites could lose none
PATIENTS = 60  # of each
_STUDY = Path(__file__).parent / "studies" / "demo-private.toml"
_PATIENCE = 600.0  # seconds for the run


def federation(out: Path, *, say: Say) -> Path:
    """Bring up the federation in `out`, train, stop it; the folder of the run. Raises RunError, one line."""
    if out.exists():
        raise RunError(f"{out}: is there already; choose another --out")
    first = free_ports(4 + 2 * SITES)
    home, keys, study = out / "server", out / "coordinator-keys", load(_STUDY)
    sites = [out / f"hospital-{number}" for number in range(SITES)]
    say("The coordinator makes the federation")
    where = ("--host", "localhost", "--listen", "127.0.0.1", "--port", first, "--loopback", first + 1)
    _do("server", "init", home, "--keys", keys, *where, "--min-sites", 3, "--colluding", 1)
    for number, site in enumerate(sites):
        say(f"{site.name}: archive, index, privacy ledger, keys")
        _, archive = materialise(parse_spec(f"phantom:{PATIENTS}"), out / "archives" / site.name, seed=number)
        _do("client", "index", archive, "--out", site, "--quiet")
        _do("client", "ledger", "create", site, "--epsilon", 12, "--nominal-patients", PATIENTS)
        own = ("--name", site.name, "--patients", PATIENTS, "--loopback", first + 4 + 2 * number)
        _do("client", "init", site, *own)
    say("The coordinator signs the roster; each hospital compares its fingerprint and joins")
    _do("server", "add-site", *(site / "request.json" for site in sites), "--folder", home)
    _do("server", "sign", "--keys", keys, "--folder", home)
    for site in sites:
        ca = ("--ca", home / "ca.pem", "--server", f"localhost:{first}", "--yes")
        _do("client", "join", site, home / "roster.json", *ca)
    run = out / "run"
    with ExitStack() as stack:
        stack.enter_context(_running(out / "server.log", "server", "up", "--folder", home))
        for site in sites:
            stack.enter_context(_running(out / f"{site.name}.log", "client", "up", site))
        say("Server and hospitals are up; the coordinator starts the study")
        start = ("server", "run", _STUDY, "--folder", home, "--out", run, "--detach")
        until(lambda: _can(*start), "the server", seconds=120)
        for site in sites:
            approve = partial(_can, "client", "approve", site, study.sha256)
            until(approve, f"{site.name} to see it", seconds=180)
            say(f"{site.name}: read and approved")
        until(lambda: _ended(run), "the run to end", seconds=_PATIENCE)
    if not (run / "model.safetensors").exists():
        raise RunError(f"{run}: the run stopped; its events.jsonl says why")
    return run


def _do(*words: object) -> str:
    """A command of Fedward, to its end. Raises RunError with what it said."""
    command = [sys.executable, "-P", "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own commands
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{' '.join(map(str, words[:2]))}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def _can(*words: object) -> bool:
    try:
        _do(*words)
    except RunError:
        return False
    return True


@contextmanager
def _running(log: Path, *words: object) -> Iterator[None]:
    """A command that goes on until the block ends."""
    with log.open("ab") as file:
        command = [sys.executable, "-P", "-m", *map(str, words)]
        process = subprocess.Popen(command, stdout=file, stderr=file)  # noqa: S603  # our own commands
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def until(true: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Raises RunError when it isn't true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise RunError(f"waited {seconds:.0f} s for {what} in vain; the logs beside it say why")
        time.sleep(0.5)


def _ended(run: Path) -> bool:
    log = run / "events.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return any(json.loads(line)["event"] in ("finished", "stopped") for line in lines[-2:])


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20000 + os.getpid() * 97 % 10000, 60000, count):  # others look at the same time
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RunError("no free ports on loopback")
