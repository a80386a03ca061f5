"""The ledger's rules, its anchors and copies, and any sequence of operations and crashes against a naive model."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client import ledger_copy
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, anchor_from
from client.ledger import FOLDER, Ledger, create
from client.ledger_cli import app
from client.ledger_records import UNIT, BudgetError, LedgerError, limit_of, spent
from client.ledger_state import State
from client.released import Query
from client.site import site_toml
from common.errors import FederationError, Reason

KEY = bytes(range(32))
POOLS = {"train": 0.7, "validation": 0.1, "test": 0.2}
QUERY = Query(study="a" * 64, pool="train", round=1, weights="b" * 64)


def cost(event: Mapping[str, Any], /, *, order: float) -> float:
    """Tests say what an event costs."""
    assert order == 3.86
    return float(event["cost"])


def event(cost: float) -> dict[str, Any]:
    return {"cost": cost}


def make(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "patient_key": KEY, "pools": POOLS, "order": 3.86, "limit": 10.0, "epsilon": 8.0, "delta": 1e-5,
        "nominal_patients": 300,
    }  # fmt: skip
    create(folder, **{**values, **changes})
    return folder


def opened(folder: Path, **options: Any) -> Ledger:
    return Ledger(folder, patient_key=KEY, cost=cost, **options)


def allocate(ledger: Ledger, study: str = QUERY.study, *, each: float, orders: int, pool: str = "train") -> None:
    ledger.allocate(study, pool, [(event(each), orders)], epsilon=3.0, delta=1e-5)


def left(ledger: Ledger, pool: str = "train") -> float:
    return ledger.state.available(pool) / UNIT


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
        ledger.allocate("one", "train", plan, epsilon=values["epsilon"], delta=values["delta"])
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


class Training:
    """Counts how often it is asked; each time the result is another, as noise makes it."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return f"update {self.times}".encode()


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


# Anchors and copies


def test_an_older_copy_of_all_files_refuses_once_a_newer_head_is_shown(folder: Path) -> None:
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        old = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        ledger.release(QUERY, event(1.0), Training())
        newest = ledger.anchor
    for path, data in old.items():
        path.write_bytes(data)
    with pytest.raises(LedgerError, match="older copy"):
        opened(folder, anchors=[newest])
    train = Training()
    with opened(folder) as again:
        with pytest.raises(LedgerError, match="older copy"):
            again.demand(newest)
        for call in (
            lambda: again.release(QUERY, event(1.0), train),
            lambda: again.reserve(QUERY, event(1.0)),
            lambda: again.demand(again.anchor) or again.reserve(QUERY, event(1.0)),  # type: ignore[func-returns-value]
        ):
            with pytest.raises(LedgerError, match="older copy"):
                call()
        assert (train.times, again.anchor.sequence) == (0, 1)


def test_an_anchor_of_this_chain_is_accepted_whatever_came_later(folder: Path) -> None:
    with opened(folder) as ledger:
        first = ledger.anchor
        allocate(ledger, each=1.0, orders=4)
        for anchor in (first, ledger.anchor, anchor_from(str(ledger.anchor))):
            ledger.demand(anchor)
        last = ledger.anchor
        assert not ledger.contains(Anchor(sequence=last.sequence + 1, hash=last.hash))
    opened(folder, anchors=[first, last]).close()


