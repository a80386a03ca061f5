"""Answers in pieces: one that never becomes whole, is no answer or is too large changes nothing for the others."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_tree,
)
from flwr.superlink.grid import HttpGrid

from common import wire
from common.errors import Reason
from server.exchange import Exchange
from simulations.inprocess import SimulatedClock

ORDER = wire.Order(kind="update", round=1, attempt=1, study_hash="0" * 64)
CHUNK = 2**16  # bytes of a piece of an array; Flower's own are of 5 MiB
LENGTH = 3 * CHUNK // 4  # numbers of a vector of three such pieces
VECTOR = np.arange(LENGTH, dtype=np.float32)


@dataclass(kw_only=True)
class Link:
    """A SuperLink: what it says of each answer once, and pieces, from some second on; None never."""

    clock: SimulatedClock
    said: dict[str, PullAppMessagesResponse] = field(default_factory=dict)
    pieces: dict[str, bytes] = field(default_factory=dict)
    since: dict[str, float | None] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    confirmed: list[str] = field(default_factory=list)
    pulled: list[str] = field(default_factory=list)
    error: Exception | None = None

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        (identifier,) = request.message_ids
        return self.said.pop(identifier, PullAppMessagesResponse())

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        if self.error is not None:
            raise self.error
        if request.object_id in self.lost:
            return PullObjectResponse(object_found=False)
        since = self.since.get(request.object_id, 0.0)
        if since is None or self.clock.now() < since:
            return PullObjectResponse(object_found=True)
        self.pulled.append(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=self.pieces[request.object_id]
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:
        self.confirmed.append(request.message_object_id)


class Run:
    run_id = 1


class Linked(HttpGrid):
    """Flower's grid on such a SuperLink; each node answers as it is told when its order comes."""

    def __init__(self, link: Link, answer: Mapping[int, Callable[[Message], None]]) -> None:
        self.link, self._answer, self.node = link, answer, Node(node_id=1)

    _runtime_client = property(lambda self: self.link)  # type: ignore[assignment]
    run = Run()  # type: ignore[assignment]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = f"order-{node}"
        self._answer[node](message)
        return [f"order-{node}"]


def answers_with(
    link: Link,
    site: str,
    *,
    root: Any = None,
    vector: wire.Vector = VECTOR,
    pieces: Callable[[dict[str, bytes], ObjectTree], None] = lambda _contents, _tree: None,
) -> Callable[[Message], None]:
    """Put a site's answer where the SuperLink has it; `root` instead of it, `pieces` to change how it comes."""

    def put(order: Message) -> None:
        answer = wire.Answer(
            site=site,
            kind="update",
            round=1,
            attempt=1,
            study_hash="0" * 64,
            order_hash=ORDER.sha256,
            reason=Reason.OK,
            vector=vector,
        )
        message = Message(wire.answer_record(answer), reply_to=order)
        sent = message if root is None else root
        tree, contents = get_object_tree(sent), {k: o.deflate() for k, o in get_all_nested_objects(sent).items()}
        pieces(contents, tree)
        link.pieces |= contents
        header = message_to_proto(remove_content_from_message(message))
        said = PullAppMessagesResponse(messages_list=[header], message_object_trees=[tree])
        link.said[order.metadata.message_id] = said

    return put


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr("server.exchange._REST", 2**14)
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", CHUNK)
    wire.speak_as_server(run_id=1)
    return Link(clock=SimulatedClock())


def ask(link: Link, *more: Callable[[Message], None], length: int = LENGTH) -> list[tuple[int, Reason, bool]]:
    """Who answered what, and whether with the vector, in this order; node 9 is a site like any other."""
    good = answers_with(link, "good")
    grid = Linked(link, {**dict(enumerate(more, 1)), 9: good})
    asking = Exchange(grid, link.clock).ask(
        dict.fromkeys([*range(1, len(more) + 1), 9], ORDER), length=length, deadline=60
    )
    return [
        (one.node, one.reason, one.answer is not None and np.array_equal(one.answer.vector, VECTOR))  # type: ignore[arg-type]
        for one in asking
    ]


GOOD = (9, Reason.OK, True)


def test_an_answer_of_several_pieces_is_that_which_was_sent_and_confirmed(link: Link) -> None:
    assert ask(link) == [GOOD]
    assert len(link.confirmed) == 1 and len(link.pulled) == len(set(link.pulled)) > 3


def test_an_answer_that_never_becomes_whole_is_late_and_holds_nobody_up(link: Link) -> None:
    def stall(contents: dict[str, bytes], _tree: ObjectTree) -> None:
        link.since |= dict.fromkeys(list(contents)[3:], None)

    assert ask(link, answers_with(link, "stalls", pieces=stall, vector=VECTOR + 1)) == [GOOD, (1, Reason.LATE, False)]
    assert link.clock.now() < 61


def test_an_answer_whose_pieces_come_slowly_is_taken_once_they_are_there(link: Link) -> None:
    def slowly(contents: dict[str, bytes], _tree: ObjectTree) -> None:
        link.since |= {piece: 5.0 * number for number, piece in enumerate(contents)}

    received = ask(link, answers_with(link, "slow", pieces=slowly, vector=VECTOR + 1))
    assert received == [GOOD, (1, Reason.OK, False)]  # ok, with another vector
    twice = [piece for piece in set(link.pulled) if link.pulled.count(piece) > 2]
    assert not twice and link.clock.now() < 60


