"""Arguments and options that several of a site's commands have."""

from pathlib import Path
from typing import Annotated

import typer

from client.site import one_digit

SiteArgument = Annotated[Path, typer.Argument(help="The site's folder.", metavar="SITE")]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]


def declared(number: int | None) -> int | None:
    """A number of patients that others will see: a finer one could tell of a single patient."""
    if number is not None and number != (rough := one_digit(number)):
        raise typer.BadParameter(f"{number} has more than one significant digit, and others see it: say {rough}")
    return number
