"""The ClientApp: every message gets an answer, errors stay at the site."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from small import tiny_study, write_site

from client import app as client_app
from client import index, train
from common import params, wire
from common.errors import Reason
from common.layout import layout_of
from common.models import build_model
from common.study import Study

STUDY = tiny_study()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site-0", images=24, seed=0)


def order(kind: wire.Kind, study: Study = STUDY, **changes: Any) -> wire.Order:
    values: dict[str, Any] = {"kind": kind, "round": 1, "attempt": 1, "study_hash": study.sha256}
    if kind == "propose":
        values["study_json"] = study.canonical
    else:
        weights = np.zeros(params.length(params.shapes(build_model(study), trainable=False)), np.float32)
        values |= {"weights": weights, "weights_hash": wire.digest_of(weights)}
    return wire.Order(**{**values, **changes})


def send(folder: Path, record: RecordDict) -> Message:
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=1, node_config={"site": str(folder)}, state=RecordDict(), run_config={})
    return client_app.app(Message(record, 1, "train", ttl=60), context)


def ask(folder: Path, order: wire.Order) -> wire.Answer:
    length = 0 if order.kind == "propose" else layout_of(STUDY, order.kind).length
    return wire.answer_from(send(folder, wire.order_record(order)).content, to=order, length=length)


def test_a_proposed_study_is_remembered_and_then_trained(folder: Path) -> None:
    assert ask(folder, order("propose")).reason is Reason.OK
    got = ask(folder, order("update"))
    assert got.reason is Reason.OK and got.site == "site-0" and got.vector is not None
    assert ask(folder, order("evaluate")).reason is Reason.OK


def test_a_study_that_was_never_proposed_is_not_trained(folder: Path) -> None:
    assert ask(folder, order("update")).reason is Reason.STUDY_CHANGED


def test_a_proposal_whose_hash_is_anothers_is_refused(folder: Path) -> None:
    assert ask(folder, order("propose", study_hash="0" * 64)).reason is Reason.STUDY_CHANGED
    assert not (folder / "studies").exists()


def test_a_proposal_that_is_no_study_is_refused_and_explained_at_the_site_alone(folder: Path) -> None:
    broken = order("propose", study_json=STUDY.canonical.replace('"cnn"', '"vgg"'))
    assert ask(folder, broken).reason is Reason.POLICY
    assert "vgg" in (folder / "errors.log").read_text()


def test_weights_that_do_not_fit_are_malformed(folder: Path) -> None:
    ask(folder, order("propose"))
    short = np.zeros(3, np.float32)
    assert ask(folder, order("update", weights=short, weights_hash=wire.digest_of(short))).reason is Reason.MALFORMED


def test_garbage_gets_an_answer(folder: Path) -> None:
    reply = send(folder, RecordDict({"header": ConfigRecord({"json": b"{"})}))
    assert json.loads(reply.content["header"]["json"])["reason"] == "malformed"


def test_an_error_leaves_as_a_reason_code_without_its_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, order("propose"))

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("patient 17 of Dr. Example")

    monkeypatch.setattr(train, "update", fail)
    reply = send(folder, wire.order_record(order("update")))
    assert json.loads(reply.content["header"]["json"])["reason"] == "failed"
    assert b"Example" not in reply.content["header"]["json"] and set(reply.content) == {"header"}
    assert "patient 17 of Dr. Example" in (folder / "errors.log").read_text()


@pytest.mark.parametrize("error", [KeyError("patient 17"), TypeError("patient 17"), IndexError("patient 17")])
def test_an_error_that_nobody_foresaw_leaves_as_a_reason_code_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ask(folder, order("propose"))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(train, "update", fail)
    assert ask(folder, order("update")).reason is Reason.FAILED


def test_a_folder_that_is_no_site_is_an_error_without_its_text(folder: Path) -> None:
    (folder / "keys" / "patient.key").unlink()
    reply = send(folder, wire.order_record(order("propose")))
    assert reply.has_error() and reply.error.reason == "failed"


def test_a_full_disk_gets_an_answer(folder: Path) -> None:
    (folder / "errors.log").mkdir()  # can't be opened for writing
    assert ask(folder, order("propose", study_json="{}")).reason is Reason.POLICY


def test_a_site_whose_data_disappeared_answers_failed(folder: Path) -> None:
    ask(folder, order("propose"))
    (folder / "index.sqlite").unlink()
    assert ask(folder, order("update")).reason is Reason.FAILED


def test_an_index_that_changed_is_read_again(folder: Path) -> None:
    ask(folder, order("propose"))
    before, after = ask(folder, order("update")), None
    index.write(folder, index.read(folder)[:10], [])
    after = ask(folder, order("update"))
    assert before.vector is not None and after.vector is not None
    layout = layout_of(STUDY, "update")
    assert after.vector[layout.tensor_length] < before.vector[layout.tensor_length]  # the weight: training images


def test_a_policy_that_now_drops_flagged_images_holds_from_the_next_order_on(folder: Path) -> None:
    rows = index.read(folder)
    index.write(folder, [replace(row, burned_in=number % 2 == 0) for number, row in enumerate(rows)], [])
    ask(folder, order("propose"))
    before = ask(folder, order("update"))
    with (folder / "site.toml").open("a", encoding="utf-8") as file:  # its last table is [policy]
        file.write("drop_burned_in = true\n")
    after, weight = ask(folder, order("update")), layout_of(STUDY, "update").tensor_length
    assert before.vector is not None and after.vector is not None
    assert 0 < after.vector[weight] < before.vector[weight]  # training images


def test_open_datasets_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app, "WARM", 2)
    for number in range(4):
        write_site(folder.parent / f"site-{number + 1}", images=8, seed=number)
        ask(folder.parent / f"site-{number + 1}", order("propose"))
        ask(folder.parent / f"site-{number + 1}", order("update"))
    assert len(client_app._datasets) == 2


def test_a_simulated_node_finds_its_folder_by_partition(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_SITES", str(folder.parent))
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    propose = order("propose")
    reply = client_app.app(Message(wire.order_record(propose), 1, "query", ttl=60), context)
    assert wire.answer_from(reply.content, to=propose, length=0).site == "site-0"
