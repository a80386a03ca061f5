"""The processes of a federation's server: Flower's SuperLink on loopback, the executor of runs, the gate."""

from common import processes
from common.processes import Program
from server.folder import Folder

# glibc gives what a model's bytes took back to the system at once, not to be kept by each thread for the next.
_RETURNED = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)}


def programs(folder: Folder) -> list[Program]:
    """What `server up` keeps running, in the order in which to start it."""
    certificate, key = folder.tls("loopback")
    host, _, port = folder.superlink.rpartition(":")
    superlink = processes.flower(
        "flower-superlink",
        f"--host={host}",
        f"--port={port}",
        f"--ssl-certfile={certificate}",
        f"--ssl-keyfile={key}",
        f"--ssl-ca-certfile={folder.root}",
        "--enable-supernode-auth",
        f"--database={folder.path / 'flower' / 'state.sqlite'}",
        "--isolation=process",
        f"--superexec-auth-secret-file={folder.secret}",
        "--disable-runtime-dependency-installation",
        f"--health-server-address={folder.health}",
    )
    environment = {**processes.quiet_flower(), **_RETURNED, "FLWR_HOME": str(folder.path / "flower")}
    commands = {
        "superlink": superlink,
        "executor": processes.python("server.executor", str(folder.path)),
        "gate": processes.python("server.gate", str(folder.path)),
    }
    return [
        Program(name=name, command=command, log=folder.path / "logs" / f"{name}.log", environment=environment)
        for name, command in commands.items()
    ]
