"""A site's commands about its federation: ask for membership, join, stay connected."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from client import enrolment, membership, supernode
from client.site import open_site
from common import processes
from common.crypto import certificates
from common.errors import DataError
from common.processes import Watch
from common.roster import accepts

SiteFolder = Annotated[Path, typer.Argument(help="The site's folder.")]


def init(
    site: SiteFolder,
    name: Annotated[str, typer.Option("--name", help="Of this site in the federation: a-z, 0-9 and -.")],
    patients: Annotated[
        int, typer.Option("--patients", help="Declared number of patients, one significant digit; other sites see it.")
    ],
    loopback: Annotated[int, typer.Option("--loopback", help="First of two ports on loopback.")] = 9094,
) -> None:
    """Make this site's keys, and the request to send to the coordinator. Keys that are there already are kept."""
    member = enrolment.found(
        site,
        name=name,
        nominal_patients=patients,
        runtime=f"127.0.0.1:{loopback}",
        health=f"127.0.0.1:{loopback + 1}",
    )
    typer.echo(f"{site / 'request.json'}: send it to the coordinator")
    typer.echo(f"fingerprint, to compare by telephone: {enrolment.request_fingerprint(member)}")


def join(
    site: SiteFolder,
    roster: Annotated[Path, typer.Argument(help="roster.json, as the coordinator sent it.")],
    certificate: Annotated[Path, typer.Option("--ca", help="ca.pem, as the coordinator sent it.")],
    server: Annotated[str, typer.Option("--server", help="host:port of the federation's server.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Don't ask: the fingerprint was compared with another hospital already.")
    ] = False,
) -> None:
    """Show who is in the federation, and pin it when you agree. Compare the fingerprint with another hospital or the
    contract, not with the coordinator alone.
    """
    found = enrolment.examine(site, roster_file=roster, certificate_file=certificate, server=server)
    for entry in found.roster.sites:
        typer.echo(f"{entry.name:32}  {entry.nominal_patients:>9} patients  {entry.identity.hex()}")
    typer.echo(f"at least {found.roster.min_sites} sites in a sum, up to {found.roster.colluding} of them colluding")
    typer.echo(f"version {found.roster.version}, until {_day(found.roster.expires)}")
    for change in found.difference:
        typer.echo(f"change: {change}")
    typer.echo(f"authority    {certificates.fingerprint(found.certificate)}")
    typer.echo(f"fingerprint  {found.roster.fingerprint}")
    before = membership.pinned(site)
    by_itself = before is not None and accepts(before, found.roster, now=int(time.time()))
    if not (yes or by_itself or typer.confirm("Is this the fingerprint that another hospital sees?")):
        raise DataError("nothing was pinned")
    enrolment.pin(site, found)
    typer.echo(f"joined; `client up {site}` connects")


def up(
    site: SiteFolder,
    only: Annotated[
        Literal["both", "supernode", "worker"],
        typer.Option("--only", help="One half: for two users, or two containers."),
    ] = "both",
) -> None:
    """Stay connected, and answer orders within this site's own limits. Ends with Ctrl-C."""
    site = site.resolve()
    connection = supernode.open_connection(site)
    if only != "supernode":
        open_site(site)
    chosen = [program for name, program in supernode.programs(site, connection).items() if only in ("both", name)]
    with processes.stopped_by_signals() as stop:
        watch, was = Watch(chosen, say=typer.echo), False
        try:
            while not stop.is_set():
                watch.look()
                is_up = only == "worker" or processes.serving(connection.health)
                if is_up != was:
                    typer.echo(f"SuperNode: {'serving' if is_up else 'not serving'}; logs in {site / 'logs'}")
                    was = is_up
                stop.wait(1.0)
        finally:
            watch.end()


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
