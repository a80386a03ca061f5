"""The only open port of a federation's server: ends TLS and passes on what SuperNodes of the roster ask, nothing else.

Flower serves starting runs, registering nodes and executing tasks on the same port as what SuperNodes need, most of it
without any login. Here only ten paths exist, and only for who proves, before a byte of his request is passed on, that
he holds a SuperNode key of the roster. Flower checks the same proof again, and the time in it.
"""

import asyncio
import base64
import logging
import re
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h11

from common import processes
from common.crypto import node_key
from common.errors import FederationError
from server.folder import Folder, open_folder

_CALLS = (
    b"activate-node deactivate-node send-node-heartbeat pull-messages push-messages"
    b" get-run get-fab push-object pull-object confirm-message-received"
)
PATHS = frozenset(b"/v1/fleet/" + call for call in _CALLS.split())
KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
PASSED = {b"content-type", b"accept", KEY, TIME, SIGNATURE}
PASSED |= {b"flwr-package-name", b"flwr-package-version", b"flwr-component-name"}

CONNECTIONS = 512  # at once
PER_ADDRESS = 64  # of one peer
HEADER_LIMIT = 16 * 2**10  # bytes
BODY_LIMIT = 16 * 2**20  # bytes: Flower sends arrays in pieces of 5 MiB
HANDSHAKE = 10.0  # seconds for TLS
IDLE = 30.0  # seconds in which a request's header must have come
EXCHANGE = 120.0  # seconds for a request and its answer
_PIECE = 64 * 2**10
_LENGTH = re.compile(rb"[0-9]{1,9}")

_log = logging.getLogger("fedward.gate")


class _Refused(Exception):
    """A request that is not passed on, and the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Flower's port on loopback, and how its certificate is checked."""

    host: str
    port: int
    tls: ssl.SSLContext


