"""Typed messages and Flower's RecordDict: bytes are checked here, once, and are typed values from then on.

Arrays travel as raw little-endian float32. Flower's `Array.numpy()` is never called: it allocates by a header that the
sender wrote. Nothing here trusts a length, a name or a type that came over the network.

Between members of a roster every order is signed by the server's online key and every answer by the site's identity,
over all that it carries: who opens TLS on the way can read what passes in the clear, and change nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from common import anchor, body
from common.crypto import identity
from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.errors import MessageError, Reason, WireVersionError
from common.kinds import Answering, answering
from common.roster import MOST_SITES

WIRE_VERSION = 4
HEADER_LIMIT = 4 * 2**20  # bytes of a header's JSON
MOST_HEADS = 8 * MOST_SITES  # of ledgers
RAW = "fedward.f32le"  # how Flower is told that the bytes are ours
WORDS = "fedward.u64le"  # the same for masked vectors
SESSION_LIMIT = 2**25  # bytes of a protocol message: the lists of 100 sites take a few MB
Kind = Literal["propose", "keys", "shares", "open", "reveal", Answering]
Vector = NDArray[np.float32]
Words = NDArray[np.uint64]
Record = RecordDict  # for rooms that have no door to flwr

_RECORDS = {"header", "vector", "session", "signature"}
_MESSAGE_TYPES: dict[Kind, str] = {
    "propose": "query",
    "keys": "query",
    "shares": "query",
    "count": "query",
    "update": "train",
    "evaluate": "evaluate",
    "open": "query",
    "reveal": "query",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """What the server asks of a site: `propose` shows the study, `count` asks for a histogram of classes, `update` for
    training, `evaluate` for metric sums. Under secure aggregation `session` holds the protocol's message that goes with
    it, and `keys`, `shares`, `open` and `reveal` are orders of that protocol alone (common.requests). `heads`: where
    the sites' privacy ledgers stood when they last said so, each signed by its site (common.anchor).
    """

    kind: Kind
    round: int
    attempt: int
    study_hash: str
    study_json: str = ""  # in `propose` only
    weights: Vector | None = None  # all parameters, in `update` and `evaluate`; absent while only the header is read
    weights_hash: str = ""  # hex SHA-256 of the weights' bytes; "" where there are none
    prior: tuple[float, ...] = ()  # in `update`, where the study has it released: each class's share
    run: str = ""  # Fedward's own id of the run, 64 hex digits
    heads: tuple[str, ...] = ()
    session: bytes = b""

    @property
    def asks(self) -> str:
        """Hex digest of what a site is asked about, in whichever attempt or run: the weights, with the classes' shares
        where those come along. Equal to `weights_hash` where none do.
        """
        if not self.prior:
            return self.weights_hash
        return hashlib.sha256(json.dumps([self.weights_hash, self.prior]).encode()).hexdigest()

    @cached_property
    def sha256(self) -> str:
        """Digest over the plan and the weights' digest: what a site's answer is an answer to. Without the protocol's
        message, which names this digest itself.
        """
        return hashlib.sha256(_canonical(_order_header(self))).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a site sends back: a verdict, and with `ok` to a count, update or evaluate order its one flat vector, in the
    clear or as masked words with the protocol's message. `audit`: where the site's log stands (`common.anchor.line`),
    or "". `heads`: where its privacy ledger stands, if it has one, and with no vector what it remembers of others'.
    """

    site: str
    kind: Kind
    round: int
    attempt: int
    study_hash: str
    order_hash: str
    reason: Reason
    vector: Vector | None = None
    words: Words | None = None
    session: bytes = b""
    audit: str = ""
    heads: tuple[str, ...] = ()


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _order_header(order: Order) -> dict[str, Any]:
    return {
        "wire": WIRE_VERSION,
        "kind": order.kind,
        "round": order.round,
        "attempt": order.attempt,
        "study_hash": order.study_hash,
        "study_json": order.study_json,
        "weights_hash": order.weights_hash,
        "prior": list(order.prior),
        "run": order.run,
        "heads": list(order.heads),
    }


