"""The Flower ClientApp: a message becomes an order, the site's folder answers it, the answer becomes a message."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from torch import nn

from client import approval, audit, heads, membership, permit, private, secure, train
from client.chain_lines import Anchor, Entry
from client.dataset import Dataset, fingerprint, open_dataset
from client.session import Invitation
from client.site import Site, known_study, note_error, open_site, remember
from common import anchor, guarantee, params, wire
from common.errors import FederationError, MessageError, Reason
from common.kinds import answering
from common.models import build_model
from common.randomness import seeded
from common.roster import RosterError
from common.study import Study, from_json

WARM = 16  # datasets kept open between messages: enough for the sites of one machine, bounded whatever their number

app = ClientApp()


@app.query()
@app.train()
@app.evaluate()
def handle(message: Message, context: Context) -> Message:
    """Answer one message, whatever is in it: an error becomes a reason code, its text stays in the site's folder.

    Without a usable site folder the answer is an error without text: Flower would send the server that of an exception.
    """
    try:
        site = open_site(folder_of(context))
    except (FederationError, OSError, KeyError) as error:
        logging.getLogger("fedward").error("no answer: %s", error)
        return Message(Error(0, str(Reason.FAILED)), reply_to=message)
    reply = said(site, respond(site, message))
    _wait(site)
    return Message(reply, reply_to=message)


def said(site: Site, answer: wire.Answer) -> wire.Record:
    """An answer as it leaves: signed where the site has an identity. Where its key can't be used nothing else does."""
    with _noting(site, "identity"):
        return wire.answer_record(answer, membership.speaks_as(site.folder))
    return wire.answer_record(replace(answer, reason=Reason.FAILED, vector=None, words=None, session=b""))


def folder_of(context: Context) -> Path:
    """The site's folder: named by the node's configuration, or by its place in a simulation."""
    if "site" in context.node_config:
        return Path(str(context.node_config["site"]))
    return Path(os.environ["FEDWARD_SITES"]) / f"site-{context.node_config['partition-id']}"


def respond(site: Site, message: Message) -> wire.Answer:
    """The site's answer to an order; order and answer are in its audit log when this returns.

    Never raises: the text of an exception would reach the server.
    """
    size = wire.size_of(message.content)
    try:
        order = wire.order_from(message.content)
    except MessageError as error:
        note_error(site, "order", error)
        with _noting(site, "audit"):
            audit.unreadable(site, error, size=size)
        return _unreadable(site)
    wrong: Exception | None = None
    try:
        lines = audit.received(site, order, size=size)
        answer = _answer(site, order, message, lines)
    except Exception as error:
        note_error(site, f"round {order.round}", error)
        wrong = error
        answer = verdict(site, order, error.code if isinstance(error, FederationError) else Reason.FAILED)
    with _noting(site, "audit"):
        return _attested(site, answer, audit.answered(site, answer, wrong))
    return verdict(site, order, Reason.FAILED)  # nothing leaves that could not be written down


def _attested(site: Site, answer: wire.Answer, line: Anchor) -> wire.Answer:
    """The answer, and by its side where the log stands that it was just written down in, and where the privacy ledger
    does: the coordinator keeps the one, all sites the other. Where nothing else is asked or given, what the site has
    heard of others' ledgers goes along. A site without an identity has nobody to keep it.
    """
    key = membership.speaks_as(site.folder)
    if key is None:
        return answer
    told: list[anchor.Head] = []
    if answer.kind == "propose" or answer.reason is not Reason.OK:
        with suppress(FederationError):  # what can't be read can't be told, and is why the site refuses
            roster = membership.pinned(site.folder)
            known = {} if roster is None else heads.remembered(site, roster.identities)
            told = [head for of_one in known.values() for head in of_one]
    if (head := audit.ledger_head(site)) is not None:
        told.append(anchor.Head.sign(key, site=site.name, sequence=head.sequence, hash=head.hash))
    stated = anchor.line(line.sequence, line.hash)
    return replace(answer, audit=stated, heads=tuple(map(str, told)))


@contextmanager
def _noting(site: Site, where: str) -> Iterator[None]:
    """Errors of what every answer needs, for the operator."""
    try:
        yield
    except Exception as error:
        note_error(site, where, error)


def _wait(site: Site) -> None:
    """Until the next multiple of `policy.answer_every`: how long the work took is not to be seen."""
    every = site.policy.answer_every
    if every:
        time.sleep(every - time.time() % every)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Warm:
    study: Study
    dataset: Dataset
    fingerprint: tuple[int, int, bool]


_datasets: OrderedDict[tuple[Path, str], _Warm] = OrderedDict()
_models: OrderedDict[str, nn.Module] = OrderedDict()


