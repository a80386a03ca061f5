"""`python -m server init`: a federation's folder, made or changed."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from common.crypto import certificates
from common.errors import DataError
from server.folder import Folder, changed, found, open_folder
from server.status_cli import JsonOption

FIRST = {
    "listen": "0.0.0.0",  # noqa: S104 - the one open port
    "port": 9092,
    "loopback": 9093,
    "min_sites": 3,
    "colluding": 1,
}
_ROSTER = ("min_sites", "colluding")  # what a signed roster says


def init(
    folder: Annotated[
        Path, typer.Argument(help="New folder for the server; or one that `init` has made, to change it.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="New folder for the keys that are kept off the server. Needed at first."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Name or address under which sites reach the server; may be repeated. Needed at first."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Of the federation, for good: its certificates say it; `federation` unless you say."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help=f"The one open port; {FIRST['port']} at first.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", help=f"Address of this machine to open it on; {FIRST['listen']} at first."),
    ] = None,
    loopback: Annotated[
        int | None,
        typer.Option(
            "--loopback", min=1, max=65533, help=f"First of three ports on loopback; {FIRST['loopback']} at first."
        ),
    ] = None,
    min_sites: Annotated[
        int | None,
        typer.Option(
            "--min-sites", min=2, help=f"Sites without which no round is closed; {FIRST['min_sites']} at first."
        ),
    ] = None,
    colluding: Annotated[
        int | None,
        typer.Option(
            "--colluding",
            min=0,
            help="Sites that may work together with the server without harm to the others;"
            f" {FIRST['colluding']} at first.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a federation: its folder FOLDER, and apart from it KEYS, which sign rosters and certificates.

    FOLDER is the server's: certificates, the key that signs orders, federation.toml. Next: `server add-site`. On a
    folder that is there already, what you give of --port, --listen, --loopback, --min-sites and --colluding is changed
    and nothing else; it is said who has to do what then.
    """
    given = {"listen": listen, "port": port, "loopback": loopback, "min_sites": min_sites, "colluding": colluding}
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if (folder / "federation.toml").exists():
        for option, value, instead in (
            ("--keys", keys, "they are made already; for another federation name another folder"),
            ("--host", host, "`server renew --keys KEYS --host NAME` makes certificates for other names"),
            ("--name", name, "its certificates say the name, which stays"),
        ):
            if value:
                raise DataError(f"{folder}: is there already, and {option} is not changed here: {instead}")
        _change(open_folder(folder), values, as_json=as_json)
        return
    if keys is None or not host:
        raise DataError(f"{folder}: is no federation's folder as yet; give --keys and --host to make one")
    values = {"name": name if name is not None else "federation", "hosts": host, **FIRST, **values}
    made = found(folder, keys, values=values, now=int(time.time()))
    authority = certificates.fingerprint(made.root.read_bytes())
    if as_json:
        typer.echo(json.dumps({"schema": 1, "folder": str(folder), "keys": str(keys), "authority": authority}))
        return
    typer.echo(f"{folder}: made. {keys}: move it off this machine, with a copy; who has it can let in anybody.")
    typer.echo(f"authority {authority}")


def _change(before: Folder, values: dict[str, Any], *, as_json: bool) -> None:
    if not values:
        raise DataError(
            f"{before.path}: is there already; give what to change: --port, --listen, --loopback, --min-sites or"
            " --colluding"
        )
    after = changed(before, values)
    differ = {key: getattr(after, key) for key in values if getattr(after, key) != getattr(before, key)}
    follows = _follows(after, differ)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "folder": str(after.path), "changed": differ, "next": follows}))
        return
    for key, value in differ.items():
        typer.echo(f"changed: {key} is {value}, was {getattr(before, key)}")
    for line in follows or [f"{after.path}: as before, nothing was changed"]:
        typer.echo(line)


def _follows(folder: Folder, differ: dict[str, Any]) -> list[str]:
    """Who has to do what before these are in force."""
    said = []
    if differ.keys() - set(_ROSTER):
        said.append("in force from the next `server up`: where one runs, end it and start it again")
    if "port" in differ:
        said.append(
            "every site joins again, with the roster that it has:"
            f" `client join SITE roster.json --ca ca.pem --server {folder.hosts[0]}:{folder.port}`"
        )
    if differ.keys() & set(_ROSTER):
        said.append("in force with the next roster: `server sign --keys KEYS`, then every site joins with it")
    return said