def digest_of(vector: Vector) -> str:
    """Hex SHA-256 of the vector's little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()


def _record(header: dict[str, Any], numbers: Vector | Words | None, session: bytes) -> RecordDict:
    record = RecordDict({"header": ConfigRecord({"json": _canonical(header)})})
    if numbers is not None:
        masked = numbers.dtype == np.uint64
        data = np.ascontiguousarray(numbers, dtype="<u8" if masked else "<f4").tobytes()
        dtype, kind = ("uint64", WORDS) if masked else ("float32", RAW)
        record["vector"] = ArrayRecord({"vector": Array(dtype=dtype, shape=(numbers.size,), stype=kind, data=data)})
    if session:
        record["session"] = ConfigRecord({"message": session})
    return record


def _sign(record: RecordDict, name: str, key: Identity | None) -> RecordDict:
    """The same record with a signature by this key, if there is one."""
    if key is not None:
        record["signature"] = ConfigRecord({"ed25519": key.sign(name, _signed(record, name))})
    return record


def _demand_signed(record: RecordDict, name: str, public: bytes) -> None:
    """Raises MessageError unless the holder of this key signed all that the record carries, as a message of this name.

    To be asked of a record whose form has been checked.
    """
    config = record.get("signature")
    signature = config.get("ed25519") if isinstance(config, ConfigRecord) and set(config) == {"ed25519"} else None
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise MessageError(f"an {name} without a signature")
    identity.verify(public, name, _signed(record, name), signature)


def _signed(record: RecordDict, name: str) -> bytes:
    """What a signature is over: digests of the header, of the protocol's message and of the numbers. Those of an order
    are named by its header.
    """
    config, arrays = record["header"], record.get("vector")
    header = config["json"] if isinstance(config, ConfigRecord) else b""
    numbers = arrays["vector"].data if name == "answer" and isinstance(arrays, ArrayRecord) else b""
    parts = {"header": header, "session": _session(record), "numbers": numbers}
    return body.write({part: hashlib.sha256(data).hexdigest() for part, data in parts.items()})  # type: ignore[arg-type]


def _header(record: RecordDict, expected: dict[str, type]) -> dict[str, Any]:
    """The header with exactly the expected keys and types, whatever was sent."""
    config = record.get("header")
    if not isinstance(config, ConfigRecord) or set(config) != {"json"} or set(record) - _RECORDS:
        raise MessageError("message without its header, or with foreign records")
    text = config["json"]
    if not isinstance(text, bytes) or len(text) > HEADER_LIMIT:
        raise MessageError(f"header is not bytes of at most {HEADER_LIMIT}")
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise MessageError("header is not JSON") from error
    if not isinstance(header, dict) or type(version := header.get("wire")) is not int or not 0 < version < 2**31:
        raise MessageError("header without a wire version")
    if version != WIRE_VERSION:
        raise WireVersionError(f"wire version {version}, not {WIRE_VERSION}: install the consortium's Fedward release")
    if set(header) != {"wire", *expected}:
        raise MessageError("header keys are not those of this message")
    for key, kind in expected.items():
        if type(header[key]) is not kind:
            raise MessageError(f"header's {key} is not {kind.__name__}")
    if len(header["heads"]) > MOST_HEADS or not all(isinstance(head, str) for head in header["heads"]):
        raise MessageError(f"header's heads are not at most {MOST_HEADS} texts")
    if not (0 <= header["round"] < 2**31 and 0 <= header["attempt"] < 2**31 and header["kind"] in get_args(Kind)):
        raise MessageError("header's kind, round or attempt is out of range")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _session(record: RecordDict) -> bytes:
    """The protocol's message; b"" where there is none."""
    if "session" not in record:
        return b""
    config = record["session"]
    text = config.get("message") if isinstance(config, ConfigRecord) and set(config) == {"message"} else None
    if not isinstance(text, bytes) or not 0 < len(text) <= SESSION_LIMIT:
        raise MessageError(f"protocol message is not 1 to {SESSION_LIMIT} bytes")
    return text


def _data(record: RecordDict, length: int, *, stype: str, dtype: str, width: int) -> bytes:
    arrays = record.get("vector")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {"vector"}:
        raise MessageError("message without its vector")
    array = arrays["vector"]
    if array.stype != stype or array.dtype != dtype or tuple(array.shape) != (length,):
        raise MessageError(f"vector is not {length} raw {dtype}")
    if len(array.data) != width * length:
        raise MessageError(f"vector of {len(array.data)} bytes, expected {width * length}")
    return array.data


def _words(record: RecordDict, length: int) -> Words:
    """The masked words, exactly so many: any bits are possible."""
    return np.frombuffer(_data(record, length, stype=WORDS, dtype="uint64", width=8), dtype="<u8")


def _vector(record: RecordDict, length: int) -> Vector:
    """The float32 vector of exactly this length, all finite."""
    vector = np.frombuffer(_data(record, length, stype=RAW, dtype="float32", width=4), dtype="<f4")
    if not np.isfinite(vector).all():
        raise MessageError("vector holds values that are not finite")
    return vector


def order_record(order: Order, key: Identity | None = None) -> RecordDict:
    """The order as Flower sends it, signed by the server's online key where it has one."""
    return _sign(_record(_order_header(order), order.weights, order.session), "order", key)


def order_from(record: RecordDict) -> Order:
    """The order that a record's header holds; its weights are not looked at yet (`weights_from`).

    Raises MessageError on anything that isn't an order, WireVersionError for one of another wire version.
    """
    strings = ("kind", "study_hash", "study_json", "weights_hash", "run")
    values = {"round": int, "attempt": int, "heads": list, "prior": list}
    header = _header(record, {**dict.fromkeys(strings, str), **values})
    header.pop("wire")
    if not all(type(share) is float for share in header["prior"]):
        raise MessageError("header's prior is not numbers")
    if header["run"] and (len(header["run"]) != 64 or not set(header["run"]) <= set("0123456789abcdef")):
        raise MessageError("header's run is not 64 hex digits")
    lists = {name: tuple(header[name]) for name in ("heads", "prior")}
    return Order(**{**header, **lists}, session=_session(record))


