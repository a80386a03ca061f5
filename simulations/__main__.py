"""`python -m simulations`: the researcher's command line."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import FederationError, StudyError

app = typer.Typer(
    help="Simulate a federation of hospitals on this machine, and see what it would gain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STUDIES = Path(__file__).parent / "studies"
DATA_HELP = (
    "where the images come from: phantom[:PATIENTS] (made on the spot), medmnist:FILE.npz, voc:DIR, coco:DIR,"
    " masks:DIR (images/ and masks/ with equal names) or dicom:DIR (DICOM files with labels.csv, masks/ or boxes.json)"
)
PARTITION_HELP = (
    "how patients are divided: uniform, quantity:ALPHA (unequal sizes), dirichlet:ALPHA (unequal classes), column:NAME"
    " (by a column of labels.csv), scanner:STRENGTH (each site's images look different); join with +."
    " Smaller ALPHA: more unequal"
)


class Backend(StrEnum):
    """Where the sites run."""

    inprocess = "inprocess"
    ray = "ray"


StudyArgument = Annotated[
    Path, typer.Argument(help="study file, or the name of a ready one (see `studies`)", metavar="STUDY.toml")
]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP, metavar="SPEC")]
SitesOption = Annotated[int, typer.Option("--sites", min=1, max=10_000, help="number of hospitals", metavar="N")]
PartitionOption = Annotated[str, typer.Option("--partition", help=PARTITION_HELP, metavar="SPEC")]
OutOption = Annotated[Path, typer.Option("--out", help="folder for everything that is left behind", metavar="DIR")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="change a key of the study: study.rounds=5; again for more", metavar="KEY=VALUE"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress, only the result")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output instead of a table")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each training", metavar="N")]


def study_from(path: Path, changes: list[str] | None) -> Any:
    """The study in a file, or the ready one of that name, with `--set` applied."""
    from common.study import load

    ready = STUDIES / f"{path.name.removesuffix('.toml')}.toml"
    return load(ready if not path.exists() and ready.exists() else path, changes=dict(map(_change, changes or [])))


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {text}: write KEY=VALUE, for example study.rounds=5")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


@app.command()
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
    pretrained: Annotated[
        Path | None, typer.Option(help=".safetensors file to start from; its hash is in the study", metavar="FILE")
    ] = None,
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


@app.command()
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


@app.command()
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
        console.print(protection(result.privacy, sites=sites))


def protection(found: Any, *, sites: int) -> Any:
    """The plan's privacy as a table for the terminal."""
    from rich.table import Table

    said = found.statement
    table = Table("privacy", "", title=f"If each of {sites} sites has {found.patients} patients", title_justify="left")
    table.add_row("promise", f"epsilon {said['epsilon']:g}, delta {said['delta']:g}, each {said['unit']}, each site")
    table.add_row("noised steps, spare ones included", f"{said['steps_planned']:,}")
    table.add_row("a patient is drawn", f"about {said['sample_rate'] * said['steps_planned']:.0f} times")
    table.add_row("noise multiplier", f"{said['noise_multiplier']:g} ({said['accountant']})")
    table.add_row("mu (signal of a patient over noise)", f"{found.mu:.2f}")
    table.add_row("noise over signal of the run", f"{found.noise_over_signal:.2f}: {found.verdict}")
    for name, half in found.half_widths.items():
        width = "not measurable at this epsilon" if half is None else f"within {half:.3f} of the true one"
        table.add_row(f"released {name.replace('_', ' ')}", width)
    table.add_row("a new ledger must allow in all", f"epsilon {found.lifetime_epsilon:g}; each site says what is left")
    return table


@app.command()
def pretrain(
    study: StudyArgument,
    out: Annotated[Path, typer.Option("--out", help="file to write", metavar="FILE.safetensors")],
    data: DataOption = "phantom",
    images: Annotated[int, typer.Option(min=1, help="images to make or take", metavar="N")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="passes over them", metavar="E")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of weights, images and their order")] = 0,
    threads: ThreadsOption = 1,
    change: SetOption = None,
) -> None:
    """Train a study's network on public images: a file for --pretrained, so that less is to be learnt under privacy."""
    import torch

    from simulations.pretraining import pretrain as carry_out

    torch.set_num_threads(threads)
    parsed = study_from(study, change)
    found = carry_out(
        parsed,
        images=images,
        epochs=epochs,
        out=out,
        seed=seed,
        data=data,
        say=lambda text: typer.echo(text, err=True),
    )
    typer.echo(
        f"{found.path}: {found.parameters:,} values, made for {', '.join(found.classes)}\n\n[model]\n{found.lines}"
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="folder with model.safetensors and model.json", metavar="DIR")],
    data: DataOption,
    out: OutOption,
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Judge an existing model on other data: all images that have a usable annotation, whatever split they come
    with.
    """
    from simulations.evaluation import evaluate as carry_out

    metrics = carry_out(model, data=data, out=out, threads=threads, quiet=quiet or json_)
    typer.echo(json.dumps(metrics) if json_ else json.dumps(metrics, indent=1))


class AuditPart(StrEnum):
    """Which attack: on the mechanism, on the model, or both."""

    a = "a"
    b = "b"
    both = "both"


@app.command()
def membership(
    study: StudyArgument,
    out: OutOption,
    data: DataOption = "phantom",
    sites: SitesOption = 4,
    part: Annotated[
        AuditPart, typer.Option(help="a: the mechanism, which decides; b: what an outsider learns from the model")
    ] = AuditPart.both,
    thorough: Annotated[bool, typer.Option("--thorough", help="10,000 canaries instead of 2,000: minutes")] = False,
    pretrained: Annotated[
        Path | None, typer.Option(help=".safetensors file to start from; its hash is in the study", metavar="FILE")
    ] = None,
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


@app.command()
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


@app.command()
def federation(out: OutOption) -> None:
    """Bring up a real server and four hospitals on this machine, train with privacy and encryption, stop."""
    from simulations.loopback import federation as carry_out

    run = carry_out(out, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"Report: {(run / 'report.html').resolve()}")


@app.command()
def studies() -> None:
    """List the ready studies that `run` and `plan` know by name."""
    from common.study import load

    for path in sorted(STUDIES.glob("*.toml")):
        parsed = load(path)
        typer.echo(f"{path.stem}: {parsed.study.task} of {', '.join(parsed.study.classes)} with {parsed.model.name}")


def main() -> None:
    """Run a command; a FederationError is one line on standard error and exit code 1."""
    guarded(app)


def guarded(command: Callable[[], Any]) -> None:
    """Call a command line so that what was foreseen to go wrong, and what the disk refuses, is one line, and a closed
    pipe is no error.
    """
    try:
        command()
    except FederationError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        typer.echo(f"error: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