def test_an_answer_whose_pieces_the_superlink_has_given_up_is_late(link: Link) -> None:
    def lose(contents: dict[str, bytes], _tree: ObjectTree) -> None:
        link.lost.add(list(contents)[2])

    assert ask(link, answers_with(link, "lost", pieces=lose, vector=VECTOR + 1)) == [(1, Reason.LATE, False), GOOD]


def changed(kind: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes], ObjectTree], None]:
    """Another content in the pieces of this kind."""

    def pieces(contents: dict[str, bytes], _tree: ObjectTree) -> None:
        for name, content in contents.items():
            if content.startswith(kind.encode() + b" "):
                contents[name] = change(content)

    return pieces


def often(content: bytes) -> bytes:
    """An array's first piece a hundred times more."""
    head, body = content[: content.index(b"\0")].decode(), json.loads(get_object_body(content, Array))
    text = json.dumps({**body, "arraychunk_ids": [*([0] * 100), *body["arraychunk_ids"]]}).encode()
    return f"{head.rsplit(' ', 1)[0]} {len(text)}".encode() + b"\0" + text


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Message", lambda _content: b"Message  0\0"),
        ("Message", lambda _content: b""),
        ("RecordDict", lambda content: content.replace(b"RecordDict ", b"Wreck ", 1)),
        ("ConfigRecord", lambda content: content[:-3]),
        ("ArrayChunk", lambda content: b"no head"),
        ("Array", lambda content: content.replace(b"arraychunk_ids", b"arraychunk_odd")),
    ],
)
def test_pieces_that_make_no_message_are_malformed_and_end_nothing(
    link: Link, kind: str, change: Callable[[bytes], bytes]
) -> None:
    bad = answers_with(link, "bad", vector=VECTOR + 1, pieces=changed(kind, change))
    assert ask(link, bad) == [(1, Reason.MALFORMED, False), GOOD]


def test_an_array_that_names_its_pieces_again_and_again_is_not_joined(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    bad = answers_with(link, "bad", vector=VECTOR + 1, pieces=changed("Array", often))
    assert ask(link, bad) == [(1, Reason.MALFORMED, False), GOOD]
    assert "MessageError" in caplog.text  # by its length, before anything was made of it


@pytest.mark.parametrize("kind", ["Array ", "ArrayChunk ", "ArrayRecord ", "ConfigRecord "])
def test_a_message_of_something_else_than_a_record_is_malformed_and_ends_nothing(link: Link, kind: str) -> None:
    def pieces(contents: dict[str, bytes], tree: ObjectTree) -> None:
        own = next(name for name, content in contents.items() if content.startswith(kind.encode()))
        contents[tree.object_id] = contents[tree.object_id].replace(tree.children[0].object_id.encode(), own.encode())

    bad = answers_with(link, "bad", vector=VECTOR + 1, pieces=pieces)
    assert ask(link, bad) == [(1, Reason.MALFORMED, False), GOOD]


@pytest.mark.parametrize(
    "root",
    [
        RecordDict({"x": ConfigRecord({"y": 1})}),
        ConfigRecord({"y": 1}),
        ArrayRecord({"vector": Array(dtype="float32", shape=(1,), stype="raw", data=b"1234")}),
    ],
)
def test_something_else_than_a_message_is_malformed_and_ends_nothing(link: Link, root: Any) -> None:
    assert ask(link, answers_with(link, "bad", root=root)) == [(1, Reason.MALFORMED, False), GOOD]


def test_an_answer_beyond_its_limit_is_malformed_before_all_of_it_is_pulled(link: Link) -> None:
    large = np.arange(4 * LENGTH, dtype=np.float32)[::-1]
    assert ask(link, answers_with(link, "large", vector=large)) == [(1, Reason.MALFORMED, False), GOOD]
    assert sum(len(link.pieces[piece]) for piece in link.pulled) < 2 * 8 * LENGTH


def test_an_answer_of_too_many_pieces_is_malformed_and_none_is_pulled(link: Link) -> None:
    def many(_contents: dict[str, bytes], tree: ObjectTree) -> None:
        tree.children.extend(ObjectTree(object_id=f"{number}") for number in range(10_000))

    assert ask(link, answers_with(link, "many", vector=VECTOR + 1, pieces=many)) == [(1, Reason.MALFORMED, False), GOOD]
    assert len(link.pulled) < len(link.pieces)  # those of the other answer alone


def test_a_message_that_answers_another_order_is_nobodys(link: Link) -> None:
    def elsewhere(order: Message) -> None:
        answers_with(link, "elsewhere")(order)
        link.said[order.metadata.message_id].messages_list[0].metadata.reply_to_message_id = "order-9"

    assert ask(link, elsewhere) == [GOOD, (1, Reason.LATE, False)]


def test_a_run_that_was_stopped_is_raised(link: Link) -> None:
    request = httpx.Request("POST", "https://127.0.0.1")
    link.error = httpx.HTTPStatusError("401", request=request, response=httpx.Response(401, request=request))
    with pytest.raises(httpx.HTTPStatusError):
        ask(link)