def demand_order_by(public: bytes, record: RecordDict) -> None:
    """Raises MessageError unless the server with this online key signed the order in a record (`order_from`)."""
    _demand_signed(record, "order", public)


def weights_from(record: RecordDict, order: Order, *, length: int) -> Vector:
    """The order's weights: `length` values, the number that the study's model has. Raises MessageError when they
    aren't those.
    """
    vector = _vector(record, length)
    if digest_of(vector) != order.weights_hash:
        raise MessageError("weights that the order's header does not name")
    return vector


def answer_record(answer: Answer, key: Identity | None = None) -> RecordDict:
    """The answer as Flower sends it, signed by the site's identity where it has one."""
    header = {
        "wire": WIRE_VERSION,
        "site": answer.site,
        "kind": answer.kind,
        "round": answer.round,
        "attempt": answer.attempt,
        "study_hash": answer.study_hash,
        "order_hash": answer.order_hash,
        "reason": str(answer.reason),
        "audit": answer.audit,
        "heads": list(answer.heads),
    }
    numbers = answer.vector if answer.words is None else answer.words
    return _sign(_record(header, numbers, answer.session), "answer", key)


def answer_from(record: RecordDict, *, to: Order, length: int, identities: Mapping[str, bytes] | None = None) -> Answer:
    """The answer that a record holds, checked against the order it must belong to. To an order with a protocol message
    it has one too, and `length` masked words in the place of a vector. Where there are `identities`, by site, it is
    signed by one of them.

    Raises MessageError when it isn't an answer to this very order, has an unknown reason, or a vector of another
    length or kind, or isn't the site's own; WireVersionError for one of another wire version.
    """
    strings = ("site", "kind", "study_hash", "order_hash", "reason", "audit")
    header = _header(record, {**dict.fromkeys(strings, str), "round": int, "attempt": int, "heads": list})
    same = ("kind", "round", "attempt", "study_hash")
    if any(header[key] != getattr(to, key) for key in same) or header["order_hash"] != to.sha256:
        raise MessageError("an answer to another order")
    if not 1 <= len(header["site"]) <= 32 or not set(header["site"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise MessageError("site name is not [a-z0-9-]{1,32}")
    if header["reason"] not in set(Reason):
        raise MessageError("unknown reason code")
    if header["audit"]:
        anchor.plain(header["audit"])
    reason = Reason(header["reason"])
    carries = reason is Reason.OK and answering(to.kind) is not None
    if carries != ("vector" in record):
        raise MessageError("a vector where none belongs, or none where one does")
    secure = reason is Reason.OK and bool(to.session)
    if secure != ("session" in record):
        raise MessageError("a protocol message where none belongs, or none where one does")
    answer = Answer(
        site=header["site"],
        kind=to.kind,
        round=to.round,
        attempt=to.attempt,
        study_hash=to.study_hash,
        order_hash=header["order_hash"],
        reason=reason,
        vector=_vector(record, length) if carries and not secure else None,
        words=_words(record, length) if carries and secure else None,
        session=_session(record),
        audit=header["audit"],
        heads=tuple(header["heads"]),
    )
    if identities is not None:
        if answer.site not in identities:
            raise MessageError(f"an answer by {answer.site}, who is not in the roster")
        _demand_signed(record, "answer", identities[answer.site])
    return answer


def site_of(record: RecordDict) -> str:
    """The site's name that an answer's header holds, unchecked beyond its form; "" where there is none."""
    config = record.get("header")
    text = config.get("json") if isinstance(config, ConfigRecord) else None
    try:
        header = json.loads(text) if isinstance(text, bytes) else None
    except ValueError:
        return ""
    return str(header.get("site", "")) if isinstance(header, dict) else ""


def message(order: Order, record: RecordDict, *, node: int, ttl: float, exchange: int) -> Message:
    """A Flower message that carries the order's record to a node; `ttl` in seconds. Nodes with one order share one
    record. `exchange` numbers what is asked at once: nobody waits for what belongs to an earlier one.
    """
    kind = _MESSAGE_TYPES[order.kind]
    return Message(record, node, kind, ttl=ttl, group_id=f"{order.kind} {order.round} {order.attempt} {exchange}")


def size_of(record: RecordDict) -> int:
    """Payload bytes of a record: its header's JSON, its vector, its protocol message and its signature."""
    arrays = record.get("vector")
    vector = sum(len(array.data) for array in arrays.values()) if isinstance(arrays, ArrayRecord) else 0
    texts = [config.values() for config in record.values() if isinstance(config, ConfigRecord)]
    return vector + sum(len(text) for values in texts for text in values if isinstance(text, bytes))


def speak_as_server(*, run_id: int) -> None:
    """Tell Flower who is speaking: its messages read that from the process, which only its own launchers set."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, 1
