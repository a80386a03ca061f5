"""A SuperNode's loop: short pauses while a run goes on, and no order before the last has been answered."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.supernode_loop import ANSWER, BUSY, NEXT_ORDER, Pauses, in_step, shorten
from common import processes


@pytest.fixture
def clock() -> dict[str, float]:
    return {"now": 1000.0, "slept": 0.0}


@pytest.fixture
def pauses(clock: dict[str, float]) -> Pauses:
    def sleep(seconds: float) -> None:
        clock["slept"] = seconds

    return Pauses(sleep=sleep, now=lambda: clock["now"])


def test_without_an_order_a_supernode_is_as_patient_as_flowers(pauses: Pauses, clock: dict[str, float]) -> None:
    pauses.sleep(3)
    assert clock["slept"] == 3


def test_within_a_minute_of_an_order_the_next_is_looked_for_soon(pauses: Pauses, clock: dict[str, float]) -> None:
    pauses.ordered()
    for later, slept in ((0.0, NEXT_ORDER), (BUSY - 0.1, NEXT_ORDER), (BUSY, 3)):
        clock["now"] = 1000.0 + later
        pauses.sleep(3)
        assert clock["slept"] == slept


def test_an_answer_is_looked_for_at_once(pauses: Pauses, clock: dict[str, float]) -> None:
    pauses.sleep(0.5)
    assert clock["slept"] == ANSWER


def test_answering_counts_as_an_order_until_its_end(
    pauses: Pauses, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*, takes: float) -> str:
        clock["now"] += takes
        return "sent"

    monkeypatch.setattr(supernode, "_push_messages", answer)
    monkeypatch.setattr(supernode, "time", supernode.time)  # is put back with it
    shorten(pauses)
    assert supernode.time is pauses
    assert supernode._push_messages(takes=10 * BUSY) == "sent"  # type: ignore[call-arg, func-returns-value]
    supernode.time.sleep(3)
    assert clock["slept"] == NEXT_ORDER


def test_the_command_is_flowers() -> None:
    command = processes.flower("flower-supernode", "--version", module="client.supernode_loop")
    assert command[:4] == (sys.executable, "-P", "-m", "client.supernode_loop")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "1.41" in done.stdout


@pytest.fixture
def state() -> Iterator[InMemoryNodeState]:
    """Flower's own, and an identity for the messages that are made here."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 5
    made = InMemoryNodeState(InMemoryObjectStore())
    made.set_node_id(5)
    yield made
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def called(what: str, run: int) -> str:
    """A number such as Flower gives."""
    return hashlib.sha256(f"{what} of run {run}".encode()).hexdigest()


def ordered(state: InMemoryNodeState, *, run: int) -> Message:
    """An order that the loop has taken and the worker has got."""
    message = Message(RecordDict(), dst_node_id=5, message_type="train")
    message.metadata.__dict__.update(_run_id=run, _message_id=called("order", run))
    state.store_message(message)
    assert state.get_messages_legacy(run_ids=[run], is_reply=False)
    state.record_message_processing_start(message.metadata.message_id)
    return message


def answered(state: InMemoryNodeState, order: Message) -> None:
    """The worker's answer to it."""
    reply = Message(RecordDict(), reply_to=order)
    run = order.metadata.run_id
    reply.metadata.__dict__.update(_run_id=run, _message_id=called("answer", run))
    state.record_message_processing_end(order.metadata.message_id)
    state.object_store.preregister(run, ObjectTree(object_id=called("answer", run)))
    state.store_message(reply)


@pytest.mark.parametrize("late", [False, True], ids=["its answer is there first", "its answer comes when nobody waits"])
@pytest.mark.parametrize("kept", [False, True], ids=["Flower's loop", "in step"])
def test_an_order_that_was_dropped_and_answered_does_not_pass_for_the_next(
    kept: bool, late: bool, state: InMemoryNodeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run 1 was stopped while its order was fetched. Flower's own loop ends with the next run's answer not sent."""
    sent: list[str] = []

    def send(message: Message, _tree: object, _seconds: float) -> tuple[set[str], str]:
        sent.append(message.metadata.message_id)
        return set(), ""

    dropped = ordered(state, run=1)
    if late:
        answered(state, dropped)
    awaited = ordered(state, run=2)
    waiting = (
        [lambda: answered(state, awaited)]
        if late
        else [lambda: answered(state, dropped), lambda: answered(state, awaited)]
    )
    monkeypatch.setattr(supernode, "time", SimpleNamespace(sleep=lambda _seconds: waiting.pop(0)()))
    push = in_step(supernode._push_messages) if kept else supernode._push_messages
    push(state=state, object_store=state.object_store, send=send, push_object=lambda *_: None)
    assert sent == [called("answer", run) for run in ((1, 2) if kept else (1,))]
    assert len(state.msg_store) == (0 if kept else 1)


def test_an_answer_whose_worker_was_killed_before_its_last_piece_holds_nobody_up_for_good(
    state: InMemoryNodeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower ends a push session that brings nothing for 180 s, where it is asked."""
    order = ordered(state, run=1)
    reply, header, piece = Message(RecordDict(), reply_to=order), called("answer", 1), called("piece", 1)
    reply.metadata.__dict__.update(_run_id=1, _message_id=header)
    tree = ObjectTree(object_id=header, children=[ObjectTree(object_id=piece)])
    state.store_message_and_object_tree(reply, tree, state.start_session(1))
    looks = []

    def looked(_seconds: float) -> None:
        looks.append(state)
        if len(looks) == 3:
            for session in state._object_push_sessions.values():
                session.expires_at = session.expires_at.fromtimestamp(0, session.expires_at.tzinfo)
        if len(looks) == 10:
            raise TimeoutError  # which Flower takes for a failure to send

    monkeypatch.setattr(supernode, "time", SimpleNamespace(sleep=looked))
    in_step(supernode._push_messages)(
        state=state,
        object_store=state.object_store,
        send=lambda *_: ({header, piece}, "session"),
        push_object=lambda *_: None,
    )
    assert len(looks) == 3 and not state.msg_store
