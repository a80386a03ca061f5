"""The membership audit from request to verdict: both attacks, what they are kept in, and how they are told."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.errors import RunError, StudyError
from common.study import Study
from server.checkpoint import write_atomically
from simulations.membership import mechanism, model
from simulations.sites import Say

Part = Literal["a", "b", "both"]
RESULT = "membership.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a researcher asks for: `python -m simulations membership`."""

    study: Study
    out: Path
    part: Part = "both"
    thorough: bool = False
    data: str = "phantom"
    sites: int = 4
    pretrained: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the parts that were asked for found."""

    study: Study
    mechanism: mechanism.Found | None
    model: model.Found | None

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the promise. Part (b) never decides: what one outsider missed proves nothing."""
        return self.mechanism is None or not self.mechanism.faults

    def as_json(self) -> dict[str, Any]:
        """What membership.json holds."""
        return {
            "schema": 1,
            "study": {"name": self.study.study.name, "hash": self.study.sha256},
            "passed": self.passed,
            "mechanism": None if self.mechanism is None else self.mechanism.as_json(),
            "model": None if self.model is None else self.model.as_json(),
        }


def audit(
    request: Request,
    *,
    say: Say = lambda _: None,
    watch: Callable[[str, Mapping[str, Any]], None] = lambda _n, _e: None,
) -> Found:
    """Carry out the parts that were asked for, and write OUT/membership.json.

    Raises FederationError, one line: StudyError where part (a) is asked of a study without `[privacy]` or there are too
    few sites, RunError where OUT holds an audit already.
    """
    study, out = request.study, request.out
    if study.privacy is None and request.part != "b":
        raise StudyError(
            f"study {study.study.name!r} has no [privacy]: nothing is promised; --part b alone is possible"
        )
    if request.part != "a" and request.sites < study.study.min_sites:
        raise StudyError(f"--sites {request.sites}: study.min_sites = {study.study.min_sites}; take at least as many")
    if (out / RESULT).exists() or (out / "model").exists():
        raise RunError(f"{out}: holds an audit already; choose another --out")
    torch.set_num_threads(1)
    first = second = None
    if request.part != "b":
        count = mechanism.THOROUGH if request.thorough else mechanism.CANARIES
        say(f"Mechanism: one run with {count:,} canaries, each in or out by the toss of a coin …")
        first = mechanism.attack(study, canaries=count, folder=out)
    if request.part != "a":
        say(f"Model: the study on {request.data}, with mislabelled patients …")
        second = model.attack(
            study,
            data=request.data,
            sites=request.sites,
            folder=out / "model",
            pretrained=request.pretrained,
            say=say,
            watch=watch,
        )
    found = Found(study=study, mechanism=first, model=second)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / RESULT, [json.dumps(found.as_json(), indent=1, allow_nan=False).encode()])
    return found


def told(found: Found) -> Group:
    """The result in plain words and tables, for the terminal."""
    parts: list[Text | Table] = []
    if found.mechanism is not None:
        parts += _mechanism(found.mechanism)
    if found.model is not None:
        parts += ([Text()] if parts else []) + _model(found.model)
    return Group(*parts)


def _mechanism(found: mechanism.Found) -> list[Text | Table]:
    gaussian, free, noise = found.gaussian, found.free, found.noise
    images = "1 image" if found.images_per_canary == 1 else f"{found.images_per_canary} images"
    steps = "1 noised step" if found.local_steps == 1 else f"{found.local_steps} noised steps"
    what = (
        f"Mechanism. {found.canaries:,} invented patients (canaries) with {images} each, whose gradients point in"
        f" directions of their own and are {mechanism.LENGTH:g} times as long as the clip allows; {found.present:,}"
        " were in, by the toss of a coin each. One run of the real sampler, clip, noise, ledger, messages and rounds:"
        f" {found.orders:,} orders (spare ones included) of {steps}, patients drawn with probability"
        f" {found.sample_rate:g}. Somebody who reads every message guessed who was in; half of the canaries chose his"
        " threshold, the other half are counted here."
    )
    table = Table("what", "found", "if all is right", "promised", title="Mechanism", title_justify="left")
    rates = gaussian.rates
    taken = found.orders * found.local_steps
    rows = [
        ("canaries that were in, and found", f"{rates.present - rates.misses} of {rates.present}", "", ""),
        ("canaries that were out, and accused", f"{rates.false_alarms} of {rates.absent}", "", ""),
        (
            "epsilon at least (Gaussian): decides",
            f"{gaussian.epsilon:.2f}",
            f"about {found.expected:.1f}",
            f"at most {found.claim:g}",
        ),
        ("epsilon at least (any mechanism; weak)", f"{free.epsilon:.2f}", "", f"at most {found.claim:g}"),
        (
            "noise of an order, in clip norms",
            f"{noise.measured:.4f} ± {noise.measured_error:.4f}",
            "",
            f"{noise.promised:.4f}",
        ),
        ("steps charged in the ledger", f"{found.steps_charged:,}", "", f"{taken:,}"),
    ]
    if noise.repeated is not None:
        repeated = f"{noise.repeated:.4f} ± {noise.repeated_error:.4f}"
        rows.append(("noise that returns in the next order", repeated, "", "0"))
    for row in rows:
        table.add_row(*row)
    if found.faults:
        verdict = "FAILED: " + "; ".join(found.faults) + "."
    else:
        verdict = (
            f"PASSED: nothing contradicts epsilon {found.claim:g} at delta {found.delta:g}. The bounds hold with 95 %"
            " confidence. This finds faults of the machinery; it proves no epsilon, which is what the account is for."
        )
    return [Text(what), table, Text(verdict, style="bold")]


def _model(found: model.Found) -> list[Text | Table]:
    what = (
        f"Model. {found.canaries} patients with wrong annotations, {found.present} of them in by the toss of a coin,"
        f" among {found.patients:,} training patients at {found.sites} sites. Somebody who can only ask the final model"
        " guessed: the lower the loss on the wrong annotation, the likelier he was in."
    )
    table = Table("guesses (the surest)", "right", "epsilon at least", title="Model", title_justify="left")
    for one in found.guesses:
        table.add_row(str(one.guesses), str(one.correct), f"{one.epsilon:.2f}")
    achieved = (
        f"such an outsider shows that epsilon is at least {found.epsilon:.2f} (95 % confidence, delta {found.delta:g})"
        if found.epsilon > 0
        else "such an outsider can't be told from chance"
    )
    verdict = f"Not a pass mark: {achieved}; others may achieve more."
    return [Text(what), table, Text(verdict, style="bold")]
