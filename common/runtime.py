"""What the two executors, a site's worker and the server's, share: their connection to Flower's Runtime API, and the
reading of messages that come by it.

The API is that of a SuperNode or of a SuperLink on the same machine. Everything here that a release of Flower may
change is in this file; tests/test_flower_contract.py says what changed.
"""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
from flwr.app import Array, Message
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import http_retry
from flwr.supercore.runtime import RuntimeHttpClient

from common.errors import MessageError

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
HEARTBEAT = 10.0  # seconds; Flower gives a task up after 60 without one
TROUBLE = (httpx.HTTPError, ValueError)  # of the connection: the other end is gone, restarted, or not what it says
_EVERY = tuple(str(kind) for kind in TaskType)  # a task that nobody takes would block a SuperNode


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where a Runtime API is, and as whom this process comes. Guarantees: printing it shows no secret."""

    address: str  # host:port
    root: bytes  # PEM: the certificate authority of the other end
    secret: bytes
    component: str = "fedward"  # how this process names itself

    def __repr__(self) -> str:
        return f"Runtime({self.address})"

    def claiming(self) -> RuntimeHttpClient:
        """A connection that may take tasks, by the secret; close it."""
        return self._connect(SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=[ACQUIRE]))

    def working(self, token: str) -> RuntimeHttpClient:
        """A connection for the one task that this token came with; close it."""
        return self._connect(RuntimeTokenHttpInterceptor(token))

    def _connect(self, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=False,
            root_certificates=self.root,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=self.component), interceptor],
        )


def outlive_tasks() -> None:
    """Make this process, an executor, stay when a run is stopped. To be called in the main thread.

    The token of a task ends with its run. Flower's connection, when it is refused so, sends its own process SIGINT, and
    waits six seconds for the effect: it was written for a process per task. Here SIGINT has none (Ctrl-C reaches the
    owner, which sends SIGTERM), there is no wait, and the refusal is raised as TROUBLE.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    vars(http_retry)["FORCE_EXIT_TIMEOUT_SECONDS"] = -1  # Flower sleeps one second longer


def ended(error: Exception) -> bool:
    """Whether this was raised because the task's token is no longer good: its run has ended."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED


def acquire(client: RuntimeHttpClient) -> AcquireTaskResponse:
    """A task of any type; without a token where there is none. Raises TROUBLE."""
    return client.AcquireTask(AcquireTaskRequest(supported_task_types=_EVERY))


def message_of(identifier: str, contents: dict[str, bytes], *, limit: int) -> Message:
    """The message with this identifier, from its pieces, which are used up.

    Raises MessageError where it is no message or its arrays have more than `limit` bytes, and what Flower raises for
    pieces that don't fit together.
    """
    size = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:  # Flower joins its pieces by a list in it, each as often as it is named there
            places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            size += sum(len(contents[children[place]]) for place in places)
    if size > limit:
        raise MessageError(f"arrays of {size} bytes, at most {limit}")
    message = inflate_object_from_contents(identifier, contents)
    if not isinstance(message, Message):
        raise MessageError("pieces of something else than a message")
    message.metadata.__dict__["_message_id"] = identifier
    return message


@contextmanager
def heartbeats(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the other end, as long as the block runs, that the task is being worked on."""
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            with suppress(*TROUBLE):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            done.wait(HEARTBEAT)

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
