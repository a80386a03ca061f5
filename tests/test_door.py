"""The open port of a server that runs: who isn't let in is refused and named in one line, and nobody else notices.

The real gate before the real SuperLink, sites with real SuperNodes. Who attacks does it from another address than the
sites have, as he would.
"""

import base64
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deployed import Federation, federation, ran, wait
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from network_cases import Line
from small import tiny_study

from common.crypto import certificates, node_key
from common.crypto.certificates import Certified
from server import gate, proof
from server.__main__ import app as server_app
from server.control import Control
from server.events import Event
from server.folder import write

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ELSEWHERE = "127.0.0.2"  # the attacker's address; the sites' is 127.0.0.1
BEAT = "/v1/fleet/send-node-heartbeat"


@dataclass(frozen=True, kw_only=True)
class Door:
    """A federation of three sites, two of which close a round."""

    federation: Federation

    def connect(self) -> socket.socket:
        address = ("127.0.0.1", self.federation.folder.port)
        return socket.create_connection(address, timeout=20, source_address=(ELSEWHERE, 0))

    def tls(self) -> ssl.SSLSocket:
        return self.trust().wrap_socket(self.connect(), server_hostname="localhost")

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.federation.folder.root)

    def post(self, headers: dict[str, str], body: bytes, *, port: int = 0) -> httpx.Response:
        """One request from elsewhere."""
        transport = httpx.HTTPTransport(verify=self.trust(), local_address=ELSEWHERE, trust_env=False)
        with httpx.Client(transport=transport, timeout=20) as client:
            where = f"https://localhost:{port or self.federation.folder.port}{BEAT}"
            return client.post(where, content=body, headers=headers)

    def lines(self, what: str) -> list[str]:
        """Lines of the gate's log that say this."""
        text = (self.federation.folder.path / "logs" / "gate.log").read_text(encoding="utf-8")
        return [line for line in text.splitlines() if what in line]

    def named(self, what: str, *, address: str, deed: Callable[[], object]) -> None:
        """A line is new that says this, and how often, and names the address."""
        before = len(self.lines(what))
        deed()
        wait(f"a line with {what!r}", lambda: len(self.lines(what)) > before, seconds=60)
        new = self.lines(what)[before]
        assert "refused: " in new and f"last from {address})" in new, new

    def heartbeat(self, site: Path) -> bytes:
        """What this site's SuperNode says when it is well."""
        line = (site / "supernode" / "node.key").read_bytes()
        key = node_key.public_pem(_line(line))
        with closing(Control(self.federation.folder)) as control:
            nodes = control._client.ListNodes(ListNodesRequest()).nodes_info
        (number,) = [node.node_id for node in nodes if node.public_key == key and node.status == "online"]
        asked = SendNodeHeartbeatRequest(node=Node(node_id=number), heartbeat_interval=30)
        return bytes(asked.SerializeToString())

    def rounds(self, out: Path) -> list[Event]:
        return [event for event in self.federation.events(out) if event["event"] == "round"]


