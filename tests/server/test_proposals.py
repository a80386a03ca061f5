"""Which node is which site: who speaks in another's name ends no run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp import Grid
from small import tiny_study

from common import wire
from common.errors import Reason, RunError
from server.exchange import Exchange, Received
from server.proposals import Proposals
from simulations.inprocess import SimulatedClock

ROSTER = frozenset({"alfa", "bravo"})
ANSWER = wire.Answer(
    site="bravo", kind="propose", round=1, attempt=1, study_hash="0" * 64, order_hash="0" * 64, reason=Reason.OK
)


class Said:
    """Nodes that answer a proposal, one after the other."""

    def __init__(self, *said: tuple[int, str, Reason]) -> None:
        self.said = said

    def online(self) -> frozenset[int]:
        return frozenset(node for node, _, _ in self.said)

    def ask(self, orders: Mapping[int, wire.Order], **_more: Any) -> Iterator[Received]:
        for node, site, reason in self.said:
            if node in orders:
                yield Received(node=node, reason=reason, answer=replace(ANSWER, site=site, reason=reason))


REFUSED, AGREED = (1, "bravo", Reason.NOT_APPROVED), (2, "bravo", Reason.OK)


@pytest.mark.parametrize("said", [(REFUSED, AGREED), (AGREED, REFUSED)])
def test_a_site_that_agrees_is_not_absent_whoever_refuses_in_its_name(said: tuple[Any, ...]) -> None:
    proposals = Proposals(Said(*said), tiny_study(), ROSTER)  # type: ignore[arg-type]
    proposals.show(1, 1, run="r", heads=tuple)
    assert proposals.agreed == {2: "bravo"} and proposals.absent() == {"alfa": Reason.OFFLINE}


def test_one_node_speaks_for_a_site_and_no_other_name_is_heard() -> None:
    said = Said((1, "alfa", Reason.OK), (2, "alfa", Reason.OK), (3, "mallory", Reason.OK), (4, "bravo", Reason.POLICY))
    proposals = Proposals(said, tiny_study(), ROSTER)  # type: ignore[arg-type]
    proposals.show(1, 1, run="r", heads=tuple)
    assert proposals.agreed == {1: "alfa"} and proposals.absent() == {"bravo": Reason.POLICY}
    proposals.forget(["alfa"])
    assert proposals.absent() == {"alfa": Reason.OFFLINE, "bravo": Reason.POLICY}


KNOWN = {1: "alfa", 2: "bravo"}


def test_where_keys_say_who_is_who_no_node_speaks_for_another_not_even_the_first() -> None:
    said = Said((1, "bravo", Reason.OK), (2, "bravo", Reason.OK), (3, "alfa", Reason.OK))
    proposals = Proposals(said, tiny_study(), ROSTER, lambda: KNOWN)  # type: ignore[arg-type]
    proposals.show(1, 1, run="r", heads=tuple)
    assert proposals.agreed == {2: "bravo"}
    assert proposals.absent() == {"alfa": Reason.MALFORMED}


@pytest.mark.parametrize("reason", [Reason.MALFORMED, Reason.FAILED, Reason.LATE, Reason.WIRE_VERSION])
def test_without_an_answer_a_site_is_absent_for_the_reason_that_its_node_gave(reason: Reason) -> None:
    class Unread(Said):
        def ask(self, orders: Mapping[int, wire.Order], **_more: Any) -> Iterator[Received]:
            yield Received(node=1, reason=reason)
            yield Received(node=5, reason=reason)  # nobody's

    proposals = Proposals(Unread(REFUSED), tiny_study(), ROSTER, lambda: KNOWN)  # type: ignore[arg-type]
    proposals.show(1, 1, run="r", heads=tuple)
    assert proposals.absent() == {"alfa": reason, "bravo": Reason.OFFLINE}


class Slow(Grid):
    """A site for each of these seconds, which answers proposals so long after it was shown them; None: never."""

    def __init__(self, clock: SimulatedClock, seconds: Mapping[int, float | None]) -> None:
        self._clock, self.seconds = clock, dict(seconds)
        self._sent: dict[str, tuple[float, Message]] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.seconds)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        self._sent[str(len(self._sent))] = self._clock.now(), message
        return [str(len(self._sent) - 1)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            since, message = self._sent[identifier]
            node = message.metadata.dst_node_id
            seconds = self.seconds[node]
            if seconds is not None and self._clock.now() - since >= seconds:
                order = wire.order_from(message.content)
                said = replace(
                    ANSWER,
                    site=f"site-{node}",
                    round=order.round,
                    study_hash=order.study_hash,
                    order_hash=order.sha256,
                )
                message.metadata.__dict__["_message_id"] = identifier
                yield Message(wire.answer_record(said), reply_to=message)

    set_run = run = create_message = send_and_receive = None  # type: ignore[assignment]


def shown(grid: Slow, clock: SimulatedClock, *, times: int, min_sites: int = 3) -> tuple[Proposals, list[float]]:
    """The study shown so often, and how long each time took."""
    wire.speak_as_server(run_id=1)
    study = tiny_study(study={"min_sites": min_sites, "round_deadline": 600})
    proposals = Proposals(Exchange(grid, clock), study, frozenset(f"site-{node}" for node in grid.seconds))
    took = []
    for _ in range(times):
        start = clock.now()
        proposals.show(1, 1, run="a" * 64, heads=tuple)
        took.append(clock.now() - start)
    return proposals, took


def test_a_node_whose_answer_never_comes_costs_the_deadline_once_and_little_from_then_on() -> None:
    clock = SimulatedClock()
    proposals, took = shown(Slow(clock, {1: 0, 2: 0, 3: 1, 4: None}), clock, times=11)
    assert sorted(proposals.agreed) == [1, 2, 3]
    assert took == pytest.approx([60, *[5] * 9, 60], abs=1)


def test_a_slow_site_is_waited_for_and_one_that_was_too_slow_is_shown_the_study_again() -> None:
    clock = SimulatedClock()
    grid = Slow(clock, {1: 0, 2: 0, 3: 1, 4: 50, 5: None})
    proposals, _ = shown(grid, clock, times=1)
    assert sorted(proposals.agreed) == [1, 2, 3, 4]
    grid = Slow(clock, {1: 0, 2: 0, 3: 1, 4: None})
    proposals, _ = shown(grid, clock, times=2)
    grid.seconds[4] = 50  # its machine is loaded: within ten rounds it has the whole deadline
    for number in range(3, 12):
        assert 4 not in proposals.agreed, number
        proposals.show(number, 1, run="a" * 64, heads=tuple)
    assert sorted(proposals.agreed) == [1, 2, 3, 4]


def test_a_node_that_answers_again_is_taken_within_the_grace() -> None:
    clock = SimulatedClock()
    grid = Slow(clock, {1: 0, 2: 0, 3: 1, 4: None})
    proposals, _ = shown(grid, clock, times=2)
    grid.seconds[4] = 4
    proposals.show(3, 1, run="a" * 64, heads=tuple)
    assert sorted(proposals.agreed) == [1, 2, 3, 4]


def test_too_few_sites_are_not_hurried() -> None:
    clock = SimulatedClock()
    _, took = shown(Slow(clock, {1: 0, 2: 0, 3: None, 4: None}), clock, times=3)
    assert took == pytest.approx([60] * 3, abs=1)


def test_a_superlink_that_ends_just_now_makes_nobody_a_stranger() -> None:
    answers: list[Mapping[int, str] | RunError] = [RunError("away"), KNOWN, RunError("away")]

    def sites_of() -> Mapping[int, str]:
        found = answers.pop(0)
        if isinstance(found, RunError):
            raise found
        return found

    proposals = Proposals(Said(AGREED), tiny_study(), ROSTER, sites_of)  # type: ignore[arg-type]
    for agreed in ({}, {2: "bravo"}, {2: "bravo"}):
        proposals.forget(ROSTER)
        proposals._show(1, 1, "r", tuple)
        assert proposals.agreed == agreed
