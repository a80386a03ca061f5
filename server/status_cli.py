"""How the server, its sites and its run are; the run's events as they come; stopping it; its report."""

import json
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from common import processes
from common.crypto import certificates
from common.errors import DataError, RunError
from common.roster import Roster
from server import follow as following
from server import heads
from server import report as reports
from server.control import Control
from server.events import Event, EventLog, anchors, charged, effective, moved, read
from server.folder import LOOPBACK, Folder, open_folder
from server.heads import Heads
from server.run_record import Current
from server.run_record import current as current_run

HERE = Path("federation")
Where = Annotated[
    Path, typer.Option("--folder", envvar="FEDWARD_FEDERATION", help="The federation's folder, made by `init`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.", metavar="OUT")]
STOPPED = "the coordinator stopped it; `server resume` goes on"
_ENDING = 30.0  # seconds for a run that was stopped to end
_SETTLING = 2.0  # seconds in which a round that is just being closed is written down
_SOON = 14 * 24 * 3600  # seconds before a roster's end from which on it is said


def status(
    folder: Where = HERE,
    follow_run: Annotated[bool, typer.Option("--follow", help="Then show the run's events as they come.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON; with --follow, then a line for each event.")
    ] = False,
) -> None:
    """How server, sites and run are.

    Exit code 0; 1 where the SuperLink does not serve or the port for the sites is closed, and with --follow where there
    is no run, or it ended before its study did.
    """
    opened = open_folder(folder.resolve())
    roster, current = opened.roster(), current_run(opened)
    serving = processes.serving(opened.health)
    values: dict[str, Any] = {
        "schema": 1,
        "federation": opened.name,
        "superlink": {"address": opened.superlink, "serving": serving},
        "gate": {"address": opened.gate, "open": _open(opened)},
        "page": f"http://{LOOPBACK[0]}:{opened.page}/",
        "warnings": warnings(opened, roster),
        "roster": None if roster is None else _roster(roster),
        "next_roster": _changes(opened, roster),
        "sites": {},
        "run": None if current is None else {"out": current.out, "status": "unknown", **_progress(current)},
    }
    remembered = values["run"]["audit"] if values["run"] else {}
    names = () if roster is None else sorted(site.name for site in roster.sites)
    ledgers = dict.fromkeys(names)
    try:
        known = Heads(opened.path / heads.NAME, {} if roster is None else roster.identities)
        ledgers = {name: known.of(name) for name in names}
    except RunError as error:
        values["warnings"].append(str(error))
    values["sites"] = {
        name: {"online": False, "audit": remembered.get(name), "ledger": ledgers[name]} for name in names
    }
    if not serving:
        _print(values, as_json=as_json)
        raise RunError(f"the SuperLink at {opened.superlink} does not serve: start it with `server up`")
    with closing(Control(opened)) as control:
        if roster is not None:
            for name, heard in control.online(roster.supernodes).items():
                values["sites"][name]["online"] = heard
        if current is not None:
            values["run"]["status"] = control.status(current.run)
        _print(values, as_json=as_json)
        if follow_run:
            follow(control, _demanded(current), seen=0, as_json=as_json)
    if not values["gate"]["open"]:
        raise RunError(f"{opened.gate} is closed: no site can come; see {opened.path / 'logs'}")


def stop(folder: Where = HERE, as_json: JsonOption = False) -> None:
    """Stop the run that goes on; what its closed rounds gave is kept, and `resume` goes on from there."""
    opened = open_folder(folder.resolve())
    current = _demanded(current_run(opened))
    with closing(Control(opened)) as control:
        if ended(how := control.status(current.run)):
            raise RunError(f"the run in {current.out} has ended already ({how})")
        control.stop(current.run)
        until = time.monotonic() + _ENDING
        while not ended(control.status(current.run)) and time.monotonic() < until:
            time.sleep(0.5)
    time.sleep(_SETTLING)
    log = Path(current.out) / "events.jsonl"
    if log.exists() and effective(read(log))[-1]["event"] not in following.ENDS:
        with EventLog(log) as opened_log:
            opened_log.append({"event": "stopped", "reason": STOPPED})
    if as_json:
        typer.echo(json.dumps({"schema": 1, "run": current.run, "out": current.out, **_progress(current)}))
        return
    typer.echo(f"stopped; `server resume {current.out}` goes on")


def _demanded(current: Current | None) -> Current:
    if current is None:
        raise RunError("no run was submitted: `server run STUDY.toml`")
    return current


def report(out: RunFolder, as_json: JsonOption = False) -> None:
    """Write OUT/report.html from what the run has left behind so far; also while it goes on."""
    reports.write(out)
    page = out / "report.html"
    typer.echo(json.dumps({"schema": 1, "report": str(page)}) if as_json else str(page))


