"""A site's commands about its federation: ask for membership, join, stay connected."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from client import enrolment, halves, membership, outside, supernode, surroundings
from client.audit_cli import plain
from client.finding import Finding, Level, finding
from client.options import JsonOption, SiteArgument, declared
from client.site import open_site
from client.supernode import Connection
from common import processes
from common.crypto import certificates
from common.errors import DataError, RunError
from common.processes import Watch
from common.roster import accepts

PATIENCE = 15.0  # seconds in which ports are waited for that a `client up` before this one may still hold
_STOPS = ("executor",)  # what nobody but this site's operator mends: the other failures may pass by themselves


def init(
    site: SiteArgument,
    name: Annotated[
        str | None, typer.Option("--name", help="Of this site in the federation: a-z, 0-9 and -. Needed at first.")
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(
            "--patients",
            "--nominal-patients",
            min=1,
            max=10**9,
            callback=declared,
            help="Declared number of patients, one significant digit; other sites see it. Needed at first, unless"
            " `client ledger create` was told.",
        ),
    ] = None,
    loopback: Annotated[
        int | None,
        typer.Option(
            "--loopback",
            min=1,
            max=65534,
            help=f"First of the SuperNode's two ports on loopback; {enrolment.PORT} at first, else as before.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help=f"Where the worker reaches the SuperNode: a name only between two containers; {enrolment.LOOPBACK} at"
            " first, else as before.",
            show_default=False,
        ),
    ] = None,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Another key for the SuperNode: after removal from the roster, or a theft."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make this site's keys, and the request to send to the coordinator; or change what you give, and keep the rest.

    Writes SITE/keys, SITE/supernode, SITE/request.json and, where `client index` has made none, SITE/site.toml with the
    site's own limits. Of a site that has them already, what is changed is said; other ports or another host are no new
    request.

    \b
    1. client init SITE --name NAME --patients N     makes SITE/request.json
    2. send request.json to the coordinator, read him the fingerprint by telephone
    3. with what comes back:
       client join SITE roster.json --ca ca.pem --server HOST:PORT
    4. client check SITE, then client up SITE
    """
    asked = enrolment.found(site, name=name, nominal_patients=patients, host=host, port=loopback, new_key=new_key)
    fingerprint, request = enrolment.request_fingerprint(asked.member), site / "request.json"
    if as_json:
        values = {"schema": 1, "site": asked.member.name, "request": str(request), "fingerprint": fingerprint}
        print(json.dumps({**values, "changed": asked.changed, "new_request": asked.new}))
        return
    for line in asked.changed:
        typer.echo(f"changed: {line}")
    if asked.changed:
        typer.echo("in force from the next `client up`: where one runs, end it and start it again")
    typer.echo(f"{request}: {'send it to the coordinator' if asked.new else 'as before, nothing new to send'}")
    typer.echo(f"fingerprint, to compare by telephone: {fingerprint}")


