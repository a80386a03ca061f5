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

from client import cohort, ledger_cli, pull_cli
from client import index as indexes
from client.index import Counts
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
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, no table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Read FOLDER (or a MedMNIST .npz file) and make a site folder: what can be trained on, and why the rest can't.

    \b
    dicom     DICOM files at any depth (or pictures), and beside them any of
                labels.csv   key,label and further columns; a key is a
                             SOPInstanceUID, StudyInstanceUID, PatientID or path
                masks/SOPInstanceUID.png, boxes.json (COCO)
    masks     images/NAME.png and label maps masks/NAME.png
    voc       JPEGImages, Annotations, ImageSets/Main
    coco      JSON files, in FOLDER or its annotations folder, and images
    medmnist  one .npz file

    \b
    In each folder patients.csv (file,patient) can say whose picture a file is;
    without it a picture is a patient of its own, but for format dicom.

    \b
    No image is copied or changed. Patient identifiers are kept as keyed hashes
    only: keep OUT/keys as safe as the images. Every file is accounted for:
    used + dropped = files.
    """
    started = time.monotonic()
    key = _prepare(out, folder)
    counts = indexes.build(form, folder, out, patient_key=key, image_is_patient=image_is_patient, quiet=quiet)
    if as_json:
        print(json.dumps({"schema": 1, **_plain(counts), "seconds": round(time.monotonic() - started, 3)}))
    elif not quiet:
        _print(counts, out)
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
    console.print(f"Each file and its reason: table 'dropped' in {out / indexes.NAME}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
