"""The only open port of a federation's server: ends TLS and passes on what SuperNodes of the roster ask, nothing else.

Flower serves starting runs, registering nodes and executing tasks on the same port as what SuperNodes need, most of it
without any login. Here only ten paths exist, and only for who proves, before a byte of his request is passed on, that
he holds a SuperNode key of the roster. Flower checks the same proof again, and the time in it.
"""

import asyncio
import ipaddress
import itertools
import logging
import re
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path

import h11

from common import processes
from common.errors import FederationError
from server import proof
from server.folder import Folder, open_folder
from server.proof import KEY, SIGNATURE, TIME
from server.upstream import PIECE, Upstream, next_event, upstream_of

_CALLS = (
    b"activate-node deactivate-node send-node-heartbeat pull-messages push-messages"
    b" get-run get-fab push-object pull-object confirm-message-received"
)
PATHS = frozenset(b"/v1/fleet/" + call for call in _CALLS.split())
PASSED = {b"content-type", b"accept", KEY, TIME, SIGNATURE}
PASSED |= {b"flwr-package-name", b"flwr-package-version", b"flwr-component-name"}

CONNECTIONS = 512  # at once
PER_ADDRESS = 64  # of one peer: an IPv4 address, or the /64 of an IPv6 one, which a single machine may have to itself
HEADER_LIMIT = 16 * 2**10  # bytes
BODY_LIMIT = 16 * 2**20  # bytes: Flower sends arrays in pieces of 5 MiB
HANDSHAKE = 10.0  # seconds for TLS
IDLE = 30.0  # seconds in which a request's header must have come
EXCHANGE = 120.0  # seconds for a request and its answer
LINGER = 2.0  # seconds in which what a refused peer still sends is read and dropped
_LENGTH = re.compile(rb"[0-9]{1,9}")

_log = logging.getLogger("fedward.gate")


