"""`membership` and `attack`: whether what is promised withstands who tries to break it."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from simulations.options import (
    DataOption,
    JsonOption,
    OutOption,
    PretrainedOption,
    QuietOption,
    SetOption,
    SitesOption,
    StudyArgument,
    study_from,
)


class AuditPart(StrEnum):
    """Which attack: on the mechanism, on the model, or both."""

    a = "a"
    b = "b"
    both = "both"


def membership(
    study: StudyArgument,
    out: OutOption,
    data: DataOption = "phantom",
    sites: SitesOption = 4,
    part: Annotated[
        AuditPart, typer.Option(help="a: the mechanism, which decides; b: what an outsider learns from the model")
    ] = AuditPart.both,
    thorough: Annotated[bool, typer.Option("--thorough", help="10,000 canaries instead of 2,000: minutes")] = False,
    pretrained: PretrainedOption = None,
    change: SetOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Attack a private study to see whether its promise holds: who was in? Exit code 1 where it does not."""
    from rich.console import Console

    from common.tasks import task_of
    from simulations.console import Watcher
    from simulations.membership.audit import Request, audit, told

    parsed = study_from(study, change)
    request = Request(
        study=parsed,
        out=out,
        part=part.value,
        thorough=thorough,
        data=data,
        sites=sites,
        pretrained=pretrained,
    )
    headline = task_of(parsed).headline
    with Watcher(rounds=parsed.study.rounds, headline=headline, quiet=quiet or json_) as watcher:
        found = audit(request, say=watcher.say, watch=watcher)
    if json_:
        typer.echo(json.dumps(found.as_json()))
    else:
        Console(highlight=False).print(told(found))
    if not found.passed:
        raise typer.Exit(1)


def attack(
    bits: Annotated[
        int,
        typer.Option(min=8, max=28, help="bits of a key to search: 28 finds any of Flower's, in minutes", metavar="N"),
    ] = 16,
    verbose: Annotated[bool, typer.Option("--verbose", help="every answer of the sites, in their words")] = False,
    json_: JsonOption = False,
) -> None:
    """Attack secure aggregation as a lying server would, Fedward's and Flower's. Exit code 1 where one on Fedward's
    succeeds.
    """
    from rich.console import Console

    from simulations.attacks.table import carry_out, told

    found = carry_out(bits=bits)
    if json_:
        typer.echo(json.dumps(found.as_json()))
    else:
        Console(highlight=False).print(told(found, verbose=verbose))
    if not found.passed:
        raise typer.Exit(1)
