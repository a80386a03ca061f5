"""Flower's SuperNode, and two things of its loop that are otherwise here: its pauses, and that it stays in step.

Flower's looks for the next order 3 seconds after it has found none, and for the worker's answer every half second. A
round has one exchange of order and answer, under secure aggregation two, and each would pay for both. Within BUSY
seconds of an order this one looks every NEXT_ORDER seconds; after that it is as patient as Flower's, so that sites that
wait for the next study cost the server no more than before.

Flower's takes an order, sends whatever answer comes next, and takes the next order. An order of a run that was stopped
at that moment is dropped, but its task is not, and the worker may answer it: that answer passes for the next order's,
whose own answer then waits until yet another order has come, and so on for good. This one takes no order before the
last has been answered. tests/test_flower_contract.py says what changed in Flower.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from flwr.supernode import start_client_internal as supernode

from common import processes

NEXT_ORDER = 0.5  # seconds between two looks for an order, while a run goes on
ANSWER = 0.1  # seconds between two looks for the worker's answer, which lies in this process's memory
BUSY = 60.0  # seconds after an order


class Pauses:
    """Stands for the module `time` in Flower's loop, of which that uses `sleep` alone."""

    def __init__(
        self, *, sleep: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._sleep, self._now, self._last = sleep, now, -BUSY

    def ordered(self) -> None:
        """An order has come, or was answered."""
        self._last = self._now()

    def sleep(self, seconds: float) -> None:
        """Flower's pauses: below a second for an answer, seconds for an order."""
        if seconds < 1:
            self._sleep(min(seconds, ANSWER))
        elif self._now() - self._last < BUSY:
            self._sleep(min(seconds, NEXT_ORDER))
        else:
            self._sleep(seconds)


def in_step(push: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's `_push_messages`, repeated until the order that was taken last has been answered.

    Orders and answers lie in the node's state by their number, in the order in which they came; an answer and its order
    are removed once it has been sent.
    """

    def pushed(*, state: Any, object_store: Any, **more: Any) -> None:
        with state.lock_msg_store:
            orders = [key for key, kept in state.msg_store.items() if not kept.message.metadata.reply_to_message_id]
        pieces = _Pieces(state, object_store)
        push(state=state, object_store=pieces, **more)
        while orders and orders[-1] in state.msg_store:
            push(state=state, object_store=pieces, **more)

    return pushed


class _Pieces:
    """The node's object store, in which a piece that the worker will never bring is missed in the end.

    Flower's loop looks for an answer's next piece for good. A worker that is killed after an answer's header and before
    its last piece leaves a push session, which Flower ends after 180 seconds without a piece, but only where it is
    asked by way of the state, as here.
    """

    def __init__(self, state: Any, store: Any) -> None:
        self._state, self._store = state, store

    def get(self, piece: str) -> bytes | None:
        """b"" as long as it may come, None when it can't any more."""
        content: bytes | None = self._store.get(piece)
        if content == b"":
            with self._state.lock_msg_store:
                runs = {kept.message.metadata.run_id for kept in self._state.msg_store.values()}
            for run in sorted(runs):
                content = self._state.get_object(run, piece)
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def shorten(pauses: Pauses) -> None:
    """From now on Flower's loop in this process pauses like that."""
    answer: Callable[..., Any] = supernode._push_messages

    def answered(*args: Any, **more: Any) -> Any:
        pauses.ordered()
        try:
            return answer(*args, **more)
        finally:
            pauses.ordered()

    vars(supernode).update(time=pauses, _push_messages=answered)


if __name__ == "__main__":
    vars(supernode).update(_push_messages=in_step(supernode._push_messages))
    shorten(Pauses())
    processes.run_flower(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
