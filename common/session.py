"""What sites say in a session of secure aggregation: five signed messages, each resting on a hash of what came before.

A message is verified as it was received and only then parsed; what is hashed later is what was received.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from common import body
from common.crypto import identity
from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.crypto.sealed import OVERHEAD
from common.crypto.shares import SHARE_BYTES, in_field
from common.errors import MessageError
from common.roster import Roster

HASH = 32  # bytes of a hash, a key, a seed
MOST_CLOSED = 8  # sessions that one share message says were closed unanswered
SEALED = OVERHEAD + 2 * SHARE_BYTES  # bytes of a pair of shares on its way to a peer

Envelope = dict[str, str]
_ENVELOPE = {"site": str, "body": str, "signature": str}


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A message whose signature is by the roster's identity of `site`. Its body is what was signed, byte by byte."""

    name: str
    site: str
    body: bytes
    signature: bytes

    @cached_property
    def sha256(self) -> bytes:
        """H(m)."""
        return identity.digest(self.name, self.body)

    @property
    def envelope(self) -> Envelope:
        """The message as JSON that carries it."""
        return {"site": self.site, "body": self.body.decode("ascii"), "signature": self.signature.hex()}

    def values(self, expected: Mapping[str, type]) -> dict[str, Any]:
        """The body's fields beside the site's name, which is the signer's. Raises MessageError."""
        values = body.read(self.body, {"site": str, **expected})
        if values.pop("site") != self.site:
            raise MessageError(f"a {self.name} message by {self.site} in another site's name")
        return values


def received(envelope: object, name: str, roster: Roster) -> Signed:
    """The message in an envelope, verified. Raises MessageError."""
    values = body.fields(envelope, _ENVELOPE)
    site, signature = body.name(values["site"]), body.binary(values["signature"], SIGNATURE_BYTES)
    if site not in roster.identities:
        raise MessageError(f"a {name} message by {site}, who is not in the roster")
    try:
        text = values["body"].encode("ascii")
    except UnicodeEncodeError as error:
        raise MessageError(f"a {name} message by {site} that is not in ASCII") from error
    identity.verify(roster.identities[site], name, text, signature)
    return Signed(name=name, site=site, body=text, signature=signature)


def _sign(key: Identity, site: str, name: str, values: Mapping[str, Any]) -> Signed:
    text = body.write({"site": site, **values})
    return Signed(name=name, site=site, body=text, signature=key.sign(name, text))


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A site's public keys for one session, for masks and for the sealed channel. `transcript`: T0."""

    signed: Signed
    transcript: bytes
    masking: bytes
    channel: bytes

    @classmethod
    def sign(cls, key: Identity, site: str, *, transcript: bytes, masking: bytes, channel: bytes) -> Self:
        values = {"transcript": transcript.hex(), "masking": masking.hex(), "channel": channel.hex()}
        return cls.of(_sign(key, site, "keys", values))

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Raises MessageError."""
        values = signed.values({"transcript": str, "masking": str, "channel": str})
        return cls(signed=signed, **{name: body.binary(text, HASH) for name, text in values.items()})


@dataclass(frozen=True, kw_only=True)
class Shares:
    """A site's two secrets in shares. `transcript`: T1; lists in the order of the key list.

    sealed       for each peer its pair of shares (masking key, self-mask), encrypted; empty for the sender itself
    commitments  for each site, the sender as well, commitments to both
    seed         commitment to the self-mask's seed
    closed       T1 of sessions that the sender closed unanswered: it has opened nothing there and never will
    """

    signed: Signed
    transcript: bytes
    sealed: tuple[bytes, ...]
    commitments: tuple[tuple[bytes, bytes], ...]
    seed: bytes
    closed: tuple[bytes, ...]

    @classmethod
    def sign(
        cls,
        key: Identity,
        site: str,
        *,
        transcript: bytes,
        sealed: Iterable[bytes],
        commitments: Iterable[tuple[bytes, bytes]],
        seed: bytes,
        closed: Iterable[bytes],
    ) -> Self:
        values = {
            "transcript": transcript.hex(),
            "sealed": [text.hex() for text in sealed],
            "commitments": [(one + other).hex() for one, other in commitments],
            "seed": seed.hex(),
            "closed": [session.hex() for session in closed],
        }
        return cls.of(_sign(key, site, "shares", values))

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Raises MessageError."""
        kinds = {"transcript": str, "sealed": list, "commitments": list, "seed": str, "closed": list}
        values = signed.values(kinds)
        if len(values["closed"]) > MOST_CLOSED:
            raise MessageError(f"a shares message that closes more than {MOST_CLOSED} sessions")
        pairs = [body.binary(text, 2 * HASH) for text in values["commitments"]]
        return cls(
            signed=signed,
            transcript=body.binary(values["transcript"], HASH),
            sealed=tuple(b"" if text == "" else body.binary(text, SEALED) for text in values["sealed"]),
            commitments=tuple((pair[:HASH], pair[HASH:]) for pair in pairs),
            seed=body.binary(values["seed"], HASH),
            closed=tuple(body.binary(text, HASH) for text in values["closed"]),
        )


