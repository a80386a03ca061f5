"""Private orders at a site: paid for before anything is computed, and nothing but releases in what is sent."""

import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from small import KEY, private_study, protect, tiny_study, write_site
from torch import Tensor, nn

from client import app as client_app
from client import chain, cohort, ledger, private
from client.dataset import open_dataset
from client.dp.step import private_update
from client.ledger_records import LedgerError
from client.session import MaskedIn
from client.site import open_site
from common import guarantee, params, wire
from common.errors import DataError, Reason
from common.layout import layout_of
from common.models import build_model
from common.study import Study
from common.tasks.batch import Batch
from common.tasks.classification import Classification

STUDY = private_study()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return protect(write_site(tmp_path / "site-0", images=24, seed=0))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    client_app._datasets.clear()
    client_app._models.clear()
    private.check_separable.cache_clear()


def order(kind: wire.Kind, study: Study = STUDY, *, value: float = 0.01, **changes: Any) -> wire.Order:
    values: dict[str, Any] = {"kind": kind, "round": 1, "attempt": 1, "study_hash": study.sha256}
    if kind == "propose":
        values["study_json"] = study.canonical
    else:
        weights = np.full(params.length(params.shapes(build_model(study), trainable=False)), value, np.float32)
        values |= {"weights": weights, "weights_hash": wire.digest_of(weights)}
    return wire.Order(**{**values, **changes})


def send(folder: Path, asked: wire.Order) -> RecordDict:
    wire.speak_as_server(run_id=1)
    context = Context(run_id=1, node_id=1, node_config={"site": str(folder)}, state=RecordDict(), run_config={})
    message = Message(wire.order_record(asked), 1, "train", ttl=60)
    return client_app.app(message, context).content


def ask(folder: Path, asked: wire.Order, study: Study = STUDY) -> wire.Answer:
    length = 0 if asked.kind == "propose" else layout_of(study, asked.kind).length
    return wire.answer_from(send(folder, asked), to=asked, length=length)


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = chain.read(folder / ledger.FOLDER, ledger.NAME).entries
    return [dict(entry.body) for entry in entries if entry.kind == kind]


def errors(folder: Path) -> str:
    path = folder / "errors.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def counted_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are the same each time, so that two sites' draws and noise can be compared."""
    made = iter(range(10**6))
    monkeypatch.setattr(private, "fresh_key", lambda: next(made).to_bytes(32, "big"))


def test_a_proposal_sets_the_whole_budget_aside_once(folder: Path) -> None:
    for _ in range(2):
        assert ask(folder, order("propose")).reason is Reason.OK
    (allocated,) = records(folder, "allocate")
    assert allocated["study"] == STUDY.sha256 and allocated["pool"] == "train"
    assert (allocated["epsilon"], allocated["delta"]) == (8.0, 1e-5)
    assert [part["orders"] for part in allocated["parts"]] == [3]


def test_an_update_is_charged_noised_and_weighted_by_the_declared_patients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[np.ndarray] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        values, observed = private_update(*args, **kwargs)
        released.append(values)
        return values, observed

    monkeypatch.setattr(private, "private_update", noted)
    ask(folder, order("propose"))
    got = ask(folder, order("update"))
    assert got.reason is Reason.OK and got.vector is not None
    assert np.array_equal(got.vector, released[0] * np.float32(20))
    (reserve,) = records(folder, "reserve")
    event = guarantee.training_event(STUDY)
    assert reserve["event"] == {**event.to_json(), "steps": 1} and event.steps == 3
    # 20 declared patients of whom 70 % are in the pool, drawn with 0.25: the noise of one step, times the rate.
    expected = 0.05 * event.noise_multiplier / (0.25 * 0.7 * 20)
    assert np.std(released[0]) == pytest.approx(expected, rel=0.05)


