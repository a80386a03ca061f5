"""The ledger's rules: what is set aside, charged, released and refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, QUERY, Training, allocate, cost, event, left, make, opened

from client.chain import Chain
from client.chain_lines import ChainError
from client.ledger import Ledger
from client.ledger_records import UNIT, BudgetError, LedgerError, limit_of, spent
from client.ledger_state import State
from common.errors import Reason


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "state")


@pytest.fixture
def ledger(folder: Path) -> Any:
    with opened(folder) as made:
        yield made


def reloaded(ledger: Ledger, folder: Path) -> State:
    ledger.close()
    with opened(folder) as again:
        return again.state


def test_available_is_the_limit_less_reserved_less_open_allocations(ledger: Ledger, folder: Path) -> None:
    assert left(ledger) == 10
    allocate(ledger, each=1.0, orders=4)
    assert left(ledger) == 6
    ledger.reserve(QUERY, event(1.0))
    assert left(ledger) == 6
    assert ledger.state.reserved["train"] == 1 * UNIT
    before = ledger.state
    assert reloaded(ledger, folder) == before


def test_close_returns_what_was_allocated_and_never_reserved_and_reserved_never_returns(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=4)
    ledger.reserve(QUERY, event(1.0))
    ledger.close_study(QUERY.study)
    assert left(ledger) == 9
    with pytest.raises(BudgetError, match="not approved, or is closed"):
        ledger.reserve(replace(QUERY, round=2), event(1.0))
    with pytest.raises(LedgerError, match="nothing allocated"):
        ledger.close_study(QUERY.study)
    assert left(ledger) == 9


def test_a_reserve_without_allocation_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BudgetError, match="not approved") as caught:
        ledger.reserve(QUERY, event(1.0))
    assert caught.value.code is Reason.BUDGET
    assert ledger.anchor.sequence == 0


def test_a_reserve_beyond_its_allocation_is_refused_though_the_ledger_has_room(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=2)
    ledger.reserve(QUERY, event(1.0))
    with pytest.raises(BudgetError, match="spare rounds included"):
        ledger.reserve(replace(QUERY, round=2), event(1.0000001))
    ledger.reserve(replace(QUERY, round=2), event(1.0))
    with pytest.raises(BudgetError):
        ledger.reserve(replace(QUERY, round=3), event(1e-9))


def test_two_studies_that_fit_alone_but_not_together(ledger: Ledger, folder: Path) -> None:
    plan = [(event(0.6), 10)]
    assert ledger.share("train", plan) == 0.6
    allocate(ledger, "one", each=0.6, orders=10)
    assert ledger.share("train", plan) == 1.5
    with pytest.raises(BudgetError, match=r"needs 1\.5 of what is left in pool train"):
        allocate(ledger, "two", each=0.6, orders=10)
    ledger.reserve(replace(QUERY, study="one"), event(0.6))
    ledger.close_study("one")
    allocate(ledger, "two", each=0.6, orders=10)
    assert left(ledger) == pytest.approx(3.4)
    assert left(ledger) == reloaded(ledger, folder).available("train") / UNIT


def test_each_pool_has_an_account_of_its_own(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=10)
    assert (left(ledger, "train"), left(ledger, "test")) == (0, 10)
    allocate(ledger, each=10.0, orders=1, pool="test")
    assert ledger.share("train", [(event(1e-9), 1)]) == math.inf
    for call in (
        lambda: allocate(ledger, each=1.0, orders=1, pool="attic"),
        lambda: ledger.share("attic", []),
    ):
        with pytest.raises(LedgerError, match="'attic' is none of train, validation, test"):
            call()


@given(each=st.floats(1e-6, 0.3), orders=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_a_plan_that_was_allocated_is_accepted_up_to_its_last_order(each: float, orders: int) -> None:
    """Sums of the rounded costs are exact, whatever floating point makes of the costs themselves."""
    amount = spent(each)
    assert amount >= each * UNIT - 1e-3
    assert sum([amount] * orders) == amount * orders
    assert limit_of(each) <= amount <= limit_of(each) + 1


def test_a_plan_that_fills_the_ledger_is_accepted_up_to_its_last_order(ledger: Ledger) -> None:
    allocate(ledger, each=0.1, orders=99)  # 0.1 is a little more than a tenth, and costs round up
    for number in range(99):
        ledger.reserve(replace(QUERY, round=number), event(0.1))
    with pytest.raises(BudgetError):
        ledger.reserve(replace(QUERY, round=99), event(0.1))


def test_the_limit_itself_may_be_filled_and_not_passed(ledger: Ledger) -> None:
    with pytest.raises(BudgetError):
        allocate(ledger, each=10.000000000001, orders=1)
    allocate(ledger, each=2.5, orders=4)
    with pytest.raises(BudgetError):
        allocate(ledger, "two", each=1e-12, orders=1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_cost_that_is_none_is_refused(ledger: Ledger, wrong: float) -> None:
    allocate(ledger, each=1.0, orders=4)
    with pytest.raises(LedgerError, match="a cost of"):
        allocate(ledger, "two", each=wrong, orders=1)
    with pytest.raises(LedgerError, match="a cost of"):
        ledger.reserve(QUERY, event(wrong))
    assert ledger.anchor.sequence == 1


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": math.nan}, {"epsilon": math.inf}, {"delta": 0.0},
        {"delta": math.nan}, {"delta": 1.1e-5}, {"parts": []}, {"orders": 0}, {"orders": -1},
    ],
)  # fmt: skip
def test_a_studys_wrong_numbers_are_refused_and_nothing_is_written(ledger: Ledger, change: dict[str, Any]) -> None:
    values: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-5, "orders": 2, **change}
    plan = change.get("parts", [(event(1.0), values["orders"])])
    with pytest.raises(LedgerError) as caught:
        ledger.allocate("one", {"train": plan}, epsilons={"train": values["epsilon"]}, delta=values["delta"])
    assert "\n" not in str(caught.value)
    assert (ledger.anchor.sequence, left(ledger)) == (0, 10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"delta": 4e-4}, "too large for 300 patients; at most 0.000333"),
        ({"delta": 0.0}, "too large"),
        ({"delta": math.nan}, "too large"),
        ({"nominal_patients": 0}, "declare at least 1"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"order": 1.0}, "order"),
        ({"limit": 0.0}, "a limit of"),
        ({"limit": math.nan}, "a limit of"),
        ({"limit": math.inf}, "a limit of"),
        ({"pools": {}}, "pools"),
        ({"pools": {"train": 0.7}}, "sum to 1"),
        ({"pools": {"train": 1.5, "test": -0.5}}, "pools"),
    ],
)
def test_a_ledger_that_promises_nothing_is_not_made(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(LedgerError, match=says):
        make(tmp_path / "state", **change)
    assert not (tmp_path / "state").exists()


def test_a_ledger_is_made_once(folder: Path) -> None:
    with pytest.raises(ChainError, match="exists already"):
        make(folder)


def test_the_same_study_is_allocated_once_until_it_is_closed(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=1)
    with pytest.raises(LedgerError, match="already"):
        allocate(ledger, each=1.0, orders=1)
    ledger.close_study(QUERY.study)
    allocate(ledger, each=1.0, orders=1)


def test_a_plan_of_two_kinds_of_orders_lends_none_of_the_one_to_the_other(ledger: Ledger, folder: Path) -> None:
    plan = [(event(1.0), 2), (event(3.0), 1)]
    ledger.allocate(QUERY.study, {"train": plan}, epsilons={"train": 3.0}, delta=1e-5)
    numbers = iter(range(1, 20))

    def takes(cost: float) -> bool:
        try:
            ledger.reserve(replace(QUERY, round=next(numbers)), event(cost))
        except BudgetError:
            return False
        return True

    assert [takes(cost) for cost in (1.0, 1.0, 1.0)] == [True, True, False]  # 3 units are left
    ledger.close_study(QUERY.study)
    ledger.allocate(QUERY.study, {"train": plan}, epsilons={"train": 3.0}, delta=1e-5)
    assert not takes(1.0)  # a study that comes back has spent what it had, of each kind
    assert [takes(cost) for cost in (3.0, 3.0)] == [True, False]
    assert left(ledger) == 5.0
    ledger.close()
    with opened(folder) as again:
        assert again.state.orders == ledger.state.orders and set(again.state.orders.values()) == {1, 2}


def test_equal_events_of_a_plan_are_one_kind(ledger: Ledger) -> None:
    ledger.allocate(QUERY.study, {"train": [(event(1.0), 1)] * 2}, epsilons={"train": 3.0}, delta=1e-5)
    for number in (1, 2):
        ledger.reserve(replace(QUERY, round=number), event(1.0))
    with pytest.raises(BudgetError, match="used up"):
        ledger.reserve(replace(QUERY, round=3), event(1.0))


def test_a_study_that_was_closed_and_comes_back_has_spent_what_it_had(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=3)
    ledger.reserve(QUERY, event(1.0))
    ledger.reserve(replace(QUERY, round=2), event(1.0))
    ledger.close_study(QUERY.study)
    allocate(ledger, each=1.0, orders=3)  # the same plan: two of its three orders are spent
    assert left(ledger) == 7
    ledger.reserve(replace(QUERY, round=3), event(1.0))
    before = ledger.state
    for state in (before, reloaded(ledger, folder)):
        assert state.reserved["train"] == 3 * UNIT
        assert state == before
    with opened(folder) as again, pytest.raises(BudgetError, match="used up its budget"):
        again.reserve(replace(QUERY, round=4), event(1.0))


def test_the_same_order_again_gets_the_same_bytes_at_no_charge_and_one_entry(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=4)
    train = Training()
    assert [ledger.release(QUERY, event(1.0), train) for _ in range(3)] == [b"update 1"] * 3
    records = ledger.anchor.sequence
    ledger.close()
    with opened(folder) as again:
        assert again.release(QUERY, event(1.0), train) == b"update 1"
        assert (train.times, again.anchor.sequence, records) == (1, 3, 3)
        assert again.state.reserved["train"] == UNIT
        with pytest.raises(LedgerError, match="answered already"):
            again.reserve(QUERY, event(1.0))


@pytest.mark.parametrize(
    "change",
    [{"weights": "c" * 64}, {"round": 2}, {"study": "two"}, {"pool": "test"}],
    ids=lambda change: next(iter(change)),
)
def test_another_order_is_charged_and_computed(ledger: Ledger, change: dict[str, Any]) -> None:
    for study in (QUERY.study, "two"):
        for pool in ("train", "test"):
            allocate(ledger, study, each=1.0, orders=2, pool=pool)
    train = Training()
    ledger.release(QUERY, event(1.0), train)
    assert ledger.release(replace(QUERY, **change), event(1.0), train) == b"update 2"
    assert sum(ledger.state.reserved.values()) == 2 * UNIT


def test_once_its_session_was_answered_open_an_order_is_charged_anew(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=2)
    train = Training()
    ledger.release(QUERY, event(1.0), train)
    copies = {path: path.read_bytes() for path in (folder / "released").iterdir()}
    ledger.forget(QUERY)
    assert not list((folder / "released").iterdir())
    for path, data in copies.items():  # whoever puts the file back changes nothing
        path.write_bytes(data)
    ledger.close()
    with opened(folder) as again:
        assert again.release(QUERY, event(1.0), train) == b"update 2"
        assert again.state.reserved["train"] == 2 * UNIT
        again.forget(QUERY)
        again.forget(QUERY)


def test_stored_updates_are_deleted_when_an_order_for_a_later_round_arrives(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=1)
    train = Training()
    ledger.release(QUERY, event(1.0), train)
    with pytest.raises(BudgetError):
        ledger.release(replace(QUERY, round=2), event(1.0), train)
    assert not list((folder / "released").iterdir())
    with pytest.raises(BudgetError):  # gone, so it would cost anew
        ledger.release(QUERY, event(1.0), train)
    assert train.times == 1


def test_a_later_rounds_reserve_ends_what_waits_for_earlier_ones(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=3)
    reserve = ledger.reserve(QUERY, event(1.0))
    ledger.release(replace(QUERY, round=2), event(1.0), Training())
    with pytest.raises(LedgerError, match="no reserve of this process"):
        ledger.commit(reserve, b"late")
    assert [stored.query.round for stored in ledger.state.stored.values()] == [2]


def test_a_training_that_fails_stays_charged_and_a_new_one_costs_anew(ledger: Ledger) -> None:
    allocate(ledger, each=1.0, orders=2)

    def fails() -> bytes:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        ledger.release(QUERY, event(1.0), fails)
    assert ledger.state.reserved["train"] == UNIT
    assert ledger.release(QUERY, event(1.0), Training()) == b"update 1"
    assert ledger.state.reserved["train"] == 2 * UNIT


def test_a_reserve_is_committed_once_by_the_process_that_made_it(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=3)
    first, second = ledger.reserve(QUERY, event(1.0)), ledger.reserve(QUERY, event(1.0))
    with pytest.raises(LedgerError, match="no reserve"):
        ledger.commit(first, b"x")
    ledger.commit(second, b"y")
    with pytest.raises(LedgerError, match="no reserve"):
        ledger.commit(second, b"z")
    third = ledger.reserve(replace(QUERY, round=2), event(1.0))
    ledger.close()
    with opened(folder) as again, pytest.raises(LedgerError, match="no reserve"):
        again.commit(third, b"z")


def test_a_stored_update_that_was_edited_is_refused(ledger: Ledger, folder: Path) -> None:
    allocate(ledger, each=1.0, orders=2)
    ledger.release(QUERY, event(1.0), Training())
    (path,) = (folder / "released").iterdir()
    path.write_bytes(b"update 2")
    with pytest.raises(ChainError, match="not what was released"):
        ledger.release(QUERY, event(1.0), Training())
    assert ledger.state.reserved["train"] == UNIT


def test_unprotected_makes_the_ledger_state_no_epsilon_and_say_why(ledger: Ledger, folder: Path) -> None:
    assert "epsilon at most 8 at delta 1e-05" in ledger.state.statement
    ledger.unprotected("plain-study")
    ledger.unprotected("plain-study")
    assert ledger.anchor.sequence == 1
    allocate(ledger, each=1.0, orders=1)
    said = reloaded(ledger, folder).statement
    assert "No epsilon can be stated" in said and "without differential privacy" in said and "plain-study" in said
    assert "at most" not in said


def test_a_ledger_and_a_patient_key_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="don't belong together"):
        Ledger(folder, patient_key=bytes(32), cost=cost)
    with pytest.raises(ChainError, match="missing"):
        opened(tmp_path / "elsewhere")
    opened(folder).close()  # the refused ones left no lock


def test_no_record_names_the_patient_key(ledger: Ledger, folder: Path) -> None:
    text = (folder / "ledger.jsonl").read_text()
    assert KEY.hex() not in text and json.loads(text)["body"]["key"] != KEY.hex()


def test_a_record_that_breaks_a_rule_is_refused_though_the_chain_verifies(folder: Path) -> None:
    with Chain(folder, "ledger") as chain:
        chain.append(
            "reserve", {"study": "x", "pool": "train", "round": 1, "weights": "b" * 64, "event": {}, "amount": 1}
        )
    with pytest.raises(BudgetError, match="not approved"):
        opened(folder)


@pytest.mark.parametrize(
    ("kind", "body"),
    [("genesis", {}), ("grant", {}), ("reserve", {}), ("close", {"study": "x", "more": 1}), ("close", {})],
)
def test_a_record_that_is_none_is_refused(folder: Path, kind: str, body: dict[str, Any]) -> None:
    with Chain(folder, "ledger") as chain:
        chain.append(kind, body)
    with pytest.raises(LedgerError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


def test_after_a_failed_write_the_state_is_read_anew(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the line fails: refused, and yet the line is there; it counts."""
    allocate(ledger, each=1.0, orders=2)

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    train = Training()
    with monkeypatch.context() as patch:
        patch.setattr("client.chain.os.fsync", fails)
        with pytest.raises(ChainError, match="Input/output error"):
            ledger.release(QUERY, event(1.0), train)
        with pytest.raises(ChainError):
            ledger.release(QUERY, event(1.0), train)
    assert train.times == 0
    ledger.release(QUERY, event(1.0), train)
    assert ledger.state.reserved["train"] == 2 * UNIT
    with pytest.raises(BudgetError):
        ledger.reserve(replace(QUERY, round=2), event(1.0))
