"""`pretrain` and `evaluate`: one model, without a federation."""

import json
from pathlib import Path
from typing import Annotated

import typer

from simulations.options import (
    DataOption,
    JsonOption,
    OutOption,
    QuietOption,
    SetOption,
    StudyArgument,
    ThreadsOption,
    study_from,
)


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
