"""A server that lies, by exhaustion: everything that it can show to the honest sites of a session, and what it learns.

Every answer is the real client's. What answers add up to is counted here, by dealers and kinds of share.

Why this is everything. A site signs shares under one T1 only, and they are sealed under it: sites that were shown other
lists of keys hold nothing of its secrets, so each list of keys is a federation of its own, and the smaller ones are
gone through as such. What sites were shown falls apart by T2: whoever signs a header does so under one, and a header is
accepted under its own T2 alone. Sites of different T2 meet in one thing: both may open shares of the masking key of a
site that they think is missing. Orders, and two share messages of a colluding site, are further values of T2 with the
same senders. Within one T2 each site is shown its own list of survivors, or none.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from itertools import combinations, product

import numpy as np
from session_cases import ORDER, SERVER, Federation, identity_of, names_of

from client.session import Sessions
from common import requests
from common.errors import MessageError
from common.session import Confirm, Header, Opened, answered
from common.transcript import SenderList, SurvivorList

Sites = frozenset[int]
Counts = tuple[int, ...]  # honest openings of a share, by dealer


def subsets(sites: Iterable[int], least: int = 0) -> Iterator[Sites]:
    """All subsets with at least so many members."""
    sites = sorted(sites)
    return (frozenset(chosen) for size in range(least, len(sites) + 1) for chosen in combinations(sites, size))


@dataclass(frozen=True)
class Said:
    """What a site said to a list of survivors: opened (dealers by kind), or confirmed, or refused."""

    masking: Sites = frozenset()
    self_mask: Sites = frozenset()
    confirms: bool = False
    opens: bool = False


@dataclass
class Model:
    """n sites of which the last c belong to the server. `needed` = max(t, min_sites)."""

    n: int
    c: int
    min_sites: int
    fed: Federation = field(init=False)
    answers: int = 0  # of the real client

    def __post_init__(self) -> None:
        self.fed = Federation(self.n, colluding=self.c, min_sites=self.min_sites)
        self.honest = frozenset(range(self.n - self.c))
        self.bad = frozenset(range(self.n)) - self.honest
        self.session = self.fed.set_up(1)
        self.key_list = self.session.key_list
        self.t, self.needed = self.key_list.threshold, self.key_list.needed
        self.shares = [self.session._shares[name] for name in names_of(self.n)]
        self.masked = cache(self._masked)
        self.headers = cache(self._headers)
        self.said = cache(self._said)
        self.revealed = cache(self._revealed)

    def fork(self, site: Sessions) -> Sessions:
        """The same site in another of its possible lives."""
        shared = (site._identity, site._setting, self.key_list)
        return copy.deepcopy(site, {id(each): each for each in shared})

    def senders(self, shown: Sites) -> SenderList:
        return SenderList(key_list=self.key_list, order=ORDER, shares=tuple(self.shares[i] for i in sorted(shown)))

    def _masked(self, i: int, shown: Sites) -> Sessions | None:
        """Site i after it has masked for these senders; None where it refuses."""
        site = self.fork(self.fed.sites[f"site-{i}"])
        self.answers += 1
        try:
            site.order(unchecked_order(self, shown))
        except MessageError:
            return None
        site.mask(np.zeros(4, dtype=np.uint64), session=1)
        return site

    def _headers(self, shown: Sites) -> dict[int, Header]:
        """Everybody's header under these senders: honest sites' own, the others' whatever the server signs."""
        found = {}
        for i in shown & self.honest:
            site = self.masked(i, shown)
            assert site is not None and site._current is not None and site._current.header is not None
            found[i] = site._current.header
        for i in shown & self.bad:
            name = f"site-{i}"
            found[i] = Header.sign(
                identity_of(name), name, transcript=self.senders(shown).transcript, vector=sha256().digest(), misfits=()
            )
        return found

    def _said(self, i: int, shown: Sites, survivors: Sites) -> Said:
        """What site i says to this list of survivors."""
        site = self.masked(i, shown)
        if site is None:
            return Said()
        self.answers += 1
        try:
            data = self.fork(site).open(unchecked_opening(self, shown, survivors))
        except MessageError:
            return Said()
        sent = answered(data, self.fed.setting.roster, site=f"site-{i}")
        return said(Opened.of(sent["opened"])) if "opened" in sent else Said(confirms="confirm" in sent)

    def _revealed(self, i: int, shown: Sites, survivors: Sites, signers: Sites) -> Said:
        """What site i says when these honest sites and all of the server's have confirmed the same."""
        site = self.masked(i, shown)
        assert site is not None
        site = self.fork(site)
        site.open(unchecked_opening(self, shown, survivors))
        self.answers += 1
        t3 = SurvivorList(
            senders=self.senders(shown), headers=tuple(self.headers(shown)[j] for j in sorted(survivors))
        ).transcript
        best = Said()
        for colluding in (self.bad & survivors, self.bad):
            names = [f"site-{j}" for j in sorted(signers | colluding)]
            confirms = [Confirm.sign(identity_of(name), name, transcript=t3) for name in names]
            try:
                data = site.reveal(requests.ask_reveal(SERVER, self.fed.setting, 1, confirms))
            except MessageError:
                continue
            best = said(Opened.of(answered(data, self.fed.setting.roster, site=f"site-{i}")["opened"]))
        return best

    def within(self, shown: Sites, group: Sites) -> set[tuple[Counts, Counts]]:
        """What comes out when exactly `group` of the honest sites were shown these senders: self-mask and masking-key
        shares by dealer, for every choice of a list of survivors for each of them. Only survivors whose header exists.
        """
        lists = list(subsets(shown & (group | self.bad)))
        choices = [[None, *(each for each in lists if self.said(i, shown, each) != Said())] for i in sorted(group)]
        found = set()
        for choice in product(*choices):
            selves, masks = [0] * self.n, [0] * self.n
            for i, survivors in zip(sorted(group), choice, strict=True):
                if survivors is None:
                    continue
                answer = self.said(i, shown, survivors)
                if answer.confirms:
                    signers = frozenset(j for j, other in zip(sorted(group), choice, strict=True) if other == survivors)
                    answer = self.revealed(i, shown, survivors, signers)
                for dealer in answer.self_mask:
                    selves[dealer] += 1
                for dealer in answer.masking:
                    masks[dealer] += 1
            found.add((tuple(selves), tuple(masks)))
        return found

    def smallest(self) -> tuple[int, int]:
        """The fewest honest sites whose sum opens, and the number of different situations that were looked at."""
        within = cache(self.within)
        all_shown = [
            shown for shown in subsets(range(self.n)) if any(self.masked(i, shown) for i in shown & self.honest)
        ]

        @cache
        def elsewhere(others: Sites) -> frozenset[Counts]:
            """Masking-key shares that come from sites under other values of T2."""
            if not others:
                return frozenset({(0,) * self.n})
            first, found = min(others), set()
            for group in subsets(others - {first}):
                mates = group | {first}
                rest = elsewhere(others - mates)
                ways = {(0,) * self.n}
                for shown in all_shown:
                    if mates <= shown:
                        ways |= {masks for _, masks in within(shown, mates)}
                found |= {tuple(map(sum, zip(one, other, strict=True))) for one in ways for other in rest}
            return frozenset(found)

        best, looked = self.n + 1, 0
        for shown in all_shown:
            for group in subsets(shown & self.honest, 1):
                for (selves, masks), more in product(within(shown, group), elsewhere(self.honest - group)):
                    looked += 1
                    total = tuple(map(sum, zip(masks, more, strict=True)))
                    best = min(best, self.opened(shown, group, selves, total))
        return best, looked

    def opened(self, shown: Sites, group: Sites, selves: Counts, masks: Counts) -> int:
        """The fewest honest members of a group whose vectors' sum has no mask left, given the shares that came out: the
        server's sites hold c of every secret.
        """
        knows_self = {i for i in group if selves[i] + self.c >= self.t}
        knows_key = {i for i in self.honest if masks[i] + self.c >= self.t}
        for chosen in subsets(knows_self, 1):
            others = (shown & self.honest) - chosen
            if all(i in knows_key or j in knows_key for i in chosen for j in others):
                return len(chosen)
        return self.n + 1