class _Refused(Exception):
    """A request that is not passed on, and the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gate:
    """`serve` until cancelled. `allow` says who may pass, and may be called again at any time.

    Guarantees: no byte of a request reaches Flower unless its path is in PATHS, its method POST, and its sender signed
    its time by an allowed key, which no other request did before; a request is passed on as it was parsed here, never
    as it was written; at most CONNECTIONS at once, PER_ADDRESS of one peer, HEADER_LIMIT and BODY_LIMIT bytes, EXCHANGE
    seconds for each request; when there are so many, the oldest that has proved nothing ends for one that comes.
    """

    def __init__(self, tls: ssl.SSLContext, upstream: Upstream) -> None:
        self._tls, self._upstream = tls, upstream
        self._proofs = proof.Proofs(since=time.time())
        self._peers: Counter[str] = Counter()
        self._unproved: dict[asyncio.Task[None] | None, None] = {}  # connections in the order in which they came
        self._proved: set[asyncio.Task[None] | None] = set()  # those of which a request was passed on
        self._refused: dict[str, tuple[int, str]] = {}

    def allow(self, keys: Iterable[str]) -> None:
        """Exactly these SuperNode keys, as lines in OpenSSH's form. Raises MessageError for one that is none."""
        self._proofs.allow(keys)

    async def serve(self, listening: socket.socket) -> None:
        """Accept connections of a listening socket."""
        listening.setblocking(False)
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        while True:
            try:
                peer, address = await loop.sock_accept(listening)
            except OSError:  # no descriptors left, or the peer is gone already
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._peer(peer, str(address[0])))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def refused(self) -> dict[str, tuple[int, str]]:
        """What was refused since the last call: by reason, how often, and the address of the last."""
        said, self._refused = self._refused, {}
        return said

    def _note(self, why: str, address: str) -> None:
        self._refused[why] = (self._refused.get(why, (0, ""))[0] + 1, address)

    async def _peer(self, peer: socket.socket, address: str) -> None:
        counted, own = _counted(address), asyncio.current_task()
        self._peers[counted] += 1
        writer = None
        try:
            if self._peers[counted] > PER_ADDRESS:
                raise _Refused(429, "too many connections of one peer")
            self._make_room()
            self._unproved[own] = None
            reader = asyncio.StreamReader(PIECE)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, peer, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=LINGER
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await self._talk(reader, writer, address)
        except _Refused as error:
            self._note(str(error), address)
        except asyncio.CancelledError:
            self._note("no proof while others came", address)
            if writer is not None:
                writer.transport.abort()
            raise
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.IncompleteReadError) as error:
            tls = (error.reason or "") if isinstance(error, ssl.SSLError) else ""  # of OpenSSL's own list
            self._note(f"connection: {tls or type(error).__name__}", address)
        finally:
            self._unproved.pop(own, None)
            self._proved.discard(own)
            if writer is None:
                peer.close()
            else:  # the transport's own: closed under it, its number would be the next peer's while it still writes
                writer.close()
                try:
                    async with asyncio.timeout(2 * LINGER):
                        await writer.wait_closed()
                except (OSError, TimeoutError):
                    writer.transport.abort()
            self._peers[counted] -= 1
            if not self._peers[counted]:
                del self._peers[counted]

    def _make_room(self) -> None:
        """Raises _Refused where there are CONNECTIONS, of which each has proved who it is."""
        if len(self._unproved) + len(self._proved) < CONNECTIONS:
            return
        oldest = next(iter(self._unproved), None)
        if oldest is None:
            raise _Refused(429, "too many connections")
        del self._unproved[oldest]
        oldest.cancel()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        """One request after the other, until one is refused or the peer has no more."""
        connection, own = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT), asyncio.current_task()
        for passed in itertools.count():
            try:
                async with asyncio.timeout(IDLE):
                    event = await next_event(connection, reader)
            except TimeoutError as error:
                if passed and not connection.trailing_data[0]:
                    return  # has no more to ask
                raise _Refused(408, "no request in time") from error
            if not isinstance(event, h11.Request):
                return
            try:
                self._check(event)
            except _Refused as error:
                self._note(str(error), address)
                await _say_no(connection, reader, writer, error.status)
                return
            self._unproved.pop(own, None)
            self._proved.add(own)
            async with asyncio.timeout(EXCHANGE):
                await self._pass(connection, event, reader, writer)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _check(self, request: h11.Request) -> None:
        """Raises _Refused for what isn't passed on."""
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
        fault = self._proofs.fault(headers, now=time.time())
        if fault is not None:  # 503: a SuperNode that isn't at fault signs anew and tries again, at 401 it ends
            raise _Refused(503 if fault == proof.AGAIN else 401, fault)

    async def _pass(
        self,
        connection: h11.Connection,
        request: h11.Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """The request to Flower once all of it is here, and its answer back.

        Flower's own failures (5xx) become 503, which SuperNodes try again: at another their heartbeat ends for good.
        """
        with self._upstream.body() as body, self._upstream.body() as back:
            while isinstance(event := await next_event(connection, reader), h11.Data):
                try:
                    body.write(event.data)
                except OSError as error:
                    await _say_no(connection, reader, writer, 503)
                    raise _Refused(503, "no room on the server's disk") from error
            if not isinstance(event, h11.EndOfMessage):
                raise _Refused(400, "half a request")
            passed = [(name, value) for name, value in request.headers if name in PASSED]
            try:
                answer = await self._upstream.exchange(request.target, passed, body, back, gone=partial(_gone, reader))
            except (OSError, h11.RemoteProtocolError) as error:
                await _say_no(connection, reader, writer, 503)
                raise _Refused(503, "the SuperLink is away") from error
            status = 503 if answer.status_code >= 500 else answer.status_code
            if status == 401 and not self._proofs.recent(dict(request.headers), now=time.time()):
                status = 503  # its time has passed while it waited here: a SuperNode that isn't at fault signs anew
            kept = [(name, value) for name, value in answer.headers if name not in (b"connection", b"server", b"date")]
            writer.write(connection.send(h11.Response(status_code=status, headers=kept)) or b"")
            while piece := back.read(PIECE):
                writer.write(connection.send(h11.Data(data=piece)) or b"")
                await writer.drain()
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()


_CLOSE = (b"connection", b"close")


def _counted(address: str) -> str:
    """What a peer's connections are counted by."""
    host = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(host, ipaddress.IPv4Address) or host.ipv4_mapped is not None:
        return address
    return str(ipaddress.ip_network((host, 64), strict=False))


def _gone(reader: asyncio.StreamReader) -> bool:
    """Whether the peer has hung up."""
    return reader.at_eof() or reader.exception() is not None


async def _say_no(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int
) -> None:
    """The status, and the time: by it a site's preflight sees how far its clock is off.

    A connection that is closed with bytes unread is reset, and the answer is lost with it: what comes is dropped first.
    """
    headers = [(b"content-length", b"0"), (b"date", formatdate(usegmt=True).encode()), _CLOSE]
    writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while await reader.read(PIECE):
                pass


def server_tls(folder: Folder) -> ssl.SSLContext:
    """What the open port speaks: TLS 1.3 with the federation's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*folder.tls("gate"))
    return context


def open_port(folder: Folder) -> socket.socket:
    """The listening socket; `::` takes IPv4 too, where the system can."""
    both = folder.listen == "::" and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in folder.listen else socket.AF_INET
    return socket.create_server((folder.listen, folder.port), family=family, backlog=128, dualstack_ipv6=both)


async def _serve(folder: Folder) -> None:
    tls = server_tls(folder)
    gate = Gate(tls, upstream_of(folder))
    watched, seen = (folder.path / "roster.json", *folder.tls("gate")), [-1.0]
    with open_port(folder) as listening:
        serving = asyncio.create_task(gate.serve(listening))
        while not serving.done():
            now = [path.stat().st_mtime for path in watched if path.exists()]
            if now != seen:
                try:
                    roster = folder.roster()
                    gate.allow([] if roster is None else roster.supernodes.values())
                    tls.load_cert_chain(*folder.tls("gate"))  # a renewed one, for handshakes from now on
                except (FederationError, OSError) as error:
                    _log.error("the roster or the certificate can't be used, the ones before stay: %s", error)
                seen = now
            await asyncio.sleep(2.0)
            for why, (number, address) in gate.refused().items():
                _log.warning("refused: %s (%d, last from %s)", why, number, address)
        await serving


def main(path: str) -> None:
    """What `server up` starts."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    processes.follow_owner()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(open_folder(Path(path))))


if __name__ == "__main__":
    main(sys.argv[1])
