"""`python -m server`: what the coordinator of a consortium runs."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from common import command_line
from common.crypto import certificates
from common.errors import DataError
from server import enrolment, export_cli, init_cli, plan_cli, run_cli, status_cli
from server.folder import certify, open_folder, renamed
from server.status_cli import HERE, JsonOption, Where

app = typer.Typer(
    help="""A consortium's side of Fedward: who takes part, the server that sites connect to, and its runs.

    \b
    1. server init FOLDER --keys KEYS --host NAME   once; keep KEYS elsewhere
    2. server add-site request.json ...; server sign --keys KEYS
       send roster.json and ca.pem of FOLDER to all sites; compare fingerprints
    3. server up                                    keeps running (systemd, ...)
    4. server plan STUDY.toml; server run STUDY.toml; server status --follow
       while it runs: http://127.0.0.1:9095/ (loopback + 2)
    5. server stop; server resume OUT; server report OUT
    6. server export --model OUT ...                a finished model
    7. server renew --keys KEYS                     certificates, once a year
       server init FOLDER --port N                  another port

    Exit codes: 0 done; 1 refused or failed, one line on standard error says why and what to do; 2 wrong usage. With
    --json standard output has one line of JSON (a line for each event where a run is followed); where the command was
    refused, it has the key "error". Commands look into ./federation, --folder or $FEDWARD_FEDERATION.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Keys = Annotated[Path, typer.Option("--keys", help="Folder of the keys that `init` made, kept off the server.")]


app.command()(init_cli.init)


@app.command()
def add_site(
    requests: Annotated[list[Path], typer.Argument(help="request.json of sites, as `client init` made them.")],
    folder: Where = HERE,
    as_json: JsonOption = False,
) -> None:
    """Put sites into the next roster. Compare each fingerprint with the site, by telephone, before you `sign`.

    All of them, or none where one can't be entered. A site's new request (other keys, another number of patients)
    replaces the one before.
    """
    opened, read, added = open_folder(folder), dict[Path, bytes](), {}
    for path in requests:
        try:
            read[path] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror}); nothing was entered") from error
    enrolment.check(opened, read)
    for data in read.values():
        member, fingerprint = enrolment.add(opened, data)
        added[member.name] = {"nominal_patients": member.nominal_patients, "fingerprint": fingerprint}
        if not as_json:
            typer.echo(f"{member.name}: {member.nominal_patients} patients declared; fingerprint {fingerprint}")
    if as_json:
        _json(added=added)


@app.command()
def remove_site(
    name: Annotated[str, typer.Argument(help="Its name in the roster.")],
    folder: Where = HERE,
    as_json: JsonOption = False,
) -> None:
    """Leave a site out of the next roster. Also while the server runs: after `sign` it is shut out within seconds."""
    opened = open_folder(folder)
    enrolment.remove(opened, name)
    if as_json:
        _json(removed=name, left=[member.name for member in opened.members()])
        return
    typer.echo(f"{name}: not in the next roster; `server sign` puts it in force")


@app.command()
def sign(keys: Keys, folder: Where = HERE, as_json: JsonOption = False) -> None:
    """Sign the next roster and put it in force, for 90 days. Send FOLDER/roster.json and FOLDER/ca.pem to every site.

    Sites take a roster that only leaves sites out by `client join … --yes`; of any other they compare the fingerprint
    with each other first.
    """
    made = enrolment.sign(open_folder(folder), keys, now=int(time.time()))
    if as_json:
        sites = [site.name for site in made.sites]
        _json(version=made.version, expires=made.expires, sites=sites, fingerprint=made.fingerprint)
        return
    names = ", ".join(site.name for site in made.sites)
    typer.echo(f"roster {made.version}: {names}; until {time.strftime('%Y-%m-%d', time.gmtime(made.expires))}")
    typer.echo(f"fingerprint {made.fingerprint}")


@app.command()
def renew(
    keys: Keys,
    folder: Where = HERE,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Names or addresses under which sites reach the server from now on, all of them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """New certificates for the server, under the same authority: no site has to do anything, unless --host leaves out
    the name by which it has joined.

    The open port uses them at once; the SuperLink on loopback from the next `server up`. They are good for a year;
    `server up` and `server status` say when it is time.
    """
    before = open_folder(folder)
    opened = before if host is None else renamed(before, host, keys)
    certify(opened, keys, now=int(time.time()))
    end = certificates.expires(opened.tls("gate")[0].read_bytes())
    gone = [name for name in before.hosts if name not in opened.hosts]
    if as_json:
        _json(expires=end, hosts=list(opened.hosts), gone=gone)
        return
    typer.echo(f"good until {time.strftime('%Y-%m-%d', time.gmtime(end))}, for {', '.join(opened.hosts)}")
    if gone:
        typer.echo(
            f"no longer for {', '.join(gone)}: sites that joined by that name join again, with the roster that they"
            f" have: `client join SITE roster.json --ca ca.pem --server {opened.hosts[0]}:{opened.port}`"
        )


for command in (
    *(run_cli.up, plan_cli.plan, run_cli.run, status_cli.status),
    *(status_cli.stop, run_cli.resume, status_cli.report),
):
    app.command()(command)
app.command("export")(export_cli.command)


def _json(**values: object) -> None:
    typer.echo(json.dumps({"schema": 1, **values}))


def main() -> None:
    """Run the command line. Errors are one line on standard error and exit code 1."""
    command_line.run(app, "python -m server")


if __name__ == "__main__":
    main()
