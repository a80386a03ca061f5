"""Secure aggregation where sites are processes that come and go: vectors come from them, masks are put on beside them.

A site keeps its session's secrets in memory, and Flower's simulation runtime gives a site another process for every
message. So here the sites' side of the protocol, the same code, runs next to the server, and only the work of a vector
is sent to the runtime. What the server gets is what it would get from hospitals.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from client import app as client_app
from client import private, secure
from client.site import Site, known_study, note_error, open_site
from common import params, wire
from common.errors import FederationError, Reason
from common.kinds import answering
from common.layout import layout_of
from common.models import build_model
from common.study import Study
from server import gathering

worker = ClientApp()


@worker.query()
@worker.train()
@worker.evaluate()
def handle(message: Message, context: Context) -> Message:
    """In the runtime: a vector in the clear, which no client of a secure study would send; the rest as ever."""
    order = wire.order_from(message.content)
    if order.kind == "propose":
        return client_app.handle(message, context)
    site = open_site(client_app.folder_of(context))
    try:
        study = known_study(site, order.study_hash)
        if study is None:
            return _message(site, order, Reason.STUDY_CHANGED, message)
        vector = client_app.vector(site, study, order, message)
    except Exception as error:
        note_error(site, f"round {order.round}", error)
        return _message(site, order, error.code if isinstance(error, FederationError) else Reason.FAILED, message)
    return _message(site, order, Reason.OK, message, vector=vector)


def _message(site: Site, order: wire.Order, reason: Reason, to: Message, **more: Any) -> Message:
    answer = replace(client_app.verdict(site, order, reason), **more)
    return Message(client_app.said(site, answer), reply_to=to)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """An order on its way: to the runtime (`plain`), or answered here already."""

    message: Message
    order: wire.Order
    plain: wire.Order | None = None
    answer: Message | None = None


class MasksBeside(Grid):
    """A Grid around the runtime's: answers what belongs to the protocol alone, and masks the vectors that come back."""

    def __init__(self, inner: Grid, study: Study, folders: Mapping[str, Path]) -> None:
        self._inner, self._study, self._folders = inner, study, folders
        self._sites: dict[int, Site] = {}  # by node, from the answer to the proposal
        self._sent: dict[str, _Sent] = {}
        self._count = 0
        with torch.device("meta"):
            self._length = params.length(params.shapes(build_model(study), trainable=False))

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """Pass on."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send on what needs work, without the protocol's part; answer the rest."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        order, site = wire.order_from(message.content), self._sites.get(message.metadata.dst_node_id)
        if order.kind == "propose" or site is None:
            (identifier,) = self._inner.push_messages([message])
            self._sent[identifier] = _Sent(message=message, order=order)
            return identifier
        self._count += 1
        identifier = f"beside-{self._count}"
        if answering(order.kind) is None:
            answer = Message(client_app.said(site, client_app.respond(site, message)), reply_to=message)
            self._sent[identifier] = _Sent(message=message, order=order, answer=answer)
            return identifier
        try:
            client_app.demand_server(site, order, message)
            invitation = secure.invited(site, self._study, order)
            if self._study.privacy is not None:
                private.take_up(site, self._study, order, invitation)
        except FederationError as error:
            note_error(site, f"round {order.round}", error)
            self._sent[identifier] = _Sent(
                message=message, order=order, answer=_message(site, order, error.code, message)
            )
            return identifier
        weights = wire.weights_from(message.content, order, length=self._length) if order.weights_hash else None
        plain = replace(order, session=b"", weights=weights)
        forwarded = Message(
            wire.order_record(plain),
            message.metadata.dst_node_id,
            message.metadata.message_type,
            ttl=message.metadata.ttl,
            group_id=message.metadata.group_id,
        )
        (identifier,) = self._inner.push_messages([forwarded])
        self._sent[identifier] = _Sent(message=message, order=order, plain=plain)
        return identifier

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What has been answered, vectors masked."""
        found = []
        for identifier in message_ids:
            sent = self._sent.get(identifier)
            if sent is not None and sent.answer is not None:
                found.append(self._sent.pop(identifier).answer or sent.answer)
                continue
            for reply in self._inner.pull_messages([identifier]):
                found.append(reply if sent is None else self._masked(sent, reply))
                self._sent.pop(identifier, None)
        return found

    def _masked(self, sent: _Sent, reply: Message) -> Message:
        if sent.plain is None or not reply.has_content():
            if sent.order.kind == "propose" and reply.has_content():
                name = wire.site_of(reply.content)
                if name in self._folders:
                    self._sites[reply.metadata.src_node_id] = open_site(self._folders[name])
            return reply
        site = self._sites[sent.message.metadata.dst_node_id]
        try:
            length = layout_of(self._study, gathering.answering(sent.order)).length
            plain = wire.answer_from(reply.content, to=sent.plain, length=length)
            vector = plain.vector
            if vector is None:
                return _message(site, sent.order, plain.reason, sent.message)

            def opened(asked: wire.Order) -> None:
                if self._study.privacy is not None:
                    private.opened_sum(site, self._study, asked)

            session, words = secure.respond(site, self._study, sent.order, lambda _invitation: vector, opened)
        except FederationError as error:
            note_error(site, f"round {sent.order.round}", error)
            return _message(site, sent.order, error.code, sent.message)
        return _message(site, sent.order, Reason.OK, sent.message, session=session, words=words)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used: it collects all answers before the first is looked at."""
        raise RuntimeError("orders are pushed and answers pulled, one at a time")
