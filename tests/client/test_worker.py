"""The worker beside Flower's real Runtime API of a SuperNode: every task is answered, nothing of a bundle is run."""

import contextlib
import hashlib
import io
import logging
import secrets
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node as NodeNumber
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from small import tiny_study, write_site

from client import worker
from common import wire
from common.crypto import certificates
from common.errors import MessageError, Reason

NODE, RUN = 77, 5


@dataclass(kw_only=True)
class Node:
    """A SuperNode's Runtime API over TLS, whose SuperLink is the test."""

    state: NodeState
    runtime: worker.Runtime

    def offer(
        self, message: Message, *, kind: str = TaskType.CLIENT_APP, bundle: bytes = b"", objects: bool = True
    ) -> None:
        """Hand a message over as the SuperNode's main loop does: run, bundle and task first, then the message."""
        run = Run.create_empty(message.metadata.run_id)
        run.fab_hash = hashlib.sha256(bundle).hexdigest()
        context = Context(
            run_id=RUN, node_id=NODE, node_config={}, state=RecordDict(), run_config={"study": "x"}, series_id=0
        )
        self.state.set_run_series_context(0, context)
        self.state.store_run(run)
        self.state.store_fab(Fab(run.fab_hash, bundle, {}))
        assert self.state.create_task(task_type=kind, run_id=run.run_id, fab_hash=run.fab_hash) is not None
        message.metadata.__dict__["_message_id"] = message.object_id
        self.state.object_store.preregister(run.run_id, get_object_tree(message))
        for identifier, part in get_all_nested_objects(message).items() if objects else ():
            self.state.object_store.put(identifier, part.deflate())
        self.state.store_message(message)

    def reply(self, *, seconds: float = 30.0) -> Message:
        """What the worker answers. Raises TimeoutError: an unanswered task would block a real SuperNode for good."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for header in self.state.get_messages_legacy(is_reply=True):
                return self._whole(header)
            time.sleep(0.05)
        raise TimeoutError("no answer")

    def _whole(self, header: Message) -> Message:
        store, identifier = self.state.object_store, header.metadata.message_id
        contents: dict[str, bytes] = {}

        def add(tree: ObjectTree) -> None:
            content = b""
            while not content:
                content = store.get(tree.object_id) or b""
            contents[tree.object_id] = content
            for child in tree.children:
                add(child)

        add(store.get_object_tree(identifier))
        found = inflate_object_from_contents(identifier, contents)
        assert isinstance(found, Message)
        return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder, now = tmp_path, int(time.time())
    root = certificates.authority("test", now=now)
    made = certificates.server(root, ["127.0.0.1"], now=now)
    (folder / "c.pem").write_bytes(made.certificate)
    (folder / "k.pem").write_bytes(made.key)
    factory, secret = NodeStateFactory(objectstore_factory=ObjectStoreFactory()), secrets.token_bytes(32)
    factory.state().set_node_id(NODE)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(state_factory=factory, superexec_auth_secret=secret),
            host="127.0.0.1",
            port=0,
            ws="none",
            log_level="critical",
            ssl_certfile=str(folder / "c.pem"),
            ssl_keyfile=str(folder / "k.pem"),
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    runtime = worker.Runtime(address=f"127.0.0.1:{port}", root=root.certificate, secret=secret)
    yield Node(state=factory.state(), runtime=runtime)
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("sites") / "site-0", images=24, seed=1)


@pytest.fixture
def working(node: Node, site: Path) -> Iterator[Node]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(node.runtime, site), kwargs={"stop": stop})
    thread.start()
    yield node
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def proposal(**changes: object) -> Message:
    """An order that shows the tiny study; `changes` of the message."""
    study = tiny_study()
    order = wire.Order(
        kind="propose", round=1, attempt=1, study_hash=study.sha256, study_json=study.canonical, run="ab" * 32
    )
    return message(wire.order_record(order), **changes)


def message(record: RecordDict, *, kind: str = "query", ttl: float = 60.0, run: int = RUN) -> Message:
    wire.speak_as_server(run_id=run)
    return Message(record, NODE, kind, ttl=ttl)


def refused(reply: Message) -> Reason | None:
    """The reason code of an answer without content; its other fields say nothing."""
    if not reply.has_error():
        return None
    assert reply.error.code == 0
    return Reason(reply.error.reason)


def test_an_order_is_answered_by_the_installed_app(working: Node) -> None:
    asked = proposal()
    working.offer(asked)
    reply = working.reply()
    assert refused(reply) is None
    assert wire.site_of(reply.content) == "site-0"
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert (reply.metadata.src_node_id, reply.metadata.run_id) == (NODE, RUN)


def hostile(mark: Path, **files: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("client/app.py", "client/__init__.py", "sitecustomize.py", "torch.py", "flwr.py"):
            file.writestr(name, f"open({str(mark)!r}, 'w').close()\n")
        file.writestr("pyproject.toml", '[project]\nname = "x"\ndependencies = ["no-such-package"]\n')
        for name, text in files.items():
            file.writestr(name, text)
    return made.getvalue()


@pytest.mark.parametrize("bundle", ["hostile", "no zip", "empty", "1 GB", "path"])
def test_a_bundle_is_not_opened(working: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    def opened(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the bundle was opened")

    contents = {
        "hostile": hostile(tmp_path / "mark"),
        "no zip": b"\x00" * 1000,
        "empty": b"",
        "1 GB": hostile(tmp_path / "mark", big="\0" * 2**27),  # unzips to 128 MiB; nothing unzips it
        "path": hostile(tmp_path / "mark", **{"../../client/app.py": "x"}),
    }[bundle]
    monkeypatch.setattr(zipfile, "ZipFile", opened)
    path = list(sys.path)
    working.offer(proposal(), bundle=contents)
    assert refused(working.reply()) is None
    assert not (tmp_path / "mark").exists() and sys.path == path


@pytest.mark.parametrize("kind", [kind for kind in TaskType if kind != TaskType.CLIENT_APP])
def test_a_task_of_any_other_type_is_refused_at_once(working: Node, kind: str) -> None:
    working.offer(proposal(), kind=kind)
    assert refused(working.reply()) is Reason.POLICY


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.other", "system", "train.x", "get_properties"])
def test_a_message_of_any_type_is_answered(working: Node, kind: str) -> None:
    working.offer(proposal(kind=kind))
    assert refused(working.reply()) in (None, Reason.MALFORMED)


def test_arrays_are_measured_before_they_are_joined(working: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower joins a piece as often as an array names it: a small message could ask for all memory."""
    limits, whole = [], worker.message_of

    def measured(identifier: str, contents: dict[str, bytes], *, limit: int) -> Message:
        limits.append(limit)
        if len(limits) == 1:
            raise MessageError("arrays of too many bytes")
        return whole(identifier, contents, limit=limit)

    monkeypatch.setattr(worker, "message_of", measured)
    for reason in (Reason.MALFORMED, None):
        working.offer(proposal())
        assert refused(working.reply()) is reason
    assert limits == [worker.MESSAGE_LIMIT] * 2