def join(
    site: SiteArgument,
    roster: Annotated[Path, typer.Argument(help="roster.json, as the coordinator sent it.")],
    certificate: Annotated[Path, typer.Option("--ca", help="ca.pem, as the coordinator sent it.")],
    server: Annotated[str, typer.Option("--server", help="host:port of the federation's server.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Don't ask: the fingerprint was compared with another hospital already.")
    ] = False,
    proxy: Annotated[
        Path | None,
        typer.Option(
            "--proxy-ca",
            help="Where this hospital's proxy opens TLS: its authority (PEM). The proxy then reads what passes: in"
            " studies in the clear weights and updates, with aggregation.secure weights and sums alone. Orders and"
            " answers are signed: one that was changed on the way is refused.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who is in the federation, and pin it when you agree; then see whether the server answers.

    Compare the fingerprint with another hospital or the contract, not with the coordinator alone. HTTPS_PROXY and
    NO_PROXY of the environment are followed, here and by `client up`. The same again takes up a new roster, or the
    server's new address; a roster that only leaves sites out is pinned without a question. One that asks for less than
    this site's own `colluding` and `min_sites` is said to; pinned it can be, for studies without secure aggregation.

    Writes SITE/roster.json, SITE/supernode/server-ca.pem and the server's address. Exit code 0 where it was pinned,
    also while the server is away; 1 where it was not. Next: `client check SITE`, then `client up SITE`.
    """
    found = enrolment.examine(site, roster_file=roster, certificate_file=certificate, server=server, proxy_file=proxy)
    before = membership.pinned(site)
    agreed = yes or (before is not None and accepts(before, found.roster, now=int(time.time())))
    if not as_json:
        _show_roster(found)
        agreed = agreed or typer.confirm("Is this the fingerprint that another hospital sees?")
    if not agreed:
        raise DataError(f"nothing was pinned{': --json asks no question, --yes says that you compared' * as_json}")
    enrolment.pin(site, found)
    seen = surroundings.judged(outside.look(site), now=time.time())
    if as_json:
        lines = [each.values() for each in (*_objections(found), *seen)]
        print(json.dumps({"schema": 1, **_roster(found), "findings": lines}))
        return
    _show(seen)
    typer.echo(f"joined; `client check {site}` looks at the rest, `client up {site}` connects")


def _show_roster(found: enrolment.Pin) -> None:
    for entry in found.roster.sites:
        typer.echo(f"{entry.name:32}  {entry.nominal_patients:>9} patients  {entry.identity.hex()}")
    typer.echo(f"at least {found.roster.min_sites} sites in a sum, up to {found.roster.colluding} of them colluding")
    typer.echo(f"version {found.roster.version}, until {_day(found.roster.expires)}")
    for change in found.difference:
        typer.echo(f"change: {change}")
    _show(_objections(found))
    typer.echo(f"authority    {certificates.fingerprint(found.certificate)}")
    typer.echo(f"fingerprint  {found.roster.fingerprint}")


def _objections(found: enrolment.Pin) -> list[Finding]:
    return [finding(Level.FAIL, "roster", found.objection)] if found.objection else []


def _roster(found: enrolment.Pin) -> dict[str, object]:
    return {
        "sites": [entry.name for entry in found.roster.sites],
        "version": found.roster.version,
        "expires": _day(found.roster.expires),
        "changes": list(found.difference),
        "authority": certificates.fingerprint(found.certificate),
        "fingerprint": found.roster.fingerprint,
    }


def up(
    site: SiteArgument,
    only: Annotated[
        Literal["both", "supernode", "worker"],
        typer.Option("--only", help="One half: for two users, or two containers."),
    ] = "both",
) -> None:
    """Stay connected, and answer orders within this site's own limits. Ends with Ctrl-C.

    Runs the SuperNode, which speaks to the server, and the worker, which holds the data; both log in SITE/logs. Begins
    with the part of the preflight that is about the outside. A server that is away, an expired certificate or a
    wrong clock are said and waited for; missing keys, taken ports or another executor end it with exit code 1.
    """
    site = site.resolve()
    connection = supernode.open_connection(site)
    if only != "supernode":
        open_site(site)
    chosen = [program for name, program in supernode.programs(site, connection).items() if only in ("both", name)]
    _preflight(site, connection, only)
    with processes.stopped_by_signals() as stop:
        watch, was = Watch(chosen, say=typer.echo), None
        try:
            watch.look()
            typer.echo(f"started: {', '.join(watch.pids())}; logs in {site / 'logs'}")
            while not stop.is_set():
                watch.look()
                is_up = processes.serving(connection.health)
                if is_up != was and (said := _news(is_up, was, waits=only == "worker")):
                    typer.echo(f"SuperNode on {connection.runtime}: {said}")
                was = is_up
                stop.wait(1.0)
        finally:
            watch.end()


def _news(is_up: bool, was: bool | None, *, waits: bool) -> str:
    """What is new about the SuperNode, as its health endpoint has it; nothing of one that has just been started."""
    if is_up:
        return "serving"
    if was is None:
        return "not serving as yet; the worker waits for it" if waits else ""
    return "not serving"


def _preflight(site: Path, connection: Connection, only: str) -> None:
    """What can be seen without a look at the data, in lines. Raises where only the operator can mend it."""
    if only != "worker":
        for path in (connection.node_key, connection.secret, connection.server_root):
            try:
                path.read_bytes()
            except OSError as error:
                text = f"{path}: can't be read ({error.strerror}); restore it from your backup, or `client init` again"
                raise DataError(text) from error
        _demand_closed(halves.of_supernode(site))
        if taken := processes.taken((connection.runtime, connection.health), patience=PATIENCE):
            raise RunError(
                f"{taken[0]}: another program listens there (another `client up`?); end it, or choose other ports with"
                f" `client init {site} --loopback PORT`"
            )
        if refused := processes.refused((connection.runtime, connection.health)):
            raise RunError(
                f"{refused[0]}: can't be listened on here ({refused[1]}); `client init {site}` changes it with --host"
                " and --loopback"
            )
    if only != "supernode":
        _demand_closed(halves.of_worker(site))
        membership.identity_of(site)
        if membership.pinned(site) is None:
            raise DataError(
                f"{site / membership.ROSTER}: missing: restore it from your backup, or `client join` again; without it"
                " no order is followed"
            )
    until, beside = time.monotonic() + PATIENCE, only == "supernode"  # the worker has a `client up` of its own
    while (seen := outside.look(site, network=False, running=beside)).executors and time.monotonic() < until:
        time.sleep(0.5)  # a worker whose owner was killed ends by itself
    if only != "worker":
        seen = replace(outside.look(site, running=beside), executors=seen.executors)
    found = surroundings.judged(seen, now=time.time())
    _show(found)
    for each in found:
        if each.level is Level.FAIL and each.about in _STOPS:
            raise RunError(each.text)


def _demand_closed(files: list[halves.Closed]) -> None:
    if readable := halves.open_to_others(files):
        paths = " ".join(map(str, readable))
        raise DataError(f"{readable[0]}: readable for others; make it its owner's alone: chmod 600 {paths}")


def _show(findings: list[Finding]) -> None:
    for each in findings:
        typer.echo(plain(str(each)))


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
