"""The long-lived executor of a site: takes tasks from its SuperNode, has the installed `client.app` answer, pushes the
answer.

Flower's own executor unzips the bundle that came with a run and starts a process that imports what is in it. This one
never opens a bundle: whatever a run brings, the code that answers is the code that the hospital installed. What of it a
release of Flower may change is here and in common.runtime; tests/test_flower_contract.py says what changed.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskResponse,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.supernode import open_connection
from common import processes
from common.errors import Reason
from common.runtime import TROUBLE, Runtime, acquire, heartbeats, message_of, outlive_tasks

POLL = 0.25  # seconds between two looks for a task
PATIENCE = 10.0  # seconds that a claimed task's message, or the next piece of it, is waited for without asking further
MESSAGE_LIMIT = 2 * 2**30  # bytes of one message

_log = logging.getLogger("fedward.worker")


class _Overtaken(Exception):
    """The SuperNode has gone on to another task: this one's message will never be whole."""

    def __init__(self, other: AcquireTaskResponse) -> None:
        super().__init__("overtaken")
        self.other = other


Acquire = Callable[[], AcquireTaskResponse]


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A task that is this worker's: its connection, and who it speaks as."""

    client: RuntimeHttpClient
    run: int
    node: Node
    since: str  # when the SuperNode made the task, as it writes times


def work(runtime: Runtime, folder: Path, *, stop: threading.Event) -> None:
    """Answer tasks until `stop` is set. A SuperNode that is away is waited for.

    Guarantees: a task of any type is answered, exactly once; nothing that is raised while it is worked on ends the
    loop, and none of its text leaves; one task at a time.
    """
    reachable, claimed = True, AcquireTaskResponse()
    with runtime.claiming() as client:
        while not stop.is_set():
            try:
                claimed = claimed if claimed.token else acquire(client)
                reachable = True
            except TROUBLE as error:
                if reachable:
                    _log.warning("the SuperNode at %s gives no task: %s", runtime.address, type(error).__name__)
                reachable = False
                stop.wait(8 * POLL)
                continue
            if not claimed.token:
                stop.wait(POLL)
                continue
            taken, claimed = claimed, AcquireTaskResponse()
            try:
                _do(runtime, taken, folder, lambda: acquire(client))
            except _Overtaken as overtaken:
                _log.warning("task %d: its message never came", taken.task.task_id)
                claimed = overtaken.other
            except TROUBLE as error:
                _log.warning("task %d is lost: %s", taken.task.task_id, type(error).__name__)


def _do(runtime: Runtime, taken: AcquireTaskResponse, folder: Path, another: Acquire) -> None:
    """Work on one task. Raises what the connection raises: then there is nobody to answer to.

    The message is pulled before the task is begun: a worker that is killed in between leaves a task that Flower gives
    out again or, once begun, answers itself; the other way round it would stay unanswered, and block the SuperNode.
    """
    with runtime.working(taken.token) as client, heartbeats(client):
        pulled = _header(client)
        given = client.PullTaskInput(PullTaskInputRequest())  # its bundle and its run config are not looked at
        if pulled is None:  # a worker before this one had it: without heartbeats, Flower answers in its place
            raise ValueError("a task whose message is gone")
        claim = _Claim(
            client=client,
            run=given.run.run_id,
            node=Node(node_id=given.context.node_id),
            since=taken.task.pending_at,
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = given.task_id, claim.run, claim.node.node_id
        try:
            reply = _reply(claim, taken.task.type, *pulled, folder, another)
        except _Overtaken:  # an answer now would be taken for that to the other task
            client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details=""))
            raise
        _push(claim, reply)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))


