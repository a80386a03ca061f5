"""A real federation on loopback: `server up` and `client up` of several sites, as processes, on free ports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer
from small import write_site
from typer.testing import CliRunner

from client import run_cli as client_cli
from client.private import nominal_patients
from client.site import open_site, site_toml
from common import processes
from common.study import Study
from server.__main__ import app as server_app
from server.control import Control
from server.events import Event, effective, read
from server.folder import Folder, open_folder
from server.orders import Order, give
from simulations.loopback import free_ports

client_app = typer.Typer()
for command in (client_cli.init, client_cli.join, client_cli.up):
    client_app.command()(command)

_CLIENT = "import typer; from client.run_cli import up; typer.run(up)"
_QUIET = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def wait(what: str, true: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Raises TimeoutError when it isn't true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.5)


def ran(app: typer.Typer, *arguments: object) -> str:
    """What a command prints. Raises what it raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@dataclass(kw_only=True)
class Federation:
    """Folders of a server and its sites, and the processes that were started for them."""

    base: Path
    folder: Folder
    sites: tuple[Path, ...]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    prefix: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of a command: where a site is to run

    def start(self, name: str, *command: str) -> None:
        log = (self.base / f"{name}.out").open("ab")
        command = (*self.prefix.get(name, ()), sys.executable, "-P", *command)
        self.running[name] = subprocess.Popen(command, env={**os.environ, **_QUIET}, stdout=log, stderr=log)
        log.close()

    def start_server(self) -> None:
        self.start_owner("server")
        wait("SuperLink", lambda: processes.serving(self.folder.health))

    def start_owner(self, name: str) -> None:
        """`server up` or a site's `client up`, not waited for: what systemd would start again."""
        if name == "server":
            self.start("server", "-m", "server", "up", "--folder", str(self.folder.path))
        else:
            self.start_site(next(site for site in self.sites if site.name == name))

    def start_site(self, site: Path) -> None:
        self.start(site.name, "-c", _CLIENT, str(site))

    def start_all(self) -> None:
        """Server and sites, until all of these are heard of."""
        self.start_server()
        for site in self.sites:
            self.start_site(site)
        wait(f"{len(self.sites)} sites online", lambda: self.online() == len(self.sites))

    def end(self, *names: str) -> None:
        """Ask these, or all, to end, and wait until they have."""
        chosen = [self.running.pop(name) for name in names or tuple(self.running)]
        for process in chosen:
            process.terminate()
        for process in chosen:
            process.wait(60)

    def online(self) -> int:
        roster = self.folder.roster()
        assert roster is not None
        control = Control(self.folder)
        try:
            return sum(control.online(roster.supernodes).values())
        finally:
            control.close()

    def child(self, owner: str, what: str) -> int:
        """The number of the process that this owner keeps running and whose command says `what`."""
        own = self.running[owner].pid
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (path / "cmdline").read_bytes().split(b"\0")
            except (OSError, ValueError):
                continue
            if parent == own and what.encode() in command:
                return int(path.name)
        raise LookupError(f"{owner} has no {what}")

    def kill(self, owner: str, what: str) -> int:
        found = self.child(owner, what)
        os.kill(found, signal.SIGKILL)
        return found

    def submit(self, study: Study, out: Path, *, resume: bool = False, bundle: bytes | None = None) -> int:
        """Start a run; with `bundle`, one that brings it along."""
        give(self.folder, study, Order(out=str(out), resume=resume))
        control = Control(self.folder)
        try:
            if bundle is None:
                return control.start(study)
            return control.start_bundle(bundle, {"study": study.canonical})
        finally:
            control.close()

    def events(self, out: Path) -> list[Event]:
        return read(out / "events.jsonl") if (out / "events.jsonl").exists() else []

    def finished(self, out: Path, *, seconds: float = 240.0) -> list[Event]:
        """The events of a run that has come to its end."""
        wait(
            f"end of the run in {out}",
            lambda: any(event["event"] in ("finished", "stopped") for event in effective(self.events(out))),
            seconds=seconds,
        )
        return self.events(out)


@contextmanager
def federation(base: Path, *, sites: int, min_sites: int = 2, images: int = 24) -> Iterator[Federation]:
    """New sites of random images, enrolled; nothing is started yet. At the end everything is stopped."""
    folders = []
    for number in range(sites):
        site = write_site(base / f"site-{number}", images=images, seed=number)
        text = site_toml(site.name, nominal_patients=20, simulated=True)
        (site / "site.toml").write_text(text, encoding="utf-8")
        folders.append(site)
    with enrolled(base, folders, min_sites=min_sites) as made:
        yield made


@contextmanager
def enrolled(base: Path, folders: Sequence[Path], *, min_sites: int = 2, join: bool = True) -> Iterator[Federation]:
    """These site folders enrolled by the commands that people use, with the numbers of patients that they declare.

    Without `join` the sites have their keys and are in the roster, which is all that the server looks at.
    """
    first, folder, keys = free_ports(4 + 2 * len(folders)), base / "federation", base / "keys"
    ran(
        server_app,
        *("init", folder, "--keys", keys, "--host", "localhost", "--host", "127.0.0.1", "--listen", "127.0.0.1"),
        *("--port", first, "--loopback", first + 1, "--min-sites", min_sites, "--colluding", 0),
    )
    for number, site in enumerate(folders):
        patients = nominal_patients(open_site(site)) if (site / "site.toml").exists() else 20
        own = ("--name", site.name, "--patients", patients)
        ran(client_app, "init", site, *own, "--loopback", first + 4 + 2 * number)
    ran(server_app, "add-site", *(site / "request.json" for site in folders), "--folder", folder)
    ran(server_app, "sign", "--keys", keys, "--folder", folder)
    server = f"localhost:{first}"
    for site in folders if join else ():
        ran(client_app, "join", site, folder / "roster.json", "--ca", folder / "ca.pem", "--server", server, "--yes")
    made = Federation(base=base, folder=open_folder(folder), sites=tuple(folders))
    try:
        yield made
    finally:
        made.end()
