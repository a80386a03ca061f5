"""The open port: what it passes, what it refuses, and that nothing else can be reached through it."""

import asyncio
import base64
import errno
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from common.crypto import certificates, node_key
from server import gate, proof
from server.folder import found
from server.upstream import AT_ONCE, LARGE, Upstream

PATH = "/v1/fleet/pull-messages"


@dataclass(kw_only=True)
class Behind:
    """What stands in for Flower: notes what it was sent and answers the same each time."""

    requests: list[tuple[h11.Request, bytes]] = field(default_factory=list)
    status: int = 200
    body: bytes = b"answer"
    seconds: float = 0.0  # that an exchange takes
    open: int = 0  # exchanges
    most: int = 0  # … at once

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self._exchange(reader, writer)
        finally:
            self.open -= 1

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, request, body = h11.Connection(h11.SERVER), None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                writer.close()
                return
        assert request is not None
        self.requests.append((request, body))
        await asyncio.sleep(self.seconds)
        headers = [("content-length", str(len(self.body))), ("content-type", "application/x-protobuf")]
        for sent in (
            h11.Response(status_code=self.status, headers=headers),
            h11.Data(data=self.body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(sent) or b"")
        await writer.drain()
        writer.close()


@dataclass(frozen=True, kw_only=True)
class Site:
    """A SuperNode's key, and the headers that it sends."""

    key: ec.EllipticCurvePrivateKey
    line: str

    @classmethod
    def new(cls) -> "Site":
        private, line = node_key.generate()
        key = serialization.load_ssh_private_key(private, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key=key, line=line)

    def headers(self, moment: str = "") -> dict[str, str]:
        moment = moment or datetime.now(UTC).isoformat()
        signature = sign_message(self.key, moment.encode())
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(self.key.public_key())).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            "flwr-timestamp": moment,
            "content-type": "application/x-protobuf",
        }


