"""An archive's address, and what is needed beside it, as options of `pull` and of `push`; and the archive, opened."""

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client.pull.archive import Archive
from client.pull.dimse import DimseArchive, read_address
from client.pull.pace import Hours, Pace, read_hours
from client.pull.web import WebArchive
from common.errors import DataError

MISSING, NOTHING, INTERRUPTED = 3, 4, 130  # exit codes

Address = Annotated[str, typer.Argument(help="https://HOST/PATH (DICOMweb), or dicom://TITLE@HOST:PORT (DIMSE).")]
Rate = Annotated[float, typer.Option(help="Questions and images a second, at most.")]
Between = Annotated[str, typer.Option("--hours", help="Only between these hours, such as 19-6; else wait.")]
Authority = Annotated[
    Path | None, typer.Option("--ca", help="DICOMweb: PEM file of the authority behind the certificate.")
]
LoginFile = Annotated[Path | None, typer.Option(help="DICOMweb: file with USER:PASSWORD.")]
TokenFile = Annotated[Path | None, typer.Option(help="DICOMweb: file with a bearer token.")]
Title = Annotated[str, typer.Option(help="DIMSE: this machine's AE title, as the archive knows it.")]
MaxPdu = Annotated[int, typer.Option(min=4096, max=131072, help="DIMSE: bytes of one unit.")]
Timeout = Annotated[float, typer.Option(min=1, max=600, help="Seconds without a byte.")]
Deadline = Annotated[float, typer.Option(min=1, max=86400, help="Seconds for one question or one image.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, no table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")]


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How to reach an archive, as the command line says it."""

    ca: Path | None
    login_file: Path | None
    token_file: Path | None
    title: str
    max_pdu: int
    timeout: float
    deadline: float


def open_archive(address: str, ways: Ways, *, stores: Collection[tuple[str, str]] = ()) -> Archive:
    """The archive at an address; `stores` as DimseArchive. Asks nothing yet. Raises DataError."""
    place = read_address(address)
    if place is not None:
        called, host, port = place
        return DimseArchive(
            host,
            port,
            called=called,
            calling=ways.title,
            max_pdu=ways.max_pdu,
            timeout=ways.timeout,
            deadline=ways.deadline,
            stores=stores,
        )
    login, token = _secret(ways.login_file, "FEDWARD_PACS_LOGIN"), _secret(ways.token_file, "FEDWARD_PACS_TOKEN")
    user, colon, password = (login or "").partition(":")
    if login and not colon:
        raise DataError("the login is not USER:PASSWORD")
    return WebArchive(
        address,
        ca=ways.ca,
        login=(user, password) if login else None,
        token=token,
        timeout=ways.timeout,
        deadline=ways.deadline,
    )


def pace_of(rate: float, hours: str, *, quiet: bool) -> Pace:
    """The pace that the command line asks for; says on standard error when the hours close. Raises DataError."""
    return Pace(rate=rate, hours=read_hours(hours) if hours else None, on_wait=None if quiet else _say_closed)


def _secret(path: Path | None, variable: str) -> str | None:
    """A secret from a file or the environment, one line of printable characters. Its text is in no message."""
    try:
        text = os.environ.get(variable, "") if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({type(error).__name__})") from None
    text = text.strip()
    if not text.isprintable() or not (text or path is None):
        raise DataError(f"{path or variable}: not one line of printable characters")
    return text or None


def _say_closed(hours: Hours) -> None:
    Console(stderr=True).print(f"waiting for {hours[0]}:00; at work from {hours[0]}:00 to {hours[1]}:00 only")


def tallied(counted: Counter[Any]) -> dict[str, int]:
    """By name, in order, what was counted at least once."""
    return {str(name): number for name, number in sorted(counted.items()) if number}
