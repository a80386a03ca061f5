"""Messages: what comes back is what was sent, and everything else is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common import wire
from common.errors import MessageError, Reason, WireVersionError

WEIGHTS = np.array([0.5, -2.0, 3e-9], np.float32)
ORDER = wire.Order(
    kind="update", round=3, attempt=1, study_hash="ab" * 32, weights=WEIGHTS, weights_hash=wire.digest_of(WEIGHTS)
)
VECTOR = np.array([1.0, 2.0], np.float32)


def answer(**changes: Any) -> wire.Answer:
    values: dict[str, Any] = {
        "site": "site-1",
        "kind": "update",
        "round": 3,
        "attempt": 1,
        "study_hash": ORDER.study_hash,
        "order_hash": ORDER.sha256,
        "reason": Reason.OK,
        "vector": VECTOR,
    }
    return wire.Answer(**{**values, **changes})


def test_an_order_comes_back_as_it_was_sent() -> None:
    record = wire.order_record(ORDER)
    got = wire.order_from(record)
    assert (got.kind, got.round, got.attempt, got.study_hash) == ("update", 3, 1, ORDER.study_hash)
    assert got.sha256 == ORDER.sha256
    assert np.array_equal(wire.weights_from(record, got, length=3), WEIGHTS)


def test_an_answer_comes_back_as_it_was_sent() -> None:
    got = wire.answer_from(wire.answer_record(answer()), to=ORDER, length=2)
    assert (got.site, got.reason) == ("site-1", Reason.OK)
    assert got.vector is not None and np.array_equal(got.vector, VECTOR)


def test_arrays_travel_as_raw_little_endian_float32() -> None:
    array = wire.order_record(ORDER)["vector"]["vector"]
    assert isinstance(array, Array) and array.data == WEIGHTS.astype("<f4").tobytes()


def test_the_size_is_the_header_and_four_bytes_a_value() -> None:
    record = wire.answer_record(answer())
    assert wire.size_of(record) == len(record["header"]["json"]) + 4 * VECTOR.size


def test_the_order_hash_binds_plan_and_weights() -> None:
    other = np.array([0.5, -2.0, 4e-9], np.float32)
    hashes = {
        ORDER.sha256,
        wire.Order(
            kind="update", round=4, attempt=1, study_hash=ORDER.study_hash, weights_hash=ORDER.weights_hash
        ).sha256,
        wire.Order(
            kind="update", round=3, attempt=1, study_hash=ORDER.study_hash, weights_hash=wire.digest_of(other)
        ).sha256,
    }
    assert len(hashes) == 3


def header(record: RecordDict, **changes: Any) -> RecordDict:
    values = {**json.loads(record["header"]["json"]), **changes}
    record["header"] = ConfigRecord({"json": json.dumps(values).encode()})
    return record


def raw(record: RecordDict, text: bytes) -> RecordDict:
    record["header"] = ConfigRecord({"json": text})
    return record


def array(record: RecordDict, **changes: Any) -> RecordDict:
    values: dict[str, Any] = {"dtype": "float32", "shape": (2,), "stype": wire.RAW, "data": VECTOR.tobytes(), **changes}
    record["vector"] = ArrayRecord({"vector": Array(**values)})
    return record


def without(record: RecordDict, key: str) -> RecordDict:
    del record[key]
    return record


def beside(record: RecordDict) -> RecordDict:
    record["more"] = ConfigRecord({"x": 1})
    return record


MALFORMED: dict[str, Callable[[RecordDict], RecordDict]] = {
    "no header": lambda r: without(r, "header"),
    "no vector": lambda r: without(r, "vector"),
    "a foreign record": beside,
    "header is a string": lambda r: RecordDict({**r, "header": ConfigRecord({"json": "{}"})}),
    "header not JSON": lambda r: raw(r, b"{"),
    "header a list": lambda r: raw(r, b"[]"),
    "header deeply nested": lambda r: raw(r, b"[" * 100_000),
    "header too long": lambda r: raw(r, b" " * (wire.HEADER_LIMIT + 1)),
    "a key twice": lambda r: raw(r, r["header"]["json"][:-1] + b',"round":3}'),
    "another wire version": lambda r: header(r, wire=wire.WIRE_VERSION + 1),
    "a wire version that is none": lambda r: header(r, wire=True),
    "a wire version of many digits": lambda r: header(r, wire=10**400),
    "no statement about a log": lambda r: header(r, audit="000000001-" + "a" * 64),
    "an unknown key": lambda r: header(r, secret=1),
    "round a string": lambda r: header(r, round="3"),
    "round true": lambda r: header(r, round=True),
    "another round": lambda r: header(r, round=4),
    "another attempt": lambda r: header(r, attempt=2),
    "another kind": lambda r: header(r, kind="evaluate"),
    "an unknown kind": lambda r: header(r, kind="steal"),
    "another study": lambda r: header(r, study_hash="cd" * 32),
    "another order": lambda r: header(r, order_hash="cd" * 32),
    "an unknown reason": lambda r: header(r, reason="tired"),
    "a reason that leaks": lambda r: header(r, reason="failed: patient 17"),
    "refused, yet a vector": lambda r: header(r, reason="failed"),
    "site name with a slash": lambda r: header(r, site="../x"),
    "site name too long": lambda r: header(r, site="a" * 33),
    "site name empty": lambda r: header(r, site=""),
    "too long": lambda r: array(r, shape=(3,), data=bytes(12)),
    "shape says more than the bytes": lambda r: array(r, data=bytes(4)),
    "bytes more than the shape": lambda r: array(r, data=bytes(12)),
    "two dimensions": lambda r: array(r, shape=(2, 1)),
    "float64": lambda r: array(r, dtype="float64", data=bytes(16)),
    "numpy's format": lambda r: array(r, stype="numpy.ndarray"),
    "zip bytes": lambda r: array(r, data=b"PK\x03\x04" * 2, stype="numpy.ndarray"),
    "NaN": lambda r: array(r, data=np.array([1, np.nan], np.float32).tobytes()),
    "infinity": lambda r: array(r, data=np.array([1, np.inf], np.float32).tobytes()),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_answer_is_refused(fault: str) -> None:
    with pytest.raises(MessageError):
        wire.answer_from(MALFORMED[fault](wire.answer_record(answer())), to=ORDER, length=2)


@pytest.mark.parametrize(
    "fault", ["no header", "header not JSON", "a key twice", "an unknown key", "another wire version"]
)
def test_a_malformed_order_is_refused(fault: str) -> None:
    with pytest.raises(MessageError):
        wire.order_from(MALFORMED[fault](wire.order_record(ORDER)))


@pytest.mark.parametrize("version", [1, wire.WIRE_VERSION + 1])
def test_a_message_of_another_release_is_told_from_a_malformed_one(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Also what a site says to an order that it can't read: its own version is in the header."""
    order = wire.order_record(ORDER)
    monkeypatch.setattr(wire, "WIRE_VERSION", version)
    with pytest.raises(WireVersionError, match=f"wire version 2, not {version}"):
        wire.order_from(order)
    unreadable = wire.answer_record(answer(reason=Reason.MALFORMED, vector=None, round=0, order_hash=""))
    monkeypatch.undo()
    with pytest.raises(WireVersionError) as caught:
        wire.answer_from(unreadable, to=ORDER, length=2)
    assert caught.value.code is Reason.WIRE_VERSION


def test_weights_that_the_header_does_not_name_are_refused() -> None:
    record = wire.order_record(ORDER)
    record["vector"] = ArrayRecord(
        {"vector": Array(dtype="float32", shape=(3,), stype=wire.RAW, data=np.ones(3, np.float32).tobytes())}
    )
    with pytest.raises(MessageError, match="does not name"):
        wire.weights_from(record, wire.order_from(record), length=3)


def test_weights_of_another_length_than_the_models_are_refused() -> None:
    record = wire.order_record(ORDER)
    with pytest.raises(MessageError, match="4 raw float32"):
        wire.weights_from(record, wire.order_from(record), length=4)


def test_a_refusal_carries_no_vector() -> None:
    refusal = wire.answer_record(answer(reason=Reason.FAILED, vector=None))
    got = wire.answer_from(refusal, to=ORDER, length=2)
    assert got.reason is Reason.FAILED and got.vector is None
