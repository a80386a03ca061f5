"""Answers as they come in: from a SuperLink in pieces, and one that never becomes whole holds up no other."""

import logging
from dataclasses import dataclass, field
from typing import Protocol

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.grid import HttpGrid

from common.errors import MessageError, Reason
from common.runtime import message_of

_PARTS, _SMALLEST = 64, 2**16  # pieces of an answer: so many, and one more for each so many bytes of its limit

_log = logging.getLogger("fedward.answers")


class Answers(Protocol):
    """The answers to one exchange's orders."""

    def look(self, identifier: str) -> Message | Reason | None:
        """The answer to the order that Flower gave this identifier, or why there will be none; None as long as it isn't
        whole. Once it has been given it is gone.
        """


class Whole:
    """Answers of a runtime that hands over nothing but whole messages: a simulation."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def look(self, identifier: str) -> Message | Reason | None:
        return next(iter(self._grid.pull_messages([identifier])), None)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """An answer of which Flower has the list of pieces."""

    root: str
    parts: tuple[str, ...]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of those that have come


class Pieces:
    """Answers of a SuperLink. It announces one with the first piece, while the site is still sending the others, and
    Flower's own grid waits hours for them.

    Guarantees: `look` waits for no piece; what is wrong with one answer, or beyond `limit` bytes, makes that answer
    MALFORMED and raises nothing; the pieces of one answer are held at a time, and none between two looks.
    Raises: what the connection raises (httpx.HTTPError, and Flower's own for a run that was stopped).
    """

    def __init__(self, grid: HttpGrid, *, limit: int) -> None:
        self._client, self._node, self._run = grid._runtime_client, grid.node, grid.run.run_id
        self._limit = limit
        self._begun: dict[str, _Begun] = {}

    def look(self, identifier: str) -> Message | Reason | None:
        try:
            if identifier not in self._begun:
                self._begin(identifier)
            begun = self._begun.get(identifier)
            return None if begun is None else self._whole(begun)
        except httpx.HTTPError:
            raise
        except Exception as error:  # whatever Flower's own reading of foreign bytes may raise
            _log.warning("an answer is malformed: %s", type(error).__name__)
            return Reason.MALFORMED

    def _begin(self, identifier: str) -> None:
        """What the answer is made of, if there is one. The SuperLink says it once."""
        pulled = self._client.PullMessages(PullAppMessagesRequest(message_ids=[identifier]))
        for header, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            if header.metadata.reply_to_message_id == identifier:
                parts = tuple(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
                if len(parts) > _PARTS + self._limit // _SMALLEST:
                    raise MessageError(f"an answer of {len(parts)} pieces")
                self._begun[identifier] = _Begun(root=tree.object_id, parts=parts)

    def _whole(self, begun: _Begun) -> Message | Reason | None:
        """First the pieces that have not come yet: when they have, the others are fetched once more."""
        contents: dict[str, bytes] = {}
        for part in sorted(begun.parts, key=begun.sizes.__contains__):
            found = self._client.PullObject(PullObjectRequest(node=self._node, run_id=self._run, object_id=part))
            if not found.object_found:
                return Reason.LATE  # the site paused for too long: Flower has given up the rest
            if not found.object_available:
                return None
            contents[part] = found.object_content
            begun.sizes[part] = len(found.object_content)
            if sum(begun.sizes.values()) > self._limit:
                raise MessageError(f"an answer of more than {self._limit} bytes")
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=self._run, message_object_id=begun.root)
        )
        return message_of(begun.root, contents, limit=self._limit)


def answers_of(grid: Grid, *, limit: int) -> Answers:
    """The answers that come by this grid, each of `limit` bytes at most where they come in pieces."""
    return Pieces(grid, limit=limit) if isinstance(grid, HttpGrid) else Whole(grid)
