"""A socket that ends when its time or its bytes are used up: what keeps a DIMSE peer from talking for ever."""

import socket
import time
from collections.abc import Callable
from typing import Any


class Line:
    """Stands in the place of a connected socket.

    pynetdicom takes a socket's timeout away and believes the length that a peer announces, up to 4 GiB for a single
    unit. Here the peer seems to have hung up instead, which it handles.

    Guarantees: between two `allow`s at most `bytes_left` bytes are read and `seconds` pass; a byte is waited for no
    longer than `timeout` seconds.
    """

    def __init__(self, inner: socket.socket, *, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._timeout, self._clock = inner, timeout, clock
        self._end = clock() + timeout
        self._left = 1 << 20
        inner.settimeout(timeout)

    def allow(self, *, seconds: float, size: int) -> None:
        """Time and bytes for the next question or image."""
        self._end, self._left = self._clock() + seconds, size

    def recv(self, size: int) -> bytes:
        """What came, at least a byte; b"" when the peer hung up or what was allowed is used up."""
        remaining = self._end - self._clock()
        if remaining <= 0 or self._left <= 0:
            return b""
        self._inner.settimeout(min(self._timeout, remaining))
        data = self._inner.recv(min(size, self._left))
        self._left -= len(data)
        return data

    @property
    def used_up(self) -> bool:
        """Whether more bytes came than were allowed."""
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
