"""The hospital's limits: each refuses what goes beyond it, says so to the operator, and asks no patient."""

import shutil
import tomllib
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pytest
from control_cases import ask, errors, logged, order, settle
from small import private_study, protect, tiny_study, write_site

from client import approval, policy, policy_text
from client.policy import SIMULATED, Policy, PolicyError, Terms, beyond, check, check_order
from client.site import open_site
from common import params, wire
from common.errors import DataError, Reason
from common.models import build_model
from common.study import Study

BARE, PRIVATE = tiny_study(), private_study()
COUNTED = private_study(training={"class_balance": "weighted", "class_prior": "released"})
METRICS = private_study(privacy={"evaluation": {"epsilon": 2.0, "releases": 1}})
OPEN = Policy(privacy="optional")  # as a hospital has it that allows studies without privacy
TERMS = Terms(min_sites=2)


def refuses(own: Policy, study: Study, *, nominal_patients: int | None = 20, terms: Terms = TERMS) -> str:
    with pytest.raises(PolicyError) as caught:
        check(own, study, nominal_patients=nominal_patients, terms=terms)
    assert caught.value.code is Reason.POLICY and "\n" not in str(caught.value)
    return str(caught.value)


LIMITS: list[tuple[dict[str, Any], dict[str, Any], Study]] = [
    ({"privacy": "required"}, {"privacy": "optional"}, BARE),
    ({"evaluation": "private"}, {"evaluation": "exact"}, BARE),
    ({"evaluation": "none"}, {"evaluation": "private"}, METRICS),
    ({"evaluation_epsilon": 1.9}, {"evaluation_epsilon": 2.0}, METRICS),
    ({"study_epsilon": 7.9}, {"study_epsilon": 8.0}, PRIVATE),
    ({"tasks": ("segmentation",)}, {"tasks": ("classification",)}, BARE),
    ({"models": ("unet", "resnet18")}, {"models": ("cnn",)}, BARE),
    ({"least_patients": 21}, {"least_patients": 20}, BARE),
    ({"min_sites": 3}, {"min_sites": 2}, BARE),
    ({"secure": "required"}, {"secure": "optional"}, BARE),
    ({"colluding": 1}, {"colluding": 0}, BARE),
    ({"rounds": 1}, {"rounds": 2}, BARE),
    ({"rounds": 2}, {"rounds": 3}, PRIVATE),  # two rounds and a spare one
    ({"tensors": ("head.*",)}, {"tensors": ("*",)}, BARE),
    ({"step_pixels": 8 * 20 * 20 - 1}, {"step_pixels": 8 * 20 * 20}, BARE),
    ({"step_pixels": 399}, {"step_pixels": 400}, PRIVATE),  # one image of a patient is never split
]


@pytest.mark.parametrize(("too_low", "enough", "study"), LIMITS)
def test_every_limit_refuses_what_goes_beyond_it_and_nothing_else(
    too_low: dict[str, Any], enough: dict[str, Any], study: Study
) -> None:
    (key,) = too_low
    said = refuses(OPEN.model_copy(update=too_low), study)
    assert key in said and "site.toml" in said
    check(OPEN.model_copy(update=enough), study, nominal_patients=20, terms=TERMS)


def test_every_key_of_the_policy_has_a_test() -> None:
    elsewhere = {"approve", "approvers", "unprotected", "lifetime_epsilon", "hours", "round_bytes", "parameters"}
    elsewhere |= {"answer_every", "min_change"}
    elsewhere |= {"drop_burned_in"}  # of the index: tests/client/test_quality.py
    assert {key for low, _, _ in LIMITS for key in low} | elsewhere == set(Policy.model_fields)


def test_without_a_policy_a_study_needs_privacy_two_sites_and_somebodys_approval() -> None:
    own = Policy()
    assert own.approve == "ask"
    assert "privacy = 'required'" in refuses(own, BARE)
    assert "min_sites = 2" in refuses(own, PRIVATE, terms=Terms(min_sites=1))
    check(own, PRIVATE, nominal_patients=None, terms=TERMS)


def test_a_simulated_site_lets_every_study_run() -> None:
    for study in (BARE, PRIVATE, METRICS):
        check(SIMULATED, study, nominal_patients=None, terms=Terms(min_sites=1))


def test_the_largest_model_is_counted_in_numbers() -> None:
    numbers = sum(parameter.numel() for parameter in build_model(BARE).parameters())
    assert f"{numbers} numbers" in refuses(OPEN.model_copy(update={"parameters": numbers - 1}), BARE)
    check(OPEN.model_copy(update={"parameters": numbers}), BARE, nominal_patients=1, terms=TERMS)


