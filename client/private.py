"""Orders under differential privacy: refuse or pay first, then answer with a noised release and nothing else.

What leaves is a function of the orders, the site's declared numbers, its ledger and releases. Nothing about patients
decides whether an order is answered: a site with one patient, none, or broken images alone answers like any other, and
its operator reads the error in the site's folder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from client import audit, cohort, heads, ledger, membership, train
from client.augment import augment
from client.dataset import Dataset, Images
from client.dp import metrics, selftest
from client.dp.gradients import Losses, Observed, Trained, trained
from client.dp.patients import Nobody, Patients, Pool, blank_of
from client.dp.step import Plan, private_update, way_of
from client.ledger import Ledger
from client.ledger import Plan as OrdersOf
from client.ledger_records import LedgerError
from client.released import Query
from client.session import Invitation, MaskedIn
from client.site import Site, known_study, note_error
from common import guarantee
from common.budget import rdp_of
from common.clip import Bounds
from common.errors import DataError, StudyError
from common.layout import LARGEST, layout_of
from common.models import build_model, groups_of
from common.noise import fresh_key
from common.randomness import seeded
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch
from common.tasks.release import Summed
from common.wire import Order

SLOTS_PIXELS = 2**21  # of a micro-batch: bounds memory, has no influence on results
Open = Callable[[], Dataset]


def agree(site: Site, study: Study) -> None:
    """Before a study's first order: may it run here? Sets its whole budget aside in the ledger, once.

    Raises: NotSeparable for a model or loss that mixes patients, StudyError or AccountingError for numbers that don't
    fit the site, BudgetError where the ledger has too little left, LedgerError and ChainError where it can't be used.
    """
    guarantee.check_nominal(study, {site.name: nominal_patients(site)})
    check_separable(study)
    with opened(site) as own:
        plans: dict[str, OrdersOf] = {
            pool: [(event.to_json(), orders) for event, orders in parts]
            for pool, parts in guarantee.plans_by_pool(study).items()
            if (study.sha256, pool) not in own.state.allocations
        }
        epsilons: dict[str, float] = {pool: guarantee.claim(study, pool)[0] for pool in plans}
        own.allocate(study.sha256, plans, epsilons=epsilons, delta=guarantee.privacy_of(study).delta)


def demand_unprotected(site: Site, study: Study) -> None:
    """A study without differential privacy on patients who have a ledger: recorded before it runs, or refused.

    Raises StudyError unless the site's policy allows it; from the record on the ledger states no epsilon.
    """
    if not cohort.exists(site.folder):
        return
    if not site.unprotected:
        raise StudyError(
            f"study {study.study.name!r} has no [privacy] and would end the ledger's promise: refused; to allow it for"
            f" good: `client policy {site.folder} --set unprotected=true`"
        )
    with opened(site) as own:
        own.unprotected(study.sha256)


def update(site: Site, study: Study, order: Order, model: nn.Module, dataset: Open) -> NDArray[np.float32]:
    """Answer to an `update` order: weight x noised update; the weight is public, `model` holds the order's weights.

    The same order gets the same bytes, at no charge; one with other shares of the classes is another order. Raises
    BudgetError when the rounds paid for are used up, MessageError for shares that can't be any.
    """
    prior = guarantee.class_prior(study, order.kind, order.prior)

    def compute() -> bytes:
        patients = _patients(site, study, prior, dataset)
        values, observed = noised_update(site, study, model, patients, round=order.round)
        _note(site, order.round, observed)
        return values.astype("<f4").tobytes()

    released = np.frombuffer(_released(site, study, order, compute), "<f4")
    weighted = released * np.float32(guarantee.site_weight(study, nominal_patients(site)))
    return layout_of(study, "update").pack(np.clip(weighted, -LARGEST / 2, LARGEST / 2), {})


def evaluate(site: Site, study: Study, order: Order, model: nn.Module, dataset: Open) -> NDArray[np.float32]:
    """Answer to an `evaluate` order: one noised release of the metrics of the weights that the model holds.

    The same order gets the same bytes, at no charge. Raises StudyError where the study releases no metrics,
    BudgetError when its releases are used up.
    """
    what = guarantee.metrics_of(study)
    return _noised(site, study, order, what, dataset, lambda images: metrics.parts(model, images, what))


def count(site: Site, study: Study, order: Order, dataset: Open) -> NDArray[np.float32]:
    """Answer to a `count` order: one noised release of the training patients by class.

    The same order gets the same bytes, at no charge. Raises StudyError where the study counts no classes, BudgetError
    when its histograms are used up.
    """
    what = guarantee.counts_of(study)
    return _noised(site, study, order, what, dataset, lambda images: metrics.class_parts(images, what))


def _noised(
    site: Site,
    study: Study,
    order: Order,
    what: Summed,
    dataset: Open,
    parts: Callable[[Images], Iterator[NDArray[np.float64]]],
) -> NDArray[np.float32]:
    """A release of a sum over all patients of the pool that the order is about: of nobody where their images can't be
    had, which must not show.
    """
    event = guarantee.event_of(study, order.kind)

    def compute() -> bytes:
        try:
            vectors = parts(dataset().pools[event.pool])
        except Exception as error:
            note_error(site, "images", error)
            vectors = iter(())
        values, seen = metrics.released(vectors, what, event, key=fresh_key())
        if seen.unusable:
            note_error(site, order.kind, DataError(f"{seen.unusable} of {seen.patients} patients could not be judged"))
        return values.astype("<f4").tobytes()

    return np.frombuffer(_released(site, study, order, compute), "<f4")


def take_up(site: Site, study: Study, order: Order, invitation: Invitation) -> None:
    """Before an order is answered in a session: may what is stored for it be masked in this one?

    Where it was masked before, t sites of that session must have signed that they closed it unanswered, or it is
    forgotten, and the order trained for and charged anew. The session is on disk when this returns.
    """
    query = _query(study, order)
    with opened(site) as own:
        earlier = own.marked(query)
        if earlier is not None and not invitation.proves_closed(MaskedIn.from_json(earlier)):
            own.forget(query)
        own.mark(query, invitation.masked_in.to_json())


def opened_sum(site: Site, study: Study, order: Order) -> None:
    """Before a sum that holds the answer to this order is opened: that answer is never sent again. Were it masked a
    second time, two sums that differ by it could be subtracted.
    """
    with opened(site) as own:
        own.forget(_query(study, order))


def noised_update(
    site: Site, study: Study, model: nn.Module, patients: Patients, *, round: int
) -> tuple[NDArray[np.float32], Observed]:
    """A round's noised steps from the model's weights. What `private_update` guarantees."""
    training, what = study.training, trained_of(model, study)
    rate = train.learning_rate(training, round=round, rounds=study.study.rounds)
    return private_update(
        model,
        what,
        patients,
        losses_of(study, what),
        plan_of(site, study, groups=1 + max(what.groups)),
        train.make_optimizer(list(what.parameters), training, rate=rate),
        augment=_moved if training.augmentation == "standard" else None,
        keys=fresh_key,
    )


def plan_of(site: Site, study: Study, *, groups: int = 1) -> Plan:
    """The noised steps of one order at this site."""
    privacy, event = guarantee.privacy_of(study), guarantee.order_event(study)
    shares = cohort.shares_of(site.folder, patient_key=site.patient_key)
    if shares is None:
        raise LedgerError(_NO_LEDGER.format(site.folder))
    return Plan(
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        bounds=Bounds(clip_norms=(privacy.clip_norm / groups**0.5,) * groups),
        nominal_patients=nominal_patients(site) * shares[event.pool],
        local_steps=event.steps,
        images_per_patient=privacy.images_per_patient,
        augmentations=privacy.augmentations,
        slots=slots(study),
        proximal_mu=study.aggregation.proximal_mu if study.aggregation.algorithm == "fedprox" else 0.0,
    )


def slots(study: Study) -> int:
    """Images in a micro-batch: this site's own matter, and without influence on results."""
    privacy, (height, width) = guarantee.privacy_of(study), study.model.image_size
    return max(privacy.images_per_patient * privacy.augmentations, min(64, SLOTS_PIXELS // (height * width)))


def trained_of(model: nn.Module, study: Study) -> Trained:
    """What the model trains, in the study's groups for clipping."""
    groups = groups_of(model, guarantee.privacy_of(study).clip_groups)
    return trained(model, group_of=groups.__getitem__)


def losses_of(study: Study, what: Trained) -> Losses:
    """The task's loss of each image, on the device that the model is on."""
    task, where = task_of(study), what.parameters[0].device

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        return task.losses(model, batch.to(where))

    losses.__name__ = study.study.task
    return losses


@lru_cache(maxsize=64)
def check_separable(study: Study) -> None:
    """The self-test of the study's model and loss on made-up images, once in a process, before any data is opened.

    Raises NotSeparable with the name of the culprit.
    """
    with seeded(study.study.seed, "self-test"):
        model = build_model(study).to(train.device())
    privacy, what = guarantee.privacy_of(study), trained_of(model, study)
    most = privacy.images_per_patient * privacy.augmentations
    selftest.check(model, what, losses_of(study, what), study, way_of(model), blank=blank_of(study), most=most, seed=0)


def nominal_patients(site: Site) -> int:
    """The number that the site has declared. Raises DataError where it has not."""
    if site.nominal_patients is None:
        raise DataError(
            f"{site.folder / 'site.toml'}: nominal_patients is missing: declare about how many patients the site has,"
            " one significant digit, from what may be known anyway"
        )
    return site.nominal_patients


@contextmanager
def opened(site: Site) -> Iterator[Ledger]:
    """The site's ledger, to write; it must contain what the site's own audit log and other sites remember of it. It
    says when this returns which studies have used the patients without differential privacy.

    Raises LedgerError where there is none, or an older copy; ChainError where another process has it.
    """
    if not cohort.exists(site.folder):
        raise LedgerError(_NO_LEDGER.format(site.folder))
    key = membership.speaks_as(site.folder)
    remembered = [audit.ledger_anchor(site)]
    told = () if key is None else heads.own(site, key.public)
    with Ledger(
        site.folder / ledger.FOLDER,
        patient_key=site.patient_key,
        cost=rdp_of,
        anchors=[*(anchor for anchor in remembered if anchor is not None), *told],
        anchor_file=site.anchor,
    ) as own:
        for study in sorted(_unprotected(site) - own.state.studies):
            own.unprotected(study)
        yield own


def _unprotected(site: Site) -> set[str]:
    """Studies that this site has answered without differential privacy, or of which nobody can tell any more. Before
    the patients had a ledger nothing else wrote them down.
    """
    served = audit.served(audit.entries_of(site.folder))
    known = {study: known_study(site, study) for study in served}
    return {study for study, found in known.items() if found is None or found.privacy is None}


_NO_LEDGER = "{0}: has no privacy ledger: make one with `client ledger create`, or restore it from its backup"


def _query(study: Study, order: Order) -> Query:
    pool = guarantee.event_of(study, order.kind).pool
    return Query(study=study.sha256, pool=pool, round=order.round, weights=order.asks or _NO_WEIGHTS)


_NO_WEIGHTS = "0" * 64


def _released(site: Site, study: Study, order: Order, compute: Callable[[], bytes]) -> bytes:
    with opened(site) as own:
        return own.release(_query(study, order), guarantee.event_of(study, order.kind).to_json(), compute)


def _patients(site: Site, study: Study, prior: Sequence[float], dataset: Open) -> Patients:
    """The training patients, balanced by each class's share; nobody where their images can't be had, which must not
    show.
    """
    rarest_first = tuple(min(prior) / share for share in prior)
    balance = study.training.class_balance
    try:
        return Pool(
            pool=dataset().pools["train"],
            class_weights=rarest_first if balance == "weighted" else (),
            class_shares=rarest_first if balance == "sampler" else (),
        )
    except Exception as error:
        note_error(site, "images", error)
        return Nobody(study=study)


def _moved(batch: Batch, rng: np.random.Generator) -> Batch:
    return augment(batch, rng=rng)


def _note(site: Site, round: int, observed: Observed) -> None:
    """For the operator alone: patients who were drawn and could add nothing."""
    lost = {
        "gradient not finite": observed.not_finite,
        "images can't be had": observed.unusable,
        "model failed": observed.failed,
    }
    if any(lost.values()):
        found = ", ".join(f"{number} x {why}" for why, number in lost.items() if number)
        note_error(site, f"round {round}", DataError(f"of {observed.drawn} patients drawn: {found}"))
