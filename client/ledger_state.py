"""What a privacy ledger's records mean: its state is a value, and `apply` the only way to the next one."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from client.ledger_records import (
    Allocate,
    BudgetError,
    Close,
    Commit,
    Forget,
    Genesis,
    LedgerError,
    Moved,
    Record,
    Repair,
    Reserve,
    Restored,
    Unprotected,
)
from client.released import Query


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What an open study may reserve on one pool, and what it has reserved."""

    amount: int
    reserved: int = 0
    orders: Mapping[str, int] = field(default_factory=dict)  # planned, by event as `_named`

    @property
    def left(self) -> int:
        return max(0, self.amount - self.reserved)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A committed release that may be asked for again."""

    query: Query
    digest: str


@dataclass(frozen=True, kw_only=True)
class State:
    """A ledger after some records."""

    genesis: Genesis
    reserved: Mapping[str, int]  # by pool, for ever
    allocations: Mapping[tuple[str, str], Allocation] = field(default_factory=dict)  # open ones, by study and pool
    closed: Mapping[tuple[str, str], int] = field(default_factory=dict)  # what closed studies have reserved
    orders: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # reserved by study, pool, event, for ever
    pending: Mapping[int, Query] = field(default_factory=dict)  # reserves without commit, by sequence number
    stored: Mapping[str, Stored] = field(default_factory=dict)  # by hash of the query
    unprotected: tuple[str, ...] = ()  # studies
    moved: bool = False

    @property
    def studies(self) -> set[str]:
        """All that it has a budget of, or had."""
        return {study for study, _ in (*self.allocations, *self.closed)}

    def available(self, pool: str) -> int:
        """What a new study may be allocated: limit - reserved - what open studies may still reserve."""
        open_ = sum(allocation.left for (_, name), allocation in self.allocations.items() if name == pool)
        return self.genesis.limit - self.reserved[pool] - open_

    @property
    def statement(self) -> str:
        """What the ledger promises of its cohort, in one sentence."""
        if self.unprotected:
            return (
                f"No epsilon can be stated for cohort {self.genesis.cohort}: {len(self.unprotected)} of its studies "
                f"ran without differential privacy, the first of them {self.unprotected[0]}."
            )
        return (
            f"All studies together, each patient of cohort {self.genesis.cohort}, add or remove one: "
            f"epsilon at most {self.genesis.epsilon:g} at delta {self.genesis.delta:g}."
        )


def apply(state: State | None, sequence: int, record: Record) -> State:
    """The state after a record; `state` is None before the first.

    Guarantees: pure. For each pool, the sum of reserves and of what open studies may still reserve is at most the
    limit. A reserve is within its allocation, and no event of the plan is reserved more often than the plan has it: a
    study of several kinds of orders takes of each no more than it said. `Close` returns what was allocated and never
    reserved, and nothing else ever returns anything. A study that was closed and comes back has spent what it had: its
    epsilon is one for all.
    Raises: LedgerError, BudgetError where the budget does not suffice; the state is then as before.
    """
    if state is None or isinstance(record, Genesis):
        if state is not None or not isinstance(record, Genesis):
            raise LedgerError("a ledger begins with its genesis record, and has one")
        if abs(math.fsum(record.pools.values()) - 1) > 1e-9:
            raise LedgerError(f"pools {record.pools} are not shares that sum to 1")
        return State(genesis=record, reserved=dict.fromkeys(record.pools, 0))
    if isinstance(record, Restored):
        return replace(state, moved=False)
    if isinstance(record, Repair):
        return state
    if state.moved:
        raise LedgerError("this ledger was moved to another machine: use it there")
    match record:
        case Allocate():
            return _allocate(state, record)
        case Reserve():
            return _reserve(state, sequence, record)
        case Commit():
            return _commit(state, record)
        case Forget():
            if record.query not in state.stored:
                raise LedgerError("nothing is stored that could be forgotten")
            return replace(state, stored=_without(state.stored, record.query))
        case Close():
            kept = {key: value for key, value in state.allocations.items() if key[0] != record.study}
            if len(kept) == len(state.allocations):
                raise LedgerError(f"study {record.study} has nothing allocated that could be closed")
            gone = {key: value.reserved for key, value in state.allocations.items() if key not in kept}
            return replace(state, allocations=kept, closed={**state.closed, **gone})
        case Unprotected():
            if record.study in state.unprotected:
                raise LedgerError(f"study {record.study} is recorded as unprotected already")
            return replace(state, unprotected=(*state.unprotected, record.study))
        case Moved():
            return replace(state, moved=True)


def _allocate(state: State, record: Allocate) -> State:
    _demand_pool(state, record.pool)
    if (record.study, record.pool) in state.allocations:
        raise LedgerError(f"study {record.study} has its budget on pool {record.pool} already")
    if record.delta > state.genesis.delta:
        raise LedgerError(f"the study's delta {record.delta:g} is larger than the ledger's {state.genesis.delta:g}")
    orders: Counter[str] = Counter()
    for part in record.parts:
        orders[_named(part.event)] += part.orders
    reserved = state.closed.get((record.study, record.pool), 0)
    allocation = Allocation(amount=record.amount, reserved=reserved, orders=orders)
    available = state.available(record.pool)
    if allocation.left > available:
        raise BudgetError(
            f"the study needs {share(allocation.left, available):.4g} of what is left in pool {record.pool}"
        )
    return replace(state, allocations={**state.allocations, (record.study, record.pool): allocation})


def _reserve(state: State, sequence: int, record: Reserve) -> State:
    _demand_pool(state, record.pool)
    query, key = record.query, (record.study, record.pool)
    allocation = state.allocations.get(key)
    if allocation is None:
        raise BudgetError(
            f"study {record.study} has no budget on pool {record.pool}: it was not approved, or is closed"
        )
    if query.sha256 in state.stored:
        raise LedgerError("this order was answered already: it gets the same bytes again, and costs nothing")
    name = _named(record.event)
    taken = state.orders.get((*key, name), 0)
    if record.amount > allocation.left or taken >= allocation.orders.get(name, math.inf):
        raise BudgetError(f"study {record.study} has used up its budget on pool {record.pool}, spare rounds included")
    spent = replace(allocation, reserved=allocation.reserved + record.amount)
    pending = {at: old for at, old in state.pending.items() if old != query and not _overtaken(old, query)}
    return replace(
        state,
        reserved={**state.reserved, record.pool: state.reserved[record.pool] + record.amount},
        allocations={**state.allocations, key: spent},
        orders={**state.orders, (*key, name): taken + 1},
        pending={**pending, sequence: query},
        stored={name: old for name, old in state.stored.items() if not _overtaken(old.query, query)},
    )


def _commit(state: State, record: Commit) -> State:
    query = state.pending.get(record.reserve)
    if query is None:
        raise LedgerError(f"record {record.reserve} is no reserve that waits for its commit")
    pending = {at: other for at, other in state.pending.items() if at != record.reserve}
    stored = {**state.stored, query.sha256: Stored(query=query, digest=record.digest)}
    return replace(state, pending=pending, stored=stored)


def _overtaken(old: Query, new: Query) -> bool:
    return old.study == new.study and old.round < new.round


def _named(event: Mapping[str, Any]) -> str:
    """An event as text: equal events have equal texts."""
    return json.dumps(event, sort_keys=True)


def _demand_pool(state: State, pool: str) -> None:
    if pool not in state.reserved:
        raise LedgerError(f"pool {pool!r} is none of {', '.join(state.reserved)}")


def _without(values: Mapping[str, Stored], key: str) -> dict[str, Stored]:
    return {name: value for name, value in values.items() if name != key}


def share(amount: int, available: int) -> float:
    """How much of what is left an amount needs; more than 1 is refused."""
    return amount / available if available > 0 else math.inf
