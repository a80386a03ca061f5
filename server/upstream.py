"""Exchanges with Flower's SuperLink on loopback: each request given whole, each answer taken whole.

The SuperLink holds what it receives and sends in memory, several times over, for as long as that lasts. So it is made
to wait for no site, however slow its line, and few large exchanges are under way at once: its memory does not grow with
the number of sites.
"""

import asyncio
import ssl
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import h11

from server.folder import Folder

AT_ONCE = 2  # large exchanges
LARGE = frozenset((b"/v1/fleet/push-object", b"/v1/fleet/pull-object"))
PIECE = 64 * 2**10  # bytes
_SMALL = 2**20  # bytes: more are large on any path
_IN_MEMORY = 2**17  # bytes of a body; more lie on disk
_CLOSE = (b"connection", b"close")


@dataclass(frozen=True, kw_only=True, eq=False)
class Upstream:
    """Flower's port, its certificate checked by `tls`; large bodies lie in `folder` for as long as they are needed, in
    files without a name.
    """

    host: str
    port: int
    tls: ssl.SSLContext
    folder: Path
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def body(self) -> IO[bytes]:
        """An empty one, gone when closed."""
        return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(self.folder))

    async def exchange(
        self,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        request: IO[bytes],
        answer: IO[bytes],
        *,
        gone: Callable[[], bool],
    ) -> h11.Response:
        """POST `request` from its beginning; Flower's answer, its body in `answer`, which stands at its beginning.

        A large one waits for its turn, and is not passed on once its sender is `gone`. Raises OSError then, and where
        the SuperLink is away; h11.RemoteProtocolError where it breaks off.
        """
        if target not in LARGE and request.seek(0, 2) <= _SMALL:
            return await self._exchange(target, headers, request, answer)
        async with self.slots:
            if gone():
                raise ConnectionAbortedError
            return await self._exchange(target, headers, request, answer)

    async def _exchange(
        self, target: bytes, headers: Sequence[tuple[bytes, bytes]], request: IO[bytes], answer: IO[bytes]
    ) -> h11.Response:
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls, server_hostname="localhost")
        try:
            length, connection = request.seek(0, 2), h11.Connection(h11.CLIENT)
            request.seek(0)
            framed = [*headers, (b"host", b"localhost"), (b"content-length", b"%d" % length), _CLOSE]
            writer.write(connection.send(h11.Request(method=b"POST", target=target, headers=framed)) or b"")
            while piece := request.read(PIECE):
                writer.write(connection.send(h11.Data(data=piece)) or b"")
                await writer.drain()
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            return await _answer(connection, reader, answer)
        finally:
            writer.close()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader, body: IO[bytes]) -> h11.Response:
    response = None
    while not isinstance(event := await next_event(connection, reader), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body.write(event.data)
        else:
            raise h11.RemoteProtocolError("half an answer")
    if response is None:
        raise h11.RemoteProtocolError("an answer without a status")
    body.seek(0)
    return response


async def next_event(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """The next event of the peer. Raises h11.RemoteProtocolError for what is no HTTP/1.1."""
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await reader.read(PIECE))


def upstream_of(folder: Folder) -> Upstream:
    """The SuperLink of this folder, believed by the federation's own authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder.root)
    host, _, port = folder.superlink.rpartition(":")
    return Upstream(host=host, port=int(port), tls=context, folder=folder.path / "flower")