@dataclass(frozen=True, kw_only=True)
class Open:
    """A gate that serves, what is behind it, and a site that may pass."""

    port: int
    root: bytes
    behind: Behind
    gate: gate.Gate
    site: Site

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root.decode())
        return context

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=self.context(), timeout=20, trust_env=False
        )

    def raw(self, data: bytes, *, seconds: float = 10.0) -> bytes:
        """Everything that comes back on a connection of its own, until the gate closes it."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as plain,
            self.context().wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            found = b""
            with suppress(ConnectionError, ssl.SSLError):
                connection.sendall(data)
                while piece := connection.recv(65536):
                    found += piece
            return found


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@contextmanager
def opened(folder: Path) -> Iterator[Open]:
    root = certificates.authority("test", now=int(time.time()))
    made = certificates.server(root, ["localhost"], now=int(time.time()))
    (folder / "c.pem").write_bytes(made.certificate)
    (folder / "k.pem").write_bytes(made.key)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "c.pem", folder / "k.pem")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=root.certificate.decode())
    behind, site, front, back = Behind(), Site.new(), listening(), listening()
    upstream = Upstream(host="127.0.0.1", port=back.getsockname()[1], tls=trusting, folder=folder)
    tested = gate.Gate(serving, upstream)
    tested.allow([site.line])
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[None]] = []

    async def start() -> None:
        await asyncio.start_server(behind.handle, sock=back, ssl=serving)
        tasks.append(asyncio.create_task(tested.serve(front)))

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield Open(port=front.getsockname()[1], root=root.certificate, behind=behind, gate=tested, site=site)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        front.close()
        back.close()


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(gate, "LINGER", min(gate.LINGER, 0.3))
    with opened(tmp_path) as made:
        yield made


def test_what_a_site_asks_is_passed_on_and_answered(door: Open) -> None:
    with door.client() as client:
        for number in range(3):  # on one connection
            answer = client.post(PATH, content=b"x" * (number * 100_000), headers=door.site.headers())
            assert (answer.status_code, answer.content) == (200, b"answer")
    assert [len(body) for _, body in door.behind.requests] == [0, 100_000, 200_000]
    request = door.behind.requests[0][0]
    assert (request.method, request.target) == (b"POST", PATH.encode())


def test_headers_that_are_not_flowers_stay_outside(door: Open) -> None:
    extra = {"x-forwarded-for": "1.2.3.4", "flwr-task-token": "x", "cookie": "a=b", "authorization": "Bearer x"}
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers() | extra).status_code == 200
    names = {name for name, _ in door.behind.requests[0][0].headers}
    assert names == gate.PASSED - {b"flwr-package-name", b"flwr-package-version", b"flwr-component-name"} | {
        b"host",
        b"content-length",
        b"connection",
    }


FLOWERS = sorted(
    {path for _, path in PROTOBUF_REQUEST_TYPES} | {"/", "/docs", "/openapi.json", "/health", "/v1/health"}
)


def test_no_other_path_of_flower_is_there(door: Open) -> None:
    others = [path for path in FLOWERS if path.encode() not in gate.PATHS]
    assert len(others) > 40
    for path in others:
        with door.client() as client:
            assert client.post(path, content=b"", headers=door.site.headers()).status_code == 404, path
            assert client.get(path, headers=door.site.headers()).status_code == 404, path
    assert door.behind.requests == []


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet//pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages#/v1/control/start-run",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/pull%2dmessages",
        "http://localhost/v1/fleet/pull-messages",
        "*",
    ],
)
def test_no_spelling_of_a_path_passes(door: Open, target: str) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    said = door.raw(f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n".encode())
    assert said.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")) or not said
    assert door.behind.requests == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "TRACE"])
def test_no_other_method_passes(door: Open, method: str) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    said = door.raw(f"{method} {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n".encode())
    assert b" 200 " not in said and door.behind.requests == []


def _without(name: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda headers: {key: value for key, value in headers.items() if key != name}


def test_a_stranger_is_refused_before_his_body_is_read(door: Open) -> None:
    wrong = [
        Site.new().headers(),  # a key that nobody knows
        Site.new().headers() | {"flwr-public-key": door.site.headers()["flwr-public-key"]},  # another's signature
        door.site.headers() | {"flwr-timestamp": "2026-01-01T00:00:01+00:00"},
        door.site.headers() | {"flwr-signature": "not base64!"},
        door.site.headers() | {"flwr-public-key": "AAAA"},
        *(_without(name)(door.site.headers()) for name in ("flwr-public-key", "flwr-signature", "flwr-timestamp")),
    ]
    for headers in wrong:
        with door.client() as client:
            assert client.post(PATH, content=bytes(2**20), headers=headers).status_code == 401
    assert door.behind.requests == []
    assert door.gate.refused() == {"not a SuperNode of the roster": (len(wrong), "127.0.0.1")}


def test_who_sends_on_while_he_is_refused_reads_why(door: Open) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in Site.new().headers().items())
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain,
        door.context().wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {2**23}\r\n{head}\r\n".encode())
        for _ in range(10):
            time.sleep(0.02)
            connection.sendall(bytes(2**15))
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_who_is_no_longer_allowed_is_refused(door: Open) -> None:
    door.gate.allow([Site.new().line])
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 401


def test_a_request_passes_once(door: Open) -> None:
    """Whoever has copied one, headers and all, gets no answer to it."""
    headers = door.site.headers()
    with door.client() as client:
        assert client.post(PATH, content=b"x", headers=headers).status_code == 200
        assert client.post(PATH, content=b"x", headers=headers).status_code == 503
        assert client.post(PATH, content=b"y", headers=headers).status_code == 503
        assert client.post(PATH, content=b"x", headers=door.site.headers()).status_code == 200
    assert len(door.behind.requests) == 2
    assert door.gate.refused() == {proof.AGAIN: (2, "127.0.0.1")}


def test_a_signed_time_far_from_now_is_refused(door: Open) -> None:
    for seconds in (-310, -3600, 10, 3600):
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        with door.client() as client:
            assert client.post(PATH, content=b"", headers=door.site.headers(moment.isoformat())).status_code == 401
    assert door.behind.requests == [] and door.gate.refused() == {proof.CLOCK: (4, "127.0.0.1")}


def test_who_asks_nothing_is_named_and_who_has_asked_is_not(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "IDLE", 0.5)
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 200
        time.sleep(1.0)
    assert door.gate.refused() == {}
    assert not door.raw(b"", seconds=20)
    assert door.gate.refused() == {"no request in time": (1, "127.0.0.1")}


def test_who_does_not_believe_our_certificate_is_told_from_who_hangs_up(door: Open) -> None:
    other = ssl.create_default_context()
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        other.wrap_socket(plain, server_hostname="localhost")
    deadline = time.monotonic() + 10
    while not (said := door.gate.refused()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(said) == ["connection: TLSV1_ALERT_UNKNOWN_CA"]


def test_a_body_beyond_the_limit_or_without_length_is_refused(door: Open) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    for line, status in (
        (f"content-length: {gate.BODY_LIMIT + 1}", b"413"),
        ("content-length: 99999999999999999999", b"4"),
        ("content-length: -1", b"4"),
        ("content-length: +1", b"4"),
        ("transfer-encoding: chunked", b"411"),
        ("x-nothing: 1", b"411"),
        ("content-length: 1\r\ntransfer-encoding: chunked", b"4"),
        ("content-length: 1\r\ncontent-length: 2", b"4"),
    ):
        said = door.raw(f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{line}\r\n{head}\r\n".encode())
        assert said.startswith(b"HTTP/1.1 " + status) or not said, (line, said)
    assert door.behind.requests == []


def test_a_header_twice_is_refused(door: Open) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    said = door.raw(
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}flwr-timestamp: later\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 400") and door.behind.requests == []


def test_an_endless_header_is_cut_off(door: Open) -> None:
    said = door.raw(b"POST " + PATH.encode() + b" HTTP/1.1\r\nx: " + b"a" * (gate.HEADER_LIMIT + 100_000))
    assert b" 200 " not in said and door.behind.requests == []


def test_what_is_no_http_is_cut_off(door: Open) -> None:
    assert b" 200 " not in door.raw(b"\x00\x01\x02" * 100)
    assert door.behind.requests == []


def test_smuggled_bytes_after_a_request_are_a_request_of_their_own_and_refused(door: Open) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    inner = "POST /v1/control/start-run HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    said = door.raw(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n{inner}".encode())
    assert b" 404" in said
    assert [request.target for request, _ in door.behind.requests] == [PATH.encode()]


def test_who_is_slow_is_cut_off(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "IDLE", 0.5)
    begin = time.monotonic()
    assert not door.raw(b"POST ", seconds=20)
    assert time.monotonic() - begin < 10
    monkeypatch.setattr(gate, "EXCHANGE", 0.5)
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    begin = time.monotonic()
    assert b" 200 " not in door.raw(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{head}\r\nab".encode())
    assert time.monotonic() - begin < 10
    assert door.behind.requests == []


def test_one_peer_has_so_many_connections_and_no_more(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PER_ADDRESS", 3)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=10))
        time.sleep(0.3)
        with pytest.raises((OSError, httpx.HTTPError)), door.client() as client:
            client.post(PATH, content=b"", headers=door.site.headers())
    time.sleep(0.5)
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 200


def silent(door: Open, address: str) -> socket.socket:
    """A connection from another address of loopback, on which nothing is ever said."""
    return socket.create_connection(("127.0.0.1", door.port), timeout=10, source_address=(address, 0))


def ended(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_who_has_proved_nothing_makes_room_for_who_comes_the_oldest_first(
    door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it eight addresses keep every hospital out."""
    monkeypatch.setattr(gate, "CONNECTIONS", 8)
    monkeypatch.setattr(gate, "PER_ADDRESS", 4)
    with ExitStack() as held:
        plain = [held.enter_context(silent(door, f"127.0.0.{2 + number // 4}")) for number in range(7)]
        talking = held.enter_context(silent(door, "127.0.0.3"))  # TLS is no proof
        talking = held.enter_context(door.context().wrap_socket(talking, server_hostname="localhost"))
        time.sleep(0.2)
        with door.client() as client, door.client() as other:
            for one in (client, other, client):
                assert one.post(PATH, content=b"", headers=door.site.headers()).status_code == 200
            assert [ended(one) for one in plain] == [True, True, *[False] * 5]
            late = [held.enter_context(silent(door, f"127.0.0.{4 + number // 3}")) for number in range(6)]
            time.sleep(0.2)
            assert ended(talking) and all(ended(one) for one in plain) and not any(ended(one) for one in late)
            assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 200
    assert door.gate.refused()["no proof while others came"][0] >= 8