def said(opened: Opened) -> Said:
    places = [frozenset(int(name[5:]) for name in shares) for shares in (opened.masking, opened.self_mask)]
    return Said(masking=places[0], self_mask=places[1], opens=True)


def unchecked_order(model: Model, shown: Sites) -> bytes:
    """The request for these senders, though an honest server would not make it."""
    envelopes = [model.shares[i].signed.envelope for i in sorted(shown)]
    values = {"order": ORDER.hex(), "shares": envelopes, "next": 0}
    return requests._write(SERVER, "ask-masked", model.fed.setting, 1, **values)


def unchecked_opening(model: Model, shown: Sites, survivors: Sites) -> bytes:
    headers = model.headers(shown)
    envelopes = [headers[i].signed.envelope for i in sorted(survivors)]
    return requests._write(SERVER, "ask-opening", model.fed.setting, 1, headers=envelopes, next=0, keys=[])


def cases() -> list[tuple[int, int, int]]:
    """(n, c, min_sites) for all n up to 5: those that differ in max(t, min_sites)."""
    found = {}
    for n in range(2, 6):
        for c in range(n - 1):
            for min_sites in range(c + 2, n + 1):
                found[n, c, max((n + c) // 2 + 1, min_sites)] = (n, c, min_sites)
    return list(found.values())
