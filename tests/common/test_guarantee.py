"""What a study promises: the same events for all parties, and figures that belong together."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import pld_privacy_accountant
from small import private_study, tiny_study

from common import guarantee
from common.accounting import epsilon_of, gaussian_epsilon
from common.budget import Filter, rdp_of
from common.errors import StudyError
from common.event import AccountingError, Event, histogram_event

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


COUNTED = private_study(
    study={"rounds": 20}, training={"class_balance": "sampler", "class_prior": "released", "local_steps": 3}
)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_steps_and_histograms_together_keep_epsilon(epsilon: float) -> None:
    """Checked with dp-accounting, an implementation that shares no code with ours."""
    study = private_study(
        study={"rounds": 20},
        training={"class_balance": "weighted", "class_prior": "released", "local_steps": 3},
        privacy={"epsilon": epsilon},
    )
    plans = {event.sample_rate: (event, orders) for event, orders in guarantee.plans(study)}
    (step, orders), (histogram, times) = plans[0.25], plans[1.0]
    assert (step.steps, orders) == (3, 22) and (histogram, times) == (histogram_event(), 2)
    accountant = pld_privacy_accountant.PLDAccountant()
    gaussian = dp_accounting.GaussianDpEvent(step.noise_multiplier)
    sampled = dp_accounting.PoissonSampledDpEvent(0.25, gaussian)
    accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, step.steps * orders))
    accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(10.0), times))
    assert 0.98 * epsilon < accountant.get_epsilon(1e-5) <= epsilon
    without = guarantee.training_event(
        private_study(study={"rounds": 20}, training={"local_steps": 3}, privacy={"epsilon": epsilon})
    )
    assert step.noise_multiplier > without.noise_multiplier


def test_an_epsilon_that_histograms_alone_would_fill_is_refused() -> None:
    study = private_study(training={"class_balance": "weighted", "class_prior": "released"}, privacy={"epsilon": 0.4})
    with pytest.raises(AccountingError, match="too small for 3 steps and the class histogram: raise it"):
        guarantee.training_event(study)


def test_plans_of_one_pool_are_together() -> None:
    both = private_study(
        training={"class_balance": "weighted", "class_prior": "released"}, privacy={"evaluation": {"epsilon": 3.0}}
    )
    pools = guarantee.plans_by_pool(both)
    assert {pool: [orders for _, orders in parts] for pool, parts in pools.items()} == {"train": [3, 2], "test": [1]}
    assert sum(pools.values(), ()) == guarantee.plans(both)


def test_histograms_are_in_what_is_stated() -> None:
    found = guarantee.statement(COUNTED, nominal_patients=20, rounds_charged=0, counts_charged=1)
    assert found["histogram"] == {"noise_multiplier": 10.0, "planned": 2, "charged": 1}
    assert found["epsilon_charged"] == pytest.approx(gaussian_epsilon(mu=0.1, delta=1e-5))
    event = guarantee.training_event(COUNTED)
    every = guarantee.statement(COUNTED, nominal_patients=20, rounds_charged=22, counts_charged=2)
    assert 7.9 < every["epsilon_charged"] <= 8.0 and every["steps_charged"] == event.steps == 66
    assert "histogram" not in guarantee.statement(EVALUATED, nominal_patients=20, rounds_charged=2)


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