def _header(client: RuntimeHttpClient) -> tuple[Message, ObjectTree] | None:
    """The message of the task, without content, and what to fetch. The SuperNode makes a task before its message."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pulled = client.PullMessages(PullAppMessagesRequest())
        if pulled.messages_list:
            return message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
        time.sleep(POLL)
    return None


def _reply(claim: _Claim, kind: str, header: Message, tree: ObjectTree, folder: Path, another: Acquire) -> Message:
    """The answer, or a reason code in the form of Flower's error. Raises what the connection raises, and _Overtaken."""
    if kind != TaskType.CLIENT_APP:
        return _refusal(header, Reason.POLICY)
    try:
        message = _fetch(claim, tree, another)
    except (httpx.HTTPError, _Overtaken):
        raise
    except Exception as error:  # bytes that Flower can't make a message of
        _log.warning("a message of run %d can't be read: %s", claim.run, type(error).__name__)
        return _refusal(header, Reason.MALFORMED)
    if header.metadata.created_at + header.metadata.ttl <= time.time():
        return _refusal(header, Reason.LATE)
    ours = (claim.run, header.metadata.message_id)
    if (message.metadata.run_id, message.metadata.message_id) != ours:  # the SuperNode would refuse the answer
        return _refusal(header, Reason.MALFORMED)
    context = Context(
        run_id=claim.run,
        node_id=claim.node.node_id,
        node_config={"site": str(folder)},
        state=RecordDict(),
        run_config={},
    )
    try:
        return app(message, context)
    except Exception as error:  # `client.app` answers for itself: this is Flower's, for a message that it can't place
        _log.warning("a message of run %d is not for client.app: %s", claim.run, type(error).__name__)
        return _refusal(header, Reason.MALFORMED)


def _refusal(header: Message, reason: Reason) -> Message:
    return Message(Error(0, str(reason)), reply_to=header)


def _fetch(claim: _Claim, tree: ObjectTree, another: Acquire) -> Message:
    """The message with its content, while the SuperNode is still fetching it.

    A run that ends meanwhile leaves a message in pieces, about which the SuperNode says nothing; but it makes a task
    only when the one before has been answered, so that another task tells. Raises _Overtaken then; ValueError or
    MessageError for a message beyond MESSAGE_LIMIT, and what Flower raises for bytes that are no message.
    """
    contents: dict[str, bytes] = {}
    left, since = MESSAGE_LIMIT, time.monotonic()
    parts = [part.object_id for part in iterate_object_tree(tree)]
    while missing := [part for part in parts if part not in contents]:
        found = claim.client.PullObject(PullObjectRequest(node=claim.node, run_id=claim.run, object_id=missing[0]))
        if not found.object_found:
            raise ValueError("a piece that is not there")
        if found.object_available:
            contents[missing[0]], since = found.object_content, time.monotonic()
            left -= len(found.object_content)
            if left < 0:
                raise ValueError("a message beyond the limit")
            continue
        if time.monotonic() - since > PATIENCE and (other := another()).token and other.task.pending_at > claim.since:
            raise _Overtaken(other)  # an older one is of a run that was stopped: Flower takes it back by itself
        time.sleep(POLL)
    claim.client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=claim.node, run_id=claim.run, message_object_id=tree.object_id)
    )
    return message_of(tree.object_id, contents, limit=MESSAGE_LIMIT)


def _push(claim: _Claim, reply: Message) -> None:
    """Hand the reply over: first its header, then every object that the SuperNode hasn't got."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        header = message_to_proto(remove_content_from_message(reply))
        pushed = claim.client.PushMessages(PushAppMessagesRequest(messages_list=[header], message_object_trees=[tree]))
        for identifier in pushed.objects_to_push:
            claim.client.PushObject(
                PushObjectRequest(
                    node=claim.node,
                    run_id=claim.run,
                    session_id=pushed.session_id,
                    object_id=identifier,
                    object_content=objects[identifier].deflate(),
                )
            )


def main(path: str) -> None:
    """What `client up` starts: the worker of the site in this folder."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    processes.follow_owner()
    site = Path(path)
    connection = open_connection(site)
    runtime = Runtime(
        address=connection.runtime,
        root=connection.runtime_root.read_bytes(),
        secret=connection.secret.read_bytes(),
        component="fedward worker",
    )
    outlive_tasks()
    with processes.stopped_by_signals(signal.SIGTERM) as stop:
        work(runtime, site, stop=stop)


if __name__ == "__main__":
    main(sys.argv[1])
