"""What of Flower's insides is relied on: when another release breaks one of these, its name is in the failing test."""

import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from flwr.app import Array
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE, SUPERLINK_NODE_ID, SubStatus
from flwr.proto import control_pb2, fleet_pb2, message_pb2, node_pb2, run_pb2, runtime_pb2
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    TaskType,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import get_object_body
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.cli import flower_superlink
from flwr.superlink.grid import HttpGrid
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory

from common import runtime
from server import gate

SUPERLINK = inspect.getmodule(flower_superlink)
SUPERNODE = inspect.getmodule(flower_supernode)


def test_the_release() -> None:
    assert version("flwr").startswith("1.41."), "read the changes of the new release, then this file"


@pytest.mark.parametrize(
    "name",
    [
        "AcquireTask",
        "ConfirmMessageReceived",
        "PullMessages",
        "PullObject",
        "PullTaskInput",
        "PushMessages",
        "PushObject",
        "PushTaskOutput",
        "SendTaskHeartbeat",
    ],
)
def test_calls_of_the_runtime_api(name: str) -> None:
    assert list(inspect.signature(getattr(RuntimeHttpClient, name)).parameters) == ["self", "request"]


@pytest.mark.parametrize("name", ["ListNodes", "ListRuns", "RegisterNode", "StartRun", "StopRun", "UnregisterNode"])
def test_calls_of_the_control_api(name: str) -> None:
    assert list(inspect.signature(getattr(ControlHttpClient, name)).parameters) == ["self", "request"]


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (runtime_pb2.AcquireTaskRequest, {"supported_task_types"}),
        (runtime_pb2.AcquireTaskResponse, {"task", "token"}),
        (runtime_pb2.PullTaskInputResponse, {"context", "run", "task_id"}),
        (runtime_pb2.PullAppMessagesRequest, {"message_ids"}),
        (runtime_pb2.PullAppMessagesResponse, {"messages_list", "message_object_trees"}),
        (runtime_pb2.PushAppMessagesRequest, {"messages_list", "message_object_trees"}),
        (runtime_pb2.PushAppMessagesResponse, {"objects_to_push", "session_id"}),
        (runtime_pb2.PushTaskOutputRequest, {"sub_status", "details"}),
        (message_pb2.PullObjectResponse, {"object_found", "object_available", "object_content"}),
        (message_pb2.Metadata, {"reply_to_message_id"}),
        (control_pb2.StartRunRequest, {"fab", "override_config"}),
        (control_pb2.ListNodesResponse, {"nodes_info"}),
        (control_pb2.ListRunsResponse, {"run_dict"}),
        (control_pb2.RegisterNodeRequest, {"public_key", "name"}),
        (node_pb2.NodeInfo, {"node_id", "public_key", "status"}),
        (run_pb2.RunStatus, {"status", "sub_status"}),
        (fleet_pb2.PullMessagesRequest, {"node"}),
    ],
)
def test_fields_of_messages(message: type, fields: set[str]) -> None:
    assert fields <= set(message.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


def test_how_a_connection_is_made() -> None:
    parameters = inspect.signature(ProtobufClient.from_server_address).parameters
    assert {"server_address", "insecure", "root_certificates", "interceptors"} <= set(parameters)
    assert {"master_secret", "protected_methods"} == set(inspect.signature(SuperExecAuthHttpInterceptor).parameters)
    assert list(inspect.signature(RuntimeTokenHttpInterceptor).parameters) == ["token"]
    assert list(inspect.signature(RuntimeVersionHttpInterceptor).parameters) == ["component_name"]
    assert {"runtime_api_address", "insecure", "root_certificates", "token"} == set(
        inspect.signature(HttpGrid).parameters
    )


def test_what_a_grid_pulls_by_and_what_an_array_is_joined_by() -> None:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    assert isinstance(grid._runtime_client, RuntimeHttpClient) and grid.node.node_id == SUPERLINK_NODE_ID
    grid.close()
    body = get_object_body(Array(dtype="f", shape=(1,), stype="", data=b"1234").deflate(), Array)
    assert json.loads(body)["arraychunk_ids"] == [0]


def test_what_is_signed_by_the_executors_secret() -> None:
    source = inspect.getsource(run_superexec)
    assert f'"{runtime.ACQUIRE}"' in inspect.getsource(inspect.getmodule(run_superexec))  # type: ignore[arg-type]
    assert "SuperExecAuthHttpInterceptor" in source
    assert load_superexec_auth_secret(secret_file=None) is None


def test_headers_of_the_fleet_api() -> None:
    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == gate.KEY
    assert FLEET_HTTP_SIGNATURE_HEADER.encode() == gate.SIGNATURE
    names = (
        FLWR_PACKAGE_NAME_METADATA_KEY,
        FLWR_PACKAGE_VERSION_METADATA_KEY,
        FLWR_COMPONENT_NAME_METADATA_KEY,
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
    )
    assert {name.encode() for name in names} <= gate.PASSED


def test_words_for_how_a_task_ended() -> None:
    assert (SubStatus.COMPLETED, SubStatus.FAILED, SubStatus.STOPPED) == ("completed", "failed", "stopped")


def test_types_of_tasks() -> None:
    assert {str(kind) for kind in TaskType} == {
        "flwr-serverapp",
        "flwr-clientapp",
        "flwr-simulation",
        "flwr-agentapp",
        "flwr-model",
        "flwr-connector",
    }


def test_patience_with_a_task_without_heartbeat() -> None:
    assert HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE >= 4 * runtime.HEARTBEAT
    assert HEARTBEAT_DEFAULT_INTERVAL >= 2 * runtime.HEARTBEAT


REFUSED = """
import sys, time
import httpx
from flwr.supercore.retry.http_retry import make_simple_http_retry_invoker
from common import runtime

def refused():
    raise httpx.HTTPStatusError("", request=httpx.Request("POST", "http://x"), response=httpx.Response(401))

if sys.argv[1] == "stay":
    runtime.outlive_tasks()
begin = time.monotonic()
try:
    make_simple_http_retry_invoker().invoke(refused)
except runtime.TROUBLE as error:
    print(type(error).__name__, time.monotonic() - begin < 4)
"""


@pytest.mark.parametrize(("how", "printed"), [("stay", "HTTPStatusError True\n"), ("go", "")])
def test_who_is_refused_with_401_ends_his_own_process_and_ours_stays(how: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED, how], capture_output=True, text=True, check=False)
    assert (done.returncode == 0, done.stdout) == (how == "stay", printed), done.stderr[-2000:]


