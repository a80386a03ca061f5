"""Hospitals of a study with secure aggregation, for the tests of what ties it to studies and orders."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from session_cases import SERVER, identity_of, names_of, roster_of
from small import tiny_study

from client.session import Opening, Sessions
from common import secure, wire
from common.errors import MessageError, Reason
from common.layout import Answering, layout_of
from server import rounds
from server.exchange import Credentials, Received

STUDY = tiny_study(study={"min_sites": 3}, aggregation={"secure": True, "weights": "equal", "range": 0.5})
RUN = sha256(b"a run").hexdigest()


def vector_of(site: str, kind: Answering = "update") -> wire.Vector:
    """What a site has to say: different for each, weight 1."""
    layout = layout_of(STUDY, kind)
    vector = np.full(layout.length, 0.01 * (1 + int(site[-1])), np.float32)
    if kind == "update":
        vector[layout.tensor_length] = 1.0
    return vector


def order_of(kind: wire.Kind, *, round: int = 1, session: bytes = b"", value: float = 0.5) -> wire.Order:
    weights = np.full(3, value, np.float32)
    return wire.Order(
        kind=kind,
        round=round,
        attempt=1,
        study_hash=STUDY.sha256,
        weights=weights,
        weights_hash=wire.digest_of(weights),
        run=RUN,
        session=session,
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One exchange: each site's order, and the terms."""

    orders: Mapping[str, wire.Order]
    length: int
    deadline: float
    grace: float
    wanted: int  # answers that were taken before there were enough; all where there never were

    @property
    def kinds(self) -> dict[str, str]:
        return {site: order.kind for site, order in self.orders.items()}


@dataclass
class Hospitals:
    """In the place of `server.exchange.Exchange`: the real sessions of some sites, who answer at once or not at all.

    away    (kind of order, site): does not answer
    spoilt  (kind of order, site): what becomes of its answer on the way
    twice   every answer comes a second time
    """

    count: int = 4
    away: set[tuple[str, str]] = field(default_factory=set)
    spoilt: dict[tuple[str, str], Callable[[wire.Answer], wire.Answer]] = field(default_factory=dict)
    twice: bool = False
    asked: list[Asked] = field(default_factory=list)
    openings: list[tuple[str, Opening]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = roster_of(names_of(self.count), min_sites=3)
        self.nodes = {100 + i: name for i, name in enumerate(names_of(self.count))}
        setting = secure.setting_of(STUDY, self.roster, run=RUN)
        self.sites = {
            name: Sessions(
                identity=identity_of(name),
                site=name,
                setting=setting,
                min_sites=setting.min_sites,
                opened=lambda opening, name=name: self.openings.append((name, opening)),
            )
            for name in self.nodes.values()
        }
        self.credentials = Credentials(key=SERVER, roster=self.roster)

    def begin(self, kind: Answering = "update") -> rounds.Round:
        present = self.nodes.values()
        return rounds.begin(number=1, attempt=1, quorum=3, phases=[kind], present=present, absent={})

    def ask(
        self,
        orders: Mapping[int, wire.Order],
        *,
        length: int,
        deadline: float,
        enough: Callable[[], bool],
        grace: float,
    ) -> Iterator[Received]:
        wanted, met = 0, False
        for node, order in orders.items():
            answer = self.answer(self.nodes[node], order)
            if answer is None:
                yield Received(node=node, reason=Reason.LATE, bytes_down=10, seconds=deadline)
                continue
            for _ in range(1 + self.twice):
                yield Received(node=node, reason=answer.reason, answer=answer, bytes_down=10, bytes_up=20, seconds=0.25)
            met = met or enough()
            wanted += not met
        named = {self.nodes[node]: order for node, order in orders.items()}
        self.asked.append(Asked(orders=named, length=length, deadline=deadline, grace=grace, wanted=wanted))

    def answer(self, site: str, order: wire.Order) -> wire.Answer | None:
        if (order.kind, site) in self.away:
            return None
        found = wire.Answer(
            site=site,
            kind=order.kind,
            round=order.round,
            attempt=order.attempt,
            study_hash=order.study_hash,
            order_hash=order.sha256,
            reason=Reason.OK,
        )
        try:
            session, words = self.said(site, order)
        except MessageError:
            return replace(found, reason=Reason.MALFORMED)
        return self.spoilt.get((order.kind, site), lambda same: same)(replace(found, session=session, words=words))

    def said(self, site: str, order: wire.Order) -> tuple[bytes, NDArray[np.uint64] | None]:
        own = self.sites[site]
        if order.kind not in ("update", "evaluate"):
            return getattr(own, order.kind)(order.session), None
        assert order.kind == "update" or order.kind == "evaluate"
        invitation = own.order(order.session)
        words = secure.to_words(vector_of(site, order.kind), STUDY, order.kind, self.roster, key=bytes(32))
        return own.mask(words, session=invitation.session), words

    def kinds(self) -> list[str]:
        """The exchanges so far, each as the kinds of its orders."""
        return ["+".join(sorted(set(asked.kinds.values()))) for asked in self.asked]
