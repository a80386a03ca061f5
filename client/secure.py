"""Secure aggregation at a site: the sessions of each run, in memory alone, and answers that leave masked.

After a restart the site has left its sessions; the server sets up another one.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from client import audit
from client.membership import Membership, membership
from client.session import Invitation, Opening, Sessions
from client.site import Site
from common import secure
from common.errors import MessageError
from common.kinds import Answering
from common.study import Study
from common.wire import Order, Vector, Words

Compute = Callable[[Invitation], Vector]  # the vector for an order whose session this site has joined
Opened = Callable[[Order], None]  # is called before the sum that holds the answer to this order is opened
RUNS = 4  # of one site whose sessions are kept: of studies that run at once, and of a run that was begun anew


@dataclass(kw_only=True)
class _Run:
    membership: Membership
    sessions: Sessions
    orders: dict[bytes, Order] = field(default_factory=dict)  # by digest: what was asked in the sessions that are open
    opened: Opened = lambda _order: None


_runs: dict[Path, dict[tuple[str, str], _Run]] = {}  # by site folder, then by run and study


def respond(site: Site, study: Study, order: Order, compute: Compute, opened: Opened) -> tuple[bytes, Words | None]:
    """The protocol's message that answers an order, and to `count`, `update` and `evaluate` the masked vector.

    Raises: MessageError for whatever the protocol refuses, RosterError where the site has no place in a roster, and
    what `compute` raises.
    """
    run = _run(site, study, order)
    run.opened = opened
    match order.kind:
        case "keys":
            return run.sessions.keys(order.session), None
        case "shares":
            return run.sessions.shares(order.session), None
        case "open":
            return run.sessions.open(order.session), None
        case "reveal":
            return run.sessions.reveal(order.session), None
        case "count" | "update" | "evaluate" as kind:
            return _masked(run, study, order, kind, compute)
        case "propose":
            raise MessageError("a proposal is no part of a session")


def invited(site: Site, study: Study, order: Order) -> Invitation:
    """The session that an order for a vector belongs to, joined: before anything is computed for it.

    Raises MessageError, RosterError as `respond` does.
    """
    return _joined(_run(site, study, order), order)


def _joined(run: _Run, order: Order) -> Invitation:
    invitation = run.sessions.order(order.session)
    if invitation.order != bytes.fromhex(order.sha256):
        raise MessageError("a session for another order than the one that it came with")
    return invitation


def _masked(run: _Run, study: Study, order: Order, kind: Answering, compute: Compute) -> tuple[bytes, Words]:
    invitation = _joined(run, order)
    if invitation.answer is not None and invitation.words is not None:
        return invitation.answer, invitation.words
    run.orders = {invitation.order: order}
    words = secure.to_words(compute(invitation), study, kind, run.membership.roster, key=os.urandom(32))
    return run.sessions.mask(words, session=invitation.session), words


def _run(site: Site, study: Study, order: Order) -> _Run:
    """The run's sessions under this study; new ones where this process has none, or the roster has changed: those of
    the old one are left, with their secrets.
    """
    if not order.run:
        raise MessageError("an order of secure aggregation without its run")
    own = site.policy
    place = membership(
        site.folder, name=site.name, now=int(time.time()), colluding=own.colluding, min_sites=own.min_sites
    )
    runs, key = _runs.setdefault(site.folder, {}), (order.run, study.sha256)
    known = runs.get(key)
    if known is not None and known.membership.roster.sha256 == place.roster.sha256:
        return known

    def opened(opening: Opening) -> None:
        audit.sum_opened(site, study.sha256, opening)
        made.opened(made.orders[opening.order])

    setting = secure.setting_of(study, place.roster, run=order.run)
    sessions = Sessions(
        identity=place.identity,
        site=site.name,
        setting=setting,
        min_sites=max(setting.min_sites, own.min_sites),
        opened=opened,
        min_change=own.min_change,
        survivors_before=audit.survivors(audit.entries_of(site.folder), study.sha256) if own.min_change else (),
    )
    runs[key] = made = _Run(membership=place, sessions=sessions)
    while len(runs) > RUNS:
        del runs[next(iter(runs))]
    return made
