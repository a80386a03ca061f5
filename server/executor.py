"""The server's executor: takes runs from the SuperLink and has the installed `server.app` carry them out.

As at a site, the bundle that a run brings is never opened: whoever reaches Flower's Control API on this machine can
start a study, but no code of his own. One run at a time; others wait.
"""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common import processes
from common.errors import FederationError
from common.runtime import TROUBLE, Runtime, acquire, ended, heartbeats, outlive_tasks
from server.app import FOLDER, app
from server.folder import Folder, open_folder

POLL = 1.0  # seconds between two looks for a run

_log = logging.getLogger("fedward.executor")


def work(runtime: Runtime, *, stop: threading.Event) -> None:
    """Carry out runs until `stop` is set. Guarantees: a run that fails ends as failed, and the next one is taken."""
    with runtime.claiming() as client:
        while not stop.is_set():
            try:
                claimed = acquire(client)
                if claimed.token:
                    _do(runtime, claimed.token, serverapp=claimed.task.type == TaskType.SERVER_APP)
                    continue
            except TROUBLE as error:
                _log.warning("the SuperLink at %s: %s", runtime.address, type(error).__name__)
            stop.wait(POLL)


def _do(runtime: Runtime, token: str, *, serverapp: bool) -> None:
    with runtime.working(token) as client, heartbeats(client):
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
        with suppress(*TROUBLE):  # a run that was stopped has no output
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
    except Exception as error:
        if ended(error):
            _log.warning("run %d was stopped", context.run_id)
            return "stopped", ""
        _log.exception("run %d", context.run_id)
        return "failed", "see the executor's log"
    return "completed", ""


def runtime_of(folder: Folder) -> Runtime:
    """The SuperLink of a coordinator's folder."""
    return Runtime(
        address=folder.superlink,
        root=folder.root.read_bytes(),
        secret=folder.secret.read_bytes(),
        component="fedward executor",
    )


@contextmanager
def alone(folder: Folder, *, stop: threading.Event) -> Iterator[None]:
    """Wait until no other executor of this folder lives, or `stop` is set.

    One whose owner was killed may live on for seconds and close a round: two would write into the same OUT. The lock
    goes with the process.
    """
    with (folder.path / "executor.lock").open("ab") as file:
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop.wait(POLL)
        yield


def main(path: str) -> None:
    """What `server up` starts."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    processes.follow_owner()
    os.environ[FOLDER] = path
    folder = open_folder(Path(path))
    outlive_tasks()
    with processes.stopped_by_signals(signal.SIGTERM) as stop, alone(folder, stop=stop):
        work(runtime_of(folder), stop=stop)


if __name__ == "__main__":
    main(sys.argv[1])
