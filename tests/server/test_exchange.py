"""Who is waited for and for how long, and what Flower's own answers in the place of a site mean."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from small import tiny_study

from common import wire
from common.errors import Reason, RunError
from common.study import Study
from server import federation
from server.events import read
from server.exchange import Exchange
from simulations.inprocess import DirectGrid, SimulatedClock


class Away(DirectGrid):
    """Of these nodes Flower hears nothing between two moments, in seconds."""

    def __init__(self, folders: Sequence[Path], clock: SimulatedClock, *, nodes: set[int], until: float) -> None:
        super().__init__(folders, clock)
        self._away, self._until, self.looks = nodes, until, 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        away = self._away if self._clock.now() < self._until else set()
        return [node for node in super().get_node_ids() if node not in away]


def run(grid: Away, study: Study, out: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The events of a run over this grid."""
    wire.speak_as_server(run_id=1)
    options = federation.Options(out=out, backend="inprocess", roster=frozenset(folder.name for folder in folders))
    try:
        federation.run(Exchange(grid, grid._clock), study, options)
    finally:
        events = read(out / "events.jsonl")
    return events


def test_sites_that_come_back_within_a_deadline_are_waited_for(tmp_path: Path, site_folders: list[Path]) -> None:
    """Two of three away for 90 s: one attempt fails at once, the next has them; without waiting four would be used up
    within a second."""
    clock = SimulatedClock()
    grid = Away(site_folders, clock, nodes={1, 2}, until=90.0)
    study = tiny_study(study={"rounds": 1, "min_sites": 3, "round_deadline": 100, "round_retries": 1})
    events = run(grid, study, tmp_path / "out", site_folders)
    assert [event["event"] for event in events] == ["started", "retry", "round", "final", "finished"]
    assert events[1]["absent"] == {"site-0": "offline", "site-1": "offline"}
    assert events[2]["participants"] == ["site-0", "site-1", "site-2"] and 90 <= clock.now() < 100


def test_nobody_is_waited_for_beyond_the_deadlines(tmp_path: Path, site_folders: list[Path]) -> None:
    clock = SimulatedClock()
    grid = Away(site_folders, clock, nodes={1, 2}, until=10_000.0)
    study = tiny_study(study={"min_sites": 3, "round_deadline": 100, "round_retries": 3})
    with pytest.raises(RunError, match="4 times in a row"):
        run(grid, study, tmp_path / "out", site_folders)
    assert 300 <= clock.now() < 310  # between four attempts, and not after the last


def test_with_enough_sites_an_attempt_is_not_delayed(tmp_path: Path, site_folders: list[Path]) -> None:
    clock = SimulatedClock()
    grid = Away(site_folders, clock, nodes={1}, until=1000.0)
    events = run(grid, tiny_study(), tmp_path / "out", site_folders)
    assert [event["absent"] for event in events if event["event"] == "round"] == [{"site-0": "offline"}] * 2
    assert clock.now() < 60


class Forgetful(DirectGrid):
    """A SuperLink that ends in the middle of so many messages."""

    def __init__(self, times: int) -> None:
        super().__init__([Path("absent")], SimulatedClock())
        self.times, self.sent = times, list[str]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = list(messages)
        self.sent += [one.metadata.message_id for one in found]
        if len(self.sent) <= self.times:
            raise RuntimeError("the push session may have expired")
        return super().push_messages(found)


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_an_order_that_was_not_taken_whole_is_sent_again_and_thrice_at_most(times: int) -> None:
    wire.speak_as_server(run_id=1)
    grid, order = Forgetful(times), wire.Order(kind="update", round=1, attempt=1, study_hash="0" * 64)
    asking = Exchange(grid, grid._clock).ask({1: order}, length=1, deadline=60.0)
    if times == 3:
        with pytest.raises(RuntimeError, match="push session"):
            list(asking)
    else:
        assert [one.reason for one in asking] == [Reason.FAILED]  # of a site that isn't there
    assert len(grid.sent) == min(times + 1, 3)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.NODE_UNAVAILABLE, Reason.OFFLINE),
        (ErrorCode.MESSAGE_UNAVAILABLE, Reason.LATE),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, Reason.LATE),
        (ErrorCode.UNKNOWN, Reason.FAILED),
        (ErrorCode.CLIENT_APP_CRASHED, Reason.FAILED),
        (-1, Reason.FAILED),
    ],
)
def test_what_flower_answers_in_the_place_of_a_site_has_its_reason(code: int, reason: Reason) -> None:
    class Answering(DirectGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [Message(Error(code, "not for us"), reply_to=self._orders[name]) for name in message_ids]

    wire.speak_as_server(run_id=1)
    clock = SimulatedClock()
    order = wire.Order(kind="update", round=1, attempt=1, study_hash="0" * 64)
    exchange = Exchange(Answering([Path("absent")], clock), clock)
    received = list(exchange.ask({1: order}, length=1, deadline=5.0))
    assert [(one.reason, one.answer) for one in received] == [(reason, None)]