def test_the_anchor_on_another_disk_refuses_an_older_copy(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "anchor"
    with opened(folder, anchor_file=kept) as ledger:
        old = {path: path.read_bytes() for path in folder.iterdir()}
        allocate(ledger, each=1.0, orders=4)
        assert kept.read_text() == f"1-{ledger.anchor.hash}\n"
    opened(folder, anchor_file=kept).close()
    for path, data in old.items():
        path.write_bytes(data)
    with pytest.raises(LedgerError, match="older copy"):
        opened(folder, anchor_file=kept)
    kept.write_text("edited")
    with pytest.raises(ChainError, match="is no anchor"):
        opened(folder, anchor_file=kept)
    with pytest.raises(ChainError, match="is its disk there"):
        opened(folder, anchor_file=tmp_path / "unmounted" / "anchor")


def test_a_backup_is_restored_where_an_anchor_says_that_it_is_the_newest(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "copy", tmp_path / "other"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        ledger.release(QUERY, event(1.0), Training())
        anchor = ledger_copy.backup(folder, file, patient_key=KEY)
        assert anchor == ledger.anchor
    with pytest.raises(LedgerError, match="nothing shows that this copy"):
        ledger_copy.restore(other, file, patient_key=KEY, anchor=None)
    with pytest.raises(LedgerError, match="don't belong together"):
        ledger_copy.restore(other, file, patient_key=bytes(32), anchor=anchor)
    assert not other.exists()
    ledger_copy.restore(other, file, patient_key=KEY, anchor=anchor)
    with opened(other) as again:
        assert again.state.reserved["train"] == UNIT
        again.demand(anchor)
        assert again.release(QUERY, event(1.0), lambda: b"anew") == b"anew"  # stored updates are not in a copy
        assert again.state.reserved["train"] == 2 * UNIT


def test_a_backup_older_than_the_anchor_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.backup(folder, file, patient_key=KEY)
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        newest = ledger.anchor
    with pytest.raises(LedgerError, match="an older copy"):
        ledger_copy.restore(tmp_path / "other", file, patient_key=KEY, anchor=newest)
    assert not (tmp_path / "other").exists()


def test_a_copy_that_was_cut_or_edited_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        anchor = ledger.anchor
    ledger_copy.backup(folder, file, patient_key=KEY)
    whole = file.read_bytes()
    for place in [*range(0, len(whole), 9), *range(len(whole) - 80, len(whole))]:
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            file.write_bytes(data)
            with pytest.raises(FederationError):
                ledger_copy.restore(tmp_path / "other", file, patient_key=KEY, anchor=anchor)
    assert not (tmp_path / "other").exists()


def test_a_moved_ledger_goes_on_elsewhere_and_is_closed_here(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "copy", tmp_path / "other"
    with opened(folder) as ledger:
        allocate(ledger, each=1.0, orders=4)
        with pytest.raises(ChainError, match="another process"):
            ledger_copy.move(folder, file, patient_key=KEY)
    ledger_copy.move(folder, file, patient_key=KEY)
    with pytest.raises(LedgerError, match="moved to another machine"):
        opened(folder)
    file.unlink()  # lost on the way: another copy of the closed ledger
    anchor = ledger_copy.move(folder, file, patient_key=KEY)
    assert anchor.sequence == 2
    ledger_copy.restore(other, file, patient_key=KEY, anchor=None)
    with opened(other) as again:
        assert left(again) == 6
        again.reserve(QUERY, event(1.0))
    with pytest.raises(ChainError, match="exists already"):
        ledger_copy.restore(other, file, patient_key=KEY, anchor=None)


def test_one_moved_copy_on_two_machines_is_told_apart_by_its_heads(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.move(folder, file, patient_key=KEY)
    one, two = (ledger_copy.restore(tmp_path / name, file, patient_key=KEY, anchor=None) for name in ("one", "two"))
    assert one.sequence == two.sequence
    with opened(tmp_path / "two") as ledger, pytest.raises(LedgerError, match="older copy"):
        ledger.demand(one)


def test_a_restore_that_was_killed_before_its_own_record_can_be_repeated(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    ledger_copy.move(folder, file, patient_key=KEY)
    ledger_copy.restore(folder, file, patient_key=KEY, anchor=None)  # as the kill left it: the copy, and nothing more
    opened(folder).close()


def test_a_backup_never_overwrites(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    for call in (ledger_copy.backup, ledger_copy.move):
        with pytest.raises(ChainError, match="exists already"):
            call(folder, tmp_path / "copy", patient_key=KEY)
    opened(folder).close()  # and the ledger was not closed for it


# The command


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = tmp_path / "north"
    (made / "keys").mkdir(parents=True)
    (made / "keys" / "patient.key").write_bytes(KEY)
    (made / "site.toml").write_text(site_toml("north"))
    make(made / FOLDER)
    return made


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_show_prints_what_is_spent_set_aside_and_left_while_the_client_runs(site: Path) -> None:
    with opened(site / FOLDER) as ledger:
        allocate(ledger, each=1.0, orders=4)
        ledger.reserve(QUERY, event(1.0))
        shown = json.loads(run("show", site, "--json"))
        assert shown["pools"]["train"] == {"spent": 0.1, "allocated": 0.3, "left": 0.6}
        assert shown["pools"]["test"] == {"spent": 0.0, "allocated": 0.0, "left": 1.0}
        assert shown["limit"] == {"epsilon": 8.0, "delta": 1e-5, "order": 3.86, "value": 10.0}
        assert (shown["anchor"], shown["records"], shown["protected"]) == (str(ledger.anchor), 3, True)
        text = run("show", site)
        assert "10.00%" in text and str(ledger.anchor) in text and "epsilon at most 8" in text
        assert run("verify", site, "--anchor", ledger.anchor).startswith("ok: 3 records")


def test_verify_refuses_what_was_edited_and_an_anchor_that_is_not_there(site: Path) -> None:
    assert run("verify", site).startswith("ok: 1 records")
    with pytest.raises(LedgerError, match="does not contain"):
        run("verify", site, "--anchor", f"0-{'0' * 20}")
    path = site / FOLDER / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1e-05", b"1e-06"))
    with pytest.raises(ChainError, match="not the one that the head names"):
        run("verify", site)


def test_backup_move_and_restore_as_commands(site: Path, tmp_path: Path) -> None:
    said = run("backup", site, tmp_path / "copy")
    anchor = said.split()[-1]
    run("move", site, tmp_path / "moved")
    assert "Closed" in run("show", site)
    for name, options in (("copy", ["--anchor", anchor]), ("moved", [])):
        other = tmp_path / f"other-{name}"
        (other / "keys").mkdir(parents=True)
        (other / "keys" / "patient.key").write_bytes(KEY)
        (other / "site.toml").write_text(site_toml("north"))
        assert "goes on at" in run("restore", other, tmp_path / name, *options)
        opened(other / FOLDER).close()


# Any sequence of operations and crashes

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
        held = sum(amount - used for (_, name), (amount, used) in self.allocated.items() if name == pool)
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
                    fits = (study, pool) not in model.allocated and orders <= model.left(pool)
                    try:
                        allocate(ledger, study, each=1.0, orders=orders, pool=pool)
                        assert fits
                        model.allocated[study, pool] = [orders, 0]
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
