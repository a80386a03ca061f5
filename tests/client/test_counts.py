"""The class histogram at a site: what leaves, what it costs, and a server that lies about what came of it."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from control_cases import ask, errors, logged, order, send, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from small import private_study, protect, write_site

from client import allowance, chain, ledger, private, summary
from client import app as client_app
from client.dataset import open_dataset
from client.dp.metrics import Seen, class_parts, exact_sum, released
from client.dp.patients import Pool
from client.site import open_site
from common import guarantee, wire
from common.budget import rdp_of
from common.clip import GRID_STEPS, SLACK
from common.errors import MessageError, Reason
from common.event import histogram_event
from common.layout import layout_of
from common.noise import fresh_key
from common.study import Study
from common.tasks.counts import ClassCounts

HOW = {"class_balance": "weighted", "class_prior": "released"}
STUDY = private_study(training=HOW)  # two rounds and a spare one, two histograms
SAMPLED = private_study(training={**HOW, "class_balance": "sampler"})
PUBLIC = private_study(training={"class_balance": "weighted", "class_prior": [0.2, 0.8]})
PRIOR = (0.25, 0.75)
TWO = ClassCounts(classes=("dark", "bright"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return protect(write_site(tmp_path / "site-0", images=24, seed=0))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    client_app._datasets.clear()
    client_app._models.clear()


def counting(study: Study = STUDY, **changes: Any) -> wire.Order:
    return order("count", study, **{"round": 0, "weights": None, "weights_hash": "", **changes})


def training(study: Study = STUDY, *, prior: tuple[float, ...] = PRIOR, **changes: Any) -> wire.Order:
    return order("update", study, **{"prior": prior, **changes})


def reserves(folder: Path) -> list[dict[str, Any]]:
    entries = chain.read(folder / ledger.FOLDER, ledger.NAME).entries
    return [dict(entry.body) for entry in entries if entry.kind == "reserve"]


def forgotten(folder: Path, asked: wire.Order, study: Study = STUDY) -> None:
    """As when the sum that held the answer was opened."""
    private.opened_sum(open_site(folder), study, asked)


def test_the_whole_budget_of_steps_and_histograms_is_set_aside_in_one_record(folder: Path) -> None:
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    entries = chain.read(folder / ledger.FOLDER, ledger.NAME).entries
    (allocated,) = [entry.body for entry in entries if entry.kind == "allocate"]
    assert (allocated["pool"], allocated["epsilon"]) == ("train", 8.0)
    assert [(part["event"], part["orders"]) for part in allocated["parts"]] == [
        (guarantee.order_event(STUDY).to_json(), 3),
        (histogram_event().to_json(), 2),
    ]


def test_a_histogram_leaves_as_one_noised_release_and_nothing_else(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    asked = counting()
    record = send(folder, wire.order_record(asked)).content
    answer = wire.answer_from(record, to=asked, length=layout_of(STUDY, "count").length)
    assert answer.reason is Reason.OK and answer.vector is not None and answer.vector.shape == (2,)
    assert sorted(record) == ["header", "vector"]
    (reserve,) = reserves(folder)
    assert reserve["event"] == histogram_event().to_json() and (reserve["pool"], reserve["round"]) == ("train", 0)
    stored = [path for path in (folder / ledger.FOLDER / "released").iterdir() if not path.suffix]
    assert [path.read_bytes() for path in stored] == [answer.vector.tobytes()]


@pytest.mark.stat
def test_the_noise_is_of_multiplier_10_around_the_sum_of_the_patients(folder: Path) -> None:
    """20,000 releases: a deviation or a sum that is 5 % off is 10 standard errors and more away."""
    site = open_site(folder)
    images = open_dataset(site, STUDY).pools["train"]
    truths = np.bincount(np.array(images.truths), minlength=2)
    found = np.array(
        [released(class_parts(images, TWO), TWO, histogram_event(), key=fresh_key())[0] for _ in range(20_000)]
    )
    assert found.std() == pytest.approx(10.0, rel=0.02)
    assert found.mean(axis=0) == pytest.approx(truths * (1 - SLACK), abs=0.4) and truths.min() >= 2


def test_the_same_order_gets_the_same_bytes_and_is_charged_once(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    first, again = ask(folder, counting(), STUDY), ask(folder, counting(attempt=2, run="ab" * 32), STUDY)
    assert first.vector is not None and again.vector is not None
    assert first.vector.tobytes() == again.vector.tobytes() and len(reserves(folder)) == 1


def test_two_histograms_may_be_charged_and_no_third_whatever_is_left_for_training(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    sent = []
    for _ in range(2):
        answer = ask(folder, counting(), STUDY)
        assert answer.reason is Reason.OK and answer.vector is not None
        sent.append(answer.vector.tobytes())
        forgotten(folder, counting())
    assert sent[0] != sent[1]
    refused = ask(folder, counting(), STUDY)
    assert refused.reason is Reason.BUDGET and refused.vector is None
    for value in (0.01, 0.02, 0.03):
        assert ask(folder, training(value=value), STUDY).reason is Reason.OK
    assert [reserve["round"] for reserve in reserves(folder)] == [0, 0, 1, 1, 1]


def test_a_histogram_that_is_asked_late_is_paid_for_all_the_same(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    reasons = [ask(folder, training(value=0.01 * n), STUDY).reason for n in range(1, 5)]
    assert reasons == [Reason.OK] * 3 + [Reason.BUDGET]
    assert ask(folder, counting(), STUDY).reason is Reason.OK
    with private.opened(open_site(folder)) as own:
        left = own.state.allocations[STUDY.sha256, "train"].left
        assert left == own._amount(histogram_event().to_json())  # of one histogram: of the plan nothing else is left


@pytest.mark.parametrize("study", [PUBLIC, private_study()])
def test_a_study_that_counts_no_classes_is_asked_in_vain(folder: Path, study: Study) -> None:
    ask(folder, order("propose", study), study)
    assert ask(folder, counting(study), study).reason is Reason.POLICY
    with pytest.raises(Exception, match="counts no classes"):
        guarantee.event_of(study, "count")
    assert not reserves(folder)


@pytest.mark.parametrize(
    "asked", [counting(round=1), counting(round=3), training(round=0), order("evaluate", STUDY, round=0)]
)
def test_the_histogram_is_round_0_and_nothing_else_is(folder: Path, asked: wire.Order) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    assert ask(folder, asked, STUDY).reason is Reason.POLICY and not reserves(folder)


def test_a_histogram_is_asked_without_weights_so_that_there_is_one_to_ask(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    asked = order("count", STUDY, round=0)
    assert ask(folder, asked, STUDY).reason is Reason.MALFORMED and not reserves(folder)


def broken(*_args: Any) -> Any:
    raise OSError("can't be read")


@pytest.mark.parametrize("case", ["one patient", "no patients", "no index that can be read", "no truth"])
def test_whatever_the_patients_are_the_order_is_answered_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    folder = protect(write_site(tmp_path / "site-0", images={"one patient": 1, "no patients": 0}.get(case, 24), seed=0))
    if case == "no index that can be read":
        (folder / "index.sqlite").write_bytes(b"not a database")
    elif case == "no truth":
        monkeypatch.setattr("common.tasks.classification.Classification.present", broken)
    ask(folder, order("propose", STUDY), STUDY)
    answer = ask(folder, counting(), STUDY)
    assert answer.reason is Reason.OK and answer.vector is not None and (answer.vector != 0).all()
    assert len(reserves(folder)) == 1
    if case == "no truth":
        assert "patients could not be judged" in errors(folder)
    elif case == "no index that can be read":
        assert "images" in errors(folder)


@pytest.mark.parametrize("study", [STUDY, SAMPLED])
@pytest.mark.parametrize(
    "prior",
    [
        (0.0, 1.0),
        (0.0, 0.5),
        (math.nan, 0.5),
        (-0.5, 1.5),
        (-0.25, 0.5),
        (0.5,),
        (0.2, 0.3, 0.5),
        (),
        (0.5, 1e308),
        (0.5, math.inf),
        (1.0, 0.5),
        (0.5,) * 5000,
    ],
    ids=str,
)
def test_shares_that_can_not_be_any_are_refused_and_nothing_is_charged(
    folder: Path, study: Study, prior: tuple[float, ...]
) -> None:
    ask(folder, order("propose", study), study)
    answer = ask(folder, training(study, prior=prior), study)
    assert answer.reason is Reason.MALFORMED and answer.vector is None and not reserves(folder)


@pytest.mark.parametrize("asked", [training(PUBLIC), counting(prior=PRIOR), order("evaluate", STUDY, prior=PRIOR)])
def test_shares_where_none_belong_are_refused(folder: Path, asked: wire.Order) -> None:
    study = PUBLIC if asked.study_hash == PUBLIC.sha256 else STUDY
    ask(folder, order("propose", study), study)
    assert ask(folder, asked, study).reason is Reason.MALFORMED and not reserves(folder)


@pytest.mark.parametrize(
    "prior", [(5e-324, 0.5), (1e-300, math.nextafter(1, 0)), (0.5, 0.5), (0.9, 0.9), (1e-9, 1e-12)]
)
@pytest.mark.parametrize("study", [STUDY, SAMPLED])
def test_whatever_shares_a_server_sends_no_patient_weighs_more_than_one(
    folder: Path, study: Study, prior: tuple[float, ...]
) -> None:
    site = open_site(folder)
    patients = private._patients(site, study, prior, lambda: open_dataset(site, study))
    assert isinstance(patients, Pool) and len(patients) > 4
    for values in (patients.weights, patients.shares):
        assert ((values >= 0) & (values <= 1)).all()
    balanced = patients.weights if study is STUDY else patients.shares
    classes = np.array(patients.pool.truths)  # one image a patient
    assert balanced == pytest.approx(np.array([min(prior) / share for share in prior])[classes])
    ask(folder, order("propose", study), study)
    assert ask(folder, training(study, prior=prior), study).reason is Reason.OK


@given(prior=st.lists(st.floats(), min_size=1, max_size=4).map(tuple))
@settings(deadline=None)
def test_smallest_over_each_is_in_0_to_1_whatever_was_sent(prior: tuple[float, ...]) -> None:
    try:
        found = guarantee.class_prior(STUDY, "update", prior)
    except MessageError:
        assert len(prior) != 2 or not all(0 < share < 1 for share in prior)
        return
    assert found == prior and all(0 < min(found) / share <= 1 for share in found)


def test_another_prior_is_another_order_computed_and_charged_anew(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    sent = {}
    for prior in (PRIOR, (0.75, 0.25), (0.5, 0.5)):
        answer = ask(folder, training(prior=prior), STUDY)
        assert answer.vector is not None
        sent[prior] = answer.vector.tobytes()
    assert len(set(sent.values())) == 3 == len(reserves(folder))
    assert ask(folder, training(prior=(0.4, 0.6)), STUDY).reason is Reason.BUDGET  # rounds and spare ones are used up
    for prior, bytes_ in sent.items():  # each again: its own bytes, at no charge
        again = ask(folder, training(prior=prior, attempt=2), STUDY)
        assert again.vector is not None and again.vector.tobytes() == bytes_
    assert len(reserves(folder)) == 3


def test_another_prior_counts_as_another_question_where_the_policy_counts_them(folder: Path) -> None:
    settle(folder, approve="auto", rounds=3)
    ask(folder, order("propose", STUDY), STUDY)
    reasons = [ask(folder, training(prior=(0.1 * n, 0.5)), STUDY).reason for n in range(1, 6)]
    assert reasons == [Reason.OK] * 3 + [Reason.POLICY] * 2
    assert ask(folder, training(prior=(0.1, 0.5), attempt=2), STUDY).reason is Reason.OK  # asked before
    assert len({line["weights"] for line in logged(folder, "received") if line["order"] == "update"}) == 5


def test_the_digest_of_an_order_covers_the_shares() -> None:
    one, other = training(), training(prior=(0.25, math.nextafter(0.75, 1)))
    assert one.sha256 != other.sha256 and one.asks != other.asks
    assert training(prior=()).asks == training(prior=()).weights_hash and counting().asks == ""


def test_the_approver_sees_what_the_ledger_will_set_aside(folder: Path) -> None:
    site = open_site(folder)
    with private.opened(site) as own:
        state = own.state
    events = [(guarantee.order_event(STUDY), 3), (histogram_event(), 2)]
    amount = sum(
        orders * math.ceil(rdp_of(event.to_json(), order=state.genesis.order) * 1e12) for event, orders in events
    )
    (needed,) = allowance.needs(site.policy, STUDY, state).values()
    assert needed == pytest.approx(amount / state.genesis.limit, rel=1e-9) and needed <= 1
    ask(folder, order("propose", STUDY), STUDY)
    with private.opened(site) as own:
        assert own.state.allocations[STUDY.sha256, "train"].amount == pytest.approx(amount, abs=5)


def test_who_approves_reads_of_the_histogram(folder: Path) -> None:
    said = " ".join(summary.of(open_site(folder), STUDY).paragraphs)
    assert "how many show each class, with noise (multiplier 10); 2 such histograms" in said
    assert "show each class" not in " ".join(summary.of(open_site(folder), PUBLIC).paragraphs)


class Truths:
    """What `class_parts` asks of a pool: patients, each a list of what his images show."""

    def __init__(self, patients: list[Any]) -> None:
        self.study = private_study(
            study={"task": "segmentation", "classes": ["a", "b", "c"]},
            model={"name": "unet", "image_size": [16, 16], "base_channels": 2, "head": "dense"},
        )
        self.rows = tuple(SimpleNamespace(patient=str(n)) for n, images in enumerate(patients) for _ in images)
        self.truths = tuple(image for images in patients for image in images)


THREE = ClassCounts(classes=("a", "b", "c"))
MASK = st.lists(st.integers(0, 3), min_size=4, max_size=4).map(lambda values: np.array(values, np.uint8).reshape(2, 2))
IMAGE = st.one_of(MASK, st.sampled_from([None, "broken", np.full((2, 2), 200, np.uint8)]))
PATIENT = st.lists(IMAGE, min_size=1, max_size=5)


@given(others=st.lists(PATIENT, max_size=6), one=PATIENT, data=st.data())
@settings(deadline=None)
def test_with_one_patient_more_the_histogram_differs_by_at_most_the_grid_steps(
    others: list[Any], one: Any, data: st.DataObject
) -> None:
    def steps(patients: list[Any]) -> np.ndarray:
        vectors = class_parts(Truths(patients), THREE)  # type: ignore[arg-type]
        return exact_sum(vectors, THREE, seen=Seen()).steps.astype(float)

    place = data.draw(st.integers(0, len(others)))
    added = steps([*others[:place], one, *others[place:]])
    assert np.linalg.norm(added - steps(others)) <= GRID_STEPS


def test_a_patient_whose_annotations_can_not_be_read_counts_as_nothing() -> None:
    good, bad = np.array([[1, 1], [0, 2]], np.uint8), None
    seen = Seen()
    found = exact_sum(class_parts(Truths([[good], [good, bad]]), THREE), THREE, seen=seen)  # type: ignore[arg-type]
    assert (seen.patients, seen.unusable) == (2, 1)
    assert found.steps / GRID_STEPS == pytest.approx([0.5**0.5 * (1 - SLACK), 0.5**0.5 * (1 - SLACK), 0], abs=1e-5)