def follow(control: Control, current: Current, *, seen: int, as_json: bool) -> None:
    """Print the run's events after the first `seen` until it ends, a round's with the largest epsilon charged by then.
    Raises RunError where it did not finish.
    """
    out, last, reason = Path(current.out), "nothing", ""
    alive = lambda: not ended(control.status(current.run))  # noqa: E731
    events: list[Event] = read(out / "events.jsonl")[:seen] if seen else []
    for event in following.follow(out, alive=alive, seen=seen):
        last, reason = event["event"], event.get("reason", "")
        events.append(event)
        epsilon = charged(events) if last == "round" else None
        if as_json:
            typer.echo(json.dumps(event | ({} if epsilon is None else {"epsilon_charged": epsilon})))
        elif said := following.line(event, rounds=current.rounds, epsilon=epsilon):
            typer.echo(said)
    if last != "finished":
        how = reason or control.status(current.run)
        raise RunError(f"the run ended before its study did ({how}); `server resume {out}` goes on")
    while not ended(control.status(current.run)):  # it writes its report
        time.sleep(1.0)
    typer.echo(f"report: {out / 'report.html'}", err=as_json)


def ended(how: str) -> bool:
    """Whether a run with this status goes on no more."""
    return how.startswith("finished") or how == "unknown"


def warnings(folder: Folder, roster: Roster | None) -> list[str]:
    """What will keep the federation from working soon, a line each."""
    now, said = int(time.time()), []
    if _due(folder.root, now=now):
        said.append(
            f"{folder.root}: the authority that all sites trust expires in less than 30 days, or has; make another"
            " federation with `server init`, and have the sites join it"
        )
    for path in (folder.tls("gate")[0], folder.tls("loopback")[0]):
        if _due(path, now=now):
            said.append(f"{path}: expires in less than 30 days, or has; `server renew`")
    if roster is not None and not now < roster.expires - _SOON:
        said.append("the roster expires in less than 14 days, or has; `server sign`, and send it to the sites")
    return said


def _due(path: Path, *, now: int) -> bool:
    try:
        return certificates.renewal_due(path.read_bytes(), now=now)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); restore it from your backup") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _roster(roster: Roster) -> dict[str, Any]:
    return {
        "version": roster.version,
        "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(roster.expires)),
        "fingerprint": roster.fingerprint,
    }


def _changes(folder: Folder, roster: Roster | None) -> dict[str, list[str]]:
    """Sites that the next roster adds, changes and leaves out."""
    before = {} if roster is None else {site.name: site for site in roster.sites}
    after = {site.name: site for site in folder.members()}
    return {
        "added": sorted(after.keys() - before.keys()),
        "changed": sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
        "removed": sorted(before.keys() - after.keys()),
    }


def _progress(current: Current) -> dict[str, Any]:
    """Rounds closed so far, of how many; bytes of the last; the largest epsilon charged, None without `[privacy]`;
    where each site's audit log stood when it last answered.
    """
    log = Path(current.out) / "events.jsonl"
    events = read(log) if log.exists() else []
    rounds = [event for event in effective(events) if event["event"] == "round"]
    up, down = moved(rounds[-1]) if rounds else (0, 0)
    return {
        "round": rounds[-1]["round"] if rounds else 0,
        "rounds": current.rounds,
        "bytes_up_last_round": up,
        "bytes_down_last_round": down,
        "epsilon_charged": charged(events) if rounds else None,
        "audit": anchors(events),
    }


def _open(folder: Folder) -> bool:
    """Whether somebody listens on the port for the sites."""
    host = LOOPBACK[0] if folder.listen in ("0.0.0.0", "::", "") else folder.listen  # noqa: S104 - compared
    try:
        with socket.create_connection((host, folder.port), timeout=2.0):
            return True
    except OSError:
        return False


def _print(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for warning in values["warnings"]:
        typer.echo(warning)
    link, gate, run = values["superlink"], values["gate"], values["run"]
    typer.echo(f"SuperLink: {'serving' if link['serving'] else 'not serving'} on {link['address']}")
    typer.echo(f"port for the sites: {gate['address']}, {'open' if gate['open'] else 'closed'}; page: {values['page']}")
    if values["roster"] is None:
        typer.echo("roster: none yet; add sites, then `server sign`")
    else:
        typer.echo(f"roster: version {values['roster']['version']}, until {values['roster']['expires'][:10]}")
    if changes := [f"{how} {', '.join(names)}" for how, names in values["next_roster"].items() if names]:
        typer.echo(f"not yet in force: {'; '.join(changes)}; `server sign` makes the next roster")
    for name, site in values["sites"].items():
        places = {"audit log": site["audit"], "privacy ledger": site["ledger"]}
        at = "".join(f"; {what} at {where}" for what, where in places.items() if where)
        typer.echo(f"{name}: {'online' if site['online'] else 'offline'}{at}")
    if run is not None:
        numbers = run["bytes_up_last_round"], run["bytes_down_last_round"], run["epsilon_charged"]
        last = f"; the last: {following.cost(*numbers)}" if run["round"] else ""
        typer.echo(f"run in {run['out']}: {run['status']}; round {run['round']} of {run['rounds']} closed{last}")
