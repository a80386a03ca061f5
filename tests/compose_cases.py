"""Compose files without an engine: what they say, and their commands as plain processes with paths in a folder."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parent.parent / "docker"
FILES = ("server", "site", "demo")
_TOP = r"(?<![\w./-])/(site|archive|handed|node|exchange|federation|keys|study\.toml)(?![\w-])"
_QUIET = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "FEDWARD_FEDERATION": "/federation"}
_VARIABLE = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")


def services(name: str) -> dict[str, dict[str, Any]]:
    """The services of NAME.compose.yaml."""
    found: dict[str, dict[str, Any]] = read(name)["services"]
    return found


def read(name: str) -> dict[str, Any]:
    """NAME.compose.yaml with every variable at its default."""
    return deepcopy(_read(name))


@cache
def _read(name: str) -> dict[str, Any]:
    text = (DOCKER / f"{name}.compose.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(r"\1", text))
    return values


def lasts(service: dict[str, Any]) -> bool:
    """Whether a service goes on until it is stopped; the others do one thing and end."""
    return "restart" in service


def entry(service: dict[str, Any]) -> list[str]:
    """The program of a service: its own, or that of its image."""
    if "entrypoint" in service:
        return list(service["entrypoint"])
    file = DOCKER.parent / service["build"]["dockerfile"]
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", file.read_text(encoding="utf-8"), re.M)
    return list(yaml.safe_load(line))


def words(service: dict[str, Any]) -> list[str]:
    """Program and arguments, as the container starts them."""
    return [*entry(service), *service.get("command", [])] if entry(service) else []


def calls(service: dict[str, Any]) -> list[list[str]]:
    """Every `python -P -m MODULE …` of a service, also those within its shell lines and its health check."""
    found = []
    texts = [shlex.join(words(service))] if entry(service)[0] == "python" else service.get("command", [])
    check = service.get("healthcheck", {}).get("test", [])
    for text in [*texts, shlex.join(check[1:])]:
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.findall(r"python -P -m ([^;|&]*)", line):
                found.append(shlex.split(part.replace("$$", "$")))
    return found


@dataclass(kw_only=True)
class Here:
    """A compose file's services as processes of this user: each with its volumes as folders, all on loopback.

    first   of the ports: the gate's, three of the server, two of each site
    """

    name: str
    folder: Path
    first: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def bring_up(self, *, seconds: float) -> None:
        """What `docker compose up -d` does: in order, each when what it waits for has ended well or is healthy."""
        deadline, waiting = time.monotonic() + seconds, dict(services(self.name))
        while waiting or any(name not in self.ended for name in self._short()):
            self._look()
            for name, service in list(waiting.items()):
                if all(self._met(other, how["condition"]) for other, how in service.get("depends_on", {}).items()):
                    self._start(name, waiting.pop(name))
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:.0f} s: {', '.join([*waiting, *self.running])}")
            time.sleep(1.0)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _short(self) -> list[str]:
        return [name for name, service in services(self.name).items() if not lasts(service)]

    def _look(self) -> None:
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                self.ended[name] = self.running.pop(name).returncode
                if self.ended[name] or name not in self._short():
                    raise RuntimeError(f"{name} ended ({self.ended[name]}): {self.log(name)[-2000:]}")

    def _met(self, name: str, condition: str) -> bool:
        if condition == "service_completed_successfully":
            return self.ended.get(name) == 0
        return name in self.running and self._healthy(name)

    def _healthy(self, name: str) -> bool:
        service = services(self.name)[name]
        command = self._own(name, shlex.join(service["healthcheck"]["test"][1:]))
        return subprocess.run(shlex.split(command), env=self._environment(name), capture_output=True).returncode == 0

    def _start(self, name: str, service: dict[str, Any]) -> None:
        root = self.folder / "roots" / name
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            kept = DOCKER / source if "/" in source else self.volume(source)
            if "/" not in source:
                kept.mkdir(parents=True, exist_ok=True)
            place = root / target.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(kept)
        for place in service["tmpfs"]:
            (root / place.partition(":")[0].removeprefix("/")).mkdir(parents=True, exist_ok=True)
        command = [self._own(name, word.replace("$$", "$")) for word in words(service)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self._environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def _environment(self, name: str) -> dict[str, str]:
        said = {**_QUIET, **services(self.name)[name].get("environment", {})}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path} | {key: self._own(name, value) for key, value in said.items()}

    def _own(self, name: str, text: str) -> str:
        """A text of the service with this machine's paths, names, ports and group in place of the container's."""
        number = int(name.rpartition("-")[2]) if name[-1].isdigit() else 0
        site, server = self.first + 2 + 2 * number, self.first
        text = re.sub(_TOP, lambda found: str(self.folder / "roots" / name / found[1]), text)
        for old, new in {
            "--host server": f"--host localhost --listen 127.0.0.1 --port {server} --loopback {server + 1}",
            "server:9092": f"localhost:{server}",
            "127.0.0.1:9094": f"127.0.0.1:{server + 2}",
            "--host runtime": f"--host 127.0.0.1 --loopback {site}",
            "runtime:9095": f"127.0.0.1:{site + 1}",
            "-g 10002": f"-g {os.getgid()}",
        }.items():
            text = text.replace(old, new)
        return text


@contextmanager
def here(name: str, folder: Path, *, first: int) -> Iterator[Here]:
    """NAME.compose.yaml on this machine; at the end everything is stopped."""
    with ExitStack() as stack:
        made = Here(name=name, folder=folder, first=first)
        stack.callback(made.end)
        yield made
