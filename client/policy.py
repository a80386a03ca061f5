"""The hospital's own limits: the `[policy]` of site.toml, which no study, order or coordinator can go beyond.

Every key is a field: its type says what is allowed, its description what it means and in which unit. What is not set
has the safe value, or sets no limit. Decisions rest on the study, the order and numbers that the hospital has declared,
never on its patients.
"""

import re
from dataclasses import dataclass
from datetime import datetime, time
from functools import lru_cache
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.errors import FederationError, Reason
from common.kinds import Answering, answering
from common.roster import Roster
from common.study import MODELS_OF_TASK, Study

Task = Literal["classification", "segmentation", "detection"]
Count = Annotated[int, Field(ge=1)]
Epsilon = Annotated[float, Field(gt=0)]

_MODELS = tuple(dict.fromkeys(model for models in MODELS_OF_TASK.values() for model in models))
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_KEY = re.compile(r"[0-9a-f]{64}")
BEGUN = 4  # times that a study may be begun anew with other answers; rounds done again as they were don't count
_HEADER = 4096  # bytes allowed for the headers of an order and its answer, when a round's bytes are estimated


class PolicyError(FederationError):
    """A study or an order goes beyond what this hospital allows: its operator's to judge, in site.toml."""

    code = Reason.POLICY


class Policy(BaseModel):
    """`[policy]` of site.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    approve: Literal["ask", "signed", "auto"] = Field(
        "ask",
        description="ask: a new study waits for `client approve`; signed: for the signature of one of `approvers`;"
        " auto: what keeps to this policy runs at once",
    )
    approvers: tuple[str, ...] = Field(
        (), description="public keys, 64 hex digits each, of those who may sign (a data-protection officer, say)"
    )
    privacy: Literal["required", "optional"] = Field(
        "required", description="whether a study must have [privacy], differential privacy for each patient"
    )
    unprotected: bool = Field(
        False,
        description="true: studies without [privacy] may use patients who have a privacy ledger, which then states no"
        " epsilon any more, for good",
    )
    lifetime_epsilon: Epsilon | None = Field(
        None, description="all studies together; below the ledger's own limit, which stays as it was made"
    )
    study_epsilon: Epsilon | None = Field(None, description="largest epsilon of one study's training")
    evaluation: Literal["none", "private", "exact"] = Field(
        "exact",
        description="metrics that may leave: none, noised ones of [privacy.evaluation] alone, or what the study says",
    )
    evaluation_epsilon: Epsilon | None = Field(None, description="largest epsilon of one study's [privacy.evaluation]")
    secure: Literal["required", "optional"] = Field(
        "optional", description="whether the server may see only sums over several sites (secure aggregation)"
    )
    tasks: tuple[Task, ...] = Field(get_args(Task), description="tasks that a study may have")
    models: tuple[str, ...] = Field(_MODELS, description="models that a study may train")
    least_patients: Annotated[int, Field(ge=0)] = Field(
        0, description="take no part while nominal_patients, the declared number, is below this"
    )
    min_sites: Count = Field(2, description="least number of sites that a round may have")
    colluding: Annotated[int, Field(ge=0)] = Field(
        0, description="sites that may work together with the server without harm, at least (the roster's c)"
    )
    min_change: Annotated[int, Field(ge=0)] = Field(
        0, description="help to open no two sums whose sites differ by fewer than this many; 0: any"
    )
    rounds: Count | None = Field(
        None, description="most rounds of a study, spare ones included, and most models that it may send to be trained"
    )
    hours: tuple[str, ...] = Field(
        (), description='when orders are carried out, this machine\'s clock: ["20:00-06:00"]; empty: always'
    )
    round_bytes: Count | None = Field(
        None, description="most bytes in and out in one round, repeated attempts included"
    )
    tensors: tuple[str, ...] = Field(
        (), description="patterns of names (`head.*`) of the tensors that may leave; empty: all that the model trains"
    )
    parameters: Count | None = Field(None, description="largest model: numbers, 16 bytes of memory each when trained")
    step_pixels: Count | None = Field(
        None, description="largest training step: images x height x width, which memory grows with"
    )
    answer_every: Annotated[float, Field(ge=0, le=3600)] = Field(
        0.0, description="seconds: answers leave at the next multiple of this, which hides how long the work took"
    )

    drop_burned_in: bool = Field(
        False,
        description="true: images whose header says that text, perhaps a name, is in the pixels are neither indexed nor"
        " used, not even those of an index that is older than this line",
    )

    @field_validator("approvers")
    @classmethod
    def _keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_KEY.fullmatch(key) for key in keys):
            raise ValueError("each is a public key of 64 hex digits, as `client sign --new` prints it")
        return keys

    @field_validator("models")
    @classmethod
    def _known(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(models) - set(_MODELS)):
            raise ValueError(f"no model {unknown[0]!r}; known: {', '.join(_MODELS)}")
        return models

    @field_validator("hours")
    @classmethod
    def _times(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            if not _HOURS.fullmatch(text) or text[:5] == text[6:]:
                raise ValueError(f"{text!r} is not like 20:00-06:00")
        return hours

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.approve == "signed" and not self.approvers:
            raise ValueError("approve = 'signed' needs approvers: make a key with `client sign --new --key FILE`")
        return self


SIMULATED = Policy(approve="auto", privacy="optional", min_sites=1)  # of sites that a simulation makes up


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a run binds itself to beyond the study: by the roster and the way in which it aggregates."""

    min_sites: int
    secure: bool = False
    colluding: int = 0