def test_an_order_whose_time_has_passed_is_not_worked_on(working: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "app", _explode)
    late = proposal(ttl=0.05)
    time.sleep(0.1)
    working.offer(late)
    assert refused(working.reply()) is Reason.LATE


def _explode(*_args: object) -> Message:
    raise RuntimeError("patient 4711, /data/pacs/secret")


@pytest.mark.parametrize("error", [RuntimeError, ValueError, MemoryError, KeyError, RecursionError])
def test_the_text_of_an_error_stays_here(
    working: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def fail(*_args: object) -> Message:
        raise error("patient Mustermann")

    monkeypatch.setattr(worker, "app", fail)
    with caplog.at_level(logging.DEBUG, logger="fedward"):
        working.offer(proposal())
        reply = working.reply()
    assert refused(reply) is Reason.MALFORMED
    assert b"Mustermann" not in reply.deflate() and "Mustermann" not in caplog.text
    monkeypatch.undo()
    working.offer(proposal())
    assert refused(working.reply()) is None


def zip_bytes() -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, a=np.zeros(10**6))
    return made.getvalue()


def pickled() -> bytes:
    made = io.BytesIO()
    np.save(made, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return made.getvalue()


@pytest.mark.parametrize("data", [zip_bytes, pickled, lambda: b"", lambda: b"\x93NUMPY" + b"\xff" * 100])
def test_hostile_bytes_in_an_array_are_not_loaded(
    working: Node, monkeypatch: pytest.MonkeyPatch, data: Callable[[], bytes]
) -> None:
    def loaded(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the array was loaded")

    content = data()
    monkeypatch.setattr(np, "load", loaded)
    monkeypatch.setattr(Array, "numpy", loaded)
    for stype in ("numpy.ndarray", "fedward.f32le"):
        array = Array(dtype="float32", shape=(10**9,), stype=stype, data=content)
        record = RecordDict({"vector": ArrayRecord({"vector": array}), "header": ConfigRecord({"json": b"{}"})})
        working.offer(message(record, kind="train"))
        reply = working.reply()
        assert refused(reply) is None and reply.has_content()


def test_records_that_are_no_order_are_answered(working: Node) -> None:
    for record in (RecordDict(), RecordDict({"header": ConfigRecord({"json": b"\xff"})})):
        working.offer(message(record, kind="train"))
        assert refused(working.reply()) is None


def test_a_message_beyond_the_limit_is_refused(working: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MESSAGE_LIMIT", 100)
    working.offer(proposal())
    assert refused(working.reply()) is Reason.MALFORMED


def test_a_message_that_never_gets_whole_is_left_for_the_next_and_not_answered(
    working: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer to it would be sent as the answer to the next task, and every later one a message too late."""
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    stale, asked = proposal(), proposal(ttl=61.0)
    working.offer(stale, objects=False)
    time.sleep(1.0)
    working.offer(asked)
    assert working.reply().metadata.reply_to_message_id == asked.metadata.message_id
    time.sleep(1.0)
    assert not working.state.get_messages_legacy(is_reply=True)


def test_a_message_that_takes_its_time_is_waited_for(working: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.2)
    asked = proposal(ttl=62.0)
    working.offer(asked, objects=False)
    for identifier, part in get_all_nested_objects(asked).items():
        time.sleep(0.6)
        working.state.object_store.put(identifier, part.deflate())
    assert refused(working.reply()) is None


def test_another_secret_gets_no_task(node: Node, site: Path) -> None:
    stop = threading.Event()
    wrong = worker.Runtime(address=node.runtime.address, root=node.runtime.root, secret=b"another secret")
    thread = threading.Thread(target=worker.work, args=(wrong, site), kwargs={"stop": stop})
    thread.start()
    node.offer(proposal())
    time.sleep(1.5)
    assert not node.state.get_messages_legacy(is_reply=True)
    stop.set()
    thread.join(20)
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(node.runtime, site), kwargs={"stop": stop})
    thread.start()
    assert refused(node.reply()) is None
    stop.set()
    thread.join(20)


def test_a_supernode_that_is_away_is_waited_for(site: Path) -> None:
    stop = threading.Event()
    root = certificates.authority("test", now=int(time.time())).certificate
    away = worker.Runtime(address="127.0.0.1:1", root=root, secret=b"x")
    thread = threading.Thread(target=worker.work, args=(away, site), kwargs={"stop": stop})
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_printing_a_runtime_shows_no_secret(node: Node) -> None:
    assert str(node.runtime.secret) not in repr(node.runtime) and "address" not in repr(node.runtime)


def expire(state: NodeState) -> None:
    """As if 60 s had gone by without a heartbeat."""
    for record in state.task_token_store.values():  # type: ignore[attr-defined]
        record.active_until = record.active_until.fromtimestamp(0, record.active_until.tzinfo)


@pytest.mark.parametrize("at", ["AcquireTask", "PullMessages", "PullTaskInput", "PullObject", "PushMessages"])
def test_wherever_a_worker_is_killed_the_message_is_answered_once(
    node: Node, site: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Flower gives a claimed task back after 60 s without a heartbeat, and answers one itself that was begun."""
    monkeypatch.setattr(worker, "PATIENCE", 0.3)

    class Killed(BaseException):
        pass

    real = getattr(worker.RuntimeHttpClient, at)

    def killed(client: object, request: object) -> object:
        answer = real(client, request)
        if at != "AcquireTask" or answer.token:
            raise Killed
        return answer

    def dies() -> None:
        with contextlib.suppress(Killed):
            worker.work(node.runtime, site, stop=threading.Event())

    asked = proposal(ttl=63.0)
    node.offer(asked)
    with monkeypatch.context() as patch:
        patch.setattr(worker.RuntimeHttpClient, at, killed)
        thread = threading.Thread(target=dies)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    replies: list[Message] = list(node.state.get_messages_legacy(is_reply=True))
    expire(node.state)
    stop = threading.Event()
    thread = threading.Thread(target=worker.work, args=(node.runtime, site), kwargs={"stop": stop})
    thread.start()
    end = time.monotonic() + 8
    while time.monotonic() < end and not replies:
        time.sleep(0.1)
        if at == "PullMessages" and time.monotonic() > end - 6:
            expire(node.state)
        replies += node.state.get_messages_legacy(is_reply=True)
    time.sleep(0.5)
    replies += node.state.get_messages_legacy(is_reply=True)
    stop.set()
    thread.join(20)
    assert [reply.metadata.reply_to_message_id for reply in replies] == [asked.metadata.message_id]


@pytest.mark.parametrize(("hour", "overtakes"), [("09", False), ("11", True)])
def test_only_a_younger_task_says_that_an_order_will_never_be_whole(
    hour: str, overtakes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one is of a stopped run, given back: failed for its sake, the order would never be answered."""
    monkeypatch.setattr(worker, "PATIENCE", 0.0)
    monkeypatch.setattr(worker, "POLL", 0.01)
    other = AcquireTaskResponse(token="t")
    other.task.pending_at = f"2026-01-01T{hour}:00:00+00:00"
    found = [PullObjectResponse(object_found=True)] * 3 + [PullObjectResponse(object_found=False)]
    client = SimpleNamespace(PullObject=lambda _request: found.pop(0))
    claim = worker._Claim(client=client, run=RUN, node=NodeNumber(node_id=NODE), since="2026-01-01T10:00:00+00:00")  # type: ignore[arg-type]
    expected = worker._Overtaken if overtakes else ValueError
    with pytest.raises(expected):
        worker._fetch(claim, ObjectTree(object_id="0" * 64), lambda: other)
    assert len(found) == (3 if overtakes else 0)
