"""The privacy ledger of one cohort: what was spent on its patients, on disk before anything is computed from them.

Files and their guarantees are `client.chain`'s, rules are `client.ledger_state`'s. The cost of an event comes from
outside as one function.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from client import chain
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, Entry, anchor_from, first_line, head_of
from client.ledger_records import (
    Commit,
    Forget,
    LedgerError,
    Record,
    fingerprint,
    limit_of,
    record_from,
    spent,
)
from client.ledger_state import State, apply, share
from client.released import Query, Released

NAME = "ledger"
FOLDER = "state"  # within the site's folder
Event = Mapping[str, Any]  # an accounting event as plain JSON; it never names a patient
Plan = Sequence[tuple[Event, int]]  # the event of one order, and how many such orders there may be


class Cost(Protocol):
    """What an event costs at the ledger's Renyi order; costs of several events add up."""

    def __call__(self, event: Event, /, *, order: float) -> float: ...


def create(
    folder: Path,
    *,
    patient_key: bytes,
    pools: Mapping[str, float],
    order: float,
    limit: float,
    epsilon: float,
    delta: float,
    nominal_patients: int,
) -> str:
    """Make the ledger of a new cohort; the cohort's identifier. `limit` is what (epsilon, delta) allow at `order`.

    Raises: LedgerError for numbers that promise nothing; ChainError where a ledger exists or can't be written.
    """
    if nominal_patients < 1:
        raise LedgerError(f"nominal_patients = {nominal_patients}; declare at least 1")
    if not 0 < delta <= 1 / (10 * nominal_patients):
        most = 1 / (10 * nominal_patients)
        raise LedgerError(f"delta {delta} is too large for {nominal_patients} patients; at most {most:.3g}")
    cohort = secrets.token_hex(16)
    values = {
        "cohort": cohort,
        "key": fingerprint(patient_key, cohort),
        "pools": dict(pools),
        "order": float(order),
        "limit": limit_of(limit),
        "epsilon": float(epsilon),
        "delta": float(delta),
    }
    apply(None, 0, record_from("genesis", values))
    chain.install(folder, NAME, first_line("genesis", values))
    return cohort


def state_of(entries: Sequence[Entry], *, patient_key: bytes) -> State:
    """What a verified chain says of the cohort that this key belongs to.

    Raises LedgerError where a record breaks a rule, or the ledger is another key's.
    """
    state: State | None = None
    for entry in entries:
        state = apply(state, entry.sequence, record_from(entry.kind, entry.body))
    if state is None or state.genesis.key != fingerprint(patient_key, state.genesis.cohort):
        raise LedgerError("ledger and patient key don't belong together: restore the pair from one backup")
    return state


