"""What a study with differential privacy promises, and the events that pay for it: one answer for all parties.

Everything here is a function of the study and of public numbers, so server, sites, planner and report say the same.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from common.accounting import ACCOUNTANT, calibrate, epsilon_of, gaussian_release
from common.errors import StudyError
from common.event import NEIGHBOURS, UNIT, Event, check_delta, steps_of
from common.parts import Evaluation, Privacy
from common.study import Study
from common.tasks.release import Release, release_of

MOST_UNEQUAL = 3.0  # how often the smallest site's patients may fit into the largest's where sites count the same

NOT_COVERED = (
    "A person under two identifiers at one hospital: epsilon is twice as large for him, and delta times 1 + e^epsilon.",
    "A person treated in two hospitals: the epsilons of both add up.",
    "The same images in a second site folder, where the two don't name each other: both ledgers add up.",
    "How long a round takes at a site, which grows with the patients drawn.",
    "What a hospital's staff export or decide by hand after looking at the data.",
    "Pre-trained weights that were made from the same patients outside this account.",
    "Conclusions about a patient that would be drawn from the model had he not been among the data.",
)

LIMITS = "Not covered: " + " ".join(NOT_COVERED)


def privacy_of(study: Study) -> Privacy:
    """The study's `[privacy]`. Raises StudyError where it has none."""
    if study.privacy is None:
        raise StudyError(f"study {study.study.name!r} has no [privacy]")
    return study.privacy


@lru_cache(maxsize=64)
def training_event(study: Study) -> Event:
    """All noised steps that a site may take, spare rounds included, with the least noise that keeps epsilon.

    Raises AccountingError where no noise does.
    """
    privacy, steps = privacy_of(study), study.training.local_steps or 0
    return calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        steps=steps_of(rounds=study.study.rounds, spare_rounds=study.spare_rounds, local_steps=steps),
    )


def order_event(study: Study) -> Event:
    """The noised steps of one round: what an order costs."""
    return replace(training_event(study), steps=study.training.local_steps or 0)


@lru_cache(maxsize=64)
def release_event(study: Study) -> Event:
    """One release of metrics. Raises StudyError where the study releases none."""
    evaluation, delta = _evaluation(study), privacy_of(study).delta
    every = gaussian_release(
        epsilon=evaluation.epsilon, delta=delta, releases=evaluation.releases, pool=evaluation.pool
    )
    return replace(every, steps=1)


def metrics_of(study: Study) -> Release:
    """What a release of metrics holds. Raises StudyError where the study releases none."""
    return release_of(study.study.task, study.study.classes, score_bins=_evaluation(study).score_bins)


def _evaluation(study: Study) -> Evaluation:
    evaluation = privacy_of(study).evaluation
    if evaluation is None:
        raise StudyError(f"study {study.study.name!r} has no [privacy.evaluation]")
    return evaluation


def plans(study: Study) -> tuple[tuple[Event, int], ...]:
    """What the study may take of a site: the event of one order, and how many such orders, for each pool it uses."""
    training = (order_event(study), study.study.rounds + study.spare_rounds)
    evaluation = privacy_of(study).evaluation
    return (training,) if evaluation is None else (training, (release_event(study), evaluation.releases))


def claim(study: Study, pool: str) -> tuple[float, float]:
    """epsilon and delta that the study states for a pool."""
    privacy = privacy_of(study)
    if privacy.evaluation is not None and pool == privacy.evaluation.pool:
        return privacy.evaluation.epsilon, privacy.delta
    return privacy.epsilon, privacy.delta


def release_rounds(study: Study) -> frozenset[int]:
    """After which rounds metrics are released: evenly spaced, the last of them after the last round."""
    evaluation = privacy_of(study).evaluation
    if evaluation is None:
        return frozenset()
    return frozenset(round(n * study.study.rounds / evaluation.releases) for n in range(1, evaluation.releases + 1))


def site_weight(study: Study, nominal_patients: int) -> float:
    """How much a site counts in the mean: its public, declared number of patients, or one."""
    return float(nominal_patients) if study.aggregation.weights == "nominal" else 1.0


def check_nominal(study: Study, nominal: Mapping[str, int]) -> None:
    """Raises StudyError where a site's declared number of patients and the study don't fit together, AccountingError
    where delta is too large for it.
    """
    for patients in nominal.values():
        check_delta(privacy_of(study).delta, nominal_patients=patients)
    least, most = min(nominal.values(), default=1), max(nominal.values(), default=1)
    if study.aggregation.weights == "equal" and most > MOST_UNEQUAL * least:
        raise StudyError(
            f"aggregation.weights = 'equal' with sites of {least} to {most} patients: the smallest would fill the mean"
            " with its noise; use 'nominal'"
        )


def statement(study: Study, *, nominal_patients: int, rounds_charged: int) -> dict[str, Any]:
    """Everything that has to stand beside epsilon, for one site. `epsilon` is that of all steps the study may take,
    `epsilon_charged` that of the steps taken.
    """
    privacy, event = privacy_of(study), training_event(study)
    charged = rounds_charged * (study.training.local_steps or 0)
    taken = (replace(event, steps=charged),) if charged else ()
    found: dict[str, Any] = {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "pool": event.pool,
        "unit": UNIT,
        "neighbours": NEIGHBOURS,
        "mechanism": event.mechanism,
        "clip_norm": privacy.clip_norm,
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "steps_planned": event.steps,
        "steps_charged": charged,
        "epsilon_charged": epsilon_of(taken, delta=privacy.delta),
        "accountant": ACCOUNTANT,
        "nominal_patients": nominal_patients,
        "not_covered": list(NOT_COVERED),
    }
    if privacy.evaluation is not None:
        found["evaluation"] = {
            "epsilon": privacy.evaluation.epsilon,
            "delta": privacy.delta,
            "pool": privacy.evaluation.pool,
            "noise_multiplier": release_event(study).noise_multiplier,
            "releases": privacy.evaluation.releases,
        }
    return found