class Gate:
    """`serve` until cancelled. `allow` says who may pass, and may be called again at any time.

    Guarantees: no byte of a request reaches Flower unless its path is in PATHS, its method POST, and its sender signed
    its time by an allowed key; a request is passed on as it was parsed here, never as it was written; at most
    CONNECTIONS at once, PER_ADDRESS of one peer, HEADER_LIMIT and BODY_LIMIT bytes, EXCHANGE seconds for each request.
    """

    def __init__(self, tls: ssl.SSLContext, upstream: Upstream) -> None:
        self._tls, self._upstream = tls, upstream
        self._keys: dict[bytes, str] = {}
        self._peers: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def allow(self, keys: Iterable[str]) -> None:
        """Exactly these SuperNode keys, as lines in OpenSSH's form. Raises MessageError for one that is none."""
        self._keys = {node_key.public_pem(line): line for line in keys}

    async def serve(self, listening: socket.socket) -> None:
        """Accept connections of a listening socket."""
        listening.setblocking(False)
        loop, slots, tasks = asyncio.get_running_loop(), asyncio.Semaphore(CONNECTIONS), set[asyncio.Task[None]]()
        while True:
            await slots.acquire()
            try:
                peer, address = await loop.sock_accept(listening)
            except OSError:  # no descriptors left, or the peer is gone already
                slots.release()
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._peer(peer, str(address[0])))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _done: slots.release())

    def refused(self) -> dict[str, int]:
        """What was refused since the last call, by reason."""
        said, self._refused = dict(self._refused), Counter()
        return said

    async def _peer(self, peer: socket.socket, address: str) -> None:
        self._peers[address] += 1
        writer = None
        try:
            if self._peers[address] > PER_ADDRESS:
                raise _Refused(429, "too many connections of one peer")
            reader = asyncio.StreamReader(_PIECE)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, peer, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=1.0
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await self._talk(reader, writer)
        except _Refused as error:
            self._refused[str(error)] += 1
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.IncompleteReadError) as error:
            self._refused[f"connection: {type(error).__name__}"] += 1
        finally:
            peer.close()
            if writer is not None:
                writer.close()
            self._peers[address] -= 1
            if not self._peers[address]:
                del self._peers[address]

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other, until one is refused or the peer has no more."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        while True:
            async with asyncio.timeout(IDLE):
                event = await _next(connection, reader)
            if not isinstance(event, h11.Request):
                return
            try:
                length = self._check(event)
            except _Refused as error:
                await _say_no(connection, writer, error.status)
                raise
            async with asyncio.timeout(EXCHANGE):
                await self._pass(connection, event, length, reader, writer)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _check(self, request: h11.Request) -> int:
        """Bytes of the request's body. Raises _Refused."""
        if request.method != b"POST" or request.target not in PATHS:
            raise _Refused(404, "another path")
        names = [name for name, _ in request.headers]
        if any(names.count(name) > 1 for name in names):
            raise _Refused(400, "a header twice")
        headers = dict(request.headers)
        if b"transfer-encoding" in headers or not _LENGTH.fullmatch(headers.get(b"content-length", b"")):
            raise _Refused(411, "no length")
        if int(headers[b"content-length"]) > BODY_LIMIT:
            raise _Refused(413, "too long")
        try:
            line = self._keys.get(base64.b64decode(headers.get(KEY, b""), validate=True))
            signature = base64.b64decode(headers.get(SIGNATURE, b""), validate=True)
        except ValueError:
            line, signature = None, b""
        if line is None or not node_key.signed(line, headers.get(TIME, b""), signature):
            raise _Refused(401, "not a SuperNode of the roster")
        return int(headers[b"content-length"])

    async def _pass(
        self,
        connection: h11.Connection,
        request: h11.Request,
        length: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """The request to Flower, its answer back, piece by piece."""
        flower = h11.Connection(h11.CLIENT)
        try:
            back, forth = await asyncio.open_connection(
                self._upstream.host, self._upstream.port, ssl=self._upstream.tls, server_hostname="localhost"
            )
        except OSError as error:
            await _say_no(connection, writer, 503)
            raise _Refused(503, "the SuperLink is away") from error
        try:
            headers = [(name, value) for name, value in request.headers if name in PASSED]
            headers += [(b"host", b"localhost"), (b"content-length", b"%d" % length), _CLOSE]
            forth.write(flower.send(h11.Request(method=b"POST", target=request.target, headers=headers)) or b"")
            while isinstance(event := await _next(connection, reader), h11.Data):
                forth.write(flower.send(event) or b"")
                await forth.drain()
            if not isinstance(event, h11.EndOfMessage):
                raise _Refused(400, "half a request")
            forth.write(flower.send(h11.EndOfMessage()) or b"")
            await forth.drain()
            await _return(flower, back, connection, writer)
        finally:
            forth.close()


_CLOSE = (b"connection", b"close")


async def _say_no(connection: h11.Connection, writer: asyncio.StreamWriter, status: int) -> None:
    writer.write(connection.send(h11.Response(status_code=status, headers=[(b"content-length", b"0"), _CLOSE])) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()


async def _return(
    flower: h11.Connection, back: asyncio.StreamReader, connection: h11.Connection, writer: asyncio.StreamWriter
) -> None:
    """Flower's answer. Its own failures (5xx) become 503, which SuperNodes try again: at another their heartbeat ends
    for good.
    """
    while True:
        event = await _next(flower, back)
        if isinstance(event, h11.Response):
            status = 503 if event.status_code >= 500 else event.status_code
            kept = [(name, value) for name, value in event.headers if name not in (b"connection", b"server", b"date")]
            event = h11.Response(status_code=status, headers=kept)
        if not isinstance(event, h11.Response | h11.Data | h11.EndOfMessage):
            raise _Refused(502, "half an answer")
        writer.write(connection.send(event) or b"")
        await writer.drain()
        if isinstance(event, h11.EndOfMessage):
            return


async def _next(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """The next event of the peer. Raises h11.RemoteProtocolError for what is no HTTP/1.1."""
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await reader.read(_PIECE))


def server_tls(folder: Folder) -> ssl.SSLContext:
    """What the open port speaks: TLS 1.3 with the federation's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*folder.tls("gate"))
    return context


def upstream_of(folder: Folder) -> Upstream:
    """The SuperLink of this folder, believed by the federation's own authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder.root)
    host, _, port = folder.superlink.rpartition(":")
    return Upstream(host=host, port=int(port), tls=context)


async def _serve(folder: Folder) -> None:
    tls = server_tls(folder)
    gate = Gate(tls, upstream_of(folder))
    watched, seen = (folder.path / "roster.json", *folder.tls("gate")), [-1.0]
    with socket.create_server((folder.listen, folder.port), backlog=128) as listening:
        serving = asyncio.create_task(gate.serve(listening))
        while not serving.done():
            now = [path.stat().st_mtime for path in watched if path.exists()]
            if now != seen:
                try:
                    roster = folder.roster()
                    gate.allow([] if roster is None else [site.supernode for site in roster.sites])
                    tls.load_cert_chain(*folder.tls("gate"))  # a renewed one, for handshakes from now on
                except (FederationError, OSError) as error:
                    _log.error("the roster or the certificate can't be used, the ones before stay: %s", error)
                seen = now
            await asyncio.sleep(2.0)
            for why, number in gate.refused().items():
                _log.warning("refused: %s (%d)", why, number)
        await serving


def main(path: str) -> None:
    """What `server up` starts."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    processes.follow_owner()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(open_folder(Path(path))))


if __name__ == "__main__":
    main(sys.argv[1])
