"""A round as a value: `step(round, event)` gives the next round. No clock, no network, no weights in here.

A round is a list of phases. Each asks every site that is still with it one thing and ends when all have answered, been
given up, or the deadline has come. What later steps of the protocol need is another phase in the list, not another
loop.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from common.errors import Reason
from common.wire import Kind


@dataclass(frozen=True, kw_only=True)
class Replied:
    """A site's answer has been checked: its verdict."""

    site: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class DeadlinePassed:
    """Nobody is waited for any longer in this phase."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The round can't be finished, whoever answers: `why` is one line."""

    why: str


Event = Replied | DeadlinePassed | Failed


@dataclass(frozen=True, kw_only=True)
class Round:
    """One attempt at a round.

    Guarantees: a site is counted once whatever it sends and however often; `closed` means that at least `quorum` sites
    answered ok in every phase; every site that was asked and is not a participant is absent with a reason.
    """

    number: int
    attempt: int
    quorum: int
    phases: tuple[Kind, ...]
    roster: frozenset[str]  # all sites that the run knows of
    position: int = 0
    waiting: frozenset[str] = frozenset()
    verdicts: Mapping[str, Reason] = field(default_factory=dict)  # of the phase that is open
    absent: Mapping[str, Reason] = field(default_factory=dict)
    failed: str = ""  # why the round can't be finished

    @property
    def participants(self) -> tuple[str, ...]:
        """Sites that answered ok in the phase that is open or closed last, by name."""
        return tuple(sorted(site for site, reason in self.verdicts.items() if reason is Reason.OK))

    @property
    def outcome(self) -> Literal["open", "closed", "abandoned"]:
        """Open while somebody is waited for who can still make the quorum; then closed or abandoned."""
        if self.failed or len(self.participants) + len(self.waiting) < self.quorum:
            return "abandoned"
        if self.waiting:
            return "open"
        return "closed" if self.position == len(self.phases) - 1 else "open"


def begin(
    *,
    number: int,
    attempt: int,
    quorum: int,
    phases: Iterable[Kind],
    present: Iterable[str],
    absent: Mapping[str, Reason],
) -> Round:
    """A round whose first phase waits for the sites that are present; `absent` names those that are known not to be."""
    present, phases = frozenset(present), tuple(phases)
    if present & absent.keys():
        raise ValueError(f"present and absent at once: {sorted(present & absent.keys())}")
    return Round(
        number=number,
        attempt=attempt,
        quorum=quorum,
        phases=phases,
        roster=present | absent.keys(),
        waiting=present,
        absent=MappingProxyType(dict(absent)),
    )


def step(state: Round, event: Event) -> Round:
    """The round after an event. Answers nobody waits for (a second one, a stranger's, a late one) change nothing."""
    if isinstance(event, Failed):
        return replace(state, failed=event.why)
    if state.outcome != "open":
        return state
    if isinstance(event, Replied):
        if event.site not in state.waiting:
            return state
        verdicts = {**state.verdicts, event.site: event.reason}
        absent = dict(state.absent) if event.reason is Reason.OK else {**state.absent, event.site: event.reason}
        state = replace(
            state,
            waiting=state.waiting - {event.site},
            verdicts=MappingProxyType(verdicts),
            absent=MappingProxyType(absent),
        )
    else:
        late = dict.fromkeys(state.waiting, Reason.LATE)
        state = replace(state, waiting=frozenset(), absent=MappingProxyType({**state.absent, **late}))
    if (
        state.outcome == "open" and not state.waiting
    ):  # quorum reached, phases left: the next one asks who is still here
        state = replace(
            state, position=state.position + 1, waiting=frozenset(state.participants), verdicts=MappingProxyType({})
        )
    return state
