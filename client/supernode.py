"""A site's SuperNode and worker: how they are set up and started.

The SuperNode speaks to the server and holds nothing of the patients; the worker holds the data and speaks to the
SuperNode alone, by loopback, with TLS and a secret of the site's own. Under two users, or in two containers, each can
read its own half: SITE/supernode/ is all that the SuperNode needs.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from common import processes
from common.errors import DataError
from common.processes import Program

_FIELDS = {"server": str, "runtime": str, "health": str, "memory": int}
MEMORY = 4 * 2**30  # bytes of address space, 1.5 of them taken at rest; a bundle that unzips to 1 GB still fits


@dataclass(frozen=True, kw_only=True)
class Connection:
    """SITE/supernode/supernode.toml.

    server    host:port of the federation's server; "" until the site has joined
    runtime   host:port of the SuperNode's Runtime API, on loopback
    health    host:port of its health endpoint, on loopback
    memory    bytes that the SuperNode may use
    """

    folder: Path
    server: str
    runtime: str
    health: str
    memory: int

    @property
    def node_key(self) -> Path:
        return self.folder / "node.key"

    @property
    def secret(self) -> Path:
        return self.folder / "executor.secret"

    @property
    def server_root(self) -> Path:
        return self.folder / "server-ca.pem"

    @property
    def runtime_root(self) -> Path:
        return self.folder / "runtime-ca.pem"


def open_connection(site: Path) -> Connection:
    """How this site is connected. Raises DataError, one line."""
    path = site / "supernode" / "supernode.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); make it with `client init`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid TOML: {error}") from error
    if wrong := sorted(values.keys() ^ _FIELDS.keys()):
        raise DataError(f"{path}: {wrong[0]}: unknown key, or missing; keys: {', '.join(_FIELDS)}")
    for key, kind in _FIELDS.items():
        if type(values[key]) is not kind:
            raise DataError(f"{path}: {key} = {values[key]!r}; {kind.__name__} is needed")
    return Connection(folder=site / "supernode", **values)


def toml(*, server: str, runtime: str, health: str, memory: int = MEMORY) -> str:
    """The text of supernode.toml."""
    values = {"server": server, "runtime": runtime, "health": health, "memory": memory}
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def programs(site: Path, connection: Connection) -> dict[str, Program]:
    """SuperNode and worker, in the order in which to start them."""
    if not connection.server:
        raise DataError(
            f"{site}: has joined no federation; run `client join {site} roster.json --ca ca.pem --server HOST:PORT`"
            " with what the coordinator has sent"
        )
    host, _, port = connection.runtime.rpartition(":")
    supernode = processes.flower(
        "flower-supernode",
        f"--superlink={connection.server}",
        f"--root-certificates={connection.server_root}",
        f"--auth-supernode-private-key={connection.node_key}",
        "--isolation=process",
        f"--superexec-auth-secret-file={connection.secret}",
        f"--host={host}",
        f"--port={port}",
        f"--ssl-certfile={connection.folder / 'runtime.pem'}",
        f"--ssl-keyfile={connection.folder / 'runtime.key'}",
        f"--ssl-ca-certfile={connection.runtime_root}",
        f"--health-server-address={connection.health}",
        memory=connection.memory,
        module="client.supernode_loop",
    )
    commands = {"supernode": supernode, "worker": processes.python("client.worker", str(site))}
    environment = {**processes.quiet_flower(), "FLWR_HOME": str(connection.folder / "flower")}
    return {
        name: Program(name=name, command=command, log=site / "logs" / f"{name}.log", environment=environment)
        for name, command in commands.items()
    }
