"""Orders to a site as its ClientApp gets them, and settings of its policy: for the tests of the hospital's control."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict

from client import app as client_app
from client import audit
from client.site import site_toml
from common import params, wire
from common.layout import layout_of
from common.models import build_model
from common.study import Study


def order(kind: wire.Kind, study: Study, *, value: float = 0.01, **changes: Any) -> wire.Order:
    values: dict[str, Any] = {"kind": kind, "round": 1, "attempt": 1, "study_hash": study.sha256}
    if kind == "propose":
        values["study_json"] = study.canonical
    else:
        weights = np.full(params.length(params.shapes(build_model(study), trainable=False)), value, np.float32)
        values |= {"weights": weights, "weights_hash": wire.digest_of(weights)}
    return wire.Order(**{**values, **changes})


def send(folder: Path, record: RecordDict) -> Message:
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=1, node_config={"site": str(folder)}, state=RecordDict(), run_config={})
    return client_app.app(Message(record, 1, "train", ttl=60), context)


def ask(folder: Path, asked: wire.Order, study: Study) -> wire.Answer:
    length = 0 if asked.kind == "propose" else layout_of(study, asked.kind).length  # type: ignore[arg-type]
    return wire.answer_from(send(folder, wire.order_record(asked)).content, to=asked, length=length)


def settle(folder: Path, *, nominal_patients: int | None = 20, **policy: Any) -> Path:
    """Give the site a [policy]: these keys, and the others as a hospital has them that sets none."""
    text = site_toml(folder.name, nominal_patients=nominal_patients).partition("[policy]")[0]
    lines = [f"{key} = {json.dumps(value)}" for key, value in policy.items()]
    (folder / "site.toml").write_text("\n".join([text, "[policy]", *lines, ""]), encoding="utf-8")
    return folder


def errors(folder: Path) -> str:
    path = folder / "errors.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def logged(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [dict(entry.body) for entry in audit.entries_of(folder) if entry.kind == kind]
