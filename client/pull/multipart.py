"""A multipart message that holds one DICOM file, never more of it in memory than a piece: as it comes, or to send."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from client.pull.archive import Fault, Missing

_HEAD_LIMIT = 65536  # bytes before the file: a preamble, the part's headers


_PIECE = 65536


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A file as the only part of a message. Its length is known before it is read: not every archive takes chunks."""

    path: Path
    boundary: str

    def __len__(self) -> int:
        return len(self._head) + self.path.stat().st_size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
        yield self._tail

    @property
    def content_type(self) -> str:
        return f'multipart/related; type="application/dicom"; boundary={self.boundary}'

    @property
    def _head(self) -> bytes:
        return f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode("ascii")

    @property
    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode("ascii")


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart answer; None for a bare DICOM file. Raises Missing for any other type, such as a
    proxy's login page."""
    header = Message()
    header["Content-Type"] = content_type
    kind, boundary = header.get_content_type(), header.get_param("boundary")
    if kind == "application/dicom":
        return None
    # 70 characters is the limit of RFC 2046 5.1.1; an archive or two writes longer ones.
    if kind != "multipart/related" or not isinstance(boundary, str) or not 1 <= len(boundary) <= 200:
        raise Missing(Fault.FAILED)
    return boundary.encode("ascii", "replace")


def single_part(pieces: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """The content of the only part, piece by piece.

    Guarantees: ends only behind the closing boundary; keeps no more than _HEAD_LIMIT and one piece.
    Raises Missing: MALFORMED for several parts, headers without end, something behind a boundary that is neither;
    BROKE_OFF where the closing boundary is missing.
    Source: RFC 2046 5.1.1.
    """
    source = iter(pieces)
    delimiter = b"\r\n--" + boundary
    # The first boundary may stand at the very beginning, without the line break that belongs to it.
    held = b"\r\n"
    held, _ = _until(source, held, delimiter)
    held, headers = _until(source, held, b"\r\n\r\n")
    if headers and not headers.lstrip(b" \t").startswith(b"\r\n"):
        raise Missing(Fault.MALFORMED)
    while (place := held.find(delimiter)) < 0:
        ready = max(0, len(held) - len(delimiter) + 1)
        if ready:
            yield held[:ready]
        held = held[ready:] + _next(source)
    yield held[:place]
    held = held[place + len(delimiter) :]
    while len(held) < 2:
        held += _next(source)
    if held[:2] != b"--":
        raise Missing(Fault.MALFORMED)  # another part


def _until(source: Iterator[bytes], held: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """What follows the mark, and what stood before it."""
    while (place := held.find(mark)) < 0:
        if len(held) > _HEAD_LIMIT:
            raise Missing(Fault.MALFORMED)
        held += _next(source)
    return held[place + len(mark) :], held[:place]


def _next(source: Iterator[bytes]) -> bytes:
    for piece in source:
        if piece:
            return piece
    raise Missing(Fault.BROKE_OFF)
