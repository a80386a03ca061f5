"""What a study with differential privacy promises, and the events that pay for it: one answer for all parties.

Everything here is a function of the study and of public numbers, so server, sites, planner and report say the same.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from common.accounting import ACCOUNTANT, calibrate, epsilon_of, gaussian_release
from common.errors import MessageError, StudyError
from common.event import (
    HISTOGRAM_ORDERS,
    NEIGHBOURS,
    UNIT,
    Event,
    Pool,
    check_delta,
    histogram_event,
    steps_of,
)
from common.parts import Evaluation, Privacy
from common.study import Study
from common.tasks.counts import ClassCounts
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
    """All noised steps that a site may take, spare rounds included, with the least noise with which they and the class
    histograms that the study may take keep epsilon together, in whatever order a server asks.

    Raises AccountingError where no noise does.

    Source: Vadhan, Zhang 2023, "Concurrent composition theorems for differential privacy" (a server that chooses what
    comes next does no better than one that asks in a fixed order).
    """
    privacy, steps = privacy_of(study), study.training.local_steps or 0
    return calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        steps=steps_of(rounds=study.study.rounds, spare_rounds=study.spare_rounds, local_steps=steps),
        beside=[replace(histogram_event(), steps=HISTOGRAM_ORDERS)] if counts(study) else (),
    )


def counts(study: Study) -> bool:
    """Whether the classes' shares come from a released histogram of the training patients."""
    return study.training.class_prior == "released"


def counts_of(study: Study) -> ClassCounts:
    """What that histogram holds. Raises StudyError where the study has none."""
    if not counts(study):
        raise StudyError(f"training.class_prior of study {study.study.name!r} is not 'released': it counts no classes")
    return ClassCounts(classes=study.study.classes)


def event_of(study: Study, kind: str) -> Event:
    """What an order of this kind costs. Raises StudyError for one that the study has no use for, MessageError for a
    kind that asks nothing of patients.
    """
    match kind:
        case "count":
            counts_of(study)
            return histogram_event()
        case "update":
            return order_event(study)
        case "evaluate":
            return release_event(study)
        case _:
            raise MessageError(f"an order to {kind} asks nothing of patients")


def class_prior(study: Study, kind: str, sent: tuple[float, ...]) -> tuple[float, ...]:
    """Each class's share, by which an order's work is balanced; () where nothing is: the study's own, or where that is
    released what came with an order to train.

    Guarantees: smallest / each is in (0, 1], whatever was sent.
    Raises MessageError for shares where none belong, of another number of classes, or not all above 0 and below 1.
    """
    prior, expected = study.training.class_prior, len(study.study.classes) if counts(study) and kind == "update" else 0
    if len(sent) != expected or not all(0 < share < 1 for share in sent):
        raise MessageError(f"an order to {kind} with shares {list(sent)[:8]}: {expected}, each above 0 and below 1")
    return sent if isinstance(prior, str) else prior


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
    """What the study may take of a site: the event of one order, and how many such orders, for each kind of order."""
    found = [(order_event(study), study.study.rounds + study.spare_rounds)]
    if counts(study):
        found.append((histogram_event(), HISTOGRAM_ORDERS))
    if (evaluation := privacy_of(study).evaluation) is not None:
        found.append((release_event(study), evaluation.releases))
    return tuple(found)


def plans_by_pool(study: Study) -> dict[Pool, tuple[tuple[Event, int], ...]]:
    """`plans`, together where they are of the same patients."""
    pools = dict.fromkeys(event.pool for event, _ in plans(study))
    return {pool: tuple(part for part in plans(study) if part[0].pool == pool) for pool in pools}


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


def statement(study: Study, *, nominal_patients: int, rounds_charged: int, counts_charged: int = 0) -> dict[str, Any]:
    """Everything that has to stand beside epsilon, for one site. `epsilon` is that of all steps and class histograms
    that the study may take, `epsilon_charged` that of those taken.
    """
    privacy, event = privacy_of(study), training_event(study)
    charged = rounds_charged * (study.training.local_steps or 0)
    taken = [replace(event, steps=charged)] if charged else []
    taken += [replace(histogram_event(), steps=counts_charged)] if counts_charged else []
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
    if counts(study):
        found["histogram"] = {
            "noise_multiplier": histogram_event().noise_multiplier,
            "planned": HISTOGRAM_ORDERS,
            "charged": counts_charged,
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
