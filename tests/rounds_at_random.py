"""Rounds of secure aggregation drawn at random: sites that drop out, answer late or twice, restart; a server that lies.

The clients are real. A round ends in the exact sum, or in none. What honest sites opened is written down, and counted
afterwards: no sum of fewer honest sites than promised can be made of it.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from session_cases import ORDER, SERVER, Federation, identity_of, names_of

from client.session import Opening, Sessions
from common import requests
from common.crypto.agreement import KeyPair
from common.errors import MessageError
from common.session import Confirm, Header, Keys, Shares, Signed, answered
from common.transcript import KeyList, SenderList, SurvivorList
from server.session import Session, SessionFailed

SIZES = [2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 6, 7, 8]
T = TypeVar("T")
OTHER = sha256(b"another order").digest()


@dataclass
class Opened:
    """An opening of an honest site: under which list of keys and senders, and for whom."""

    site: str
    senders: SenderList
    survivors: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass
class World:
    """A federation and what has happened in it. The last c sites are the server's."""

    draw: random.Random
    n: int
    c: int
    min_sites: int
    fed: Federation = field(init=False)
    number: int = 0
    current: Session | None = None  # set up by the round before
    opened: list[Opened] = field(default_factory=list)
    masked: set[tuple[str, bytes]] = field(default_factory=set)  # site, T2
    exact: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.fed = Federation(self.n, colluding=self.c, min_sites=self.min_sites)
        self.names = names_of(self.n)
        self.honest, self.bad = self.names[: self.n - self.c], self.names[self.n - self.c :]
        for name in self.names:
            self.watch(name)

    def watch(self, name: str) -> None:
        site = self.fed.sites[name]

        def heard(opening: Opening) -> None:
            assert site._current is not None
            self.opened.append(
                Opened(site=name, senders=site._current.senders, survivors=opening.survivors, missing=opening.missing)
            )

        site._opened = heard

    def chance(self, percent: int) -> bool:
        return self.draw.randrange(100) < percent

    def some(self, names: Iterable[str]) -> list[str]:
        """Most of them, mostly."""
        away = self.draw.choice((0, 0, 10, 30))
        return [name for name in names if not self.chance(away)]

    def restart(self) -> None:
        name = self.draw.choice(self.names)
        self.fed.sites[name] = self.fed.site(name)
        self.watch(name)

    def ask(self, name: str, call: Callable[[Sessions, bytes], bytes], request: bytes) -> dict[str, Signed]:
        """A site's answer; it may be asked twice, or be sent a garbled request first. Nothing where it refuses."""
        site = self.fed.sites[name]
        try:
            if self.chance(3):
                place = self.draw.randrange(len(request))
                garbled = (
                    request[:place] + bytes((request[place] ^ 1 << self.draw.randrange(7),)) + request[place + 1 :]
                )
                try:
                    call(site, garbled)
                except MessageError:
                    pass
                else:
                    raise AssertionError("a garbled request was answered")
            sent = call(site, request)
            if self.chance(5):
                assert call(site, request) == sent
        except MessageError:
            return {}
        return answered(sent, self.fed.setting.roster, site=name)

    def new_number(self) -> int:
        self.number += 1
        return self.number

    # An honest server

    def fair_round(self) -> None:
        current, self.current = self.current, None
        if current is None:
            current = self.fed.session(self.new_number())
            self.collect(current, self.some(self.names), Sessions.keys, current.ask_keys(), current.take_keys)
            try:
                request = current.ask_shares()
            except SessionFailed:
                self.refused += 1
                return
            self.collect(current, self.some(current.key_list.places), Sessions.shares, request, current.take_shares)
        following = self.fed.session(self.new_number())
        try:
            request = current.ask_masked(ORDER, next=following.number)
        except SessionFailed:
            self.refused += 1
            return
        assert current._senders is not None
        vectors: dict[str, NDArray[np.uint64]] = {}
        late = []
        for name in self.some(current._senders.names):
            words = self.mask(name, request)
            if words is None:
                continue
            if self.chance(5):
                late.append(name)
                continue
            header, keys = words[1]["header"], words[1].get("keys")
            if current.take_header(header, vector=sha256(words[0].tobytes()).digest()):
                vectors[name] = words[0]
            if keys is not None:
                following.take_keys(keys)
        away = self.some(name for name in self.names if name not in vectors)
        self.collect(following, away, Sessions.keys, following.ask_keys(), following.take_keys)
        try:
            next_list: KeyList | None = following.key_list
        except SessionFailed:
            next_list = None
        if self.chance(5):
            self.restart()
        try:
            request = current.ask_opening(next_list)
            enough = True
        except SessionFailed:
            request = current.ask_closing(next_list)
            enough = False
        for name in self.some(vectors):
            sent = self.ask(name, Sessions.open, request)
            for kind, signed in sent.items():
                if kind == "shares":
                    following.take_shares(signed)
                else:
                    getattr(current, f"take_{kind}")(signed)
        if next_list is not None:
            mine = [name for name in away if name in next_list.places]
            self.collect(following, mine, Sessions.shares, following.ask_shares(), following.take_shares)
            self.current = following
        if not enough:
            self.refused += 1
            return
        try:
            if current.survivors.missing:
                request = current.ask_reveal()
                for name in self.some(current._confirms):
                    for signed in self.ask(name, Sessions.reveal, request).values():
                        current.take_opened(signed)
            summed = self.fed.sum_of(current, vectors)
        except SessionFailed:
            self.refused += 1
            return
        assert summed == self.fed.plain(vectors)
        self.exact += 1

    def collect(
        self,
        session: Session,
        names: Iterable[str],
        call: Callable[[Sessions, bytes], bytes],
        request: bytes,
        take: Callable[[Signed], None],
    ) -> None:
        for name in names:
            for signed in self.ask(name, call, request).values():
                take(signed)
                if self.chance(5):
                    take(signed)

    def mask(self, name: str, request: bytes) -> tuple[NDArray[np.uint64], dict[str, Signed]] | None:
        site = self.fed.sites[name]
        try:
            invitation = site.order(request)
        except MessageError:
            return None
        if invitation.answer is None:
            words = self.fed.words(name)
            sent = site.mask(words, session=invitation.session)
            self.masked.add((name, invitation.senders.transcript))
        else:
            assert invitation.words is not None
            words, sent = invitation.words, invitation.answer
        if self.chance(5):
            again = site.order(request)
            assert again.answer == sent and again.words is words
        return words, answered(sent, self.fed.setting.roster, site=name)

    # A server that lies

    def unfair_round(self) -> None:
        """Up to three of each list, shown to sites at random; whatever confirmations there are."""
        number, setting = self.new_number(), self.fed.setting
        self.current = None
        ask = requests.ask_keys(SERVER, setting, number)
        keys = {
            name: Keys.of(sent["keys"])
            for name in self.some(self.names)
            if (sent := self.ask(name, Sessions.keys, ask))
        }
        key_lists = self.variants(lambda: self.false_keys(keys, number))
        asked = [(key_list, requests.ask_shares(SERVER, key_list)) for key_list in key_lists]
        shares: dict[bytes, dict[str, Shares]] = defaultdict(dict)
        for name in self.names:
            for key_list, request in self.draw.sample(asked, len(asked)):
                sent = self.ask(name, Sessions.shares, request)
                if sent:
                    shares[key_list.transcript][name] = Shares.of(sent["shares"])
        sender_lists = []
        for key_list in key_lists:
            sender_lists += self.variants(lambda k=key_list: self.false_senders(k, shares[k.transcript]))
        orders = [(senders, requests.ask_masked(SERVER, senders, next=0)) for senders in sender_lists]
        headers: dict[bytes, dict[str, Header]] = defaultdict(dict)
        for name in self.names:
            for senders, request in self.draw.sample(orders, len(orders)):
                done = self.mask(name, request)
                if done is not None:
                    headers[senders.transcript][name] = Header.of(done[1]["header"])
        survivor_lists = []
        for senders in sender_lists:
            for name in set(self.bad) & set(senders.names):
                headers[senders.transcript][name] = Header.sign(
                    identity_of(name), name, transcript=senders.transcript, vector=OTHER, misfits=()
                )
            survivor_lists += self.variants(lambda s=senders: self.false_survivors(s, headers[s.transcript]))
        openings = [
            (survivors, requests.ask_opening(SERVER, setting, number, survivors=survivors, next_list=None))
            for survivors in survivor_lists
        ]
        confirms: dict[bytes, dict[str, Confirm]] = defaultdict(dict)
        for name in self.names:
            for survivors, request in self.draw.sample(openings, len(openings)):
                sent = self.ask(name, Sessions.open, request)
                if "confirm" in sent:
                    confirms[survivors.transcript][name] = Confirm.of(sent["confirm"])
        for survivors in survivor_lists:
            for name in self.bad:
                confirms[survivors.transcript][name] = Confirm.sign(
                    identity_of(name), name, transcript=survivors.transcript
                )
        for survivors in survivor_lists:
            found = confirms[survivors.transcript]
            for signers in {frozenset(found) & set(survivors.names), frozenset(found)}:
                request = requests.ask_reveal(SERVER, setting, number, [found[signer] for signer in sorted(signers)])
                for name in self.names:
                    self.ask(name, Sessions.reveal, request)

    def variants(self, make: Callable[[], T]) -> list[T]:
        """Up to three that pass the checks that every site makes too."""
        made = []
        for _ in range(self.draw.choice((1, 2, 2, 3))):
            try:
                made.append(make())
            except MessageError:
                continue
        return made

    def without(self, messages: dict[str, T], share: int) -> dict[str, T]:
        return {name: messages[name] for name in sorted(messages) if not self.chance(share)}

    def false_keys(self, keys: dict[str, Keys], number: int) -> KeyList:
        chosen = self.without(keys, self.draw.choice((0, 0, 10, 30)))
        for name in self.bad:
            if name in chosen and self.chance(30):
                chosen[name] = Keys.sign(
                    identity_of(name),
                    name,
                    transcript=self.fed.setting.transcript(number),
                    masking=KeyPair.new().public,
                    channel=KeyPair.new().public,
                )
        return KeyList(setting=self.fed.setting, session=number, keys=tuple(chosen.values()))

    def false_senders(self, key_list: KeyList, shares: dict[str, Shares]) -> SenderList:
        chosen = self.without(shares, self.draw.choice((0, 0, 10, 40)))
        order = self.draw.choice((ORDER, ORDER, OTHER))
        return SenderList(key_list=key_list, order=order, shares=tuple(chosen.values()))

    def false_survivors(self, senders: SenderList, headers: dict[str, Header]) -> SurvivorList:
        chosen = self.without(headers, self.draw.choice((0, 10, 40)))
        return SurvivorList(senders=senders, headers=tuple(chosen.values()))

    # What came out

    def smallest(self) -> list[tuple[int, int]]:
        """For each list of senders of which a sum opens: honest sites in the smallest, and how many are promised."""
        found = []
        by_keys: dict[bytes, list[Opened]] = defaultdict(list)
        for opened in self.opened:
            if opened.site in self.honest:
                by_keys[opened.senders.key_list.transcript].append(opened)
        for opened in by_keys.values():
            t, needed = opened[0].senders.key_list.threshold, opened[0].senders.key_list.needed
            colluding = len(set(self.bad) & opened[0].senders.key_list.places.keys())
            selves, masks = dict.fromkeys(self.names, colluding), dict.fromkeys(self.names, colluding)
            for each in opened:
                for name in each.survivors:
                    selves[name] += 1
                for name in each.missing:
                    masks[name] += 1
            for transcript, senders in {each.senders.transcript: each.senders for each in opened}.items():
                known = [name for name in self.honest if selves[name] >= t and (name, transcript) in self.masked]
                others = [name for name in senders.names if name in self.honest]
                sizes = [
                    size
                    for size in range(1, len(known) + 1)
                    for chosen in combinations(known, size)
                    if all(
                        masks[one] >= t or masks[other] >= t
                        for one in chosen
                        for other in others
                        if other not in chosen
                    )
                ]
                if sizes:
                    found.append((min(sizes), needed - colluding))
        return found


def play(seed: int, rounds: int) -> World:
    """Some rounds of one federation. A seed is a world."""
    draw = random.Random(seed)
    n = draw.choice(SIZES)
    c = draw.randrange(0, n - 1) if draw.randrange(2) else 0
    world = World(draw=draw, n=n, c=c, min_sites=draw.randrange(c + 2, n + 1))
    for _ in range(rounds):
        if world.chance(40):
            world.unfair_round()
        else:
            world.fair_round()
    return world
