"""Orders out, answers in one at a time as they arrive, until everybody has answered or the deadline has come."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import wire
from common.crypto.identity import Identity
from common.errors import MessageError, Reason
from common.roster import Roster
from server.answers import answers_of

_POLL = (0.001, 0.5)  # seconds between two looks: grows from the first to the second
_LOOK = 2.0  # seconds between two looks at who is online, and two attempts to send
_LONGEST_LOOK = 30.0  # seconds between two questions whether a study has been approved
_PUSHES = 3  # attempts to send an order
_REST = wire.SESSION_LIMIT + wire.HEADER_LIMIT + 2**20  # bytes of an answer besides its numbers, Flower's own included
_WIDEST = 8  # bytes of a number
_ABSENT = {  # what Flower itself answers in the place of a site, by its error codes
    3: Reason.LATE,  # the order has expired
    4: Reason.LATE,  # the answer has
    5: Reason.OFFLINE,  # no heartbeat
}


Hear = Callable[[wire.Order, wire.Answer], None]


class Clock:
    """Seconds that pass. A simulation has one of its own, so that waiting for a laggard takes no time."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        time.sleep(seconds)

    def begin(self) -> float:
        """Seconds since the same moment, as an exchange begins."""
        return self.now()


@dataclass(frozen=True, kw_only=True, eq=False)
class Received:
    """What came of one node's order: an answer that belongs to it, or the reason why there is none."""

    node: int
    reason: Reason
    answer: wire.Answer | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Credentials:
    """As whom the server speaks, and to whom: its online key, and the roster that names it."""

    key: Identity
    roster: Roster


class Exchange:
    """One end of a Flower grid: who is online, and one order at a time to some of them.

    With `credentials` every order is signed, and every answer has to be, by a site of the roster; `listen` to them.
    """

    def __init__(self, grid: Grid, clock: Clock, credentials: Credentials | None = None) -> None:
        self._grid, self._clock, self._number = grid, clock, 0
        self._key = None if credentials is None else credentials.key
        self._identities = None if credentials is None else credentials.roster.identities
        self._hear: Hear | None = None

    def listen(self, hear: Hear | None) -> None:
        """Have every answer that its site has signed shown to `hear`, with the order that it answers."""
        self._hear = hear

    def online(self) -> frozenset[int]:
        """Nodes that Flower believes to be reachable now."""
        return frozenset(self._grid.get_node_ids())

    def wait(self, count: int, *, deadline: float, ready: Callable[[], bool] = lambda: True) -> bool:
        """Until so many nodes are online and `ready`, then true; false at the deadline (seconds). `ready` is asked only
        when they are online, and ever less often.
        """
        start, pause = self._clock.now(), _LOOK
        while (away := len(self.online()) < count) or not ready():
            left = deadline - (self._clock.now() - start)
            if left <= 0:
                return False
            pause = _LOOK if away else min(2 * pause, _LONGEST_LOOK)
            self._clock.sleep(min(pause, left))
        return True

    def ask(
        self,
        orders: Mapping[int, wire.Order],
        *,
        length: int,
        deadline: float,
        enough: Callable[[], bool] = lambda: False,
        grace: float = 0.0,
    ) -> Iterator[Received]:
        """Send each node its order and yield what comes back, as it comes; at the deadline (seconds) the rest is late,
        and `grace` seconds after `enough` has become true.

        Guarantees: at most one `Received` per node, exactly one when read to the end; one answer is held at a time, so
        memory does not grow with the sites; one that breaks the rules, or never becomes whole, changes nothing for the
        others. Answers are checked against the order they must belong to and to a vector of `length` values or words
        (wire.answer_from). Nodes with the same order share one record.
        """
        start, self._number = self._clock.begin(), self._number + 1
        answers = answers_of(self._grid, limit=_WIDEST * length + _REST)
        records = {id(order): wire.order_record(order, self._key) for order in orders.values()}
        pending: dict[str, int] = {}
        for node, order in orders.items():
            identifier = self._push(order, records[id(order)], node=node, ttl=deadline)
            if identifier:
                pending[identifier] = node
            else:
                yield Received(node=node, reason=Reason.OFFLINE)
        pause = _POLL[0]
        while pending and self._clock.now() - start < deadline:
            arrived = False
            for identifier in list(pending):
                reply = answers.look(identifier)
                if reply is None:
                    continue
                arrived = True
                node = pending.pop(identifier)
                reason, answer, bytes_up = self._verdict(reply, orders[node], length)
                yield Received(
                    node=node,
                    reason=reason,
                    answer=answer,
                    bytes_down=wire.size_of(records[id(orders[node])]),
                    bytes_up=bytes_up,
                    seconds=self._clock.now() - start,
                )
            if enough():
                deadline = min(deadline, self._clock.now() - start + grace)
                enough = _never
            if pending:
                pause = _POLL[0] if arrived else min(2 * pause, _POLL[1])
                self._clock.sleep(min(pause, max(0.0, deadline - (self._clock.now() - start))))
        for node in pending.values():
            size = wire.size_of(records[id(orders[node])])
            yield Received(node=node, reason=Reason.LATE, bytes_down=size, seconds=deadline)

    def _verdict(
        self, message: Message | Reason, order: wire.Order, length: int
    ) -> tuple[Reason, wire.Answer | None, int]:
        if isinstance(message, Reason):
            return message, None, 0
        if not message.has_content():  # Flower's own error reply: the node went away, or its process died
            return _ABSENT.get(message.error.code, Reason.FAILED), None, 0
        size = wire.size_of(message.content)
        try:
            answer = wire.answer_from(message.content, to=order, length=length, identities=self._identities)
        except MessageError as error:
            return error.code, None, size
        if self._identities is not None and self._hear is not None:
            self._hear(order, answer)
        return answer.reason, answer, size

    def _push(self, order: wire.Order, record: RecordDict, *, node: int, ttl: float) -> str:
        """What Flower calls the message; "" where it doesn't know the node.

        A SuperLink that ended in the middle has forgotten the beginning: it is sent again, as a new message.
        """

        def send() -> str:
            message = wire.message(order, record, node=node, ttl=ttl, exchange=self._number)
            return next(iter(self._grid.push_messages([message])), "")

        for _ in range(_PUSHES - 1):
            with suppress(Exception):
                return send()
            self._clock.sleep(_LOOK)
        return send()


def _never() -> bool:
    return False
