"""What a study promises: the same events for all parties, and figures that belong together."""

import math

import pytest
from small import private_study, tiny_study

from common import guarantee
from common.accounting import epsilon_of
from common.budget import Filter, rdp_of
from common.errors import StudyError
from common.event import AccountingError, Event

EVALUATED = private_study(privacy={"evaluation": {"epsilon": 3.0, "releases": 2}})


def test_all_steps_with_spare_rounds_together_keep_epsilon() -> None:
    study = private_study(study={"rounds": 20}, training={"local_steps": 3})
    event = guarantee.training_event(study)
    assert event.steps == (20 + 2) * 3 and guarantee.order_event(study).steps == 3
    assert 7.9 < epsilon_of([event], delta=1e-5) <= 8.0


@pytest.mark.parametrize("releases", [1, 2, 7])
def test_all_releases_together_keep_theirs(releases: int) -> None:
    study = private_study(
        study={"rounds": 7}, privacy={"evaluation": {"epsilon": 3.0, "releases": releases, "pool": "validation"}}
    )
    one = guarantee.release_event(study)
    assert (one.steps, one.sample_rate, one.pool) == (1, 1.0, "validation")
    assert epsilon_of([one] * releases, delta=1e-5) == pytest.approx(3.0, rel=1e-3)
    assert len(guarantee.release_rounds(study)) == releases and max(guarantee.release_rounds(study)) == 7


def test_a_study_without_evaluation_releases_nothing() -> None:
    assert guarantee.release_rounds(private_study()) == frozenset()
    assert [event.pool for event, _ in guarantee.plans(private_study())] == ["train"]
    with pytest.raises(StudyError, match=r"no .privacy.evaluation"):
        guarantee.release_event(private_study())


def test_plans_are_of_both_pools_and_claims_are_told_apart() -> None:
    assert [(event.pool, orders) for event, orders in guarantee.plans(EVALUATED)] == [("train", 3), ("test", 2)]
    assert guarantee.claim(EVALUATED, "train") == (8.0, 1e-5) and guarantee.claim(EVALUATED, "test") == (3.0, 1e-5)


def test_what_is_planned_costs_the_ledger_as_much_as_its_orders() -> None:
    event = guarantee.training_event(EVALUATED)
    whole = Filter.of(epsilon=12.0, delta=1e-5).cost([event])
    order = Filter.of(epsilon=12.0, delta=1e-5).order
    assert float(whole) == pytest.approx(3 * rdp_of(guarantee.order_event(EVALUATED).to_json(), order=order))


def test_a_study_without_privacy_promises_nothing() -> None:
    with pytest.raises(StudyError, match=r"has no .privacy."):
        guarantee.training_event(tiny_study())


def test_sites_that_count_the_same_may_not_be_too_unequal() -> None:
    equal = private_study(aggregation={"weights": "equal"})
    guarantee.check_nominal(equal, {"a": 100, "b": 300})
    with pytest.raises(StudyError, match="the smallest would fill the mean"):
        guarantee.check_nominal(equal, {"a": 100, "b": 301})
    guarantee.check_nominal(private_study(), {"a": 100, "b": 10_000})


def test_delta_is_at_most_a_tenth_of_a_patient_of_the_largest_site() -> None:
    guarantee.check_nominal(private_study(), {"a": 10_000})
    with pytest.raises(AccountingError, match="delta = 1e-05: at most"):
        guarantee.check_nominal(private_study(), {"a": 10, "b": 10_001})


def test_a_site_counts_by_its_declared_patients_or_as_one() -> None:
    assert guarantee.site_weight(private_study(), 400) == 400.0
    assert guarantee.site_weight(private_study(aggregation={"weights": "equal"}), 400) == 1.0


def test_the_statement_holds_everything_that_stands_beside_epsilon() -> None:
    found = guarantee.statement(EVALUATED, nominal_patients=20, rounds_charged=2)
    assert {"epsilon", "delta", "pool", "unit", "neighbours", "sample_rate", "noise_multiplier", "accountant"} < set(
        found
    )
    assert (found["steps_planned"], found["steps_charged"], found["epsilon"]) == (3, 2, 8.0)
    event = Event(sample_rate=0.25, noise_multiplier=found["noise_multiplier"], steps=2, pool="train")
    assert math.isclose(found["epsilon_charged"], epsilon_of([event], delta=1e-5))
    assert found["evaluation"]["pool"] == "test" and found["evaluation"]["releases"] == 2
    assert guarantee.statement(EVALUATED, nominal_patients=20, rounds_charged=0)["epsilon_charged"] == 0.0
