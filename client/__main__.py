"""`python -m client`: what a hospital's data engineer runs."""

import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from client import (
    apart,
    cohort,
    index_file,
    ledger_cli,
    operate_cli,
    policy_cli,
    predict_cli,
    pull_cli,
    push_cli,
    quality_cli,
    run_cli,
)
from client import index as indexes
from client.apart import Cohorts
from client.cache_shrink import shrink
from client.drops import Drop
from client.index import Counts
from client.memory import remembered
from client.readers import Fusion
from client.site import Site, demand_own, open_site, site_toml
from common import command_line
from common.errors import DataError

app = typer.Typer(
    help="""One hospital's side of Fedward: images become a site folder, and the site takes part in a federation.

    \b
    1. client pull PACS --out DIR; client index DIR/images --out SITE
    2. client quality SITE                                      is all of it used
    3. client ledger create SITE --epsilon E --nominal-patients N      its budget
       client policy SITE --set KEY=VALUE                       its limits
    4. client init SITE ...; client join SITE roster.json ...   the federation
    5. client check SITE; client up SITE                        keeps running
    6. client studies SITE; client approve SITE HASH (or deny)  what may run
    7. client status SITE; client audit show SITE               what was sent
    8. client predict --model OUT ...; client push PACS DIR     a finished model

    Exit codes: 0 done; 1 refused or failed, one line on standard error says why and what to do (check: a FAIL line;
    status: not connected); 2 wrong usage. With --json standard output has one line of JSON for scripts; where the
    command was refused, it has the key "error".
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
        Literal["keep", "drop"] | None,
        typer.Option(
            "--burned-in",
            help="Images whose header says that text, perhaps a name, is in the pixels;"
            " default: what drop_burned_in says in OUT/site.toml, and that is to keep and to flag them.",
            show_default=False,
        ),
    ] = None,
    automatic: Annotated[
        Literal["keep", "drop"],
        typer.Option(
            "--automatic",
            help="DICOM segments, regions and reports that a program made alone and nobody verified or approved: keep"
            " uses them as annotations; drop counts them. Fedward's own results are never used.",
        ),
    ] = "drop",
    other_cohorts: Annotated[
        list[Path] | None,
        typer.Option(
            "--other-cohort",
            help="Site folder of another cohort of this hospital, with a budget of its own: its patients are left out"
            " here, and this one's there. Give it once, and again for each; it is kept in both folders' site.toml.",
            metavar="SITE",
        ),
    ] = None,
    give_up_shared: Annotated[
        bool,
        typer.Option(
            "--give-up-shared",
            help="Patients who are in OUT's index and in another cohort already leave both, for good; without this"
            " nothing is indexed while there are any.",
        ),
    ] = False,
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
                             SOPInstanceUID, StudyInstanceUID, PatientID (or the
                             patient in patients.csv) or path
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
    A second site folder for the same archive, with a budget of its own for
    those who are in no other: --other-cohort FIRST. OUT/patients lists, as
    keyed hashes, whoever was indexed once: back it up with OUT/keys.

    \b
    No image is copied or changed. Patient identifiers are kept as keyed hashes,
    and encrypted in OUT/headers.sealed, so that a second run reads changed
    files alone: keep OUT/keys as safe as the images. Every file is accounted
    for: used + dropped = files.
    """
    started = time.monotonic()
    _check(out, folder)
    with apart.locked(out, other_cohorts or ()) as group:
        site = _prepare(out)
        if burned_in == "keep" and site.policy.drop_burned_in:
            raise DataError(
                f"--burned-in keep: {out / 'site.toml'} says drop_burned_in = true in [policy]; change it there"
            )
        cohorts = apart.gather(site, group, gives_up_shared=give_up_shared)
        memory = remembered(out, patient_key=site.patient_key)
        if anew:
            memory.forget()
        counts = indexes.build(
            form,
            folder,
            out,
            patient_key=site.patient_key,
            image_is_patient=image_is_patient,
            drop_burned_in=burned_in == "drop" or site.policy.drop_burned_in,
            keeps_automatic=automatic == "keep",
            fusion=fusion,
            memory=memory,
            cohorts=cohorts,
            quiet=quiet,
        )
        # A cache outside the site's own folder may serve other sites too.
        own_cache = counts.images and site.cache.resolve().is_relative_to(out.resolve())
        taken_out = shrink(out, site.cache) if own_cache else 0
    if as_json:
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps({"schema": 1, **_plain(counts), "read": memory.read, "seconds": seconds}))
    elif not quiet:
        _print(counts, out)
        for text in _said(counts, cohorts):
            print(text)
        print(f"read: {memory.read} files; the others had not changed since the last time")
        if taken_out:
            print(f"cache: {taken_out} preprocessed images that are no longer in the index were deleted")
    if not counts.images:
        why = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
        raise DataError(f"{folder}: none of {counts.files} files can be used ({why}); see `client index --help`")


app.command("pull")(pull_cli.command)
app.command()(index)
app.command("quality")(quality_cli.command)
app.command("policy")(policy_cli.command)
for command in (run_cli.init, run_cli.join, run_cli.up):
    app.command()(command)
app.command("predict")(predict_cli.command)
app.command("push")(push_cli.command)
app.add_typer(ledger_cli.app, name="ledger")
app.add_typer(operate_cli.app)


def main() -> None:
    """Run the command line. Errors are one line on standard error and exit code 1."""
    command_line.run(app, "python -m client")


def _check(site: Path, images: Path) -> None:
    """Raises DataError where images and site folder can't lie as they do."""
    if not images.exists():
        raise DataError(f"{images}: no such file or folder")
    if site.resolve().is_relative_to(images.resolve()):
        raise DataError(f"{site}: lies inside the images' folder; a site folder needs a place of its own")
    demand_own(site)
    cohort.demand_key(site)


def _prepare(site: Path) -> Site:
    """The site; made with its folder, patient key and site.toml where there is none. What is there is kept."""
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
    return open_site(site)


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


def _said(counts: Counts, cohorts: Cohorts) -> list[str]:
    """What the operator reads of this site's cohort and of the hospital's others."""
    found, away = [], counts.dropped.get(Drop.OTHER_COHORT, 0)
    if away:
        found.append(
            f"other cohort: {away} files are of patients whom the ledger of another cohort counts; not used here"
        )
    if cohorts.others:
        found.append(f"patients of these are kept out: {', '.join(str(other.site.folder) for other in cohorts.others)}")
    if cohorts.taken_up:
        found.append(f"list of known patients: {cohorts.taken_up} of the earlier index were taken up into it")
    return found


if __name__ == "__main__":
    main()
