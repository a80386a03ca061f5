"""Looks over the sites' shoulders: each site's own curve, which only a simulation may see."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import wire
from common.errors import MessageError
from common.layout import layout_of
from common.study import Study
from common.tasks import task_of
from server.events import EventLog, read

FILE = "sites.jsonl"


class Observer:
    """Keeps what each site's answers say about the weights that a round started from, in OUT/sites.jsonl."""

    def __init__(self, study: Study, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._task, self._layout = task_of(study), layout_of(study, "update")
        self._log = EventLog(out / FILE, durable=False)  # lost curves are no loss

    def __call__(self, order: wire.Record, reply: wire.Record) -> None:
        """Note the validation headline in a site's answer to an update order; everything else is passed over."""
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


def per_site(out: Path) -> dict[int, dict[str, dict[str, Any]]]:
    """By round and site: the last headline noted. {} where nothing was."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for event in read(out / FILE) if (out / FILE).exists() else []:
        metrics: Mapping[str, Any] = {k: v for k, v in event.items() if k not in ("event", "time", "round", "site")}
        found.setdefault(event["round"], {})[event["site"]] = dict(metrics)
    return found
