"""`python -m simulations`: the researcher's command line."""

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from common.errors import FederationError
from simulations import attack_cli, model_cli, run_cli, study_cli
from simulations.options import OutOption

app = typer.Typer(
    help="Simulate a federation of hospitals on this machine, and see what it would gain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def federation(out: OutOption) -> None:
    """Bring up a real server and four hospitals on this machine, train with privacy and encryption, stop."""
    from simulations.loopback import federation as carry_out

    run = carry_out(out, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"Report: {(run / 'report.html').resolve()}")


for command in (
    run_cli.run,
    study_cli.partition,
    study_cli.plan,
    model_cli.pretrain,
    model_cli.evaluate,
    attack_cli.membership,
    attack_cli.attack,
    federation,
    study_cli.studies,
):
    app.command()(command)


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