def test_the_same_order_gets_the_same_bytes_and_is_charged_once(folder: Path) -> None:
    ask(folder, order("propose"))
    first, again = ask(folder, order("update")), ask(folder, order("update", attempt=2))
    assert first.vector is not None and again.vector is not None
    assert first.vector.tobytes() == again.vector.tobytes()
    assert len(records(folder, "reserve")) == len(records(folder, "commit")) == 1


def test_orders_with_other_weights_use_up_the_spare_rounds(folder: Path) -> None:
    ask(folder, order("propose"))
    for value in (0.01, 0.02, 0.03):
        assert ask(folder, order("update", value=value)).reason is Reason.OK
    refused = ask(folder, order("update", value=0.04))
    assert refused.reason is Reason.BUDGET and refused.vector is None
    assert ask(folder, order("update", value=0.03)).reason is Reason.OK  # stored: costs nothing
    assert len(records(folder, "reserve")) == 3


def test_a_crash_while_training_is_paid_for_and_the_order_is_answered_when_it_comes_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(folder, order("propose"))
    with monkeypatch.context() as patch:
        patch.setattr(private, "private_update", lambda *_args, **_more: exec("raise MemoryError()"))
        assert ask(folder, order("update")).reason is Reason.FAILED
    assert len(records(folder, "reserve")) == 1 and not records(folder, "commit")
    assert ask(folder, order("update")).reason is Reason.OK
    assert len(records(folder, "reserve")) == 2 and len(records(folder, "commit")) == 1


def broken(*_args: Any) -> Any:
    raise DataError("the cache is damaged")


@pytest.mark.parametrize("case", ["one patient", "no patients", "no index that can be read", "damaged"])
def test_whatever_the_patients_are_the_order_is_answered_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    images = {"one patient": 2, "no patients": 0}.get(case, 24)
    folder = protect(write_site(tmp_path / "site-0", images=images, seed=0))
    usual = protect(write_site(tmp_path / "usual" / "site-0", images=24, seed=0))
    if case == "no index that can be read":
        (folder / "index.sqlite").write_bytes(b"not a database")
    elif case == "damaged":
        monkeypatch.setattr("client.dataset.Images.batch", broken)
        counted_keys(monkeypatch)  # with which somebody is drawn, as chance would have it in all but 2 % of draws
    asked = order("update")
    ask(folder, order("propose")), ask(usual, order("propose"))
    got, expected = send(folder, asked), send(usual, asked)
    answer = wire.answer_from(got, to=asked, length=layout_of(STUDY, "update").length)
    assert answer.reason is Reason.OK and answer.vector is not None and np.std(answer.vector) > 0
    assert wire.size_of(got) == wire.size_of(expected)
    assert len(records(folder, "reserve")) == len(records(folder, "commit")) == 1
    if case in ("no index that can be read", "damaged"):
        assert "images" in errors(folder)


def test_the_operator_alone_reads_that_gradients_were_not_finite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted_keys(monkeypatch)
    inner = Classification.losses
    monkeypatch.setattr(Classification, "losses", lambda *args: inner(*args) * float("nan"))
    monkeypatch.setattr(private, "check_separable", lambda _study: None)
    ask(folder, order("propose"))
    got = ask(folder, order("update"))
    assert got.reason is Reason.OK and got.vector is not None and np.isfinite(got.vector).all()
    assert "gradient not finite" in errors(folder)


def headers_and_shapes(record: RecordDict) -> tuple[bytes, tuple[int, ...], str, str, list[str]]:
    """Everything that a reply holds, but for the released values."""
    array = record["vector"]["vector"]  # type: ignore[index]
    header = record["header"]["json"]  # type: ignore[index]
    assert len(array.data) == 4 * array.shape[0]
    return header, tuple(array.shape), array.dtype, array.stype, sorted(record)


def one_changed(folder: Path) -> Path:
    """A site with one patient more and one whose image is another one."""
    return protect(write_site(folder, images=25, seed=1))


