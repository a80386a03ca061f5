"""The coordinator's commands that keep the server running, and have it run studies."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from common import processes
from common.errors import FederationError, RunError
from common.processes import Watch
from common.roster import Roster
from common.study import Study, load
from server import heads, orders, status_page, superlink
from server.control import Control
from server.events import read
from server.folder import LOOPBACK, Folder, open_folder
from server.heads import Heads
from server.orders import Order
from server.plan_cli import StudyFile, usable
from server.run_record import Current, remember
from server.run_record import current as current_run
from server.status_cli import HERE, JsonOption, RunFolder, Where, ended, follow, warnings

PATIENCE = 15.0  # seconds in which ports are waited for that a `server up` before this one may still hold
Detach = Annotated[bool, typer.Option("--detach", help="Don't follow the run: print that it was submitted, and end.")]


def up(folder: Where = HERE) -> None:
    """Keep the server running: Flower's SuperLink on loopback, the executor, the open port, the status page. Ends with
    Ctrl-C.

    A roster or a certificate that is signed while it runs is in force a few seconds later. Keys that are missing or
    that others can read, and ports that are taken, end it with exit code 1.
    """
    opened = open_folder(folder.resolve())
    opened.demand_keys()
    roster = opened.roster()
    for warning in warnings(opened, roster):
        typer.echo(warning)
    _demand_ports(opened)
    with processes.stopped_by_signals() as stop, status_page.served(opened):
        watch = Watch(superlink.programs(opened), say=typer.echo)
        seen: bytes | None = None
        fault = ""
        try:
            while not stop.is_set():
                watch.look()
                try:
                    roster, fault = opened.roster(), ""
                except FederationError as error:
                    if str(error) != fault:
                        typer.echo(f"{error}; the roster before stays in force")
                    fault = str(error)
                if roster is not None and roster.sha256 != seen and processes.serving(opened.health, timeout=0.5):
                    try:
                        seen = _admit(opened, roster)
                    except RunError as error:  # it has just begun to serve, or refuses: tried again
                        typer.echo(f"not yet: {error}")
                        stop.wait(2.0)
                stop.wait(0.5)
        finally:
            watch.end()


def _demand_ports(folder: Folder) -> None:
    """Raises RunError, one line with the command that chooses another port, where one can't be had."""
    ports = {folder.gate: "--port", folder.superlink: "--loopback", folder.health: "--loopback"}
    ports[f"{LOOPBACK[0]}:{folder.page}"] = "--loopback"
    change = f"`server init {folder.path} %s PORT`"
    if taken := processes.taken(tuple(ports), patience=PATIENCE):
        raise RunError(
            f"{taken[0]}: another program listens there (another `server up`?); end it, or choose another port:"
            f" {change % ports[taken[0]]}"
        )
    if refused := processes.refused(tuple(ports)):
        raise RunError(
            f"{refused[0]}: can't be listened on here ({refused[1]}); choose another port or address:"
            f" {change % ports[refused[0]]} (--listen ADDRESS)"
        )


def _admit(folder: Folder, roster: Roster) -> bytes:
    with closing(Control(folder)) as control:
        for said in control.admit(roster.supernodes):
            typer.echo(said)
    typer.echo(f"roster {roster.version} in force; open on {folder.gate}; status: http://127.0.0.1:{folder.page}")
    return roster.sha256


def run(
    study: StudyFile,
    folder: Where = HERE,
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the results; FOLDER/runs/STUDY-HASH if none.")
    ] = None,
    pretrained: Annotated[Path | None, typer.Option("--pretrained", help="The file that the study names.")] = None,
    detach: Detach = False,
    as_json: JsonOption = False,
) -> None:
    """Train the study's model with the sites of the roster, and follow the run. Ctrl-C leaves it running.

    With --json each event is a line of JSON, as events.jsonl holds it; with --detach one line says where. Exit code 1
    where nothing was started, or the run ended before its study did.
    """
    opened, agreed = open_folder(folder.resolve()), load(study)
    place = (out or opened.path / "runs" / f"{agreed.study.name}-{agreed.sha256[:8]}").resolve()
    if (place / "events.jsonl").exists():
        raise RunError(f"{place}: holds a run already; `server resume {place}`, or another --out")
    file = "" if pretrained is None else str(pretrained.resolve())
    _submit(opened, agreed, Order(out=str(place), resume=False, pretrained=file), detach=detach, as_json=as_json)


def resume(out: RunFolder, folder: Where = HERE, detach: Detach = False, as_json: JsonOption = False) -> None:
    """Go on with a run from its last closed round: after `stop`, a kill, or too few sites. Ctrl-C leaves it running."""
    opened, place = open_folder(folder.resolve()), out.resolve()
    agreed = orders.study_of(place)
    before = orders.given(opened, agreed)
    order = Order(out=str(place), resume=True, pretrained=before.pretrained)
    _submit(opened, agreed, order, detach=detach, as_json=as_json)


def _submit(folder: Folder, study: Study, order: Order, *, detach: bool, as_json: bool) -> None:
    roster = usable(folder, study)
    orders.pretrained(order, study)
    Heads(folder.path / heads.NAME, roster.identities)  # a damaged file is said here, not in the executor's log
    with closing(Control(folder)) as control:
        current = current_run(folder)
        if current is not None and not ended(control.status(current.run)):
            raise RunError(f"a run is going on in {current.out}; stop it first: `server stop`")
        online = control.online(roster.supernodes)
        if away := sorted(site for site, heard in online.items() if not heard):
            typer.echo(f"not online now: {', '.join(away)}", err=as_json)
        orders.give(folder, study, order)
        log = Path(order.out) / "events.jsonl"
        seen = len(read(log)) if order.resume and log.exists() else 0
        number = control.start(study)
        current = Current(run=number, out=order.out, rounds=study.study.rounds)
        remember(folder, current)
        if not as_json:
            typer.echo(f"submitted; results in {order.out}")
        elif detach:
            typer.echo(json.dumps({"schema": 1, "run": number, "out": order.out, "away": away}))
        if not detach:
            follow(control, current, seen=seen, as_json=as_json)
