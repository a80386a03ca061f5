"""A federation of real processes on loopback for benchmarks: enrolled, started, one study after the other, ended."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import typer

from client.__main__ import app as site_side
from client.site import site_toml
from common import processes
from common.errors import RunError
from common.study import Study
from server.__main__ import app as server_side
from server.control import Control
from server.events import Event, read
from server.folder import Folder, open_folder
from server.orders import Order, give
from simulations.loopback import free_ports, until

PATIENTS = 20  # that each site declares
_PATIENCE = 180.0  # seconds until everybody is online


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What is up: the server's folder, the sites' folders, and the processes that own all others, by name."""

    folder: Folder
    sites: tuple[Path, ...]
    owners: Mapping[str, int]

    def run(self, study: Study, out: Path, *, seconds: float) -> list[Event]:
        """Carry out a study to its end; its events. Raises RunError where it stops, or takes longer."""
        give(self.folder, study, Order(out=str(out), resume=False))
        with closing(Control(self.folder)) as control:
            control.start(study)
        until(lambda: _last(out) in ("finished", "stopped"), f"the run in {out}", seconds=seconds)
        if _last(out) != "finished":
            raise RunError(f"{out}: the run stopped")
        return read(out / "events.jsonl")

    def online(self) -> int:
        """How many sites are heard of."""
        roster = self.folder.roster()
        try:
            with closing(Control(self.folder)) as control:
                known = control.online(roster.supernodes) if roster else {}
        except RunError:
            return 0
        return sum(known.values())


@contextmanager
def federation(base: Path, folders: Sequence[Path]) -> Iterator[Federation]:
    """These site folders enrolled with a new server, and all of it up. At the end every process is gone."""
    first, home, keys = free_ports(4 + 2 * len(folders)), base / "federation", base / "keys"
    with redirect_stdout(io.StringIO()):
        where = ("--host", "localhost", "--listen", "127.0.0.1", "--port", first, "--loopback", first + 1)
        _do(server_side, "init", home, "--keys", keys, *where, "--min-sites", 2, "--colluding", 0)
        for number, site in enumerate(folders):
            text = site_toml(site.name, cache=str(base / "cache"), nominal_patients=PATIENTS, simulated=True)
            (site / "site.toml").write_text(text, encoding="utf-8")
            own = ("--name", site.name, "--patients", PATIENTS, "--loopback", first + 4 + 2 * number)
            _do(site_side, "init", site, *own)
        _do(server_side, "add-site", *(site / "request.json" for site in folders), "--folder", home)
        _do(server_side, "sign", "--keys", keys, "--folder", home)
        for site in folders:
            ca = ("--ca", home / "ca.pem", "--server", f"localhost:{first}", "--yes")
            _do(site_side, "join", site, home / "roster.json", *ca)
    with ExitStack() as stack:
        folder, python = open_folder(home), (sys.executable, "-P", "-m")
        owners = {
            "server": stack.enter_context(running(base, "server", *python, "server", "up", "--folder", str(home)))
        }
        until(lambda: processes.serving(folder.health), "the SuperLink", seconds=_PATIENCE)
        for site in folders:
            owners[site.name] = stack.enter_context(running(base, site.name, *python, "client", "up", str(site)))
        made = Federation(folder=folder, sites=tuple(folders), owners=owners)
        until(lambda: made.online() == len(folders), f"{len(folders)} sites", seconds=_PATIENCE)
        yield made


@contextmanager
def running(base: Path, name: str, *command: str, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A command with a group of its own, until the block ends; its number. What it prints is in BASE/NAME.out."""
    quiet = {"OMP_NUM_THREADS": "1", **processes.quiet_flower(), **(environment or {})}
    with (base / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _do(app: typer.Typer, *arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def _last(out: Path) -> str:
    log = out / "events.jsonl"
    found = read(log) if log.exists() else []
    return str(found[-1]["event"]) if found else ""
