"""`python -m client pull`: fetch images from the hospital's archive, politely, and go on after a break."""

import json
import time
from collections import Counter
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.index import progress_bar
from client.pull.archive import Archive, Fault
from client.pull.folder import Folder
from client.pull.opening import (
    INTERRUPTED,
    MISSING,
    NOTHING,
    Address,
    Authority,
    Between,
    Deadline,
    Json,
    LoginFile,
    MaxPdu,
    Quiet,
    Rate,
    Timeout,
    Title,
    TokenFile,
    Ways,
    open_archive,
    pace_of,
    tallied,
)
from client.pull.pace import Pace
from client.pull.run import Counts, Survey, pull, survey
from client.pull.selection import Selection, read_entries
from common.errors import DataError

_WHY = {
    Fault.BROKE_OFF: "with no connection or one that broke off",
    Fault.LATE: "not in time",
    Fault.FAILED: "which the archive said it can't",
}


def command(
    archive: Address,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the images; new, or of an earlier pull.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d", "%Y%m%d"], help="First study date.", metavar="DATE"),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d", "%Y%m%d"], help="Last study date; default today.", metavar="DATE"),
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="CR, DX, MG …; may be given several times.")] = None,
    study_description: Annotated[str, typer.Option(help="With * and ?, such as 'Thorax*'.")] = "",
    series_description: Annotated[str, typer.Option(help="With * and ?.")] = "",
    patients: Annotated[Path | None, typer.Option(help="File of PatientIDs, one a line.")] = None,
    accessions: Annotated[Path | None, typer.Option(help="File of accession numbers, one a line.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Count by modality and year; fetch nothing.")] = False,
    rate: Rate = 5.0,
    hours: Between = "",
    most: Annotated[int, typer.Option("--max-mib", min=1, max=4096, help="Refuse larger images, in MiB.")] = 1024,
    again: Annotated[bool, typer.Option("--again", help="Ask anew for images that earlier runs refused.")] = False,
    ca: Authority = None,
    login_file: LoginFile = None,
    token_file: TokenFile = None,
    title: Title = "FEDWARD",
    max_pdu: MaxPdu = 65536,
    timeout: Timeout = 30.0,
    deadline: Deadline = 600.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch images from a PACS into OUT/images, for `python -m client index OUT/images --out SITE`.

    \b
    client pull https://pacs/dicom-web --from 2023-01-01 --to 2023-12-31 --list
    client pull https://pacs/dicom-web --from 2023-01-01 --to 2023-12-31 --out OUT
    client pull dicom://PACS@10.0.0.5:104 --patients list.txt --out OUT

    \b
    The files lie in OUT IN CLEAR, with names and birth dates, as in the archive:
    OUT is for its owner alone (0700) and belongs on a disk that the hospital
    trusts. De-identification happens at the index, which keeps a few allow-listed
    tags and keyed hashes and flags burned-in annotation. Delete OUT/images when
    training no longer needs it. Nothing of an image is printed: counts only.

    \b
    Run it again after a break: only what is missing is asked for. One connection
    at a time, --rate questions and images a second. Nothing is recoded.

    \b
    Password or token: --login-file, --token-file, or in the environment
    FEDWARD_PACS_LOGIN (USER:PASSWORD), FEDWARD_PACS_TOKEN. HTTPS_PROXY and
    NO_PROXY are honoured. DIMSE is not encrypted and has no password.

    \b
    Exit code 0: all that was asked for is here. 1: it could not be done, one
    line says why. 3: something is missing or was refused, or the archive has no
    study of somebody on the list; the table says how much. 4: nothing matches.
    130: interrupted.
    """
    if patients and accessions:
        raise DataError("--patients and --accessions exclude each other; give one of them")
    path = patients or accessions
    last = until.date() if until else date.today() if since else None
    selection = Selection(
        since=since.date() if since else None,
        until=last,
        modalities=frozenset(modality or ()),
        study_description=study_description,
        series_description=series_description,
        key="AccessionNumber" if accessions else "PatientID",
        entries=read_entries(path) if path else (),
    )
    if out is None and not list_only:
        raise DataError("--out is missing: the folder for the images; or --list to count only")
    pace = pace_of(rate, hours, quiet=quiet)
    opened = open_archive(
        archive,
        Ways(
            ca=ca,
            login_file=login_file,
            token_file=token_file,
            title=title,
            max_pdu=max_pdu,
            timeout=timeout,
            deadline=deadline,
        ),
    )
    started = time.monotonic()
    with closing(opened):
        if out is None or list_only:
            _show_survey(survey(opened, selection, pace=pace), as_json, quiet)
        else:
            _pull(opened, selection, out, pace, most * 2**20, again, as_json, quiet, started)


def _pull(
    archive: Archive,
    selection: Selection,
    out: Path,
    pace: Pace,
    limit: int,
    again: bool,
    as_json: bool,
    quiet: bool,
    started: float,
) -> None:
    counts, code = Counts(), INTERRUPTED
    try:
        with Folder(path=out) as folder, progress_bar("Fetching", quiet=quiet) as progress:
            pull(archive, selection, folder, pace=pace, counts=counts, limit=limit, again=again, progress=progress)
        code = NOTHING if not (counts.found or counts.questions_failed) else 0 if counts.complete else MISSING
    except KeyboardInterrupt:
        pass
    except Exception:
        code = 1
        raise
    finally:
        _show(counts, code, out, as_json, quiet, time.monotonic() - started)
    if code:
        raise typer.Exit(code)


def _show(counts: Counts, code: int, out: Path, as_json: bool, quiet: bool, seconds: float) -> None:
    if as_json:
        values: dict[str, Any] = {
            "schema": 1,
            "absent": counts.absent,
            "studies": counts.studies,
            "series": counts.series,
            "found": counts.found,
            "present": counts.present,
            "fetched": counts.fetched,
            "refused": tallied(counts.refused),
            "failed": tallied(counts.failed),
            "questions_failed": tallied(counts.questions_failed),
            "unmatched": counts.unmatched,
            "bytes": counts.bytes,
            "seconds": round(seconds, 3),
            "complete": code in (0, NOTHING) and counts.complete,
        }
        print(json.dumps(values))
        return
    if quiet:
        return
    console = Console()
    table = Table(
        title=f"{counts.found} images of {counts.series} series, {counts.studies} studies", title_justify="left"
    )
    table.add_column("what became of them")
    table.add_column("images", justify="right")
    table.add_row("fetched", str(counts.fetched), style="bold")
    table.add_row("here already", str(counts.present))
    for name, faults in (("refused", counts.refused), ("missing", counts.failed)):
        for fault, number in tallied(faults).items():
            table.add_row(f"{name}: {fault.replace('_', ' ')}", str(number))
    console.print(table)
    if counts.absent:
        console.print(f"{counts.absent} of the list: the archive has no study of them (of these dates)")
    if counts.questions_failed:
        console.print(f"{_unanswered(counts.questions_failed)}: there may be more images than these", soft_wrap=True)
    if counts.unmatched:
        console.print(f"{counts.unmatched} answers were not what was asked for, and not followed")
    if unlisted := counts.failed[Fault.NOT_LISTED]:
        console.print(
            f"{unlisted} images not listed: the archive says that its series have them, and cut its answer short; have"
            " its limit of answers raised (Orthanc: LimitFindInstances)",
            soft_wrap=True,
        )
    if counts.failed or counts.questions_failed or code == INTERRUPTED:
        console.print("Run it again: only what is missing is asked for.")
    if counts.fetched:
        console.print(
            f"In clear in {out / 'images'}; next: python -m client index {out / 'images'} --out SITE",
            soft_wrap=True,
            highlight=False,
        )


def _unanswered(faults: Counter[Fault]) -> str:
    """How many questions the archive left open, and why."""
    why = ", ".join(f"{number} {_WHY.get(fault, fault.replace('_', ' '))}" for fault, number in sorted(faults.items()))
    return f"{faults.total()} question{'' if faults.total() == 1 else 's'} had no answer ({why})"


def _show_survey(found: Survey, as_json: bool, quiet: bool) -> None:
    if as_json:
        values: dict[str, Any] = {
            "schema": 1,
            "absent": found.absent,
            "studies": found.studies,
            "series": found.series,
            "images": found.images,
            "untold": found.untold,
            "by": {modality: dict(sorted(years.items())) for modality, years in sorted(found.by.items())},
            "questions_failed": tallied(found.questions_failed),
            "unmatched": found.unmatched,
        }
        print(json.dumps(values))
    elif not quiet:
        console = Console()
        title = f"{found.images} images of {found.series} series, {found.studies} studies"
        years = sorted({year for counted in found.by.values() for year in counted})
        table = Table(title=title, title_justify="left")
        for column in ("modality", *years):
            table.add_column(column, justify="left" if column == "modality" else "right")
        for kind, counted in sorted(found.by.items()):
            table.add_row(kind, *(str(counted[year]) for year in years))
        console.print(table)
        if found.untold:
            console.print(f"{found.untold} series more, of which the archive does not tell the number of images")
        if found.absent:
            console.print(f"{found.absent} of the list: the archive has no study of them (of these dates)")
        if found.questions_failed:
            console.print(f"{_unanswered(found.questions_failed)}: there may be more than this", soft_wrap=True)
    if found.questions_failed or found.absent or not found.series:
        raise typer.Exit(MISSING if found.questions_failed or found.series else NOTHING)