def terms_of(study: Study, roster: Roster | None) -> Terms:
    """Of a run of this study; without a roster only what the study says."""
    secure = study.aggregation.secure
    if roster is None:
        return Terms(min_sites=study.study.min_sites, secure=secure)
    return Terms(min_sites=max(study.study.min_sites, roster.min_sites), secure=secure, colluding=roster.colluding)


def check(policy: Policy, study: Study, *, nominal_patients: int | None, terms: Terms) -> None:
    """May this study run here, by what it says? Asked when it is proposed, and again at every order.

    Raises PolicyError with a sentence for the operator that names every limit it goes beyond.
    """
    if found := beyond(policy, study, nominal_patients=nominal_patients, terms=terms):
        raise PolicyError(f"study {study.study.name!r} is refused: {'; '.join(found)} ([policy] of site.toml)")


def beyond(policy: Policy, study: Study, *, nominal_patients: int | None, terms: Terms) -> list[str]:
    """The limits that the study goes beyond, a clause each; none where it may run."""
    found = [*_about_privacy(policy, study), *_about_size(policy, study)]
    if study.study.task not in policy.tasks:
        found.append(f"its task is {study.study.task}, and tasks = {list(policy.tasks)}")
    if study.model.name not in policy.models:
        found.append(f"its model is {study.model.name}, and models = {list(policy.models)}")
    if not (nominal_patients or 0) >= policy.least_patients:
        found.append(f"nominal_patients = {nominal_patients}, and least_patients = {policy.least_patients}")
    if not terms.min_sites >= policy.min_sites:
        found.append(f"a round may have {terms.min_sites} sites, and min_sites = {policy.min_sites}")
    if policy.secure == "required" and not terms.secure:
        found.append("the server would see this site's own answers, and secure = 'required'")
    if not terms.colluding >= policy.colluding:
        found.append(f"it is safe against {terms.colluding} colluding sites, and colluding = {policy.colluding}")
    rounds = study.study.rounds + study.spare_rounds
    if policy.rounds is not None and not rounds <= policy.rounds:
        found.append(f"it has {rounds} rounds, spare ones included, and rounds = {policy.rounds}")
    return found


def check_order(policy: Policy, study: Study, *, kind: str, round: int, now: datetime, moved: int, asked: int) -> None:
    """May this order of an approved study be carried out now?

    `kind`: all but `propose`; those that only serve to add up answers are carried out at any hour, or a round that was
    begun could not be finished. `now`: in the machine's own time zone. `moved`: bytes that this round has moved so far,
    this order's included. `asked`: of how many other models, or in how many other rounds, orders of this kind were
    answered since the study was last approved; at most `most_asked` with this one.
    Raises PolicyError: a round that the study does not have, an hour that is closed, too many bytes, too many models.
    """
    vector, counts = answering(kind), study.training.class_prior == "released"  # that histogram is round 0
    first = 0 if counts and vector in ("count", None) else 1
    last = 0 if kind == "count" else study.study.rounds + (0 if kind == "update" else 1)  # the last evaluation's
    if not first <= round <= last:
        raise PolicyError(
            f"round {round} of study {study.study.name!r}, which has rounds {first} to {last} to {kind}: refused"
        )
    if vector is None:
        return
    if not is_open(policy, now.time()):
        raise PolicyError(f"{now:%H:%M} is outside of hours = {list(policy.hours)} ([policy] of site.toml): refused")
    if policy.round_bytes is not None:
        most = moved + _vector_bytes(study, vector)
        if not most <= policy.round_bytes:
            raise PolicyError(
                f"round {round} would have moved {most} bytes, and round_bytes = {policy.round_bytes} ([policy] of"
                " site.toml): refused"
            )
    if not asked < (most := most_asked(policy, study, vector)):
        raise PolicyError(
            f"study {study.study.name!r} has had answers to {asked} orders to {kind}, each with other weights, and"
            f" may have {most}: refused; `client approve` it once more to allow as many again"
        )


