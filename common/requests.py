"""What the server asks in a session, one request for each exchange, signed by its online key.

The signature keeps strangers out; that the server itself lies is what the lists in a request are checked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common import body
from common.crypto import identity
from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.errors import MessageError
from common.session import HASH, Confirm, Header, Keys, Shares, Signed, received
from common.transcript import KeyList, SenderList, Setting, SurvivorList

MOST_SESSIONS = 2**53 - 1  # whole numbers that JSON carries everywhere

_BOUND = {"run": str, "session": int}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request's session, and the request's own digest: the same one again has the same."""

    session: int
    sha256: bytes


@dataclass(frozen=True, kw_only=True)
class AskShares(Ask):
    """Exchange S."""

    key_list: KeyList


@dataclass(frozen=True, kw_only=True)
class AskMasked(Ask):
    """Exchange A: the order's digest, all share messages, and the number of the session to make keys for (0: none)."""

    order: bytes
    shares: tuple[Shares, ...]
    next: int


@dataclass(frozen=True, kw_only=True)
class AskOpening(Ask):
    """Exchange B: the survivors' headers, none where the session is closed; keys of the next session, or none."""

    headers: tuple[Header, ...]
    next_list: KeyList | None

    @property
    def closes(self) -> bool:
        return not self.headers


@dataclass(frozen=True, kw_only=True)
class AskReveal(Ask):
    """Exchange C."""

    confirms: tuple[Confirm, ...]


def _write(key: Identity, name: str, setting: Setting, session: int, **values: object) -> bytes:
    text = body.write({"run": setting.run.hex(), "session": session, **values})
    return body.write({"body": text.decode("ascii"), "signature": key.sign(name, text).hex()})


def _envelopes(messages: Iterable[Signed]) -> list[dict[str, str]]:
    return [message.envelope for message in messages]


def ask_keys(key: Identity, setting: Setting, session: int) -> bytes:
    return _write(key, "ask-keys", setting, session, roster=setting.roster.sha256.hex())


def ask_shares(key: Identity, key_list: KeyList) -> bytes:
    keys = _envelopes(keys.signed for keys in key_list.keys)
    return _write(key, "ask-shares", key_list.setting, key_list.session, keys=keys)


def ask_masked(key: Identity, senders: SenderList, *, next: int) -> bytes:
    values = {"order": senders.order.hex(), "shares": _envelopes(shares.signed for shares in senders.shares)}
    return _write(key, "ask-masked", senders.key_list.setting, senders.key_list.session, next=next, **values)


def ask_opening(
    key: Identity, setting: Setting, session: int, *, survivors: SurvivorList | None, next_list: KeyList | None
) -> bytes:
    """`survivors`: None closes the session."""
    headers = [] if survivors is None else _envelopes(header.signed for header in survivors.headers)
    keys = [] if next_list is None else _envelopes(keys.signed for keys in next_list.keys)
    following = 0 if next_list is None else next_list.session
    return _write(key, "ask-opening", setting, session, headers=headers, next=following, keys=keys)


def ask_reveal(key: Identity, setting: Setting, session: int, confirms: Iterable[Confirm]) -> bytes:
    return _write(key, "ask-reveal", setting, session, confirms=_envelopes(confirm.signed for confirm in confirms))


def _read(data: bytes, name: str, setting: Setting, expected: dict[str, type]) -> tuple[Ask, dict[str, Any]]:
    """The request, signed by the roster's server, of this run. Raises MessageError."""
    outer = body.read(data, {"body": str, "signature": str}, limit=2 * body.LIMIT)
    signature = body.binary(outer["signature"], SIGNATURE_BYTES)
    try:
        text = outer["body"].encode("ascii")
    except UnicodeEncodeError as error:
        raise MessageError("a request that is not in ASCII") from error
    identity.verify(setting.roster.server, name, text, signature)
    values = body.read(text, _BOUND | expected)
    if body.binary(values["run"], HASH) != setting.run:
        raise MessageError("a request of another run")
    session = body.whole(values["session"], least=1, most=MOST_SESSIONS)
    return Ask(session=session, sha256=identity.digest(name, text)), values


def read_ask_keys(data: bytes, setting: Setting) -> Ask:
    """Raises MessageError, as all that follow do."""
    ask, values = _read(data, "ask-keys", setting, {"roster": str})
    if body.binary(values["roster"], HASH) != setting.roster.sha256:
        raise MessageError("a request under another roster than the one that this site has pinned")
    return ask


def read_ask_shares(data: bytes, setting: Setting) -> AskShares:
    ask, values = _read(data, "ask-shares", setting, {"keys": list})
    key_list = _key_list(values["keys"], setting, ask.session)
    return AskShares(session=ask.session, sha256=ask.sha256, key_list=key_list)


def read_ask_masked(data: bytes, setting: Setting) -> AskMasked:
    ask, values = _read(data, "ask-masked", setting, {"order": str, "shares": list, "next": int})
    return AskMasked(
        session=ask.session,
        sha256=ask.sha256,
        order=body.binary(values["order"], HASH),
        shares=tuple(Shares.of(received(entry, "shares", setting.roster)) for entry in values["shares"]),
        next=_following(values["next"], ask.session),
    )


def read_ask_opening(data: bytes, setting: Setting) -> AskOpening:
    ask, values = _read(data, "ask-opening", setting, {"headers": list, "next": int, "keys": list})
    following = _following(values["next"], ask.session)
    if (following == 0) != (not values["keys"]):
        raise MessageError("a next session without keys, or keys without one")
    return AskOpening(
        session=ask.session,
        sha256=ask.sha256,
        headers=tuple(Header.of(received(entry, "header", setting.roster)) for entry in values["headers"]),
        next_list=_key_list(values["keys"], setting, following) if following else None,
    )


def read_ask_reveal(data: bytes, setting: Setting) -> AskReveal:
    ask, values = _read(data, "ask-reveal", setting, {"confirms": list})
    confirms = tuple(Confirm.of(received(entry, "confirm", setting.roster)) for entry in values["confirms"])
    return AskReveal(session=ask.session, sha256=ask.sha256, confirms=confirms)


def _key_list(entries: list[object], setting: Setting, session: int) -> KeyList:
    keys = tuple(Keys.of(received(entry, "keys", setting.roster)) for entry in entries)
    return KeyList(setting=setting, session=session, keys=keys)


def _following(number: object, session: int) -> int:
    """The number of a later session, or 0 for none."""
    following = body.whole(number, most=MOST_SESSIONS)
    if not (following == 0 or following > session):
        raise MessageError(f"session {following} after session {session}: numbers only rise")
    return following
