"""Many SuperNodes in one process, whose sites answer without training: to see what a server does with them.

They speak Flower's Fleet API through the gate with their own node keys, as SuperNodes do. There is no worker, no
ledger and no data behind them: every order of a study in the clear is answered at once, with a vector of the study's
length that no other site and no other round has.

python tests/stand_ins.py HOST:PORT CA.PEM SITE…      (site folders, as `client init` made them; ends with SIGTERM)
"""

import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from client import membership
from common import wire
from common.errors import Reason
from common.layout import layout_of
from common.study import Study, from_json

PAUSE = 0.1  # seconds between two looks for an order
_identity = threading.Lock()  # Flower's messages read from the process whose they are


def answer(site: str, order: wire.Order, studies: dict[str, Study]) -> wire.Answer:
    """What a site that has nothing to train would say."""
    if order.kind == "propose":
        studies[order.study_hash] = from_json(order.study_json)
    vector = None
    if order.kind in ("update", "evaluate"):
        layout = layout_of(studies[order.study_hash], order.kind)
        vector = np.zeros(layout.length, np.float32)
        rng = np.random.default_rng([order.round, *site.encode()])
        vector[: layout.tensor_length] = rng.uniform(-1e-3, 1e-3, layout.tensor_length)
        if order.kind == "update":
            vector[layout.tensor_length] = 1.0  # the weight
    return wire.Answer(
        site=site,
        kind=order.kind,
        round=order.round,
        attempt=order.attempt,
        study_hash=order.study_hash,
        order_hash=order.sha256,
        reason=Reason.OK,
        vector=vector,
    )


def stand_in(server: str, root: bytes, folder: Path) -> None:
    """One SuperNode, for good."""
    key = load_ssh_private_key((folder / "supernode" / "node.key").read_bytes(), None)
    identity, studies = membership.identity_of(folder), dict[str, Study]()
    with http_request_response(server, False, root, (key, key.public_key())) as connection:  # type: ignore[arg-type, union-attr]
        node, receive, send, _run, _fab, pull, push, confirm = connection
        while True:
            try:
                received = receive()
            except (RunNotRunningException, httpx.HTTPError) as error:  # a server that is away for a while
                print(f"{folder.name}: {type(error).__name__}", flush=True)
                received = None
            if received is None:
                time.sleep(PAUSE)
                continue
            header, tree = received
            run = header.metadata.run_id
            try:
                contents = pull_objects(
                    [part.object_id for part in iterate_object_tree(tree)],
                    pull_object_fn=lambda identifier, run=run: pull(run, identifier),  # type: ignore[misc]
                )
                confirm(run, header.metadata.message_id)
                message = inflate_object_from_contents(tree.object_id, contents)
                assert isinstance(message, Message)
                said = answer(folder.name, wire.order_from(message.content), studies)
                record = wire.answer_record(said, identity)
                with _identity:
                    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
                    reply = Message(record, reply_to=header)
                    reply.metadata.__dict__["_message_id"] = reply.object_id
                with no_object_id_recompute():
                    wanted, session = send(reply, get_object_tree(reply), 0.0)
                    push_objects(
                        get_all_nested_objects(reply),
                        lambda identifier, data, run=run, session=session: push(run, session, identifier, data),  # type: ignore[misc]
                        object_ids_to_push=wanted,
                    )
            except (RunNotRunningException, httpx.HTTPError) as error:
                print(f"{folder.name}: {type(error).__name__}", flush=True)


def main(server: str, authority: str, *folders: str) -> None:
    root = Path(authority).read_bytes()
    threads = [
        threading.Thread(target=stand_in, args=(server, root, Path(folder)), name=folder, daemon=True)
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
