"""Messages: what comes back is what was sent, and everything else is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common import wire
from common.crypto.identity import Identity
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
    "no place in a log": lambda r: header(r, audit="1-" + "a" * 64),
    "heads no list": lambda r: header(r, heads="site-0"),
    "heads no texts": lambda r: header(r, heads=[1]),
    "heads without end": lambda r: header(r, heads=["x"] * 8001),
    "shares no list": lambda r: header(r, prior=0.5),
    "shares no numbers": lambda r: header(r, prior=["0.5"]),
    "shares whole numbers": lambda r: header(r, prior=[0, 10**400]),
    "shares true": lambda r: header(r, prior=[True]),
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
    "fault",
    [
        "no header",
        "header not JSON",
        "a key twice",
        "an unknown key",
        "another wire version",
        "heads no list",
        "heads no texts",
        "heads without end",
        "shares no list",
        "shares no numbers",
        "shares whole numbers",
        "shares true",
    ],
)
def test_a_malformed_order_is_refused(fault: str) -> None:
    with pytest.raises(MessageError):
        wire.order_from(MALFORMED[fault](wire.order_record(ORDER)))


@pytest.mark.parametrize("version", [3, wire.WIRE_VERSION + 1])
def test_a_message_of_another_release_is_told_from_a_malformed_one(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Also what a site says to an order that it can't read: its own version is in the header."""
    order = wire.order_record(ORDER)
    monkeypatch.setattr(wire, "WIRE_VERSION", version)
    with pytest.raises(WireVersionError, match=f"wire version 4, not {version}"):
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


KEY, OTHER = Identity(bytes(range(32))), Identity(bytes(32))
SERVERS, SITES = KEY.public, {"site-1": KEY.public}


def test_an_order_that_the_server_signed_is_taken() -> None:
    wire.demand_order_by(SERVERS, wire.order_record(ORDER, KEY))
    asked = replace(ORDER, session=b"ask-masked", heads=("a head",))
    wire.demand_order_by(SERVERS, wire.order_record(asked, KEY))


def changed_weights(record: RecordDict) -> RecordDict:
    """Other weights, and the header that would name them."""
    weights = np.ones(3, np.float32)
    return header(wire.order_record(replace(ORDER, weights=weights), KEY), weights_hash=wire.digest_of(weights))


UNSIGNED: dict[str, Callable[[RecordDict], RecordDict]] = {
    "no signature": lambda r: without(r, "signature"),
    "a signature of another kind": lambda r: RecordDict({**r, "signature": ConfigRecord({"ed25519": "00" * 64})}),
    "a short signature": lambda r: RecordDict({**r, "signature": ConfigRecord({"ed25519": bytes(63)})}),
    "another record in its place": lambda r: RecordDict({**r, "signature": r["header"]}),
    "more beside it": lambda r: RecordDict(
        {**r, "signature": ConfigRecord({"ed25519": r["signature"]["ed25519"], "more": b""})}
    ),
    "a bit of it": lambda r: RecordDict(
        {
            **r,
            "signature": ConfigRecord(
                {"ed25519": bytes([r["signature"]["ed25519"][0] ^ 1]) + r["signature"]["ed25519"][1:]}
            ),
        }
    ),
    "white space in the header": lambda r: raw(r, r["header"]["json"] + b" "),
    "a protocol message added": lambda r: RecordDict({**r, "session": ConfigRecord({"message": b"x"})}),
}


@pytest.mark.parametrize("fault", [*UNSIGNED, "other weights"])
def test_an_order_that_the_server_did_not_sign_as_it_is_is_refused(fault: str) -> None:
    harm = UNSIGNED.get(fault, changed_weights)
    with pytest.raises(MessageError):
        wire.demand_order_by(SERVERS, harm(wire.order_record(ORDER, KEY)))


def test_an_order_by_another_key_and_an_answer_in_the_place_of_an_order_are_refused() -> None:
    for record in (wire.order_record(ORDER, OTHER), wire.answer_record(answer(), KEY)):
        with pytest.raises(MessageError, match="signature"):
            wire.demand_order_by(SERVERS, record)


def test_an_answer_that_its_site_signed_is_taken() -> None:
    words = np.arange(2, dtype=np.uint64)
    masked = answer(vector=None, words=words, session=b"header")
    asked = replace(ORDER, session=b"ask-masked")
    for said, to in ((answer(), ORDER), (replace(masked, order_hash=asked.sha256), asked)):
        got = wire.answer_from(wire.answer_record(said, KEY), to=to, length=2, identities=SITES)
        assert got.site == "site-1" and got.reason is Reason.OK


UNSIGNED_ANSWER: dict[str, Callable[[RecordDict], RecordDict]] = {
    **{name: harm for name, harm in UNSIGNED.items() if name != "a protocol message added"},
    "another number": lambda r: array(r, data=np.array([1.0, 2.5], np.float32).tobytes()),
    "another reason, without the vector": lambda r: without(header(r, reason="failed"), "vector"),
    "another place in its log": lambda r: header(r, audit="000000001-" + "a" * 64),
    "other heads": lambda r: header(r, heads=["x"]),
    "in another site's name": lambda r: header(r, site="site-2"),
}


@pytest.mark.parametrize("fault", UNSIGNED_ANSWER)
def test_an_answer_that_its_site_did_not_sign_as_it_is_is_refused(fault: str) -> None:
    both = {"site-1": KEY.public, "site-2": OTHER.public}
    record = UNSIGNED_ANSWER[fault](wire.answer_record(answer(), KEY))
    with pytest.raises(MessageError):
        wire.answer_from(record, to=ORDER, length=2, identities=both)


def test_changed_words_and_a_changed_protocol_message_are_refused() -> None:
    asked = replace(ORDER, session=b"ask-masked")
    said = answer(vector=None, words=np.arange(2, dtype=np.uint64), session=b"header", order_hash=asked.sha256)
    others = (replace(said, words=np.ones(2, np.uint64)), replace(said, session=b"Header"))
    for other in others:
        record = wire.answer_record(other)
        record["signature"] = wire.answer_record(said, KEY)["signature"]
        with pytest.raises(MessageError, match="signature"):
            wire.answer_from(record, to=asked, length=2, identities=SITES)


def test_an_answer_by_nobody_of_the_roster_is_refused() -> None:
    for identities in ({}, {"site-2": KEY.public}, {"site-1": OTHER.public}):
        with pytest.raises(MessageError):
            wire.answer_from(wire.answer_record(answer(), KEY), to=ORDER, length=2, identities=identities)


def test_an_answer_is_signed_by_the_very_site_that_it_names() -> None:
    both = {"site-1": KEY.public, "site-2": OTHER.public}
    own = wire.answer_record(answer(site="site-2"), OTHER)
    assert wire.answer_from(own, to=ORDER, length=2, identities=both).site == "site-2"
    with pytest.raises(MessageError, match="signature"):
        wire.answer_from(wire.answer_record(answer(site="site-2"), KEY), to=ORDER, length=2, identities=both)
