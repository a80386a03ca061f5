"""`python -m client predict`: a finished model on a folder of images."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from common.errors import DataError


def command(
    models: Annotated[
        list[Path],
        typer.Option(
            "--model",
            help="Folder of a finished model (model.safetensors, model.json). Several models answer together.",
        ),
    ],
    data: Annotated[Path, typer.Option("--input", help="Folder of DICOM files or pictures, at any depth, or a .npz.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the results; outside of --input.")],
    combine: Annotated[
        Literal["mean", "vote"],
        typer.Option("--combine", help="How several models decide: by the mean of their scores, or the majority."),
    ] = "mean",
    window: Annotated[
        bool, typer.Option("--window", help="Images larger than the model: window by window, at their own resolution.")
    ] = False,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Least score of boxes in reports and pictures; tables have all.")
    ] = 0.3,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw a picture of each image.")] = True,
    objects: Annotated[
        bool, typer.Option("--objects/--no-objects", help="Write DICOM objects, and of pictures masks as PNG.")
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, no table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, nothing on standard output.")] = False,
) -> None:
    """Ask a finished model about images. RESEARCH ONLY: not a medical device, and no ground for anybody's care.

    \b
    OUT/predictions.csv    a line for each image: scores, or what was found
    OUT/boxes.csv          a line for each box, in pixels of the stored image
    OUT/problems.csv       each file that could not be used, and why
    OUT/segmentations/     DICOM SEG, one for each series of slices (each echo,
                           weight or time of it), X-ray or cine
    OUT/reports/           DICOM SR (TID 1500), one for each study
    OUT/masks/             masks as PNG, of images that are not DICOM
    OUT/overlays/, doubt/  pictures to look at; where several models disagree
    OUT/prediction.json    models, options, counts

    Frames count from 1. All results name the models' weights and studies by their SHA-256, and the time. No image is
    changed.

    DICOM results CARRY THE PATIENT'S NAME, number, birth date and study, copied from the image as the standard demands:
    they belong where the images are. Nothing is sent anywhere.

    Without --window every image is brought to the model's size as at training, by the same code: right for models that
    have learnt whole images. Use --window with segmentation or detection where training images were about as large as
    the model, so that objects have the size in pixels that it knows. Windows overlap by half; masks are blended, boxes
    merged.

    With several --model the column `disagreement` says how far they are apart, from 0 (of one mind) to 1. Columns
    `score:CLASS` are scores, or their means, whatever --combine is; with --combine vote `votes:CLASS` counts the models
    that find a class more probable than any other. Where no class is ahead the image is `undecided`.
    """
    from client.predict import predict  # here, as it brings in torch
    from client.study_results import Wanted

    started = time.monotonic()
    counts = predict(
        models,
        data,
        out,
        now=datetime.now().astimezone(),
        rule=combine,
        window=window,
        wanted=Wanted(overlays=overlays, objects=objects, min_score=min_score),
        threads=threads,
        quiet=quiet or as_json,
    )
    values = counts.plain
    if as_json:
        print(json.dumps({"schema": 1, **values, "seconds": round(time.monotonic() - started, 3)}))
    elif not quiet:
        print(f"{values['files']} files: {values['used']} used, {counts.images} images")
        if counts.unturned:
            print(f"  used as stored, as the header does not say how they lie: {counts.unturned} images")
        for what in ("dropped", "dropped_images", "unwritten"):
            for reason, number in values[what].items():
                print(f"  {what.replace('_', ' ')}: {number} {reason.replace('_', ' ')}")
        for what, number in values["written"].items():
            print(f"  {what}: {number}")
        print(f"{out}: research only, not a medical device")
    if not counts.images:
        why = ", ".join(f"{n} {reason}" for reason, n in values["dropped"].items()) or "there is none"
        raise DataError(f"{data}: none of {values['files']} files can be used ({why})")