def _answer(site: Site, order: wire.Order, message: Message, lines: Sequence[Entry]) -> wire.Answer:
    """What to answer; `lines` of the audit log say what was approved."""
    demand_server(site, order, message)
    if order.kind == "propose":
        study = from_json(order.study_json)
        if study.sha256 != order.study_hash:
            return verdict(site, order, Reason.STUDY_CHANGED)
        permit.study(site, study, lines)
        if study.privacy is None:
            private.demand_unprotected(site, study)
        else:
            private.agree(site, study)
        remember(site, study)
        approval.settle(site, study)
        return verdict(site, order, Reason.OK)
    known = known_study(site, order.study_hash)
    if known is None:
        return verdict(site, order, Reason.STUDY_CHANGED)
    permit.order(site, known, order, lines)
    if known.privacy is None:  # patients may have got a ledger since the study was agreed to
        private.demand_unprotected(site, known)
    if known.aggregation.secure:
        return _masked(site, known, order, message)
    if order.session or answering(order.kind) is None:
        raise MessageError("an order of secure aggregation in a study without it")
    return replace(verdict(site, order, Reason.OK), vector=vector(site, known, order, message))


def demand_server(site: Site, order: wire.Order, message: Message) -> None:
    """A site that has an identity takes orders by the server that its roster names and by nobody else, as long as the
    roster is good, and keeps what they tell of the sites' ledgers. Raises RosterError, LedgerError, ChainError.
    """
    if membership.speaks_as(site.folder) is None:
        return
    roster = membership.pinned(site.folder)
    if roster is None:
        raise RosterError(f"{site.folder / membership.ROSTER}: missing, so no order is followed: `client join`")
    if not time.time() < roster.expires:
        raise RosterError("roster: expired, so no order is followed; ask the coordinator for the next version")
    try:
        wire.demand_order_by(roster.server, message.content)
    except MessageError as error:
        raise RosterError(f"an order that the server of this site's roster has not signed ({error})") from error
    if order.kind == "propose" or answering(order.kind):
        heads.take(site, order.heads, roster.identities)


def _masked(site: Site, study: Study, order: wire.Order, message: Message) -> wire.Answer:
    """The answer of a secure study: nothing that was computed from the site's data leaves it in the clear."""
    if not order.session:
        raise MessageError("an order in the clear in a study with secure aggregation")

    def opened(asked: wire.Order) -> None:
        if study.privacy is not None:
            private.opened_sum(site, study, asked)

    def compute(invitation: Invitation) -> wire.Vector:
        if study.privacy is not None:
            private.take_up(site, study, order, invitation)
        return vector(site, study, order, message)

    session, words = secure.respond(site, study, order, compute, opened)
    return replace(verdict(site, order, Reason.OK), session=session, words=words)


def vector(site: Site, study: Study, order: wire.Order, message: Message) -> wire.Vector:
    """What the site has to say to a `count`, `update` or `evaluate` order, not yet masked."""
    guarantee.class_prior(study, order.kind, order.prior)
    if order.kind == "count":
        if order.weights_hash:
            raise MessageError("an order to count classes, with weights")
        return private.count(site, study, order, lambda: _dataset(site, study))
    model = _model(study)
    shapes = params.shapes(model, trainable=False)
    params.assign(model, wire.weights_from(message.content, order, length=params.length(shapes)))
    if study.privacy is not None:
        answer = private.update if order.kind == "update" else private.evaluate
        return answer(site, study, order, model, lambda: _dataset(site, study))
    if order.kind == "update":
        return train.update(model, _dataset(site, study), study, site=site.name, round=order.round)
    return train.evaluate(model, _dataset(site, study), study)


def _model(study: Study) -> nn.Module:
    """The study's model, kept between messages; every order brings all of its weights."""
    if study.sha256 not in _models:
        with seeded(study.study.seed, "initialisation"):
            _models[study.sha256] = build_model(study).to(train.device())
        while len(_models) > 1:
            _models.popitem(last=False)
    return _models[study.sha256]


def _dataset(site: Site, study: Study) -> Dataset:
    """The site's dataset, kept between messages until the index or what the policy leaves of it changes."""
    key = (site.folder, study.sha256)
    warm = _datasets.get(key)
    if warm is None or warm.fingerprint != fingerprint(site):
        dataset = open_dataset(site, study)
        if not dataset.whole:
            return dataset
        warm = _Warm(study=study, dataset=dataset, fingerprint=fingerprint(site))
        _datasets[key] = warm
    _datasets.move_to_end(key)
    while len(_datasets) > WARM:
        _datasets.popitem(last=False)
    return warm.dataset


def verdict(site: Site, order: wire.Order, reason: Reason) -> wire.Answer:
    return wire.Answer(
        site=site.name,
        kind=order.kind,
        round=order.round,
        attempt=order.attempt,
        study_hash=order.study_hash,
        order_hash=order.sha256,
        reason=reason,
    )


def _unreadable(site: Site) -> wire.Answer:
    """What a site says to bytes that aren't an order: an answer that belongs to none, with the reason."""
    return wire.Answer(
        site=site.name,
        kind="propose",
        round=0,
        attempt=0,
        study_hash="",
        order_hash="",
        reason=Reason.MALFORMED,
    )
