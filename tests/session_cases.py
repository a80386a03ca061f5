"""Small federations for the tests of secure aggregation: a roster, the real client of each site, an honest server."""

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray

from client.session import Invitation, Opening, Sessions
from common.crypto.identity import Identity
from common.errors import MessageError
from common.masking import Encoding, MaskedSum, encode
from common.roster import Roster, issue, member
from common.session import answered
from common.transcript import Setting
from server.session import Session

NOW = 1_800_000_000
ORDER = sha256(b"order").digest()
COORDINATOR, SERVER = (Identity(sha256(who).digest()) for who in (b"coordinator", b"server"))
SUPERNODE = "ecdsa-sha2-nistp384 AAAA"


def identity_of(site: str) -> Identity:
    return Identity(sha256(site.encode()).digest())


def roster_of(names: Iterable[str], *, colluding: int = 0, min_sites: int = 2, before: Roster | None = None) -> Roster:
    sites = [
        member(identity_of(name), name=name, supernode=f"{SUPERNODE} {name}", nominal_patients=100) for name in names
    ]
    return issue(
        COORDINATOR,
        sites=sites,
        server=SERVER.public,
        colluding=colluding,
        min_sites=min_sites,
        now=NOW,
        before=before,
        expires=None if before is None else before.expires,
    )


def names_of(n: int) -> list[str]:
    return [f"site-{i}" for i in range(n)]


def encoding_of(n: int) -> Encoding:
    return Encoding(values=5, wide=2, range_=4.0, sites=n)


def setting_of(roster: Roster, *, run: bytes = b"run", min_sites: int | None = None) -> Setting:
    return Setting(
        roster=roster,
        study=sha256(b"study").digest(),
        layout=sha256(b"layout").digest(),
        run=sha256(run).digest(),
        min_sites=roster.min_sites if min_sites is None else min_sites,
        most_sites=128 if len(roster.sites) > 8 else 8,
    )


class Federation:
    """Sites and a server that keep to the protocol. `openings`: what each site told its ledger."""

    def __init__(self, n: int, *, colluding: int = 0, min_sites: int = 2, **policy: int) -> None:
        self.setting = setting_of(roster_of(names_of(n), colluding=colluding, min_sites=min_sites))
        self.encoding = encoding_of(self.setting.most_sites)
        self.openings: dict[str, list[Opening]] = {name: [] for name in names_of(n)}
        self.sites = {name: self.site(name, **policy) for name in names_of(n)}

    def site(self, name: str, **policy: int) -> Sessions:
        """A site as it is after a restart: it remembers nothing."""
        values: dict[str, int] = {"min_sites": self.setting.min_sites, **policy}
        return Sessions(
            identity=identity_of(name),
            site=name,
            setting=self.setting,
            opened=self.openings[name].append,
            min_sites=values["min_sites"],
            min_change=values.get("min_change", 0),
        )

    def session(self, number: int) -> Session:
        return Session(key=SERVER, setting=self.setting, number=number)

    def take(self, data: bytes, site: str, current: Session | None, following: Session | None = None) -> None:
        """Give the messages of an answer to the sessions that they belong to."""
        for name, signed in answered(data, self.setting.roster, site=site).items():
            if name in ("keys", "shares"):
                assert following is not None
                getattr(following, f"take_{name}")(signed)
            else:
                assert current is not None
                getattr(current, f"take_{name}")(signed)

    def set_up(self, number: int, sites: Iterable[str] | None = None, dealers: Iterable[str] | None = None) -> Session:
        """Exchanges K and S: a session whose senders of shares are `dealers`."""
        session = self.session(number)
        sites = list(self.sites if sites is None else sites)
        for name in sites:
            self.take(self.sites[name].keys(session.ask_keys()), name, None, session)
        request = session.ask_shares()
        for name in sites if dealers is None else dealers:
            self.take(self.sites[name].shares(request), name, None, session)
        return session

    def words(self, name: str) -> NDArray[np.uint64]:
        return encode(values_of(name), wide_of(name), self.encoding, key=sha256(name.encode()).digest())[0]

    def masked(
        self, session: Session, answering: Iterable[str], following: Session | None = None
    ) -> dict[str, NDArray[np.uint64]]:
        """Exchange A: the masked vectors of those who answer, by name."""
        request = session.ask_masked(ORDER, next=0 if following is None else following.number)
        vectors = {}
        for name in answering:
            invitation: Invitation = self.sites[name].order(request)
            words = self.words(name)
            sent = answered(self.sites[name].mask(words, session=invitation.session), self.setting.roster, site=name)
            assert session.take_header(sent["header"], vector=sha256(words.tobytes()).digest())
            if following is not None:
                following.take_keys(sent["keys"])
            vectors[name] = words
        return vectors

    def opened(
        self,
        session: Session,
        opening: Iterable[str],
        revealing: Iterable[str] | None = None,
        following: Session | None = None,
    ) -> None:
        """Exchanges B and C."""
        request = session.ask_opening(None if following is None else following.key_list)
        opening = list(opening)
        for name in opening:
            self.take(self.sites[name].open(request), name, session, following)
        if session.survivors.missing:
            request = session.ask_reveal()
            for name in opening if revealing is None else revealing:
                self.take(self.sites[name].reveal(request), name, session)

    def sum_of(self, session: Session, vectors: Mapping[str, NDArray[np.uint64]]) -> tuple[list[float], list[float]]:
        total = MaskedSum(self.encoding)
        for name in session.survivors.names:
            total.add(vectors[name])
        total.unmask(session.streams())
        values, wide = total.values(len(session.survivors.names))
        return values.tolist(), wide.tolist()

    def plain(self, names: Iterable[str]) -> tuple[list[float], list[float]]:
        """The same sum without masks."""
        total = MaskedSum(self.encoding)
        count = 0
        for name in names:
            total.add(self.words(name))
            count += 1
        values, wide = total.values(count)
        return values.tolist(), wide.tolist()


def values_of(name: str) -> NDArray[np.float32]:
    """A site's values: different for each."""
    return np.random.default_rng(int.from_bytes(sha256(name.encode()).digest()[:4])).normal(size=5).astype(np.float32)


def wide_of(name: str) -> NDArray[np.float64]:
    return np.array([float(sha256(name.encode()).digest()[0])])


def refused(call: Callable[[], object], text: str = "") -> None:
    with pytest.raises(MessageError, match=text or None) as caught:
        call()
    assert "\n" not in str(caught.value)


def one(data: bytes, fed: Federation, site: str, kind: str) -> bytes:
    """The body of one message of an answer."""
    return answered(data, fed.setting.roster, site=site)[kind].body
