"""`python -m client`: what a hospital's data engineer runs."""

import json
import os
import re
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from client import cohort, index_file, ledger_cli, operate_cli, predict_cli, pull_cli, quality_cli, run_cli
from client import index as indexes
from client.index import Counts
from client.memory import remembered
from client.readers import Fusion
from client.site import open_site, site_toml
from common.errors import DataError, FederationError

app = typer.Typer(
    help="One hospital's side of Fedward: index images, so that a model can be trained on them here.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.add_typer(ledger_cli.app, name="ledger")
app.command("pull")(pull_cli.command)
app.command("predict")(predict_cli.command)
app.command("quality")(quality_cli.command)
for command in (run_cli.init, run_cli.join, run_cli.up):
    app.command()(command)
app.add_typer(operate_cli.app)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of images as the archive left them, or a MedMNIST .npz file.")],
    out: Annotated[Path, typer.Option("--out", help="Site folder to make or to bring up to date; outside FOLDER.")],
    form: Annotated[
        Literal["auto", "medmnist", "voc", "coco", "masks", "dicom"],
        typer.Option("--format", help="How images and annotations lie in FOLDER; auto looks."),
    ] = "auto",
    image_is_patient: Annotated[
        bool,
        typer.Option("--image-is-patient", help="Images without patient identifier: each is a patient of its own."),
    ] = False,
    fusion: Annotated[
        Fusion, typer.Option("--fusion", help="How one outline is made of several readers': by majority or by STAPLE.")
    ] = "majority",
    burned_in: Annotated[
        Literal["keep", "drop"],
        typer.Option("--burned-in", help="Images whose header says that text, perhaps a name, is in the pixels."),
    ] = "keep",
    anew: Annotated[
        bool, typer.Option("--anew", help="Read every file again, also those that seem unchanged since the last time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, no table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Read FOLDER (or a MedMNIST .npz file) and make a site folder: what can be trained on, and why the rest can't.

    \b
    dicom     DICOM files at any depth (or pictures), and beside them any of
                labels.csv   key,label and further columns; a key is a
                             SOPInstanceUID, StudyInstanceUID, PatientID or path
                masks/SOPInstanceUID.png, boxes.json (COCO)
                DICOM SEG, SR and RTSTRUCT objects, at any depth
                names.csv    found,class: the study's class for a name that
                             stands in such an object
    masks     images/NAME.png and label maps masks/NAME.png
    voc       JPEGImages, Annotations, ImageSets/Main
    coco      JSON files, in FOLDER or its annotations folder, and images
    medmnist  one .npz file

    \b
    In each folder patients.csv (file,patient) can say whose picture a file is;
    without it a picture is a patient of its own, but for format dicom.

    \b
    Several readers of one image are made one by --fusion:
                labels.csv with a column reader, folders masks-READER,
                boxes-READER.json, several DICOM objects

    \b
    No image is copied or changed. Patient identifiers are kept as keyed hashes,
    and encrypted in OUT/headers.sealed, so that a second run reads changed
    files alone: keep OUT/keys as safe as the images. Every file is accounted
    for: used + dropped = files.
    """
    started = time.monotonic()
    key = _prepare(out, folder)
    memory = remembered(out, patient_key=key)
    if anew:
        memory.forget()
    counts = indexes.build(
        form,
        folder,
        out,
        patient_key=key,
        image_is_patient=image_is_patient,
        drop_burned_in=burned_in == "drop",
        fusion=fusion,
        memory=memory,
        quiet=quiet,
    )
    if as_json:
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps({"schema": 1, **_plain(counts), "read": memory.read, "seconds": seconds}))
    elif not quiet:
        _print(counts, out)
        print(f"read: {memory.read} files; the others had not changed since the last time")
    if not counts.images:
        why = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
        raise DataError(f"{folder}: none of {counts.files} files can be used ({why}); see `client index --help`")


def main() -> None:
    """Run the command line. Errors are one line on standard error and exit code 1."""
    try:
        app(prog_name="python -m client")
    except FederationError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _prepare(site: Path, images: Path) -> bytes:
    """The site's patient key; made with the folder and its site.toml where there is none. An existing key is kept."""
    if not images.exists():
        raise DataError(f"{images}: no such file or folder")
    if site.resolve().is_relative_to(images.resolve()):
        raise DataError(f"{site}: lies inside the images' folder; a site folder needs a place of its own")
    cohort.demand_key(site)
    path, settings = site / "keys" / "patient.key", site / "site.toml"
    try:
        site.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            _create(path, secrets.token_bytes(32))
        if not settings.exists():
            name = re.sub("[^a-z0-9]+", "-", site.resolve().name.lower()).strip("-")[:32]
            _create(settings, site_toml(name or "site").encode())
    except OSError as error:
        raise DataError(f"{site}: the site folder can't be made ({error.strerror or error})") from None
    return open_site(site).patient_key


def _create(path: Path, content: bytes) -> None:
    """A new file for its owner alone: whole, or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(counts: Counts) -> dict[str, object]:
    return {
        "files": counts.files,
        "used": counts.used,
        "dropped": counts.dropped,
        "images": counts.images,
        "dropped_images": counts.dropped_images,
        "patients": counts.patients,
        "findings": counts.findings,
    }


def _print(counts: Counts, out: Path) -> None:
    console = Console()
    table = Table(title=f"{counts.files} files", title_justify="left")
    table.add_column("what became of them")
    table.add_column("files", justify="right")
    table.add_row(f"used: {counts.images} images of {counts.patients} patients", str(counts.used), style="bold")
    for reason, number in counts.dropped.items():
        table.add_row(reason.replace("_", " "), str(number))
    console.print(table)
    for reason, number in counts.dropped_images.items():
        console.print(f"{number} single images of files with several: {reason.replace('_', ' ')}")
    for finding, number in counts.findings.items():
        console.print(f"to look at: {number} x {finding.replace('_', ' ')}")
    console.print(
        f"Each file and its reason: table 'dropped' in {out / index_file.NAME}", soft_wrap=True, highlight=False
    )


if __name__ == "__main__":
    main()