def test_one_patient_changes_released_values_and_nothing_else(tmp_path: Path) -> None:
    replies = []
    for folder in (
        protect(write_site(tmp_path / "a" / "site-0", images=24, seed=0)),
        one_changed(tmp_path / "b" / "site-0"),
    ):
        ask(folder, order("propose"))
        proposed = send(folder, order("propose"))["header"]["json"]  # type: ignore[index]
        update = send(folder, order("update"))
        unreadable = send(folder, order("update", study_hash="0" * 64))["header"]["json"]  # type: ignore[index]
        replies.append((proposed, headers_and_shapes(update), unreadable))
    assert replies[0] == replies[1]


def test_every_byte_of_a_reply_is_the_header_or_a_release(folder: Path) -> None:
    ask(folder, order("propose"))
    asked = order("update")
    record = send(folder, asked)
    header, shape, *_, parts = headers_and_shapes(record)
    assert parts == ["header", "vector"]
    assert shape == (params.length(params.shapes(build_model(STUDY), trainable=True)),)  # no weight, no sums
    assert layout_of(STUDY, "update").sums == ()
    stored = (folder / ledger.FOLDER / "released").glob("*")
    released = np.frombuffer(next(iter(stored)).read_bytes(), "<f4")
    assert np.array_equal(np.frombuffer(record["vector"]["vector"].data, "<f4"), released * np.float32(20))  # type: ignore[index]
    known = {"wire", "site", "kind", "round", "attempt", "study_hash", "order_hash", "reason", "audit", "heads"}
    import json

    found = json.loads(header)
    assert found.keys() == known
    assert (found["audit"], found["heads"]) == ("", [])  # a site that has joined no federation
    assert found["order_hash"] == asked.sha256 and found["study_hash"] == STUDY.sha256


EVALUATED = private_study(privacy={"evaluation": {"epsilon": 3.0, "releases": 2}})


def test_metrics_leave_as_a_noised_release_that_is_paid_from_their_own_pool(folder: Path) -> None:
    assert ask(folder, order("propose", EVALUATED), EVALUATED).reason is Reason.OK
    asked = order("evaluate", EVALUATED)
    first, again = ask(folder, asked, EVALUATED), ask(folder, asked, EVALUATED)
    assert first.vector is not None and again.vector is not None
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.vector.shape == (2 * 16,)  # two histograms of 16 bins, and nothing else
    (reserve,) = records(folder, "reserve")
    assert reserve["pool"] == reserve["event"]["pool"] == "test"
    assert reserve["event"] == guarantee.release_event(EVALUATED).to_json()
    assert np.std(first.vector) == pytest.approx(reserve["event"]["noise_multiplier"], rel=0.5)
    assert ask(folder, order("evaluate", EVALUATED, value=0.02), EVALUATED).reason is Reason.OK
    assert ask(folder, order("evaluate", EVALUATED, value=0.03), EVALUATED).reason is Reason.BUDGET


@pytest.mark.parametrize("case", ["damaged", "no index that can be read", "no patients"])
def test_metrics_are_answered_whatever_the_patients_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    folder = protect(write_site(tmp_path / "site-0", images=0 if case == "no patients" else 24, seed=0))
    if case == "no index that can be read":
        (folder / "index.sqlite").write_bytes(b"not a database")
    elif case == "damaged":
        monkeypatch.setattr("client.dataset.Images.batch", broken)
    ask(folder, order("propose", EVALUATED), EVALUATED)
    got = ask(folder, order("evaluate", EVALUATED), EVALUATED)
    assert got.reason is Reason.OK and got.vector is not None and np.std(got.vector) > 1


def test_a_study_without_evaluation_is_asked_for_metrics_in_vain(folder: Path) -> None:
    ask(folder, order("propose"))
    got = wire.answer_from(send(folder, order("evaluate")), to=order("evaluate"), length=0)
    assert got.reason is Reason.POLICY and got.vector is None
    assert not records(folder, "reserve")


def refused(folder: Path, study: Study = STUDY) -> Reason:
    answer = ask(folder, order("propose", study))
    assert ask(folder, order("update", study), study).reason is not Reason.OK
    return answer.reason