class Ledger:
    """The one writer of a ledger, for the life of the process.

    Guarantees: when a method that writes returns, its record and the head are on disk; when it raises, what it asked
    for is not granted, though it may count as spent. What was reserved is never returned. A query whose release is
    stored gets the same bytes at no charge. Once an anchor was shown that this chain does not contain, nothing is
    reserved any more.
    Edge cases: after a failed write the next call verifies the file from its beginning, so a full disk refuses until
    there is room and then goes on. `anchor_file`, on another disk, is compared at opening and written at each record.
    Raises: LedgerError, BudgetError and ChainError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        patient_key: bytes,
        cost: Cost,
        anchors: Sequence[Anchor] = (),
        anchor_file: Path | None = None,
    ) -> None:
        self._key, self._cost, self._anchor_file = patient_key, cost, anchor_file
        self._old: Anchor | None = None
        self._waiting: set[int] = set()  # reserves of this process: after a crash, what they paid for is lost
        self._released = Released(folder / "released")
        self._chain = Chain(folder, NAME)
        try:
            self._state = self._replayed()
            if self._state.moved:
                raise LedgerError(f"{folder}: this ledger was moved to another machine: use it there")
            for anchor in (*anchors, *_anchor_in(anchor_file, begun=self.anchor.sequence > 0)):
                self.demand(anchor)
            self._keep_anchor()
        except BaseException:
            self._chain.close()
            raise

    @property
    def state(self) -> State:
        return self._state

    @property
    def anchor(self) -> Anchor:
        """Sequence and hash of the last record: what each reply and the audit log carry. It says nothing of content."""
        return self._chain.anchor

    def contains(self, anchor: Anchor) -> bool:
        return self._chain.contains(anchor)

    def demand(self, anchor: Anchor) -> None:
        """Refuse, from now on, unless this chain contains what somebody remembers of it."""
        if not self.contains(anchor):
            self._old = anchor
            self._demand_newest()

    def share(self, pool: str, plan: Plan) -> float:
        """How much of what is left in the pool a plan needs: more than 1 will be refused."""
        if pool not in self._state.reserved:
            raise LedgerError(f"pool {pool!r} is none of {', '.join(self._state.reserved)}")
        needed = sum(part["orders"] * part["amount"] for part in self._parts(plan))
        return share(needed, self._state.available(pool))

    def allocate(self, study: str, plans: Mapping[str, Plan], *, epsilons: Mapping[str, float], delta: float) -> None:
        """Set aside a study's whole plans, spare rounds included, by pool: all, or none where one is refused. epsilons
        and delta are the study's own, as shown.
        """
        records, state = [], self._state
        for pool, plan in plans.items():
            values = {"study": study, "pool": pool, "epsilon": epsilons[pool], "delta": delta}
            records.append(record_from("allocate", {**values, "parts": self._parts(plan)}))
            state = apply(state, self._chain.anchor.sequence + len(records), records[-1])
        for record in records:
            self._append(record)

    def release(self, query: Query, event: Event, compute: Callable[[], bytes]) -> bytes:
        """The bytes that may leave for an order: those stored for the same order, or new ones that are charged.

        `compute` is called after the charge is on disk; what it returns is on disk before this returns.
        """
        self._ready()
        self._released.forget_before(query)
        update = self.stored(query)
        if update is None:
            reserve = self.reserve(query, event)
            update = bytes(compute())
            self.commit(reserve, update)
        return update

    def stored(self, query: Query) -> bytes | None:
        """The committed bytes for this very query, if it may be sent again."""
        stored = self._state.stored.get(query.sha256)
        return None if stored is None else self._released.get(query, stored.digest)

    def reserve(self, query: Query, event: Event) -> int:
        """Spend all steps of one order; the number to commit with."""
        self._ready()
        if query.sha256 in self._state.stored and self.stored(query) is None:
            self._append(Forget(query=query.sha256))
        spends = {"event": dict(event), "amount": self._amount(event)}
        reserve = self._append(record_from("reserve", {**asdict(query), **spends}))
        self._waiting.add(reserve)
        return reserve

    def commit(self, reserve: int, update: bytes) -> None:
        """Store what was computed, then record its digest. Only afterwards may it leave."""
        self._ready()
        query = self._state.pending.get(reserve)
        if query is None or reserve not in self._waiting:
            raise LedgerError(f"record {reserve} is no reserve of this process that waits for its commit")
        self._append(Commit(reserve=reserve, digest=self._released.put(query, update)))
        self._waiting.discard(reserve)

    def forget(self, query: Query) -> None:
        """Never send this release again; called before its session is answered *open*."""
        if query.sha256 in self._state.stored:
            self._append(Forget(query=query.sha256))
        self._released.forget(query)

    def mark(self, query: Query, text: str) -> None:
        """Keep a note beside a stored release, on disk when this returns: in which session it was masked."""
        self._released.mark(query, text)

    def marked(self, query: Query) -> str | None:
        """The note beside a stored release; None where there is none, or nothing is stored."""
        return self._released.marked(query) if query.sha256 in self._state.stored else None

    def close_study(self, study: str) -> None:
        """Give back what the study was allocated and never reserved."""
        self._append(record_from("close", {"study": study}))

    def unprotected(self, study: str) -> None:
        """Record, before it runs, that a study without differential privacy uses this cohort. Twice is once."""
        if study not in self._state.unprotected:
            self._append(record_from("unprotected", {"study": study}))

    def close(self) -> None:
        """Let go of the files."""
        self._chain.close()

    def _parts(self, plan: Plan) -> list[dict[str, Any]]:
        return [{"event": dict(event), "orders": orders, "amount": self._amount(event)} for event, orders in plan]

    def _amount(self, event: Event) -> int:
        return spent(self._cost(event, order=self._state.genesis.order))

    def _append(self, record: Record) -> int:
        self._ready()
        new = apply(self._state, self._chain.anchor.sequence + 1, record)
        entry = self._chain.append(record.kind, record.model_dump(exclude={"kind"}))
        self._state = new
        self._keep_anchor()
        return entry.sequence

    def _ready(self) -> None:
        """Nothing is written on what was not verified since a failed write, nor on an older copy."""
        if not self._chain.usable:
            self._chain.verify_again()
            try:
                self._state = self._replayed()
            except BaseException:
                self._chain.close()
                raise
        self._demand_newest()

    def _replayed(self) -> State:
        return state_of(self._chain.entries, patient_key=self._key)

    def _demand_newest(self) -> None:
        if self._old is not None:
            raise LedgerError(
                f"this ledger does not contain record {self._old}, which others remember: it is an older copy, or not "
                "this site's; nothing is reserved"
            )

    def _keep_anchor(self) -> None:
        if self._anchor_file is not None:
            try:
                chain.write_privately(self._anchor_file, head_of(self.anchor))
            except OSError as error:
                raise ChainError(
                    f"{self._anchor_file}: can't be written ({error.strerror}); is its disk there?"
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _anchor_in(path: Path | None, *, begun: bool) -> list[Anchor]:
    """The anchor that was kept on another disk. A ledger that has `begun` has one, else its disk is not there."""
    if path is None:
        return []
    if not path.exists():
        if begun:
            raise ChainError(
                f"{path}: not there; is its disk? Where no anchor was kept so far, write into it what"
                " `client ledger show` says to write down"
            )
        return []
    try:
        return [anchor_from(path.read_text(encoding="ascii"))]
    except (OSError, UnicodeDecodeError) as error:
        raise ChainError(f"{path}: can't be read") from error