def test_who_has_proved_who_he_is_makes_room_for_nobody(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CONNECTIONS", 2)
    with ExitStack() as held:
        clients = [held.enter_context(door.client()) for _ in range(2)]
        for _ in range(2):
            assert [one.post(PATH, content=b"", headers=door.site.headers()).status_code for one in clients] == [
                200
            ] * 2
            assert ended(held.enter_context(silent(door, "127.0.0.2")))
    assert door.gate.refused()["too many connections"][0] == 2


def test_a_peer_with_too_many_connections_ends_nobody_elses(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CONNECTIONS", 3)
    monkeypatch.setattr(gate, "PER_ADDRESS", 2)
    with ExitStack() as held:
        first = held.enter_context(silent(door, "127.0.0.2"))
        greedy = [held.enter_context(silent(door, "127.0.0.3")) for _ in range(5)]
        time.sleep(0.2)
        assert not ended(first) and [ended(one) for one in greedy] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
    ],
)
def test_an_ipv6_peer_is_its_network(address: str, counted: str) -> None:
    assert gate._counted(address) == counted


def test_few_large_exchanges_are_under_way_at_once_and_small_ones_wait_for_none(door: Open) -> None:
    door.behind.seconds = 0.5
    begin = time.monotonic()

    def ask(path: str, size: int) -> float:
        with door.client() as client:
            assert client.post(path, content=bytes(size), headers=door.site.headers()).status_code == 200
        return time.monotonic() - begin

    with ThreadPoolExecutor(4 * AT_ONCE) as pool:
        for paths, size in ((sorted(path.decode() for path in LARGE), 1), ([PATH], 2**21)):
            door.behind.most, begin = 0, time.monotonic()
            large = [pool.submit(ask, path, size) for path in paths for _ in range(2 * AT_ONCE // len(paths))]
            assert max(found.result() for found in large) > 2 * 0.5
            assert door.behind.most == AT_ONCE
        assert len(door.behind.requests) == 4 * AT_ONCE
        door.behind.most = 0
        small = [pool.submit(ask, PATH, 2**19) for _ in range(4 * AT_ONCE)]
        assert all(found.result() for found in small)
        assert door.behind.most > AT_ONCE


def test_who_is_slow_holds_up_nobody_and_reaches_nobody(door: Open) -> None:
    """Large requests that stay half, more than are passed on at once, and large answers that nobody takes."""
    (path, *_), door.behind.body = (path.decode() for path in LARGE), bytes(2**23)
    with ExitStack() as held:
        for length in [9] * AT_ONCE + [0] * AT_ONCE:
            plain = held.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=10))
            connection = held.enter_context(door.context().wrap_socket(plain, server_hostname="localhost"))
            head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{head}\r\n".encode())
        with door.client() as client:
            assert len(client.post(path, content=b"", headers=door.site.headers()).content) == 2**23
        assert [len(body) for _, body in door.behind.requests] == [0] * (AT_ONCE + 1)


