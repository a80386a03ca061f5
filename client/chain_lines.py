"""The text of a hash-chained file: lines that each name the one before, a head that names the last, and what a crash
may leave of them. Bytes in, verified values out.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import FederationError

ORIGIN = "0" * 64  # what the first line names as the one before
SHORT = 20  # digits of a hash that a person writes down: 80 bits
_REPAIR = b'{"kind":"repair"'
_KEYS = {"kind": str, "sequence": int, "previous": str, "nonce": str, "time": str, "body": dict}


class ChainError(FederationError):
    """The chained file can't be trusted, written or locked: the site operator's to mend."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Where a chain stood. The hash is 64 hex digits, or at least its first `SHORT` where a person wrote it down."""

    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.sequence}-{self.hash[:SHORT]}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line. Order is the sequence number; the time is only shown."""

    kind: str
    sequence: int
    time: str
    body: dict[str, Any]
    anchor: Anchor  # its own sequence and hash


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A verified file."""

    entries: tuple[Entry, ...]  # at least one; repairs included, voided lines not
    tail: bytes  # what a crash left behind the last entry
    data: bytes  # all of it

    def contains(self, anchor: Anchor) -> bool:
        return contains(self.entries, anchor)


def contains(entries: Sequence[Entry], anchor: Anchor) -> bool:
    """Whether the chain passed through the anchor."""
    if len(anchor.hash) < SHORT or not 0 <= anchor.sequence < len(entries):
        return False
    return entries[anchor.sequence].anchor.hash.startswith(anchor.hash)


def anchor_from(text: str) -> Anchor:
    """The anchor that `str(anchor)` or a .head file shows. Raises ChainError where it is neither."""
    sequence, _, digits = text.strip().lower().partition("-")
    known = sequence.isascii() and sequence.isdecimal() and len(sequence) <= 15
    if not (known and SHORT <= len(digits) <= 64 and _is_hex(digits)):
        raise ChainError(f"{text.strip()[:80]!r} is no anchor; it looks like 41-{'0f' * (SHORT // 2)}")
    return Anchor(sequence=int(sequence), hash=digits)


def verified(where: Path, data: bytes) -> Contents:
    """The chain in `data`, which nobody was writing: whole up to its last byte. Raises ChainError."""
    entries, tail = parse(data)
    if not entries or tail:
        raise ChainError(f"{where}: record {len(entries)} is not whole: edited, damaged or cut short")
    return Contents(entries=entries, tail=b"", data=data)


def first_line(kind: str, body: Mapping[str, Any]) -> bytes:
    """A chain of one entry, for `install`."""
    return new_line(kind, body, sequence=0, previous=ORIGIN)[0]


def new_line(kind: str, body: Mapping[str, Any], *, sequence: int, previous: str) -> tuple[bytes, Entry]:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    values: dict[str, Any] = {
        "kind": kind,  # first, so that a torn repair is known by its first bytes
        "sequence": sequence,
        "previous": previous,
        "nonce": secrets.token_hex(16),
        "time": time,
        "body": dict(body),
    }
    try:
        line = json.dumps(values, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ChainError(f"record {kind!r} is not plain JSON: {error}") from error
    anchor = Anchor(sequence=sequence, hash=_hash(line))
    return line + b"\n", Entry(kind=kind, sequence=sequence, time=time, body=values["body"], anchor=anchor)


def parse(data: bytes) -> tuple[tuple[Entry, ...], bytes]:
    """The entries that chain from the beginning, and all bytes behind the last of them."""
    lines = data.split(b"\n")
    lines.pop()  # after the last newline: nothing, or a torn line
    entries: list[Entry] = []
    taken = 0
    for position in _not_voided(lines):
        previous = entries[-1].anchor.hash if entries else ORIGIN
        entry = _entry(lines[position], sequence=len(entries), previous=previous)
        if entry is None:
            break
        entries.append(entry)
        taken = position + 1
    return tuple(entries), data[sum(len(line) + 1 for line in lines[:taken]) :]


def _not_voided(lines: list[bytes]) -> list[int]:
    """Positions of the lines that count, in order: all but those that a repair behind them holds the hash of."""
    kept, position = [], len(lines)
    while position:
        position -= 1
        kept.append(position)
        if lines[position].startswith(_REPAIR):
            body = (_values(lines[position]) or {"body": {}})["body"]
            count = body.get("lines")
            torn = lines[position - count : position] if type(count) is int and 1 <= count <= position else []
            if torn and _left_by_crash(torn) and body.get("torn") == hashlib.sha256(b"\n".join(torn)).hexdigest():
                position -= len(torn)
    return kept[::-1]


def _left_by_crash(pieces: list[bytes]) -> bool:
    """A torn line, and behind it nothing but repairs that were torn themselves."""
    return all(piece.startswith(_REPAIR) or _REPAIR.startswith(piece) for piece in pieces[1:])


def _values(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or set(values) != set(_KEYS):
        return None
    return values if all(type(values[key]) is kind for key, kind in _KEYS.items()) else None


def _entry(line: bytes, *, sequence: int, previous: str) -> Entry | None:
    values = _values(line)
    if values is None or values["sequence"] != sequence or values["previous"] != previous:
        return None
    anchor = Anchor(sequence=sequence, hash=_hash(line))
    return Entry(kind=values["kind"], sequence=sequence, time=values["time"], body=values["body"], anchor=anchor)


def agreed(path: Path, data: bytes, head: bytes) -> Contents:
    """The chain that file and head agree on."""
    entries, tail = parse(data)
    named = anchor_in(path.with_suffix(".head"), head)
    if tail and not _left_by_crash(tail.split(b"\n")):
        raise ChainError(f"{path}: record {len(entries)} was edited or damaged; restore it from a backup")
    if named.sequence >= len(entries):
        raise ChainError(
            f"{path}: record {named.sequence}, which the head names, is not there whole: the file was truncated or "
            "edited; restore it from a backup"
        )
    if not contains(entries, named):
        raise ChainError(f"{path}: record {named.sequence} is not the one that the head names: file or head was edited")
    if named.sequence < len(entries) - 2:
        raise ChainError(
            f"{path}: goes on {len(entries) - 1 - named.sequence} records behind its head: file or head was replaced"
        )
    return Contents(entries=entries, tail=tail, data=data)


def _hash(line: bytes) -> str:
    """Over every byte of a line but its newline: nothing in it can change unseen."""
    return hashlib.sha256(line).hexdigest()


def head_of(anchor: Anchor) -> bytes:
    return f"{anchor.sequence}-{anchor.hash}\n".encode()


def anchor_in(path: Path, head: bytes) -> Anchor:
    try:
        anchor = anchor_from(head.decode("ascii"))
    except (ChainError, UnicodeDecodeError) as error:
        raise ChainError(f"{path}: names no record: edited or damaged") from error
    if head != head_of(anchor) or len(anchor.hash) != 64:
        raise ChainError(f"{path}: names no record: edited or damaged")
    return anchor


def _is_hex(text: str) -> bool:
    return set(text) <= set("0123456789abcdef")