def _key(private: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _line(private: bytes) -> str:
    public = _key(private).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def signed(private: bytes) -> dict[str, str]:
    """The headers of a request that is made now."""
    key, moment = _key(private), datetime.now(UTC).isoformat()
    return {
        "flwr-public-key": base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(sign_message(key, moment.encode())).decode(),
        "content-type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
        "flwr-package-name": "flwr",
        "flwr-package-version": "1.41.0",
        "flwr-component-name": "SuperNode",
    }


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with federation(tmp_path_factory.mktemp("door"), sites=3) as made:
        made.start_server()
        for site in made.sites[:2]:
            made.start_site(site)
        wait("two sites online", lambda: made.online() == 2)
        yield Door(federation=made)


def test_a_site_that_trusts_others_and_a_certificate_that_has_expired(door: Door) -> None:
    """Neither is believed, both are named here and at the site, and the site is in when both are mended."""
    made, site = door.federation, door.federation.sites[2]
    root, log = site / "supernode" / "server-ca.pem", site / "logs" / "supernode.log"
    trusted = root.read_bytes()
    root.write_bytes(certificates.authority("another", now=int(time.time())).certificate)
    door.named("TLSV1_ALERT_UNKNOWN_CA", address="127.0.0.1", deed=lambda: made.start_site(site))
    wait("the site's own log", lambda: "certificate verify failed" in log.read_text())
    made.end(site.name)
    root.write_bytes(trusted)

    keys, now = made.base / "keys", int(time.time())
    by = Certified(certificate=(keys / "ca.pem").read_bytes(), key=(keys / "ca.key").read_bytes())
    old = certificates.server(by, made.folder.hosts, now=now - 7200, life=3600)
    certificate, key = made.folder.tls("gate")
    write(key, old.key, private=True)
    write(certificate, old.certificate)
    wait("the expired certificate", lambda: _expired(door))
    wait("the gate's line about it", lambda: bool(door.lines("CERTIFICATE_EXPIRED")))
    door.named("CERTIFICATE_EXPIRED", address="127.0.0.1", deed=lambda: made.start_site(site))
    wait("the site's own log", lambda: "certificate has expired" in log.read_text())
    assert made.online() == 2  # a connection that is there goes on
    ran(server_app, "renew", "--keys", keys, "--folder", made.folder.path)
    wait("three sites online", lambda: made.online() == 3)


def _expired(door: Door) -> bool:
    try:
        door.tls().close()
    except ssl.SSLCertVerificationError as error:
        return "expired" in str(error)
    return False


def test_a_key_that_is_not_in_the_roster(door: Door) -> None:
    private, _ = node_key.generate()
    body = door.heartbeat(door.federation.sites[0])
    answers: list[int] = []
    door.named(
        proof.STRANGER,
        address=ELSEWHERE,
        deed=lambda: answers.append(door.post(signed(private), body).status_code),
    )
    assert answers == [401]


def test_a_request_that_was_copied(door: Door) -> None:
    """As it was before it was encrypted, and as it went over the network."""
    site = door.federation.sites[0]
    headers, body = signed((site / "supernode" / "node.key").read_bytes()), door.heartbeat(site)
    with Line.to("127.0.0.1", door.federation.folder.port) as line:
        line.tapped = bytearray()
        first = door.post(headers, body, port=line.port)
        assert first.status_code == 200 and SendNodeHeartbeatResponse.FromString(first.content).success
        recorded = bytes(line.tapped)
    again: list[int] = []
    door.named(proof.AGAIN, address=ELSEWHERE, deed=lambda: again.append(door.post(headers, body).status_code))
    assert again == [503]

    def replay() -> None:
        with door.connect() as plain:
            plain.sendall(recorded)
            while plain.recv(2**16):
                pass

    assert len(recorded) > 500 and headers["flwr-signature"].encode() not in recorded
    door.named("connection: ", address=ELSEWHERE, deed=replay)
    assert "refused: connection: connection" not in door.lines("connection: ")[-1]


def test_a_message_beyond_the_limit(door: Door) -> None:
    site = door.federation.sites[0]
    headers = signed((site / "supernode" / "node.key").read_bytes())
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {BEAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {gate.BODY_LIMIT + 1}\r\n{head}\r\n".encode()

    def send() -> None:
        with door.tls() as connection:
            connection.sendall(request + bytes(2**16))
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    door.named("too long", address=ELSEWHERE, deed=send)


GARBAGE = {
    "random": secrets.token_bytes(2**12),
    "plain HTTP": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "half a handshake": b"\x16\x03\x01\xff\xff",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_request(door: Door, garbage: bytes) -> None:
    def send() -> None:
        with door.connect() as plain:
            plain.sendall(garbage)
            plain.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while plain.recv(2**16):
                    pass

    door.named("connection: ", address=ELSEWHERE, deed=send)


def test_many_half_requests_hold_nobody_up_and_who_is_revoked_is_out(door: Door, tmp_path: Path) -> None:
    """A run while all connections of an address are held by requests that never end, and a site that is removed from
    the roster meanwhile: the others' rounds close.
    """
    made, out, site = door.federation, tmp_path / "out", door.federation.sites[2]
    log, crowded = site / "logs" / "supernode.log", "too many connections of one peer"
    with ExitStack() as held:
        for _ in range(gate.PER_ADDRESS):
            connection = held.enter_context(door.tls())
            connection.sendall(b"POST " + BEAT.encode() + b" HTTP/1.1\r\nx: ")
        door.named(crowded, address=ELSEWHERE, deed=lambda: held.enter_context(door.connect()))
        made.submit(tiny_study(study={"name": "door", "rounds": 6, "round_deadline": 60}), out)
        wait("the first round", lambda: len(door.rounds(out)) > 0)
        assert len(door.rounds(out)[0]["participants"]) == 3
        ran(server_app, "remove-site", site.name, "--folder", made.folder.path)
        door.named(
            proof.STRANGER,
            address="127.0.0.1",
            deed=lambda: ran(server_app, "sign", "--keys", made.base / "keys", "--folder", made.folder.path),
        )
        found = made.finished(out)
        wait("the end of the half requests", lambda: bool(door.lines("no request in time")), seconds=60)
    assert found[-1]["event"] == "finished"
    rounds = door.rounds(out)
    assert [event["round"] for event in rounds] == [1, 2, 3, 4, 5, 6]
    assert all({"site-0", "site-1"} <= set(event["participants"]) for event in rounds)
    assert rounds[-1]["participants"] == ["site-0", "site-1"] and rounds[-1]["absent"] == {"site-2": "offline"}
    assert "401" in log.read_text() or "terminated" in log.read_text()
    assert made.online() == 2
