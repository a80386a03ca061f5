"""Where a site's chains stand, as it tells others: its audit log in every answer, its privacy ledger's head in a
statement that is signed on its own, so that others can pass it on.

A site that later cut, rewrote or restored a chain can't show the record any more that others hold; and nobody can claim
a record that the site has not signed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from common import body
from common.crypto import identity
from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.errors import MessageError

_DIGITS = 9  # of a record's number, with zeros in front: a length says nothing
_RECORD = rf"([0-9]{{{_DIGITS}}})-([0-9a-f]{{64}})"
_LINE = re.compile(_RECORD)
_HEAD = re.compile(rf"([a-z0-9-]{{1,32}}) {_RECORD} ([0-9a-f]{{{2 * SIGNATURE_BYTES}}})")
_TYPE = "ledger-head"


def line(sequence: int, hash: str) -> str:
    """Record `sequence` of a chain, whose digest is `hash`, in a form of constant length."""
    if not 0 <= sequence < 10**_DIGITS:
        raise ValueError(f"record {sequence}: a chain of more than {10**_DIGITS} records")
    return f"{sequence:0{_DIGITS}}-{hash}"


def plain(text: str) -> str:
    """The record of a `line` as commands take it: number and whole digest. Raises MessageError."""
    found = _LINE.fullmatch(text)
    if found is None:
        raise MessageError("a place in a log that is none")
    return f"{int(found[1])}-{found[2]}"


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a site says that its privacy ledger stands. Whether the site says it, `said_by` tells."""

    site: str
    sequence: int
    hash: str
    signature: bytes

    @classmethod
    def sign(cls, key: Identity, *, site: str, sequence: int, hash: str) -> Self:
        signature = key.sign(_TYPE, _statement(site, line(sequence, hash)))
        return cls(site=site, sequence=sequence, hash=hash, signature=signature)

    @classmethod
    def of(cls, text: str) -> Self:
        """The statement in a text. Raises MessageError by its form alone."""
        found = _HEAD.fullmatch(text)
        if found is None:
            raise MessageError("a statement about a ledger that is none")
        return cls(site=found[1], sequence=int(found[2]), hash=found[3], signature=bytes.fromhex(found[4]))

    def __str__(self) -> str:
        return f"{self.site} {line(self.sequence, self.hash)} {self.signature.hex()}"

    def said_by(self, public: bytes | None) -> bool:
        """Whether the holder of this key signed it; nobody's where there is no key."""
        try:
            identity.verify(public or b"", _TYPE, _statement(self.site, line(self.sequence, self.hash)), self.signature)
        except MessageError:
            return False
        return True

    def follows(self, other: Self) -> bool:
        """Whether this is what `other` says of the site's ledger, or may be what became of it: a later record."""
        return self.sequence > other.sequence or (self.sequence, self.hash) == (other.sequence, other.hash)


def by_site(heads: Iterable[Head]) -> dict[str, tuple[Head, ...]]:
    """The heads of each site, by name, none twice, in the order in which they came."""
    found: dict[str, dict[Head, None]] = {}
    for head in heads:
        found.setdefault(head.site, {})[head] = None
    return {site: tuple(found[site]) for site in sorted(found)}


def _statement(site: str, line: str) -> bytes:
    return body.write({"site": site, "line": line})
