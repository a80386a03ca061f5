"""The server's executor: takes runs from the SuperLink and has the installed `server.app` carry them out.

As at a site, the bundle that a run brings is never opened: whoever reaches Flower's Control API on this machine can
start a study, but no code of his own. One run at a time; others wait.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common import processes
from common.errors import FederationError
from server.app import FOLDER, app
from server.folder import Folder, open_folder

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
POLL = 1.0  # seconds between two looks for a run
HEARTBEAT = 10.0  # seconds; a SuperLink gives a run up after 60 without one

_log = logging.getLogger("fedward.executor")
_TROUBLE = (httpx.HTTPError, ValueError)  # of the connection to the SuperLink


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where the SuperLink's Runtime API is. Guarantees: printing it shows no secret."""

    address: str  # host:port
    root: bytes  # PEM
    secret: bytes

    def __repr__(self) -> str:
        return f"Runtime({self.address})"


def work(runtime: Runtime, *, stop: threading.Event) -> None:
    """Carry out runs until `stop` is set. Guarantees: a run that fails ends as failed, and the next one is taken."""
    secret = SuperExecAuthHttpInterceptor(master_secret=runtime.secret, protected_methods=[ACQUIRE])
    with _connect(runtime, secret) as client:
        while not stop.is_set():
            try:
                claimed = client.AcquireTask(AcquireTaskRequest(supported_task_types=[str(kind) for kind in TaskType]))
                if claimed.token:
                    _do(runtime, claimed.token, serverapp=claimed.task.type == TaskType.SERVER_APP)
                    continue
            except _TROUBLE as error:
                _log.warning("the SuperLink at %s: %s", runtime.address, type(error).__name__)
            stop.wait(POLL)


def _do(runtime: Runtime, token: str, *, serverapp: bool) -> None:
    with _connect(runtime, RuntimeTokenHttpInterceptor(token)) as client, _heartbeats(client):
        outcome = "failed", "only studies are run here"
        if serverapp:
            given = client.PullTaskInput(PullTaskInputRequest())  # its bundle is not looked at
            run = run_from_proto(given.run)
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run.run_id
            TaskIdentity.node_id = given.context.node_id
            grid = HttpGrid(runtime.address, insecure=False, root_certificates=runtime.root, token=token)
            grid.set_run(run)
            context = Context(
                run_id=run.run_id,
                node_id=given.context.node_id,
                node_config={},
                state=RecordDict(),
                run_config=run.override_config,
            )
            outcome = _carry_out(grid, context)
            grid.close()
        with suppress(*_TROUBLE):  # a run that was stopped has no output
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome[0], details=outcome[1]))


def _carry_out(grid: HttpGrid, context: Context) -> tuple[str, str]:
    """Flower's word for how the run ended, and a line for the coordinator."""
    try:
        app(grid, context)
    except RunNotRunningException:
        _log.warning("run %d was stopped", context.run_id)
        return "stopped", ""
    except FederationError as error:
        _log.error("run %d: %s", context.run_id, error)
        return "failed", str(error)
    except Exception:
        _log.exception("run %d", context.run_id)
        return "failed", "see the executor's log"
    return "completed", ""


@contextmanager
def _heartbeats(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperLink, as long as the block runs, that the run is being worked on."""
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            with suppress(*_TROUBLE):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            done.wait(HEARTBEAT)

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _connect(runtime: Runtime, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=runtime.address,
        insecure=False,
        root_certificates=runtime.root,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedward executor"), interceptor],
    )


def runtime_of(folder: Folder) -> Runtime:
    """The SuperLink of a coordinator's folder."""
    return Runtime(address=folder.superlink, root=folder.root.read_bytes(), secret=folder.secret.read_bytes())


def main(path: str) -> None:
    """What `server up` starts."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    processes.follow_owner()
    os.environ[FOLDER] = path
    with processes.stopped_by_signals() as stop:
        work(runtime_of(open_folder(Path(path))), stop=stop)


if __name__ == "__main__":
    main(sys.argv[1])