def test_tensors_are_named_whole_or_by_a_star() -> None:
    names = [name for name, _ in params.shapes(build_model(BARE), trainable=True)]
    first, rest = names[0], tuple(names[1:])
    for pattern in (first, f"{first[:3]}*", f"*{first[3:]}"):
        check(OPEN.model_copy(update={"tensors": (pattern, *rest)}), BARE, nominal_patients=1, terms=TERMS)
    for pattern in (first[:-1], first[1:], first.replace(".", "x"), ".*" + first):
        assert first in refuses(OPEN.model_copy(update={"tensors": (pattern, *rest)}), BARE)


def test_all_limits_that_a_study_goes_beyond_are_named_at_once() -> None:
    own = Policy(rounds=1, tasks=("detection",), min_sites=5)
    assert len(beyond(own, BARE, nominal_patients=None, terms=TERMS)) == 4


def test_what_the_roster_asks_for_counts_where_it_is_more() -> None:
    check(Policy(min_sites=4, colluding=1), PRIVATE, nominal_patients=1, terms=Terms(min_sites=4, colluding=1))
    assert policy.terms_of(BARE, None) == Terms(min_sites=2, secure=False, colluding=0)


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        (["08:00-17:30"], ["08:00", "17:29"], ["07:59", "17:30", "00:00"]),
        (["20:00-06:00"], ["20:00", "23:59", "00:00", "05:59"], ["06:00", "19:59", "12:00"]),
        (["00:00-01:00", "22:00-23:00"], ["00:30", "22:30"], ["01:00", "21:00", "23:30"]),
        ([], ["00:00", "12:00"], []),
    ],
)
def test_hours_may_go_over_midnight_and_end_before_their_end(
    hours: list[str], inside: list[str], outside: list[str]
) -> None:
    own = Policy(hours=tuple(hours))
    assert all(policy.is_open(own, time.fromisoformat(at)) for at in inside)
    assert not any(policy.is_open(own, time.fromisoformat(at)) for at in outside)


NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_an_order_outside_the_hours_is_refused_but_a_round_that_was_begun_is_finished() -> None:
    night = OPEN.model_copy(update={"hours": ("20:00-06:00",)})
    for kind, study, round in (("update", BARE, 1), ("evaluate", BARE, 1), ("count", COUNTED, 0)):
        with pytest.raises(PolicyError, match="12:00 is outside"):
            check_order(night, study, kind=kind, round=round, now=NOON, moved=0, asked=0)
        check_order(night, study, kind=kind, round=round, now=NOON.replace(hour=23), moved=0, asked=0)
    check_order(night, BARE, kind="open", round=1, now=NOON, moved=0, asked=0)


@pytest.mark.parametrize(("kind", "round", "fine"), [
    ("update", 0, False), ("update", 1, True), ("update", 2, True), ("update", 3, False), ("evaluate", 3, True),
    ("evaluate", 4, False),
])  # fmt: skip
def test_rounds_that_the_study_does_not_have_are_refused(kind: str, round: int, fine: bool) -> None:
    if fine:
        check_order(OPEN, BARE, kind=kind, round=round, now=NOON, moved=0, asked=0)
        return
    with pytest.raises(PolicyError, match=f"round {round} of study"):
        check_order(OPEN, BARE, kind=kind, round=round, now=NOON, moved=0, asked=0)


@pytest.mark.parametrize(("study", "kind", "round", "fine"), [
    (COUNTED, "count", 0, True), (COUNTED, "count", 1, False), (COUNTED, "update", 0, False),
    (COUNTED, "evaluate", 0, False), (COUNTED, "open", 0, True), (COUNTED, "open", 3, True),
    (COUNTED, "open", 4, False), (PRIVATE, "count", 0, False), (PRIVATE, "open", 0, False), (BARE, "count", 0, False),
])  # fmt: skip
def test_round_0_is_the_class_histogram_where_a_study_has_one(study: Study, kind: str, round: int, fine: bool) -> None:
    if fine:
        check_order(OPEN, study, kind=kind, round=round, now=NOON, moved=0, asked=0)
        return
    with pytest.raises(PolicyError, match=f"round {round} of study"):
        check_order(OPEN, study, kind=kind, round=round, now=NOON, moved=0, asked=0)


def test_a_histogram_is_asked_as_often_as_a_study_may_be_begun() -> None:
    check_order(OPEN, COUNTED, kind="count", round=0, now=NOON, moved=0, asked=3)
    with pytest.raises(PolicyError, match="answers to 4 orders to count"):
        check_order(OPEN, COUNTED, kind="count", round=0, now=NOON, moved=0, asked=4)


