"""`python -m client push`: store a prediction's segmentations and reports in the hospital's archive."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.index import progress_bar
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
from client.push.journal import Journal
from client.push.results import Refusal, gather
from client.push.run import Counts, push


def command(
    archive: Address,
    results: Annotated[Path, typer.Argument(help="Folder that `client predict` has written.", metavar="RESULTS")],
    list_only: Annotated[bool, typer.Option("--list", help="Count what would be stored; send nothing.")] = False,
    unasked: Annotated[
        bool, typer.Option("--unasked", help="Don't ask first whether the study is there, of the same patient.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Send also what was taken already, and beside an earlier prediction's results."),
    ] = False,
    rate: Rate = 5.0,
    hours: Between = "",
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
    """Store the DICOM results of `client predict` in a PACS. RESEARCH ONLY: ask its administrator where they belong.

    \b
    python -m client push https://pacs/dicom-web RESULTS --list
    python -m client push https://pacs/dicom-web RESULTS
    python -m client push dicom://PACS@10.0.0.5:104 RESULTS --title FEDWARD

    \b
    Sent are RESULTS/segmentations (DICOM SEG) and RESULTS/reports (DICOM SR),
    byte for byte, and nothing else: an object that Fedward did not write is
    refused. Each carries "research only" in its series description; a report
    is unverified and preliminary.

    \b
    The archive is asked first: an object is stored only where its study is,
    under the same PatientID and no other. So results of images under pseudonyms
    can't start new patients, and none is filed under another's name. A study that
    has results of the same description from an earlier prediction gets no second
    ones beside them: delete those in the archive, or give --again. An archive
    that takes in objects but answers no questions needs --unasked.

    \b
    Run it again after a break: only what is missing is sent. One connection at
    a time. The archive can delete what it took: by its series, which says
    Fedward in its description. Nothing of a result is printed: counts only.

    \b
    Password or token: --login-file, --token-file, or in the environment
    FEDWARD_PACS_LOGIN (USER:PASSWORD), FEDWARD_PACS_TOKEN. HTTPS_PROXY and
    NO_PROXY are honoured. DIMSE is not encrypted and has no password.

    \b
    Exit code 0: the archive has all of it. 1: it could not be done, one line
    says why. 3: something was refused or is missing; the table says how much.
    4: there is nothing to store. 130: interrupted.
    """
    started = time.monotonic()
    found, others = gather(results)
    counts = Counts(found=others.total())
    counts.refused.update(others)
    if list_only:
        counts.found += len(found)
        _show(counts, NOTHING if not found else 0, as_json, quiet, time.monotonic() - started, listed=len(found))
        raise typer.Exit(0 if found else NOTHING)
    pace = pace_of(rate, hours, quiet=quiet)
    ways = Ways(
        ca=ca,
        login_file=login_file,
        token_file=token_file,
        title=title,
        max_pdu=max_pdu,
        timeout=timeout,
        deadline=deadline,
    )
    opened = open_archive(archive, ways, stores={(one.instance.sop_class, one.syntax) for one in found})
    code = INTERRUPTED
    try:
        with (
            closing(opened),
            Journal(folder=results, address=archive) as journal,
            progress_bar("Storing", quiet=quiet) as progress,
        ):
            push(opened, found, journal, pace=pace, counts=counts, unasked=unasked, again=again, progress=progress)
        code = (0 if counts.found else NOTHING) if counts.complete else MISSING
    except KeyboardInterrupt:
        pass
    except Exception:
        code = 1
        raise
    finally:
        _show(counts, code, as_json, quiet, time.monotonic() - started)
    if code:
        raise typer.Exit(code)


def _show(counts: Counts, code: int, as_json: bool, quiet: bool, seconds: float, *, listed: int = 0) -> None:
    if as_json:
        values: dict[str, Any] = {
            "schema": 1,
            "found": counts.found,
            "present": counts.present,
            "stored": counts.stored,
            "refused": tallied(counts.refused),
            "failed": tallied(counts.failed),
            "bytes": counts.bytes,
            "seconds": round(seconds, 3),
            "complete": code in (0, NOTHING) and not listed,
        }
        print(json.dumps(values))
        return
    if quiet:
        return
    console = Console()
    table = Table(title=f"{counts.found} segmentations and reports", title_justify="left")
    table.add_column("what became of them")
    table.add_column("objects", justify="right")
    if listed:
        table.add_row("would be stored", str(listed), style="bold")
    else:
        table.add_row("stored", str(counts.stored), style="bold")
        table.add_row("there already", str(counts.present))
    for name, faults in (("refused", counts.refused), ("missing", counts.failed)):
        for fault, number in tallied(faults).items():
            table.add_row(f"{name}: {fault.replace('_', ' ')}", str(number))
    console.print(table)
    if there := counts.refused[Refusal.RESULTS_THERE]:
        console.print(
            f"{there} not stored: the archive has an earlier prediction's results there; delete those, or --again",
            soft_wrap=True,
        )
    if counts.failed or code == INTERRUPTED:
        console.print("Run it again: only what is missing is sent.")