def test_who_speaks_is_read_from_the_process() -> None:
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 3
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (1, 2, 3)
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def test_options_of_the_commands() -> None:
    for module, parser, options in (
        (
            SUPERLINK,
            "_parse_args_run_superlink",
            "host port ssl-certfile ssl-keyfile ssl-ca-certfile enable-supernode-auth database isolation"
            " superexec-auth-secret-file disable-runtime-dependency-installation health-server-address",
        ),
        (
            SUPERNODE,
            "_parse_args_run_supernode",
            "superlink root-certificates auth-supernode-private-key isolation superexec-auth-secret-file host port"
            " ssl-certfile ssl-keyfile ssl-ca-certfile health-server-address",
        ),
    ):
        known = getattr(module, parser)()._option_string_actions
        assert {f"--{option}" for option in options.split()} <= set(known)
        if "--allow-runtime-dependency-installation" in known and module is SUPERNODE:
            assert known["--allow-runtime-dependency-installation"].default is False


def test_the_pauses_of_a_supernode() -> None:
    """client/supernode_loop.py stands in for `time` there, and hears of orders by `_push_messages`."""
    source = inspect.getsource(start_client_internal)
    assert re.findall(r"\btime\.\w+(?:\([^)]*\))?", source) == ["time.sleep(3)", "time.sleep(0.5)", "time.sleep(0.5)"]
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert loop.count("time.sleep(3)") == 1 and loop.count("_push_messages(") == 1
    assert re.search(r"_push_messages\(\s*state=state,", loop)
    assert isinstance(NodeStateFactory(ObjectStoreFactory()).state(), InMemoryNodeState)
