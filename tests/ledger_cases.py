"""Ledgers for tests: an event costs what the test says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.ledger import Ledger, create
from client.ledger_records import UNIT
from client.released import Query

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
    ledger.allocate(study, {pool: [(event(each), orders)]}, epsilons={pool: 3.0}, delta=1e-5)


def left(ledger: Ledger, pool: str = "train") -> float:
    return ledger.state.available(pool) / UNIT


class Training:
    """Counts how often it is asked; each time the result is another, as noise makes it."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return f"update {self.times}".encode()
