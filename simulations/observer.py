"""Looks over the sites' shoulders: each site's own curve, which only a simulation may see."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.dataset import Images
from common import params, wire
from common.errors import MessageError
from common.layout import layout_of
from common.models import build_model
from common.study import Study
from common.tasks import task_of
from server.events import EventLog, read
from simulations.judge import judge, pool_of, together

FILE = "sites.jsonl"
Observe = Callable[[wire.Record, wire.Record], None]  # an order, and a site's answer to it


def observer(study: Study, out: Path, folders: Sequence[Path]) -> Observe:
    """Notes, in OUT/sites.jsonl, how well the weights that a round started from do at each site.

    From what the sites' answers say; where they say nothing, or only masked, by judging the weights beside the
    federation on held-out patients, which no client and no server could.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = EventLog(out / FILE, durable=False)  # lost curves are no loss
    clear = study.privacy is None and not study.aggregation.secure
    return _Answers(study, log) if clear else _Beside(study, log, folders)


class _Answers:
    """Keeps the validation headline in answers to update orders; everything else is passed over."""

    def __init__(self, study: Study, log: EventLog) -> None:
        self._task, self._layout, self._log = task_of(study), layout_of(study, "update"), log

    def __call__(self, order: wire.Record, reply: wire.Record) -> None:
        try:
            answer = wire.answer_from(reply, to=wire.order_from(order), length=self._layout.length)
        except MessageError:
            return
        if answer.vector is None:
            return
        tail = answer.vector[self._layout.tensor_length :].astype(np.float64)
        sums = {name: value for name, value in self._layout.unpack_sums(tail).items() if name.startswith("validation/")}
        named = {name.removeprefix("validation/"): value for name, value in sums.items()}
        named.pop("loss"), named.pop("images")
        value = self._task.summarise(named)[self._task.headline]
        self._log.append({"event": "site", "round": answer.round, "site": answer.site, self._task.headline: value})


class _Beside:
    """Judges the weights of each round's first order on the held-out patients of all sites."""

    def __init__(self, study: Study, log: EventLog, folders: Sequence[Path]) -> None:
        self._study, self._log, self._folders = study, log, folders
        self._images: dict[str, Images] = {}
        self._model = build_model(study)
        self._round = 0

    def __call__(self, record: wire.Record, reply: wire.Record) -> None:
        order = wire.order_from(record)
        if order.kind != "update" or order.round <= self._round:
            return
        self._round = order.round
        if not self._images:
            self._images = {folder.name: pool_of(self._study, folder, "validation") for folder in self._folders}
        length = params.length(params.shapes(self._model, trainable=False))
        params.assign(self._model, wire.weights_from(record, order, length=length))
        headline = task_of(self._study).headline
        judged = {site: judge(self._study, self._model, images) for site, images in self._images.items()}
        for site, one in judged.items():
            self._log.append({"event": "site", "round": order.round, "site": site, headline: one.headline})
        everybody = together(list(judged.values())).headline
        self._log.append({"event": "site", "round": order.round, "site": EVERYBODY, headline: everybody})


EVERYBODY = ""  # stands for all sites' held-out patients together


def per_site(out: Path) -> dict[int, dict[str, dict[str, Any]]]:
    """By round and site: the last headline noted. {} where nothing was."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for event in read(out / FILE) if (out / FILE).exists() else []:
        metrics = {key: value for key, value in event.items() if key not in ("event", "time", "round", "site")}
        found.setdefault(event["round"], {})[event["site"]] = metrics
    return found