@dataclass(frozen=True, kw_only=True)
class Header:
    """What goes with a masked vector. `transcript`: T2; `vector`: SHA-256 of its words, little-endian; `misfits`: sites
    whose shares for the sender did not fit: a complaint about a pair.
    """

    signed: Signed
    transcript: bytes
    vector: bytes
    misfits: tuple[str, ...]

    @classmethod
    def sign(cls, key: Identity, site: str, *, transcript: bytes, vector: bytes, misfits: Iterable[str]) -> Self:
        values = {"transcript": transcript.hex(), "vector": vector.hex(), "misfits": sorted(misfits)}
        return cls.of(_sign(key, site, "header", values))

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Raises MessageError."""
        values = signed.values({"transcript": str, "vector": str, "misfits": list})
        return cls(
            signed=signed,
            transcript=body.binary(values["transcript"], HASH),
            vector=body.binary(values["vector"], HASH),
            misfits=body.names(values["misfits"]),
        )


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """A site was shown these survivors, and will open for no others. `transcript`: T3."""

    signed: Signed
    transcript: bytes

    @classmethod
    def sign(cls, key: Identity, site: str, *, transcript: bytes) -> Self:
        return cls.of(_sign(key, site, "confirm", {"transcript": transcript.hex()}))

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Raises MessageError."""
        return cls(signed=signed, transcript=body.binary(signed.values({"transcript": str})["transcript"], HASH))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The sender's shares: of the survivors' self-masks, of the missing sites' masking keys. `transcript`: T3."""

    signed: Signed
    transcript: bytes
    masking: Mapping[str, bytes]
    self_mask: Mapping[str, bytes]

    @classmethod
    def sign(
        cls,
        key: Identity,
        site: str,
        *,
        transcript: bytes,
        masking: Mapping[str, bytes],
        self_mask: Mapping[str, bytes],
    ) -> Self:
        values = {
            "transcript": transcript.hex(),
            "masking": {name: share.hex() for name, share in masking.items()},
            "self_mask": {name: share.hex() for name, share in self_mask.items()},
        }
        return cls.of(_sign(key, site, "opened", values))

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Raises MessageError."""
        values = signed.values({"transcript": str, "masking": dict, "self_mask": dict})
        transcript = body.binary(values["transcript"], HASH)
        return cls(
            signed=signed,
            transcript=transcript,
            masking=_shares(values["masking"]),
            self_mask=_shares(values["self_mask"]),
        )


def _shares(values: Mapping[str, Any]) -> dict[str, bytes]:
    shares = {body.name(site): body.binary(text, SHARE_BYTES) for site, text in values.items()}
    if not all(map(in_field, shares.values())):
        raise MessageError("a share that is no number below the prime")
    return shares


def answer(*messages: Signed) -> bytes:
    """A site's messages of one exchange, on their way to the server."""
    return body.write({message.name: message.envelope for message in messages})


def answered(data: bytes, roster: Roster, *, site: str) -> dict[str, Signed]:
    """The messages in an answer of this site, by type, verified. Raises MessageError."""
    values = body.parse(data)
    if not isinstance(values, dict) or not values.keys() <= _NAMES:
        raise MessageError(f"an answer of {site} that is no messages of a session")
    messages = {name: received(envelope, name, roster) for name, envelope in values.items()}
    if any(message.site != site for message in messages.values()):
        raise MessageError(f"an answer of {site} with a message of another site")
    return messages


_NAMES = {"keys", "shares", "header", "confirm", "opened"}
