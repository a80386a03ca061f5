"""`python -m server`: what the coordinator of a consortium runs."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from common import roster
from common.crypto import certificates
from common.errors import DataError, FederationError
from server import enrolment, export_cli, run_cli
from server.folder import certify, found, open_folder

app = typer.Typer(
    help="A consortium's side of Fedward: who takes part, the server that sites connect to, and its runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Where = Annotated[
    Path, typer.Option("--folder", envvar="FEDWARD_FEDERATION", help="The federation's folder, made by `init`.")
]
Keys = Annotated[Path, typer.Option("--keys", help="Folder of the keys that `init` made, kept off the server.")]
HERE = Path("federation")

for command in (run_cli.up, run_cli.run, run_cli.resume, run_cli.status, run_cli.stop, run_cli.plan, run_cli.report):
    app.command()(command)
app.command("export")(export_cli.command)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the server.")],
    keys: Annotated[Path, typer.Option("--keys", help="New folder for the keys that are kept off the server.")],
    host: Annotated[list[str], typer.Option("--host", help="Name or address under which sites reach the server.")],
    name: Annotated[str, typer.Option("--name", help="Of the federation; is in its certificates.")] = "federation",
    port: Annotated[int, typer.Option("--port", help="The one open port.")] = 9092,
    listen: Annotated[str, typer.Option("--listen", help="Address of this machine to open it on.")] = "0.0.0.0",  # noqa: S104 - the one open port
    loopback: Annotated[int, typer.Option("--loopback", help="First of three ports on loopback.")] = 9093,
    min_sites: Annotated[int, typer.Option("--min-sites", help="Sites without which no round is closed.")] = 3,
    colluding: Annotated[
        int, typer.Option("--colluding", help="Sites that may work together with the server without harm.")
    ] = 1,
) -> None:
    """Make a federation: its folder, and beside it the keys that sign rosters and certificates."""
    if min_sites - colluding < roster.LEAST_HONEST:
        raise DataError(f"--min-sites {min_sites}, --colluding {colluding}: at least 2 honest sites have to be left")
    values = {
        "name": name,
        "hosts": host,
        "listen": listen,
        "port": port,
        "colluding": colluding,
        "min_sites": min_sites,
        "loopback": loopback,
    }
    made = found(folder, keys, values=values, now=int(time.time()))
    typer.echo(f"{folder}: made. {keys}: move it off this machine, with a copy; who has it can let in anybody.")
    typer.echo(f"authority {certificates.fingerprint(made.root.read_bytes())}")


@app.command()
def add_site(
    requests: Annotated[list[Path], typer.Argument(help="request.json of sites, as `client init` made them.")],
    folder: Where = HERE,
) -> None:
    """Put sites into the next roster. Compare each fingerprint with the site, by telephone, before you sign."""
    opened = open_folder(folder)
    for path in requests:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})") from error
        member, fingerprint = enrolment.add(opened, data)
        typer.echo(f"{member.name}: {member.nominal_patients} patients declared; fingerprint {fingerprint}")


@app.command()
def remove_site(name: Annotated[str, typer.Argument(help="Its name in the roster.")], folder: Where = HERE) -> None:
    """Leave a site out of the next roster."""
    enrolment.remove(open_folder(folder), name)
    typer.echo(f"{name}: not in the next roster; `server sign` puts it in force")


@app.command()
def sign(keys: Keys, folder: Where = HERE) -> None:
    """Sign the next roster and put it in force. Send FOLDER/roster.json and FOLDER/ca.pem to every site."""
    made = enrolment.sign(open_folder(folder), keys, now=int(time.time()))
    names = ", ".join(site.name for site in made.sites)
    typer.echo(f"roster {made.version}: {names}; until {time.strftime('%Y-%m-%d', time.gmtime(made.expires))}")
    typer.echo(f"fingerprint {made.fingerprint}")


@app.command()
def renew(keys: Keys, folder: Where = HERE) -> None:
    """New certificates for the server, under the same authority: no site has to do anything."""
    opened = open_folder(folder)
    certify(opened, keys, now=int(time.time()))
    end = certificates.expires(opened.tls("gate")[0].read_bytes())
    typer.echo(f"good until {time.strftime('%Y-%m-%d', time.gmtime(end))}")


def main() -> None:
    """Run the command line. Errors are one line on standard error and exit code 1."""
    try:
        app(prog_name="python -m server")
    except FederationError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