@pytest.mark.parametrize(
    ("own", "study", "kind", "most"),
    [
        (OPEN, BARE, "update", 8),  # two rounds, and as often anew as a study may be begun
        (OPEN.model_copy(update={"rounds": 3}), BARE, "update", 3),
        (OPEN.model_copy(update={"rounds": 30}), BARE, "update", 8),
        (OPEN, PRIVATE, "update", 12),  # with a spare round
        (OPEN, BARE, "evaluate", 8),
        (OPEN, METRICS, "evaluate", 4),
    ],
)
def test_a_study_has_answers_for_so_many_models_and_no_more(own: Policy, study: Study, kind: str, most: int) -> None:
    check_order(own, study, kind=kind, round=1, now=NOON, moved=0, asked=most - 1)
    for asked in (most, most + 1):
        with pytest.raises(PolicyError, match=f"answers to {asked} orders") as caught:
            check_order(own, study, kind=kind, round=1, now=NOON, moved=0, asked=asked)
    assert "client approve" in str(caught.value) and "\n" not in str(caught.value)
    check_order(own, study, kind="open", round=1, now=NOON, moved=0, asked=most)


def test_a_server_can_not_ask_about_weights_that_it_chooses_without_end(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=16, seed=0), approve="auto", privacy="optional", rounds=2)
    ask(folder, order("propose", BARE), BARE)

    def answers(kind: wire.Kind, values: range, **changes: Any) -> list[Reason]:
        asked = (order(kind, BARE, value=0.001 * value, **changes) for value in values)
        return [ask(folder, one, BARE).reason for one in asked]

    assert answers("update", range(6)) == [Reason.OK] * 2 + [Reason.POLICY] * 4
    assert "client approve" in errors(folder)
    for attempt in range(2, 8):  # rounds that are done again: no new weights
        assert answers("update", range(2), attempt=attempt, run=f"{attempt:064d}") == [Reason.OK] * 2
    assert answers("update", range(1), round=2) == [Reason.POLICY]
    assert answers("evaluate", range(10)) == [Reason.OK] * 8 + [Reason.POLICY] * 2
    approval.approve(open_site(folder), BARE, by="anna")
    assert answers("update", range(8, 12)) == [Reason.OK] * 2 + [Reason.POLICY] * 2


def test_what_was_refused_or_is_another_studys_is_not_counted(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=16, seed=0), approve="auto", privacy="optional", rounds=2)
    another = tiny_study(study={"name": "another"})
    for study in (BARE, another):
        ask(folder, order("propose", study), study)
        settle(folder, approve="auto", privacy="required")
        assert ask(folder, order("update", study, value=0.5), study).reason is Reason.POLICY
        settle(folder, approve="auto", privacy="optional", rounds=2)
        for number in (1, 2):
            assert ask(folder, order("update", study, round=number), study).reason is Reason.OK


def test_bytes_are_counted_over_all_attempts_at_a_round(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site-0", images=24, seed=0)
    numbers = sum(parameter.numel() for parameter in build_model(BARE).parameters())
    limit = 3 * 4 * numbers  # an order, its answer, and no second time
    settle(folder, approve="auto", privacy="optional", round_bytes=limit)
    assert ask(folder, order("propose", BARE), BARE).reason is Reason.OK
    assert ask(folder, order("update", BARE), BARE).reason is Reason.OK
    again = ask(folder, order("update", BARE, attempt=2), BARE)
    assert again.reason is Reason.POLICY and again.vector is None
    assert "round_bytes" in errors(folder)
    assert ask(folder, order("update", BARE, round=2), BARE).reason is Reason.OK
    settle(folder, approve="auto", privacy="optional", round_bytes=8 * numbers)
    assert ask(folder, order("propose", BARE), BARE).reason is Reason.POLICY


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('approve = "maybe"', "policy.approve = 'maybe'; ask: a new study waits"),
        ("aprove = 1", "unknown key policy.aprove; known here: approve"),
        ("rounds = 0", "policy.rounds = 0; most rounds"),
        ("rounds = 2.5", "policy.rounds = 2.5"),
        ("unprotected = 1", "policy.unprotected = 1"),
        ('hours = ["9-17"]', "policy.hours: '9-17' is not like 20:00-06:00"),
        ('hours = ["09:00-09:00"]', "policy.hours"),
        ("lifetime_epsilon = nan", "policy.lifetime_epsilon = nan"),
        ("lifetime_epsilon = -1.0", "policy.lifetime_epsilon = -1.0"),
        ("answer_every = 1e9", "policy.answer_every"),
        ('models = ["vgg"]', "policy.models: no model 'vgg'"),
        ('approvers = ["ff"]', "policy.approvers: each is a public key"),
        ('approve = "signed"', "needs approvers"),
    ],
)
def test_a_wrong_policy_is_one_line_and_the_site_answers_nothing(tmp_path: Path, line: str, says: str) -> None:
    folder = write_site(tmp_path / "site-0", images=0, seed=0)
    text = (folder / "site.toml").read_text(encoding="utf-8").partition("[policy]")[0]
    (folder / "site.toml").write_text(f"{text}[policy]\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        open_site(folder)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_text_of_a_policy_says_the_same_policy() -> None:
    own = Policy(approve="auto", rounds=7, hours=("20:00-06:00",), study_epsilon=2.5, tasks=("detection",))
    for written in (own, SIMULATED, Policy()):
        values = tomllib.loads(policy_text.to_toml(written))["policy"]
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        assert Policy.model_validate(tuples) == written
    template = policy_text.template()
    assert tomllib.loads(template) == {"policy": {"approve": "ask"}}
    assert all(f"{key} =" in template and field.description for key, field in Policy.model_fields.items())


def test_a_refusal_is_a_code_for_the_server_and_a_sentence_for_the_operator(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=24, seed=0), approve="auto", rounds=1, privacy="optional")
    answer = ask(folder, order("propose", BARE), BARE)
    assert answer.reason is Reason.POLICY
    assert "it has 2 rounds, spare ones included, and rounds = 1" in errors(folder)
    (line,) = logged(folder, "answered")
    assert line["reason"] == "refused:policy" and "rounds = 1" in line["why"] and line["sent"] == []


