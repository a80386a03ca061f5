"""What the lines of a privacy ledger say: one frozen value per kind of record.

Amounts are whole picounits: 10^-12 of Renyi divergence at the ledger's order. Costs are rounded up, the limit down, so
that sums are exact: a study that was allocated n orders is never refused the n-th.
"""

import hashlib
import hmac
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from client.released import Query
from common.errors import FederationError, Reason

UNIT = 10**12
Json = dict[str, Any]


class LedgerError(FederationError):
    """The ledger refuses: what was asked breaks a rule, or ledger, patient key and anchors don't belong together."""


class BudgetError(LedgerError):
    """The ledger refuses because the privacy budget does not suffice."""

    code = Reason.BUDGET


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Amount = Annotated[int, Field(gt=0)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=0)]
_Delta = Annotated[float, Field(gt=0, lt=1)]
_Study = Annotated[str, Field(min_length=1, max_length=200)]


class Genesis(_Record):
    """The first record: what can never change for this cohort."""

    kind: Literal["genesis"] = "genesis"
    cohort: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    key: _Hash  # fingerprint of the patient key
    pools: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]  # name -> share of patients
    order: Annotated[float, Field(gt=1)]
    limit: _Amount  # at that order, for each pool
    epsilon: _Positive  # the policy's, which the limit stands for
    delta: _Delta


class Part(_Record):
    """Orders of one kind in a study's plan."""

    event: Json
    orders: _Amount
    amount: _Amount  # of one order


class Allocate(_Record):
    """A study's whole plan on one pool, at approval."""

    kind: Literal["allocate"] = "allocate"
    study: _Study
    pool: str
    parts: Annotated[list[Part], Field(min_length=1)]
    epsilon: _Positive  # the study's own, only shown
    delta: _Delta

    @property
    def amount(self) -> int:
        return sum(part.orders * part.amount for part in self.parts)


class Reserve(_Record):
    """All steps of one order, spent from now on."""

    kind: Literal["reserve"] = "reserve"
    study: _Study
    pool: str
    round: Annotated[int, Field(ge=0)]
    weights: _Hash
    event: Json
    amount: _Amount

    @property
    def query(self) -> Query:
        return Query(study=self.study, pool=self.pool, round=self.round, weights=self.weights)


class Commit(_Record):
    """The release of a reserve, stored under its digest."""

    kind: Literal["commit"] = "commit"
    reserve: Annotated[int, Field(gt=0)]  # sequence number
    digest: _Hash


class Forget(_Record):
    """A release is never sent again: its session was answered *open*, or its bytes are lost."""

    kind: Literal["forget"] = "forget"
    query: _Hash


class Close(_Record):
    """A study has ended: what it was allocated and never reserved is free again."""

    kind: Literal["close"] = "close"
    study: _Study


class Unprotected(_Record):
    """A study without differential privacy uses this cohort."""

    kind: Literal["unprotected"] = "unprotected"
    study: _Study


class Moved(_Record):
    """The ledger goes on elsewhere: this copy is closed."""

    kind: Literal["moved"] = "moved"


class Restored(_Record):
    """The ledger goes on here."""

    kind: Literal["restored"] = "restored"


class Repair(_Record):
    """A torn line before this record counts for nothing."""

    kind: Literal["repair"] = "repair"
    torn: _Hash
    lines: Annotated[int, Field(gt=0)]


Record = Genesis | Allocate | Reserve | Commit | Forget | Close | Unprotected | Moved | Restored | Repair
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def record_from(kind: str, body: Mapping[str, Any]) -> Record:
    """The record that a line holds. Raises LedgerError."""
    try:
        return _RECORD.validate_python({**body, "kind": kind})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LedgerError(f"ledger record {kind!r}: {where}: {first['msg']}") from error


def spent(cost: float) -> int:
    """A cost in picounits, rounded up. Raises LedgerError for zero, negative, NaN and infinite costs."""
    if not 0 < cost < math.inf:
        raise LedgerError(f"a cost of {cost} is none: an event on patients costs more than 0 and less than infinity")
    return math.ceil(Fraction(cost) * UNIT)


def limit_of(value: float) -> int:
    """A limit in picounits, rounded down. Raises LedgerError where nothing is left."""
    if not 0 < value < math.inf or Fraction(value) * UNIT < 1:
        raise LedgerError(f"a limit of {value} is none; give a positive number")
    return math.floor(Fraction(value) * UNIT)


def fingerprint(patient_key: bytes, cohort: str) -> str:
    """Says that a patient key belongs to a cohort, and nothing else about it."""
    return hmac.digest(patient_key, b"ledger\0" + cohort.encode(), hashlib.sha256).hex()
