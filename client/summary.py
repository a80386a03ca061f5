"""A study in plain English, for the person who decides whether it may run at this hospital."""

from dataclasses import dataclass

from client import allowance, permit, policy
from client.ledger_state import State
from client.site import Site
from common import guarantee, params
from common.errors import FederationError
from common.event import HISTOGRAM_ORDERS, histogram_event
from common.layout import layout_of
from common.study import Study


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What to read before a decision."""

    title: str
    paragraphs: tuple[str, ...]
    objections: tuple[str, ...]  # why it could not run even when approved


def of(site: Site, study: Study) -> Summary:
    """The study as it would run at this site, from the study, the site's settings and its ledger; opens no data."""
    said = [_work(study), _leaves(study), *_protection(site, study), _others(site, study)]
    return Summary(
        title=f"Study {study.study.name}, hash {study.sha256}",
        paragraphs=tuple(said),
        objections=tuple(objections(site, study)),
    )


def objections(site: Site, study: Study) -> list[str]:
    """The policy's and the budget's clauses against the study; none where it may run once it is approved."""
    try:
        terms = permit.terms(site, study)
        found = policy.beyond(site.policy, study, nominal_patients=site.nominal_patients, terms=terms)
        if study.privacy is not None:
            state = allowance.state_of(site)
            if state is None:
                found.append("it needs a privacy ledger, and this site has none: `client ledger create`")
            else:
                needed = allowance.needs(site.policy, study, state)
                found += [
                    f"it needs {part:.4g} of what is left in pool {pool}" for pool, part in needed.items() if part > 1
                ]
            if site.nominal_patients is None:
                found.append("it needs nominal_patients in site.toml")
    except FederationError as error:
        return [str(error)]
    return found


def _work(study: Study) -> str:
    training, (height, width) = study.training, study.model.image_size
    classes = ", ".join(study.study.classes)
    steps, passes = training.local_steps, training.local_epochs
    length = f"{steps} steps" if steps else f"{passes} {'pass' if passes == 1 else 'passes'} over its images"
    return (
        f"It trains the model {study.model.name} for {study.study.task} of {classes}, on this site's indexed images at"
        f" {height} x {width} pixels. {study.study.rounds} rounds; in each, every site trains for {length}, within"
        f" {study.study.round_deadline:g} seconds."
    )


def _leaves(study: Study) -> str:
    layout = layout_of(study, "update")
    names = sorted({name.split("/")[-1] for name, _ in layout.sums})
    extra = f", and sums over its patients, of which loss and metrics are made ({', '.join(names)})" if names else ""
    return (
        f"What leaves this site in a round: one list of {layout.length:,} numbers ({4 * layout.length / 1e6:,.1f} MB):"
        f" how training changed {params.length(layout.tensors):,} numbers of the model{extra}. No image, no name, no"
        " file leaves."
    )


def _protection(site: Site, study: Study) -> list[str]:
    privacy = study.privacy
    if privacy is None:
        text = (
            "WITHOUT differential privacy: who reads this site's answers, or the finished model, may be able to tell"
            " whether a patient was among the data."
        )
        state = _state(site)
        if state is not None:
            text += " This site's patients have a privacy ledger, which would state no epsilon any more, for good."
        return [text]
    promise = (
        f"With differential privacy for each patient (all his images here; add or remove one): epsilon"
        f" {privacy.epsilon:g}, delta {privacy.delta:g} for the training patients in this study,"
        f" {study.study.rounds + study.spare_rounds} rounds paid for in advance."
    )
    if guarantee.counts(study):
        histogram = histogram_event()
        promise += (
            " Of these patients it also takes, before round 1, how many show each class, with noise (multiplier"
            f" {histogram.noise_multiplier:g}); {HISTOGRAM_ORDERS} such histograms are paid for within that epsilon."
        )
    if privacy.evaluation is None:
        promise += " It releases no metrics."
    else:
        promise += (
            f" Metrics of {privacy.evaluation.pool} patients: epsilon {privacy.evaluation.epsilon:g},"
            f" {privacy.evaluation.releases} release(s)."
        )
    return [promise, _budget(site, study), guarantee.LIMITS]


def _budget(site: Site, study: Study) -> str:
    state = _state(site)
    if state is None:
        return "This site has no privacy ledger that can be read, so it can't take part as yet."
    needed = allowance.needs(site.policy, study, state)
    parts = [f"{part:.3g} of what is left for {pool} patients" for pool, part in needed.items()]
    needs = f"It needs {' and '.join(parts)}." if parts else "Its budget is set aside already."
    return f"{needs} {state.statement}"


def _others(site: Site, study: Study) -> str:
    terms = permit.terms(site, study)
    seen = (
        f"The server reads sums over at least {terms.min_sites - terms.colluding} honest sites and of this site nothing"
        " alone (secure aggregation)."
        if terms.secure
        else "The server reads this site's own answers (no secure aggregation)."
    )
    return f"{seen} A round needs at least {terms.min_sites} sites."


def _state(site: Site) -> State | None:
    try:
        return allowance.state_of(site)
    except FederationError:
        return None