def test_a_policy_that_becomes_stricter_holds_from_the_next_order_on(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=24, seed=0), approve="auto", privacy="optional")
    ask(folder, order("propose", BARE), BARE)
    assert ask(folder, order("update", BARE), BARE).reason is Reason.OK
    settle(folder, approve="auto", privacy="required")
    for kind in ("update", "evaluate"):
        answer = ask(folder, order(kind, BARE), BARE)  # type: ignore[arg-type]
        assert answer.reason is Reason.POLICY and answer.vector is None


def test_no_decision_depends_on_patients(tmp_path: Path) -> None:
    """The same orders to sites of one, no and 24 patients, and to one whose index is gone: the same verdicts."""
    limits: dict[str, Any] = {"approve": "auto", "least_patients": 20, "study_epsilon": 8.0, "rounds": 3}
    seen = []
    for images in (24, 2, 0, None):
        folder = protect(write_site(tmp_path / str(images) / "site-0", images=images or 0, seed=0))
        settle(folder, **limits)
        if images is None:
            (folder / "index.sqlite").write_bytes(b"nothing")
        asked = [order("propose", PRIVATE), order("update", PRIVATE), order("propose", METRICS), order("update", BARE)]
        studies = [PRIVATE, PRIVATE, METRICS, BARE]
        seen.append([ask(folder, one, study).reason for one, study in zip(asked, studies, strict=True)])
    assert seen[0] == [Reason.OK, Reason.OK, Reason.BUDGET, Reason.STUDY_CHANGED] and all(s == seen[0] for s in seen)


def test_a_lifetime_limit_below_the_ledgers_own_counts(tmp_path: Path) -> None:
    folder = protect(write_site(tmp_path / "site-0", images=24, seed=0))  # its ledger allows 12
    for epsilon, expected in ((7.0, Reason.BUDGET), (8.2, Reason.BUDGET), (10.0, Reason.OK)):
        settle(folder, approve="auto", lifetime_epsilon=epsilon)
        assert ask(folder, order("propose", PRIVATE), PRIVATE).reason is expected
    assert "policy.lifetime_epsilon = 7" in errors(folder)
    settle(folder, approve="auto", lifetime_epsilon=1.0)  # what is set aside stays so
    assert ask(folder, order("propose", PRIVATE), PRIVATE).reason is Reason.OK
    other = private_study(study={"name": "another"}, privacy={"epsilon": 0.5})
    assert ask(folder, order("propose", other), other).reason is Reason.BUDGET


def test_answers_leave_at_the_next_multiple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=0, seed=0), answer_every=60.0)
    slept: list[float] = []
    monkeypatch.setattr("client.app.time.time", lambda: 1_000_000.0 * 60 + 13.5)
    monkeypatch.setattr("client.app.time.sleep", slept.append)
    ask(folder, order("propose", BARE), BARE)  # a refusal takes as long as work
    assert slept == [46.5]
    settle(folder)
    ask(folder, order("propose", BARE), BARE)
    assert slept == [46.5]


def test_a_proposal_that_is_refused_is_kept_for_the_operator_to_read(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=0, seed=0), approve="auto")
    ask(folder, order("propose", BARE), BARE)
    assert (folder / "pending" / f"{BARE.sha256}.json").read_text(encoding="utf-8") == BARE.canonical
    assert not (folder / "studies").exists()
    settle(folder, approve="auto", privacy="optional")
    assert ask(folder, order("propose", BARE), BARE).reason is Reason.OK
    assert not any((folder / "pending").iterdir()) and (folder / "studies" / f"{BARE.sha256}.json").exists()
    shutil.rmtree(folder / "studies")
    assert ask(folder, order("update", BARE), BARE).reason is Reason.STUDY_CHANGED
