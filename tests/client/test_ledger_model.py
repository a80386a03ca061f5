"""Any sequence of operations and crashes on a ledger against a naive model."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import allocate, event, left, make, opened

from client.ledger_records import UNIT, BudgetError, LedgerError
from client.released import Query

STUDIES, LIMIT = ("one", "two"), 10
OPERATIONS = st.one_of(
    st.tuples(st.just("allocate"), st.sampled_from(STUDIES), st.sampled_from(["train", "test"]), st.integers(1, 6)),
    st.tuples(
        st.just("release"), st.sampled_from(STUDIES), st.sampled_from(["train", "test"]), st.integers(1, 3),
        st.sampled_from("ab"), st.sampled_from(["ok", "ok", "fails", "torn", "no head"]),
    ),
    st.tuples(st.just("forget"), st.sampled_from(STUDIES), st.sampled_from(["train", "test"]), st.integers(1, 3)),
    st.tuples(st.just("close"), st.sampled_from(STUDIES)),
    st.tuples(st.just("restart")),
)  # fmt: skip


class Model:
    """The rules, naively: lists that are summed each time. One order costs 1."""

    def __init__(self) -> None:
        self.charged: list[tuple[str, str]] = []  # study, pool
        self.allocated: dict[tuple[str, str], list[int]] = {}  # amount, used
        self.kept: dict[Query, bytes] = {}

    def left(self, pool: str) -> int:
        held = sum(max(0, amount - used) for (_, name), (amount, used) in self.allocated.items() if name == pool)
        return LIMIT - sum(name == pool for _, name in self.charged) - held


@given(operations=st.lists(OPERATIONS, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_sequence_of_operations_and_crashes_equals_the_naive_model(operations: list[Any]) -> None:
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.chain.os.fsync", lambda _: None)
        folder, model, count = make(Path(place) / "state"), Model(), 0
        ledger = opened(folder)
        sent: dict[Query, set[bytes]] = {}
        for operation in operations:
            match operation:
                case ("allocate", study, pool, orders):
                    before = model.charged.count((study, pool))  # a study that was closed comes back as it was
                    fits = (study, pool) not in model.allocated and orders - before <= model.left(pool)
                    try:
                        allocate(ledger, study, each=1.0, orders=orders, pool=pool)
                        assert fits
                        model.allocated[study, pool] = [orders, before]
                    except LedgerError:
                        assert not fits
                case ("release", study, pool, round_, weights, end):
                    query = Query(study=study, pool=pool, round=round_, weights=weights * 64)
                    for old in [q for q in model.kept if q.study == study and q.round < round_]:
                        del model.kept[old]
                    has = model.allocated.get((study, pool), [0, 0])
                    fits = query in model.kept or has[1] < has[0]
                    charged, trained = query not in model.kept and fits, []
                    count += 1

                    def train(end: str = end, mark: bytes = b"%d" % count, trained: list[Any] = trained) -> bytes:
                        trained.append(mark)
                        if end == "fails":
                            raise RuntimeError
                        return mark

                    if charged:
                        has[1] += 1
                        model.charged.append((study, pool))
                    try:
                        update = ledger.release(query, event(1.0), train)
                        assert fits
                        assert update == model.kept.get(query, b"%d" % count)
                        model.kept[query] = update
                        sent.setdefault(query, set()).add(update)
                        if charged and end in ("torn", "no head"):  # killed while the commit was written: never sent
                            sent[query].discard(update)
                            ledger.close()
                            if undo_last(folder, torn=end == "torn"):
                                del model.kept[query]
                            ledger = opened(folder)
                    except RuntimeError:
                        assert charged
                    except BudgetError:
                        assert not fits
                    assert bool(trained) == charged
                case ("forget", study, pool, round_):
                    query = Query(study=study, pool=pool, round=round_, weights="a" * 64)
                    ledger.forget(query)
                    model.kept.pop(query, None)
                case ("close", study):
                    keys = [key for key in model.allocated if key[0] == study]
                    try:
                        ledger.close_study(study)
                        assert keys
                    except LedgerError:
                        assert not keys
                    for key in keys:
                        del model.allocated[key]
                case _:
                    ledger.close()
                    ledger = opened(folder)
            for pool in ("train", "test"):
                assert left(ledger, pool) == model.left(pool) >= 0
                assert ledger.state.reserved[pool] == UNIT * sum(name == pool for _, name in model.charged)
        ledger.close()
        assert sum(len(updates) for updates in sent.values()) <= len(model.charged)
        with opened(folder) as again:
            assert again.state == ledger.state


def undo_last(folder: Path, *, torn: bool) -> bool:
    """The last record as a kill leaves it: torn, or whole and without its head. Whether it is void."""
    path = folder / "ledger.jsonl"
    *before, last, _ = path.read_bytes().split(b"\n")
    (folder / "ledger.head").write_text(f"{json.loads(last)['sequence'] - 1}-{json.loads(last)['previous']}\n")
    if torn:
        path.write_bytes(b"\n".join([*before, last[: len(last) // 2]]))
    return torn
