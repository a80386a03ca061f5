"""`partition`, `plan`, `studies`: what a study would be, before anything is trained."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from simulations.options import (
    STUDIES,
    DataOption,
    JsonOption,
    OutOption,
    PartitionOption,
    QuietOption,
    SetOption,
    SitesOption,
    StudyArgument,
    ThreadsOption,
    study_from,
)


def partition(
    study: StudyArgument,
    data: DataOption,
    out: OutOption,
    sites: SitesOption = 4,
    partition: PartitionOption = "uniform",
    change: SetOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Look at how the patients would be divided, without training: a table, and a picture in --out."""
    from rich.console import Console

    from server.checkpoint import write_atomically
    from simulations.console import Watcher, who_got_what
    from simulations.partition import figure, parse_partition
    from simulations.sites import prepare, summary_of

    parsed = study_from(study, change)
    with Watcher(rounds=1, headline="", quiet=quiet or json_) as watcher:
        made = prepare(
            parsed,
            source_study=parsed,
            data=data,
            partition=parse_partition(partition),
            sites=sites,
            shared=out / "data",
            folder=out / "sites",
            say=watcher.say,
            quiet=quiet or json_,
        )
    if json_:
        typer.echo(json.dumps({"sites": summary_of(made.counts), "unusable": made.unusable}))
        return
    from io import BytesIO

    picture = BytesIO()
    figure(made.counts).savefig(picture, format="png", dpi=150)
    write_atomically(out / "partition.png", [picture.getvalue()])
    console = Console(highlight=False)
    console.print(who_got_what(list(made.counts), title=f"{data} as {partition}, images per class"))
    for reason, number in made.unusable.items():
        console.print(f"not usable: {number} images, {reason}")
    console.print(f"Picture: {(out / 'partition.png').resolve()}", soft_wrap=True)


def plan(
    study: StudyArgument,
    sites: SitesOption = 4,
    images: Annotated[int, typer.Option(min=1, help="training images at a site", metavar="N")] = 1000,
    threads: ThreadsOption = 1,
    change: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """A dry run: parameters, bytes, memory, steps, estimated time and privacy of a study. Needs no data."""
    from simulations.plan import plan as count

    parsed = study_from(study, change)
    result = count(parsed, images=images, sites=sites, threads=threads)
    if json_:
        typer.echo(json.dumps({"study_hash": parsed.sha256, **asdict(result)}))
        return
    from rich.console import Console
    from rich.table import Table

    from common.page import amount, duration

    table = Table(
        "what",
        "how much",
        title=f"{parsed.study.name}: {sites} sites with {images} training images each",
        title_justify="left",
    )
    table.add_row("study hash", parsed.sha256[:16] + "…")
    table.add_row("parameters", f"{result.parameters:,} ({result.trained:,} trained)")
    table.add_row("down, per site and round", amount(result.bytes_down))
    table.add_row("up, per site and round", amount(result.bytes_up))
    table.add_row("all traffic", amount(result.bytes_total))
    table.add_row("steps, per site and round", f"{result.steps_per_round:,}")
    table.add_row("steps, per site, whole study", f"{result.steps:,}")
    table.add_row("memory at a site", f"about {amount(result.client_memory)} and 0.5 GB of libraries")
    table.add_row(
        "memory at the server", f"about {amount(result.server_memory)} and 0.5 GB of libraries, however many sites"
    )
    table.add_row(f"seconds per step, here, {result.threads} thread(s)", f"{result.seconds_per_step:.3f}")
    table.add_row("training at one site, whole study", f"about {duration(result.seconds)}")
    table.add_row("all sites one after the other", f"about {duration(result.seconds * sites)}")
    console = Console(highlight=False)
    console.print(table)
    if result.privacy is not None:
        from common.guarantee import LIMITS

        console.print(protection(result.privacy, sites=sites))
        console.print(LIMITS)


def protection(found: Any, *, sites: int) -> Any:
    """The plan's privacy as a table for the terminal."""
    from rich.table import Table

    said = found.statement
    table = Table("privacy", "", title=f"If each of {sites} sites has {found.patients} patients", title_justify="left")
    table.add_row("promise", f"epsilon {said['epsilon']:g}, delta {said['delta']:g}, each {said['unit']}, each site")
    table.add_row("of whom", f"the {said['pool']} pool; neighbours: {said['neighbours']}")
    table.add_row("noised steps, spare ones included", f"{said['steps_planned']:,}")
    drawn = said["sample_rate"] * said["steps_planned"]
    table.add_row("a patient is drawn", f"by chance, {said['sample_rate']:g} a step: about {drawn:.0f} times")
    table.add_row("noise multiplier", f"{said['noise_multiplier']:g} ({said['accountant']})")
    if "histogram" in said:
        planned, noise = said["histogram"]["planned"], said["histogram"]["noise_multiplier"]
        table.add_row("class histograms, a spare one included", f"{planned}, noise multiplier {noise:g}")
        table.add_row("below, classes count as equally common", "where they aren't, weights take signal away")
    table.add_row("mu (signal of a patient over noise)", f"{found.mu:.2f}")
    table.add_row("noise over signal of the run", f"{found.noise_over_signal:.2f}: {found.verdict}")
    for name, half in found.half_widths.items():
        width = "not measurable at this epsilon" if half is None else f"within {half:.3f} of the true one"
        table.add_row(f"released {name.replace('_', ' ')}", width)
    table.add_row("a new ledger must allow in all", f"epsilon {found.lifetime_epsilon:g}; each site says what is left")
    return table


def studies() -> None:
    """List the ready studies that `run` and `plan` know by name."""
    from common.study import load

    for path in sorted(STUDIES.glob("*.toml")):
        parsed = load(path)
        typer.echo(f"{path.stem}: {parsed.study.task} of {', '.join(parsed.study.classes)} with {parsed.model.name}")
