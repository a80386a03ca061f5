"""The round as a value, under every order of events."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Reason
from server.rounds import DeadlinePassed, Event, Replied, Round, begin, step

SITES = ["a", "b", "c", "d"]


def opened(quorum: int = 2, phases: Any = ("update",), absent: dict[str, Reason] | None = None) -> Round:
    absent = absent or {}
    return begin(
        number=1, attempt=1, quorum=quorum, phases=phases, present=[s for s in SITES if s not in absent], absent=absent
    )


def replies(*names: str, reason: Reason = Reason.OK) -> list[Event]:
    return [Replied(site=name, reason=reason) for name in names]


def after(state: Round, events: list[Event]) -> Round:
    for event in events:
        state = step(state, event)
    return state


def test_a_round_closes_when_all_have_answered() -> None:
    state = after(opened(), replies("a", "b", "c"))
    assert state.outcome == "open"
    state = after(state, replies("d"))
    assert state.outcome == "closed" and state.participants == ("a", "b", "c", "d") and not state.absent


def test_at_the_deadline_a_round_with_its_quorum_closes_and_names_the_late() -> None:
    state = after(opened(), [*replies("b", "c"), DeadlinePassed()])
    assert state.outcome == "closed" and state.absent == {"a": Reason.LATE, "d": Reason.LATE}


def test_a_round_is_abandoned_as_soon_as_its_quorum_is_out_of_reach() -> None:
    state = after(opened(quorum=3), replies("a", reason=Reason.FAILED))
    assert state.outcome == "open"
    assert after(state, replies("b", reason=Reason.MALFORMED)).outcome == "abandoned"


def test_sites_known_to_be_absent_are_named_with_their_reason() -> None:
    state = opened(absent={"d": Reason.OFFLINE})
    assert after(state, replies("a", "b", "c")).absent == {"d": Reason.OFFLINE}
    with pytest.raises(ValueError, match="present and absent"):
        begin(number=1, attempt=1, quorum=1, phases=["update"], present=["a"], absent={"a": Reason.OFFLINE})


def test_a_second_answer_a_strangers_and_one_after_the_end_change_nothing() -> None:
    state = after(opened(), replies("a"))
    assert after(state, replies("a", reason=Reason.FAILED)) == state
    assert after(state, replies("stranger")) == state
    closed = after(state, [*replies("b"), DeadlinePassed()])
    assert after(closed, replies("c")) == closed


def test_a_later_phase_asks_only_those_who_answered_the_one_before() -> None:
    state = after(opened(phases=("propose", "update")), [*replies("a", "b", "c"), DeadlinePassed()])
    assert state.outcome == "open" and state.position == 1 and state.waiting == {"a", "b", "c"}
    state = after(state, [*replies("a", "b"), *replies("c", reason=Reason.FAILED)])
    assert state.outcome == "closed" and state.participants == ("a", "b")
    assert state.absent == {"c": Reason.FAILED, "d": Reason.LATE}


def test_with_nobody_there_a_round_is_abandoned_at_once() -> None:
    assert opened(quorum=1, absent=dict.fromkeys(SITES, Reason.OFFLINE)).outcome == "abandoned"


EVENTS = st.lists(
    st.one_of(
        st.builds(Replied, site=st.sampled_from([*SITES, "stranger"]), reason=st.sampled_from(list(Reason))),
        st.just(DeadlinePassed()),
    ),
    max_size=14,
)


@given(events=EVENTS, quorum=st.integers(1, 4), phases=st.sampled_from([("update",), ("propose", "update")]))
def test_whatever_happens_everyone_is_accounted_for_once_and_closed_means_quorum(
    events: list[Event], quorum: int, phases: Any
) -> None:
    state = opened(quorum=quorum, phases=phases)
    for event in events:
        before, state = state, step(state, event)
        if before.outcome != "open":
            assert state == before
        assert state.position >= before.position
        groups = [set(state.participants), set(state.waiting), set(state.absent)]
        assert set().union(*groups) == set(SITES)
        assert sum(map(len, groups)) == len(SITES)
    if state.outcome == "closed":
        assert len(state.participants) >= quorum and not state.waiting and state.position == len(phases) - 1