def test_a_study_whose_delta_is_too_large_for_the_site_is_refused(folder: Path) -> None:
    assert refused(folder, private_study(privacy={"delta": 0.006})) is Reason.POLICY  # above 1 / (10 x 20)
    assert "at most 1 / (10 x nominal_patients)" in errors(folder)


def test_a_study_that_needs_more_than_the_ledger_has_is_refused(folder: Path) -> None:
    assert refused(folder, private_study(privacy={"epsilon": 12.0})) is Reason.BUDGET
    assert "of what is left in pool train" in errors(folder)


def test_two_studies_that_fit_alone_do_not_fit_together(folder: Path) -> None:
    assert ask(folder, order("propose")).reason is Reason.OK
    other = private_study(study={"name": "another"})
    assert refused(folder, other) is Reason.BUDGET
    with private.opened(open_site(folder)) as own:
        own.close_study(STUDY.sha256)
    assert ask(folder, order("propose", other)).reason is Reason.OK


def test_a_site_that_has_declared_no_patients_refuses(folder: Path) -> None:
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("nominal_patients = 20", ""), encoding="utf-8")
    assert refused(folder) is Reason.FAILED
    assert "nominal_patients is missing" in errors(folder)


def test_a_site_without_a_ledger_refuses(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site-0", images=24, seed=0)
    (folder / "site.toml").write_text(
        'name = "site-0"\nnominal_patients = 20\n[policy]\napprove = "auto"\n', encoding="utf-8"
    )
    assert refused(folder) is Reason.FAILED
    assert "has no privacy ledger" in errors(folder)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"epsilon":12', b'"epsilon":99'))


def folder_gone(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [truncated, edited, Path.unlink, folder_gone])
def test_a_ledger_that_was_harmed_releases_nothing(folder: Path, harm: Callable[[Path], None]) -> None:
    ask(folder, order("propose"))
    harm(folder / ledger.FOLDER / "ledger.jsonl")
    got = ask(folder, order("update"))
    assert got.reason is Reason.FAILED and got.vector is None
    assert "edger" in errors(folder)


def test_another_patient_key_releases_nothing(folder: Path) -> None:
    ask(folder, order("propose"))
    (folder / "keys" / "patient.key").write_bytes(bytes(reversed(KEY)))
    assert ask(folder, order("update")).reason is Reason.FAILED
    assert "don't belong together" in errors(folder)


def test_no_study_runs_where_the_ledger_is_gone_and_no_new_key_is_made(folder: Path) -> None:
    shutil.rmtree(folder / ledger.FOLDER)
    assert ask(folder, order("propose", tiny_study())).reason is Reason.POLICY
    (folder / "keys" / "patient.key").unlink()
    with pytest.raises(DataError, match="restore the key from your backup"):
        cohort.demand_key(folder)
    with pytest.raises(DataError, match=r"patient\.key"):
        cohort.found(folder, epsilon=1.0, delta=None, nominal_patients=20, shares={"train": 1.0})


def test_a_second_ledger_for_the_same_patients_is_refused(folder: Path) -> None:
    with pytest.raises(LedgerError, match="would forget what was spent"):
        protect(folder)
    shutil.rmtree(folder / ledger.FOLDER)
    with pytest.raises(LedgerError, match="would forget what was spent"):
        protect(folder)


def test_a_loss_that_mixes_patients_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Classification.losses

    def mixing(self: Classification, model: nn.Module, batch: Batch) -> Tensor:
        losses = inner(self, model, batch)
        return losses * torch.mean(losses)

    monkeypatch.setattr(Classification, "losses", mixing)
    assert refused(folder) is Reason.POLICY
    assert "classification mixes patients" in errors(folder)


def test_a_study_without_privacy_is_refused_where_there_is_a_ledger_unless_the_policy_allows_it(folder: Path) -> None:
    bare = tiny_study()
    assert ask(folder, order("propose", bare)).reason is Reason.POLICY
    assert "would end the ledger's promise" in errors(folder)
    with (folder / "site.toml").open("a", encoding="utf-8") as file:  # its last table is [policy]
        file.write("unprotected = true\n")
    assert ask(folder, order("propose", bare)).reason is Reason.OK
    assert [record["study"] for record in records(folder, "unprotected")] == [bare.sha256]
    contents = chain.read(folder / ledger.FOLDER, ledger.NAME)
    assert "No epsilon can be stated" in ledger.state_of(contents.entries, patient_key=KEY).statement


def test_pools_are_the_ledgers_and_no_study_moves_them(folder: Path) -> None:
    site = open_site(folder)
    pools = [
        {pool: {row.patient for row in images.rows} for pool, images in open_dataset(site, study).pools.items()}
        for study in (STUDY, private_study(study={"split": [0.1, 0.1, 0.8]}))
    ]
    assert pools[0] == pools[1] and len(pools[0]["train"]) > len(pools[0]["test"])


def test_class_weights_and_shares_come_from_the_studys_prior_alone(folder: Path) -> None:
    site = open_site(folder)
    for balance, weights, shares in (("weighted", {1.0, 0.25}, {1.0}), ("sampler", {1.0}, {1.0, 0.25})):
        study = private_study(training={"class_balance": balance, "class_prior": [0.2, 0.8]})
        patients = private._patients(site, study, (0.2, 0.8), lambda study=study: open_dataset(site, study))
        assert set(patients.weights) == weights and set(patients.shares) == shares


def test_site_toml_says_what_is_wrong_with_a_declared_number(folder: Path) -> None:
    assert tomllib.loads((folder / "site.toml").read_text(encoding="utf-8"))["nominal_patients"] == 20
    for wrong in ("0", "-3", "2.5", "true", '"many"'):
        (folder / "site.toml").write_text(f'name = "site-0"\nnominal_patients = {wrong}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"nominal_patients = .*; a whole number from 1"):
            open_site(folder)


def invited(*, closed: bool) -> Any:
    """An invitation to a session, whose share messages prove, or don't, that the earlier one was closed unanswered."""
    masked_in = MaskedIn(roster="ab", keys="cd", sites=("site-0", "site-1"), threshold=2)
    return SimpleNamespace(masked_in=masked_in, proves_closed=lambda earlier: closed and earlier == masked_in)


@pytest.mark.parametrize(("closed", "charges"), [(True, 1), (False, 2)])
def test_an_update_is_masked_again_only_where_the_earlier_session_was_closed(
    folder: Path, closed: bool, charges: int
) -> None:
    site, asked = open_site(folder), order("update")
    ask(folder, order("propose"))
    private.take_up(site, STUDY, asked, invited(closed=False))  # nothing is stored yet
    first = ask(folder, asked)
    private.take_up(site, STUDY, asked, invited(closed=closed))
    again = ask(folder, asked)
    assert first.vector is not None and again.vector is not None
    assert (first.vector.tobytes() == again.vector.tobytes()) == closed
    assert len(records(folder, "reserve")) == charges


def test_an_update_whose_sum_was_opened_is_never_sent_again(folder: Path) -> None:
    site, asked = open_site(folder), order("update")
    ask(folder, order("propose"))
    first = ask(folder, asked)
    private.opened_sum(site, STUDY, asked)
    again = ask(folder, asked)
    assert first.vector is not None and again.vector is not None
    assert first.vector.tobytes() != again.vector.tobytes()
    assert len(records(folder, "reserve")) == 2


def test_noise_never_comes_twice(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):  # the same patients and orders: what differs is chance
        folder = protect(write_site(tmp_path / name / "site-0", images=0, seed=0))
        ask(folder, order("propose", EVALUATED), EVALUATED)
        for kind in ("update", "evaluate"):
            answer = ask(folder, order(kind, EVALUATED), EVALUATED)  # type: ignore[arg-type]  # both are kinds
            assert answer.vector is not None
            found.append(answer.vector.tobytes())
    assert len(set(found)) == 4
