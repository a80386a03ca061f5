"""`run`: train across simulated hospitals, and show what came of it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.options import (
    DataOption,
    JsonOption,
    OutOption,
    PartitionOption,
    PretrainedOption,
    QuietOption,
    SetOption,
    SitesOption,
    StudyArgument,
    ThreadsOption,
    study_from,
)


class Backend(StrEnum):
    """Where the sites run."""

    inprocess = "inprocess"
    ray = "ray"


def run(
    study: StudyArgument,
    data: DataOption,
    out: OutOption,
    sites: SitesOption = 4,
    partition: PartitionOption = "uniform",
    backend: Annotated[
        Backend, typer.Option(help="inprocess: starts at once, repeatable; ray: sites in parallel")
    ] = Backend.inprocess,
    compare: Annotated[
        bool, typer.Option("--compare", help="also train with all data in one place, and each site alone")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="repeat with this many seeds; gives intervals", metavar="K")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run in --out")] = False,
    drop: Annotated[float, typer.Option(min=0, max=0.99, help="chance that a site misses a round", metavar="P")] = 0.0,
    script: Annotated[
        Path | None,
        typer.Option(
            help="drop-outs and laggards, a JSON line each: "
            '{"round":2,"site":"site-1","do":"drop"|"late"|"crash","seconds":30}, "at" for another order than update',
            metavar="FILE",
        ),
    ] = None,
    pretrained: PretrainedOption = None,
    threads: ThreadsOption = 1,
    jobs: Annotated[
        int, typer.Option(min=0, help="trainings at once (with --compare or --seeds); 0: one per core", metavar="N")
    ] = 0,
    change: SetOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Train a study's model across simulated hospitals and write report.html, summary.json and the model to --out."""
    from common.tasks import task_of
    from simulations.console import Watcher
    from simulations.experiment import Request
    from simulations.experiment import run as carry_out

    parsed = study_from(study, change)
    request = Request(
        study=parsed,
        data=data,
        sites=sites,
        out=out,
        partition=partition,
        backend=backend.value,
        compare=compare,
        seeds=seeds,
        drop=drop,
        script=script,
        pretrained=pretrained,
        threads=threads,
    )
    headline = task_of(parsed).headline
    with Watcher(rounds=parsed.study.rounds, headline=headline, quiet=quiet) as watcher:
        try:
            summary = carry_out(request, resume=resume, jobs=jobs, quiet=quiet, say=watcher.say, watch=watcher)
        except KeyboardInterrupt:
            typer.echo(
                f"Interrupted. The closed rounds are kept: run the same command with --resume to go on ({out}).",
                err=True,
            )
            raise typer.Exit(130) from None
    _show(summary, headline, out, as_json=json_)


def _show(summary: dict[str, Any], headline: str, out: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from rich.console import Console
    from rich.table import Table

    console, comparison = Console(highlight=False), summary.get("comparison")

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    console.print(f"Federated {headline} on held-out test images: {shown(summary['final']['test'].get(headline))}")
    for reason, number in summary["unusable"].items():
        console.print(f"not usable: {number} images, {reason}")
    if comparison:
        console.print(f"All data in one place: {shown(comparison['pooled']['test'].get(headline))}")
        table = Table(
            "site",
            "patients",
            "alone",
            "federated",
            "difference",
            "95 % interval",
            title=f"{headline}, on each site's own held-out patients",
            title_justify="left",
        )
        for site, row in comparison["gain"]["sites"].items():
            interval = f"{shown(row['low'])} … {shown(row['high'])}" if row["low"] is not None else "–"
            table.add_row(
                site,
                str(row["patients"]),
                shown(row["alone"]),
                shown(row["federated"]),
                shown(row["difference"]),
                interval,
            )
        console.print(table)
    for name, row in summary.get("over_seeds", {}).items():
        if isinstance(row, dict):
            interval = f"95 % interval {shown(row['low'])} … {shown(row['high'])}"
            words = f"{name.replace('_', ' ')}, {len(summary['seeds'])} seeds"
            console.print(f"{words}: mean {shown(row['mean'])}, {interval}", soft_wrap=True)
    console.print(f"Report: {(out / 'report.html').resolve()}", soft_wrap=True)
