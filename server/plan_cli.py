"""`python -m server plan`: what a study would cost these sites, before anything is started."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from common import guarantee, params
from common.errors import DataError, RunError
from common.event import HISTOGRAM_NOISE_MULTIPLIER
from common.layout import layout_of
from common.models import build_model
from common.randomness import seeded
from common.roster import Roster, threshold
from common.study import Study, load
from server.folder import Folder, open_folder
from server.status_cli import HERE, JsonOption, Where

StudyFile = Annotated[Path, typer.Argument(help="The study, TOML.", metavar="STUDY")]
_TRAINED = 16  # bytes of memory for a number of the model while it is trained: itself, gradient, optimiser, copy


def plan(study: StudyFile, folder: Where = HERE, as_json: JsonOption = False) -> None:
    """What a study would cost these sites: bytes, time at most, memory, noise; how many may be away. Starts nothing."""
    opened, agreed = open_folder(folder.resolve()), load(study)
    values = _planned(agreed, usable(opened, agreed))
    if as_json:
        typer.echo(json.dumps(values))
        return
    down, up = values["bytes_down"], values["bytes_up"]
    typer.echo(f"study {values['study']} {values['hash'][:16]}: {values['parameters']:,} parameters")
    typer.echo(
        f"{values['sites']} sites, {values['rounds']} rounds; up to {values['may_be_away']} may be away in a round"
    )
    typer.echo(f"each site, each round: {down / 1e6:.1f} MB down, {up / 1e6:.1f} MB up")
    typer.echo(f"all of it: {values['bytes_total'] / 1e9:.2f} GB")
    typer.echo(f"memory for the model while it is trained: {values['bytes_memory'] / 1e6:.0f} MB, and its images")
    hours = values["seconds_at_most"] / 3600
    typer.echo(f"time: at most {hours:.1f} h, every round to its deadline; `simulations plan` measures a site's step")
    for name, said in values["privacy"].items():
        histogram = f"; a histogram of its classes, noise {HISTOGRAM_NOISE_MULTIPLIER:g}" if "histogram" in said else ""
        typer.echo(
            f"{name}: epsilon {said['epsilon']}, delta {said['delta']}, noise {said['noise_multiplier']}; each"
            f" {said['unit']} of its {said['pool']} pool ({said['neighbours']}){histogram}"
        )
    if values["privacy"]:
        typer.echo(guarantee.LIMITS)


def _planned(study: Study, roster: Roster) -> dict[str, Any]:
    with seeded(study.study.seed, "initialisation"):
        model = build_model(study)
    length = params.length(params.shapes(model, trainable=False))
    down, up, sites, rounds = 4 * length, 4 * layout_of(study, "update").length, len(roster.sites), study.study.rounds
    quorum = max(study.study.min_sites, roster.min_sites)
    if study.aggregation.secure:
        quorum = max(quorum, threshold(sites, roster.colluding))
        up = round(up * 2 / 3)  # three values in a 64-bit word
    nominal = {site.name: site.nominal_patients for site in roster.sites} if study.privacy is not None else {}
    return {
        "schema": 1,
        "study": study.study.name,
        "hash": study.sha256,
        "parameters": length,
        "sites": sites,
        "rounds": rounds,
        "may_be_away": sites - quorum,
        "bytes_down": down,
        "bytes_up": up,
        "bytes_total": sites * (rounds * (down + up) + down),
        "bytes_memory": _TRAINED * length,
        "seconds_at_most": (rounds + 1 + guarantee.counts(study)) * study.study.round_deadline,
        "privacy": {
            name: guarantee.statement(
                study, nominal_patients=patients, rounds_charged=rounds, counts_charged=int(guarantee.counts(study))
            )
            for name, patients in nominal.items()
        },
    }


def usable(folder: Folder, study: Study) -> Roster:
    """The roster in force, if this study can be run under it. Raises RunError, StudyError, AccountingError."""
    roster = folder.roster()
    if roster is None:
        raise RunError(f"{folder.path}: has no roster; add sites, then `server sign`")
    if not time.time() < roster.expires:
        raise RunError(f"{folder.path}: the roster has expired; `server sign`, and send it to the sites")
    if study.study.min_sites < roster.min_sites or study.study.min_sites > len(roster.sites):
        raise DataError(
            f"study.min_sites = {study.study.min_sites}; {roster.min_sites} (the roster's) to {len(roster.sites)} (all)"
        )
    if study.privacy is not None:
        guarantee.check_nominal(study, {site.name: site.nominal_patients for site in roster.sites})
    return roster