def most_asked(policy: Policy, study: Study, kind: Answering) -> int:
    """How many orders of this kind, with other weights (shares of classes) or another round each, are answered for each
    approval of a study: more would be a server's questions about weights that it has chosen.

    What the study needs, `BEGUN` times over, and of updates no more than `rounds`. An honest run needs it once, however
    often it is stopped, killed and resumed: a round that is done again starts from the same weights. A study that is
    begun from its beginning has other weights from round 2 on where other sites take part, or noise is added.
    """
    if kind == "count":
        return BEGUN
    if kind == "update":
        most = BEGUN * (study.study.rounds + study.spare_rounds)
        return most if policy.rounds is None else min(most, policy.rounds)
    if study.privacy is None or study.privacy.evaluation is None:
        return BEGUN * 2  # of the last weights, and of the best
    return BEGUN * study.privacy.evaluation.releases


def is_open(policy: Policy, at: time) -> bool:
    """Whether `hours` allow work at this time of the day. An end is outside; a span may go over midnight."""
    if not policy.hours:
        return True
    return any(
        start <= at < end if start < end else at >= start or at < end
        for start, end in (map(time.fromisoformat, span.split("-")) for span in policy.hours)
    )


def _about_privacy(policy: Policy, study: Study) -> list[str]:
    found, privacy = [], study.privacy
    if privacy is None:
        if policy.privacy == "required":
            found.append("it has no [privacy], and privacy = 'required'")
        if policy.evaluation != "exact":
            found.append(f"it sends exact metrics of this site's patients, and evaluation = {policy.evaluation!r}")
        return found
    if policy.study_epsilon is not None and not privacy.epsilon <= policy.study_epsilon:
        found.append(f"its epsilon is {privacy.epsilon:g}, and study_epsilon = {policy.study_epsilon:g}")
    if privacy.evaluation is not None:
        epsilon, most = privacy.evaluation.epsilon, policy.evaluation_epsilon
        if policy.evaluation == "none":
            found.append("it releases metrics, and evaluation = 'none'")
        if most is not None and not epsilon <= most:
            found.append(f"the epsilon of its metrics is {epsilon:g}, and evaluation_epsilon = {most:g}")
    return found


def _about_size(policy: Policy, study: Study) -> list[str]:
    found, (height, width) = [], study.model.image_size
    pixels = _images(study) * height * width
    if policy.step_pixels is not None and not pixels <= policy.step_pixels:
        found.append(f"a step has {pixels} pixels, and step_pixels = {policy.step_pixels}")
    if policy.parameters is not None and not _parameters(study) <= policy.parameters:
        found.append(f"its model has {_parameters(study)} numbers, and parameters = {policy.parameters}")
    if policy.round_bytes is not None:
        least = 4 * _parameters(study) + _vector_bytes(study, "update") + _HEADER
        if not least <= policy.round_bytes:
            found.append(f"a round moves about {least} bytes, and round_bytes = {policy.round_bytes}")
    if policy.tensors:
        others = [name for name in _trained(study) if not any(_matches(name, pattern) for pattern in policy.tensors)]
        if others:
            found.append(f"{len(others)} tensors would leave that tensors does not name, the first of them {others[0]}")
    return found


def _images(study: Study) -> int:
    """Images of a step that are in memory together: a batch, or one patient's views, who is never split."""
    if study.privacy is None:
        return study.training.batch_size or 0
    return study.privacy.images_per_patient * study.privacy.augmentations


def _matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern of the policy, in which `*` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


@lru_cache(maxsize=64)
def _parameters(study: Study) -> int:
    import torch  # here, as the settings are read by commands that do not need it

    from common.models import build_model

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(study).parameters())


def _trained(study: Study) -> list[str]:
    from common.layout import layout_of

    return [name for name, _ in layout_of(study, "update").tensors]


def _vector_bytes(study: Study, kind: Answering) -> int:
    """Bytes of the vector that answers an order of this kind."""
    from common.layout import layout_of

    return 4 * layout_of(study, kind).length
