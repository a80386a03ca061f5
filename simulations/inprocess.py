"""Rounds by direct calls: the real ServerApp and ClientApp in one process, with a clock that doesn't wait."""

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from client.app import app as client_app
from common import wire
from common.study import Study
from server import app as server_app
from server import federation
from server.exchange import Clock
from simulations.faults import Fault, Faults
from simulations.observer import Observe, observer


class SimulatedClock(Clock):
    """Shows the time as if the sites worked side by side, and waiting for a laggard cost nothing.

    `worked` are the seconds that the site took whose answer was handed over last.
    """

    def __init__(self) -> None:
        self._slept = 0.0
        self.worked = 0.0

    def now(self) -> float:
        return self._slept + self.worked

    def begin(self) -> float:
        self.sleep(self.worked)
        return self.now()

    def sleep(self, seconds: float) -> None:
        self._slept += seconds
        self.worked = 0.0


class DirectGrid(Grid):
    """A Grid whose nodes are site folders, numbered from 1. A site works when its answer is looked for, so that one
    answer
    is in memory at a time."""

    def __init__(self, folders: Sequence[Path], clock: SimulatedClock) -> None:
        self._clock = clock
        self._contexts = {
            number: Context(
                run_id=1, node_id=number, node_config={"site": str(folder)}, state=RecordDict(), run_config={}
            )
            for number, folder in enumerate(folders, 1)
        }
        self._identifiers = itertools.count(1)
        self._group = ""
        self._orders: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is one run."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites, always."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take orders; those that nobody has looked for when others are sent are forgotten, with their weights."""
        identifiers = []
        for message in messages:
            if message.metadata.group_id.split(" ")[-1] != self._group:
                self._group = message.metadata.group_id.split(" ")[-1]
                self._orders.clear()
            identifier = str(next(self._identifiers))
            self._orders[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the sites answer these orders, each once."""
        orders = [self._orders.pop(identifier) for identifier in message_ids if identifier in self._orders]
        start = time.perf_counter()
        answers = [client_app(order, self._contexts[order.metadata.dst_node_id]) for order in orders]
        self._clock.worked = time.perf_counter() - start
        return answers

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used: it collects all answers before the first is looked at."""
        raise RuntimeError("orders are pushed and answers pulled, one at a time")


class SimulatedGrid(Grid):
    """Another Grid on which faults strike training orders as scripted, and somebody may look on.

    A dropped order is not delivered, a late answer is handed over when the clock says so, and a crash is answered by
    Flower's own kind of error. Sites are known by the name in their first answer.
    """

    def __init__(self, inner: Grid, faults: Faults, clock: Clock, observe: Observe) -> None:
        self._inner, self._faults, self._clock, self._observe = inner, faults, clock, observe
        self._group = ""
        self._orders: dict[str, RecordDict] = {}
        self._names: dict[int, str] = {}
        self._late: dict[str, float] = {}  # seconds by order
        self._held: dict[str, tuple[float, Message]] = {}  # answers, and when they may be seen
        self._crashed: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """Pass on."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver orders; an empty identifier for one that can't be delivered."""
        identifiers = []
        for message in messages:
            if message.metadata.group_id.split(" ")[-1] != self._group:  # nobody waits for what was asked before
                self._group = message.metadata.group_id.split(" ")[-1]
                for kept in (self._orders, self._late, self._held, self._crashed):
                    kept.clear()
            fault = self._fault(message)
            if fault is not None and fault.do == "drop":
                identifiers.append("")
            elif fault is not None and fault.do == "crash":
                identifiers.append(f"crashed-{len(self._crashed)}")
                self._crashed[identifiers[-1]] = message
            else:
                identifiers += list(self._inner.push_messages([message]))
                self._orders[identifiers[-1]] = message.content
                if fault is not None:
                    self._late[identifiers[-1]] = fault.seconds
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that may be seen by now."""
        ready = []
        for identifier in message_ids:
            if identifier in self._crashed:
                ready.append(Message(Error(0, "the site's process ended"), reply_to=self._crashed[identifier]))
                continue
            for answer in self._inner.pull_messages([identifier]) if identifier not in self._held else ():
                order = self._orders.pop(identifier)
                if answer.has_content():
                    self._names[answer.metadata.src_node_id] = wire.site_of(answer.content)
                    self._observe(order, answer.content)
                self._held[identifier] = (self._clock.now() + self._late.pop(identifier, 0.0), answer)
            if identifier in self._held and self._held[identifier][0] <= self._clock.now():
                ready.append(self._held.pop(identifier)[1])
        return ready

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used: it collects all answers before the first is looked at."""
        raise RuntimeError("orders are pushed and answers pulled, one at a time")

    def _fault(self, message: Message) -> Fault | None:
        kind, round, attempt, _ = message.metadata.group_id.split(" ")  # as common.wire.message writes it
        site = self._names.get(message.metadata.dst_node_id)
        if kind == "propose" or site is None:
            return None
        return self._faults.of(site, round=int(round), attempt=int(attempt), step=kind)


def run(
    study: Study,
    options: federation.Options,
    folders: Sequence[Path],
    faults: Faults,
    observe: Observe | None = None,
) -> None:
    """A whole federation over these site folders. Each order and its answer are shown to `observe`; to
    `simulations.observer` unless another is given. Raises what federation.run raises.
    """
    clock = SimulatedClock()
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    app = server_app.make(study, options, clock=clock)
    seen_by = observe or observer(study, options.out, folders)
    app(SimulatedGrid(DirectGrid(folders, clock), faults, clock, seen_by), context)
