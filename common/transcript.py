"""What a session's parties were shown, as verified lists: the keys, the senders of shares, the survivors. T0 to T3 are
their hashes. Both sides build them with the same code.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from common import body
from common.errors import MessageError
from common.roster import Roster, threshold
from common.session import HASH, Header, Keys, Shares, Signed


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all sessions of a run share. Hashes have 32 bytes.

    study, layout  hashes of the study's canonical JSON, and of how a vector becomes words
    run            Fedward's own id of the run, 32 bytes
    min_sites      sites without which no sum is opened: the larger of the roster's and the study's
    most_sites     n_max: sites whose vectors fit into one sum

    Raises ValueError for a hash of another length, or sizes that contradict each other.
    """

    roster: Roster
    study: bytes
    layout: bytes
    run: bytes
    min_sites: int
    most_sites: int

    def __post_init__(self) -> None:
        if not len(self.study) == len(self.layout) == len(self.run) == HASH:
            raise ValueError(f"study, layout and run are {HASH} bytes each")
        if not self.roster.min_sites <= self.min_sites <= self.most_sites < 2**15:
            raise ValueError(
                f"min_sites = {self.min_sites}, most_sites = {self.most_sites}: at least the roster's "
                f"{self.roster.min_sites}, ascending"
            )

    def transcript(self, session: int) -> bytes:
        """T0."""
        return _hash(0, self.roster.sha256, self.study, self.layout, self.run, session.to_bytes(8, "big"))


def _hash(step: int, *fields: bytes) -> bytes:
    """SHA-256 over a fixed label and fields of fixed width."""
    return hashlib.sha256(b"fedward/1/T%d" % step + b"".join(fields)).digest()


def _list(messages: Iterable[Signed]) -> bytes:
    """The hashes of messages in the order of their sites, with a 16-bit count before them."""
    hashes = [message.sha256 for message in messages]
    return len(hashes).to_bytes(2, "big") + b"".join(hashes)


def _ascending(messages: Sequence[Keys] | Sequence[Shares] | Sequence[Header], what: str) -> None:
    if not body.ascending(tuple(message.signed.site for message in messages)):
        raise MessageError(f"a list of {what} that is not in the order of its sites, or names one twice")


@dataclass(frozen=True, kw_only=True)
class KeyList:
    """The sites of a session with their keys, by name: n of them. A site's place is 1 … n.

    Guarantees: all rest on this session's T0; all 2 n keys are different; at least `min_sites` and at most `most_sites`
    sites. Raises MessageError.
    """

    setting: Setting
    session: int
    keys: tuple[Keys, ...]

    def __post_init__(self) -> None:
        _ascending(self.keys, "keys")
        if not self.setting.min_sites <= len(self.keys) <= self.setting.most_sites:
            raise MessageError(
                f"session {self.session}: keys of {len(self.keys)} sites; {self.setting.min_sites} to "
                f"{self.setting.most_sites} are needed"
            )
        expected = self.setting.transcript(self.session)
        if any(keys.transcript != expected for keys in self.keys):
            raise MessageError(f"session {self.session}: keys for another session, run, study or roster")
        if len({key for keys in self.keys for key in (keys.masking, keys.channel)}) != 2 * len(self.keys):
            raise MessageError(f"session {self.session}: one key is there twice")

    @cached_property
    def transcript(self) -> bytes:
        """T1."""
        return _hash(1, self.setting.transcript(self.session), _list(keys.signed for keys in self.keys))

    @cached_property
    def places(self) -> dict[str, int]:
        """Each site's place, by name: also what its share is the value at."""
        return {keys.signed.site: place for place, keys in enumerate(self.keys, start=1)}

    @property
    def threshold(self) -> int:
        """t."""
        return threshold(len(self.keys), self.setting.roster.colluding)

    @property
    def needed(self) -> int:
        """Senders of shares, and survivors, without whom nothing is masked or opened."""
        return max(self.threshold, self.setting.min_sites)


@dataclass(frozen=True, kw_only=True)
class SenderList:
    """The senders of shares, by name, and the order whose answer they mask (its SHA-256).

    Guarantees: all are in the key list and rest on its T1, with one sealed pair for each peer and one pair of
    commitments for each site; at least max(t, min_sites). Raises MessageError.
    """

    key_list: KeyList
    order: bytes
    shares: tuple[Shares, ...]

    def __post_init__(self) -> None:
        session = self.key_list.session
        _ascending(self.shares, "shares")
        if len(self.shares) < self.key_list.needed:
            raise MessageError(
                f"session {session}: {len(self.shares)} senders of shares; at least {self.key_list.needed} are needed"
            )
        if len(self.order) != HASH:
            raise MessageError(f"session {session}: an order's digest of {len(self.order)} bytes")
        for shares in self.shares:
            check_shares(self.key_list, shares)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(shares.signed.site for shares in self.shares)

    @cached_property
    def transcript(self) -> bytes:
        """T2."""
        return _hash(2, self.key_list.transcript, self.order, _list(shares.signed for shares in self.shares))


@dataclass(frozen=True, kw_only=True)
class SurvivorList:
    """The survivors' headers, by name.

    Guarantees: all are senders of shares and rest on T2; at least max(t, min_sites). Raises MessageError.
    """

    senders: SenderList
    headers: tuple[Header, ...]

    def __post_init__(self) -> None:
        session = self.senders.key_list.session
        _ascending(self.headers, "headers")
        if len(self.headers) < self.senders.key_list.needed:
            raise MessageError(
                f"session {session}: {len(self.headers)} survivors; at least {self.senders.key_list.needed} are needed"
            )
        for header in self.headers:
            check_header(self.senders, header)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(header.signed.site for header in self.headers)

    @property
    def missing(self) -> tuple[str, ...]:
        """Senders of shares that are not survivors."""
        return tuple(name for name in self.senders.names if name not in self.names)

    @cached_property
    def transcript(self) -> bytes:
        """T3."""
        return _hash(3, self.senders.transcript, _list(header.signed for header in self.headers))


def check_shares(key_list: KeyList, shares: Shares) -> None:
    """Raises MessageError unless these are a site's shares for this list: one sealed pair for each peer, one pair of
    commitments for each site. Whether a pair fits, only its receiver can see.
    """
    session, site, places = key_list.session, shares.signed.site, key_list.places
    own = places.get(site)
    if own is None or shares.transcript != key_list.transcript:
        raise MessageError(f"session {session}: shares of {site} for another list of keys")
    if not len(shares.sealed) == len(shares.commitments) == len(places):
        raise MessageError(f"session {session}: {site} sent shares for another number of sites")
    if any((not sealed) != (place == own) for place, sealed in enumerate(shares.sealed, start=1)):
        raise MessageError(f"session {session}: {site} left out a peer's shares")


def check_header(senders: SenderList, header: Header) -> None:
    """Raises MessageError unless this is a sender's header under this T2 that complains about other senders, if any."""
    session, site = senders.key_list.session, header.signed.site
    if site not in senders.names or header.transcript != senders.transcript:
        raise MessageError(f"session {session}: a header of {site} for another list of senders")
    if not set(header.misfits) <= set(senders.names) - {site}:
        raise MessageError(f"session {session}: {site} complains about a site that sent no shares")