def test_who_hangs_up_while_he_waits_is_not_passed_on(door: Open) -> None:
    path, door.behind.seconds = min(LARGE).decode(), 0.5
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def ask() -> int:
            with door.client() as client:
                return client.post(path, content=b"", headers=door.site.headers()).status_code

        first = [pool.submit(ask) for _ in range(AT_ONCE)]
        time.sleep(0.2)
        with (
            socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain,
            door.context().wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n".encode())
            time.sleep(0.1)
        assert [found.result() for found in first] == [200] * AT_ONCE
    time.sleep(1)
    assert len(door.behind.requests) == AT_ONCE


def test_an_answer_comes_whole_to_who_is_slow_and_asks_to_close(door: Open) -> None:
    door.behind.body = bytes(2**23)
    head = "".join(f"{name}: {value}\r\n" for name, value in door.site.headers().items())
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(20)
    plain.connect(("127.0.0.1", door.port))
    with plain, door.context().wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n{head}\r\n".encode()
        )
        found = b""
        while piece := connection.recv(2**16):
            found += piece
            if len(found) > 2**23 - 500_000:
                time.sleep(0.02)
    assert len(found.partition(b"\r\n\r\n")[2]) == 2**23


def test_a_time_that_has_passed_while_a_request_waited_is_no_fault_of_the_site(
    door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower then answers 401, and at 401 a SuperNode ends."""
    door.behind.status, door.behind.seconds = 401, 1.5
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 401
        monkeypatch.setattr(proof, "BEHIND", 1.0)
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 503


def test_a_full_disk_is_to_be_tried_again_and_named(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Upstream, "body", lambda _self: Full())
    with door.client() as client:
        assert client.post(PATH, content=b"x", headers=door.site.headers()).status_code == 503
    deadline = time.monotonic() + 10
    while not (said := door.gate.refused()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(said) == ["no room on the server's disk"] and door.behind.requests == []


def test_flowers_own_failures_are_to_be_tried_again(door: Open) -> None:
    door.behind.status = 500
    with door.client() as client:
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 503
        door.behind.status = 403
        assert client.post(PATH, content=b"", headers=door.site.headers()).status_code == 403


def test_a_superlink_that_is_away_is_to_be_tried_again(door: Open) -> None:
    door.gate._upstream = replace(door.gate._upstream, port=1)
    with door.client() as client:
        assert client.post(PATH, content=b"x" * 100_000, headers=door.site.headers()).status_code == 503


def test_no_plain_http_and_only_the_federations_own_authority_vouches(door: Open) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain:
        plain.sendall(b"POST / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in plain.recv(100)
    other = ssl.create_default_context()
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        other.wrap_socket(plain, server_hostname="localhost")


def test_the_paths_are_those_of_flowers_fleet_api() -> None:
    fleet = {path.encode() for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    assert fleet - gate.PATHS == {b"/v1/fleet/register-node", b"/v1/fleet/unregister-node"} and fleet >= gate.PATHS


def test_the_open_port_speaks_tls_1_3_alone(tmp_path: Path) -> None:
    values = {"name": "test", "hosts": ["localhost"], "listen": "127.0.0.1", "port": 1, "colluding": 0, "min_sites": 2}
    made = found(tmp_path / "federation", tmp_path / "keys", values=values | {"loopback": 2}, now=int(time.time()))
    assert gate.server_tls(made).minimum_version is ssl.TLSVersion.TLSv1_3
    upstream = gate.upstream_of(made)
    assert (upstream.host, upstream.port, upstream.tls.verify_mode) == ("127.0.0.1", 2, ssl.CERT_REQUIRED)
    assert upstream.tls.check_hostname
