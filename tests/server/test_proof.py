"""The proof that comes with each request: whose it is, of when, and that it is not a copy."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from common.crypto import node_key
from server.proof import AGAIN, AHEAD, BEHIND, CLOCK, KEY, SIGNATURE, STRANGER, TIME, Proofs

NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Node:
    """A SuperNode that signs as Flower's do."""

    key: ec.EllipticCurvePrivateKey
    line: str

    @classmethod
    def new(cls) -> "Node":
        private, line = node_key.generate()
        key = serialization.load_ssh_private_key(private, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, line)

    def headers(self, moment: float, *, said: str = "") -> dict[bytes, bytes]:
        said = said or datetime.fromtimestamp(moment, UTC).isoformat()
        return {
            KEY: base64.b64encode(public_key_to_bytes(self.key.public_key())),
            TIME: said.encode(),
            SIGNATURE: base64.b64encode(sign_message(self.key, said.encode())),
        }


NODE, OTHER = Node.new(), Node.new()


@pytest.fixture
def proofs() -> Proofs:
    made = Proofs(since=NOW - 1000)
    made.allow([NODE.line, OTHER.line])
    return made


def test_a_signed_time_passes_once(proofs: Proofs) -> None:
    first = NODE.headers(NOW)
    assert proofs.fault(first, now=NOW) is None
    assert proofs.fault(first, now=NOW) == AGAIN
    again = NODE.headers(NOW)  # the same time, signed anew: another signature
    assert again[SIGNATURE] != first[SIGNATURE] and proofs.fault(again, now=NOW + 1) == AGAIN
    assert proofs.fault(NODE.headers(NOW + 0.000001), now=NOW) is None
    assert proofs.fault(OTHER.headers(NOW), now=NOW) is None


def test_a_copy_is_refused_as_long_as_its_time_is_believed(proofs: Proofs) -> None:
    ahead = NODE.headers(NOW + AHEAD - 0.1)
    assert proofs.fault(ahead, now=NOW) is None
    for later in range(1, int(AHEAD + BEHIND) + 10):
        assert proofs.fault(ahead, now=NOW + later) in (AGAIN, CLOCK)
        assert proofs.fault(OTHER.headers(NOW + later), now=NOW + later) is None  # what is old is forgotten meanwhile


def test_no_more_is_remembered_than_can_be_believed(proofs: Proofs) -> None:
    for second in range(1000):
        assert proofs.fault(NODE.headers(NOW + second), now=NOW + second) is None
    assert len(proofs._used) <= AHEAD + BEHIND + 1


@pytest.mark.parametrize("off", [-BEHIND - 1, -BEHIND, AHEAD, AHEAD + 1, 4000, -4000])
def test_a_time_far_from_now_is_not_believed(proofs: Proofs, off: float) -> None:
    assert proofs.fault(NODE.headers(NOW + off), now=NOW) == CLOCK


@pytest.mark.parametrize("off", [-BEHIND + 1, -60, 0, AHEAD - 1])
def test_a_time_near_now_is_believed(proofs: Proofs, off: float) -> None:
    assert proofs.fault(NODE.headers(NOW + off), now=NOW) is None


def test_a_time_of_before_the_start_may_have_been_used(proofs: Proofs) -> None:
    later = Proofs(since=NOW)
    later.allow([NODE.line])
    assert later.fault(NODE.headers(NOW - 0.001), now=NOW + 1) == AGAIN
    assert later.fault(NODE.headers(NOW + 0.001), now=NOW + 1) is None


@pytest.mark.parametrize("said", ["", "now", "2027-01-15T08:00:00", "1800000000", "2027-01-15", "\u0661"])
def test_what_is_no_time_with_its_zone_is_refused(proofs: Proofs, said: str) -> None:
    headers = NODE.headers(NOW, said=said or " ")
    assert proofs.fault(headers, now=NOW) == CLOCK


def test_a_stranger_is_none_of_us(proofs: Proofs) -> None:
    good, other, stranger = NODE.headers(NOW), OTHER.headers(NOW), Node.new().headers(NOW)
    for wrong in (
        stranger,
        {},
        {**good, SIGNATURE: other[SIGNATURE]},
        {**good, KEY: other[KEY]},
        {**good, KEY: b"not base64!"},
        {**good, SIGNATURE: b""},
        {**good, TIME: NODE.headers(NOW + 1)[TIME]},
    ):
        assert proofs.fault(wrong, now=NOW) == STRANGER
    assert proofs.fault(good, now=NOW) is None


def test_a_key_that_is_no_longer_allowed_is_a_strangers(proofs: Proofs) -> None:
    proofs.allow([OTHER.line])
    assert proofs.fault(NODE.headers(NOW), now=NOW) == STRANGER


def test_the_limits_are_flowers() -> None:
    assert (AHEAD, BEHIND) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)
