"""The coordinator's commands about the server that runs, and the studies that it runs."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from common import guarantee, params, processes
from common.crypto import certificates
from common.errors import DataError, RunError
from common.layout import layout_of
from common.models import build_model
from common.processes import Watch
from common.randomness import seeded
from common.roster import Roster, threshold
from common.study import Study, load
from server import follow as following
from server import orders, status_page, superlink
from server import report as reports
from server.control import Control
from server.folder import Folder, open_folder
from server.orders import Order
from server.run_record import Current, remember
from server.run_record import current as current_run

HERE = Path("federation")
Where = Annotated[
    Path, typer.Option("--folder", envvar="FEDWARD_FEDERATION", help="The federation's folder, made by `init`.")
]
StudyFile = Annotated[Path, typer.Argument(help="The study, TOML.")]
Detach = Annotated[bool, typer.Option("--detach", help="Don't follow the run.")]


def up(folder: Where = HERE) -> None:
    """Keep the server running: Flower's SuperLink on loopback, the executor, the open port, the status page. Ends with
    Ctrl-C.
    """
    opened = open_folder(folder.resolve())
    _warn(opened)
    with processes.stopped_by_signals() as stop, status_page.served(opened):
        watch = Watch(superlink.programs(opened), say=typer.echo)
        seen: bytes | None = None
        try:
            while not stop.is_set():
                watch.look()
                roster = opened.roster()
                if roster is not None and roster.sha256 != seen and processes.serving(opened.health, timeout=0.5):
                    try:
                        seen = _admit(opened, roster)
                    except RunError as error:  # it has just begun to serve, or refuses: tried again
                        typer.echo(f"not yet: {error}")
                        stop.wait(2.0)
                stop.wait(0.5)
        finally:
            watch.end()


def _admit(folder: Folder, roster: Roster) -> bytes:
    with closing(Control(folder)) as control:
        for said in control.admit({site.name: site.supernode for site in roster.sites}):
            typer.echo(said)
    typer.echo(
        f"roster {roster.version} in force; open on {folder.listen}:{folder.port}; status: http://127.0.0.1:{folder.page}"
    )
    return roster.sha256


def run(
    study: StudyFile,
    folder: Where = HERE,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the results.")] = None,
    pretrained: Annotated[Path | None, typer.Option("--pretrained", help="The file that the study names.")] = None,
    detach: Detach = False,
) -> None:
    """Train the study's model with the sites of the roster, and follow the run. Ctrl-C leaves it running."""
    opened, agreed = open_folder(folder.resolve()), load(study)
    place = (out or opened.path / "runs" / f"{agreed.study.name}-{agreed.sha256[:8]}").resolve()
    if (place / "events.jsonl").exists():
        raise RunError(f"{place}: holds a run already; `server resume {place}`, or another --out")
    file = "" if pretrained is None else str(pretrained.resolve())
    _submit(opened, agreed, Order(out=str(place), resume=False, pretrained=file), detach=detach)


def resume(
    out: Annotated[Path, typer.Argument(help="Folder of the run.")], folder: Where = HERE, detach: Detach = False
) -> None:
    """Go on with a run from its last closed round."""
    opened, place = open_folder(folder.resolve()), out.resolve()
    agreed = orders.study_of(place)
    before = orders.given(opened, agreed)
    _submit(opened, agreed, Order(out=str(place), resume=True, pretrained=before.pretrained), detach=detach)


def _submit(folder: Folder, study: Study, order: Order, *, detach: bool) -> None:
    roster = _usable(folder, study)
    orders.pretrained(order, study)
    with closing(Control(folder)) as control:
        current = current_run(folder)
        if current is not None and not _ended(control.status(current.run)):
            raise RunError(f"a run is going on in {current.out}; stop it first: `server stop`")
        online = control.online({site.name: site.supernode for site in roster.sites})
        if away := sorted(site for site, heard in online.items() if not heard):
            typer.echo(f"not online now: {', '.join(away)}")
        orders.give(folder, study, order)
        number = control.start(study)
        current = Current(run=number, out=order.out, rounds=study.study.rounds)
        remember(folder, current)
        typer.echo(f"submitted; results in {order.out}")
        if not detach:
            _follow(control, current, from_start=not order.resume)


def _follow(control: Control, current: Current, *, from_start: bool) -> None:
    out, last = Path(current.out), "nothing"
    alive = lambda: not _ended(control.status(current.run))  # noqa: E731
    for event in following.follow(out, alive=alive, from_start=from_start):
        last = event["event"]
        if said := following.line(event, rounds=current.rounds):
            typer.echo(said)
    if last != "finished":
        how = control.status(current.run)
        raise RunError(f"the run ended before its study did ({how}); `server resume {out}` goes on")
    while not _ended(control.status(current.run)):  # it writes its report
        time.sleep(1.0)
    typer.echo(f"report: {out / 'report.html'}")


def status(
    folder: Where = HERE,
    follow: Annotated[bool, typer.Option("--follow", help="Show the run's events as they come.")] = False,
) -> None:
    """How server, sites and run are. Exit code 1 when the server isn't up."""
    opened = open_folder(folder.resolve())
    _warn(opened)
    roster, current = opened.roster(), current_run(opened)
    if not processes.serving(opened.health):
        raise RunError(f"the SuperLink at {opened.superlink} does not serve: start it with `server up`")
    typer.echo(f"SuperLink: serving on {opened.superlink}")
    if roster is None:
        typer.echo("roster: none yet; add sites, then `server sign`")
        return
    with closing(Control(opened)) as control:
        for site, heard in sorted(control.online({site.name: site.supernode for site in roster.sites}).items()):
            typer.echo(f"{site}: {'online' if heard else 'offline'}")
        if current is not None:
            typer.echo(f"run in {current.out}: {control.status(current.run)}")
            if follow:
                _follow(control, current, from_start=True)


def stop(folder: Where = HERE) -> None:
    """Stop the run that goes on; what its closed rounds gave is kept."""
    opened = open_folder(folder.resolve())
    current = current_run(opened)
    if current is None:
        raise RunError("no run was submitted")
    with closing(Control(opened)) as control:
        control.stop(current.run)
    typer.echo(f"stopped; `server resume {current.out}` goes on")


def plan(study: StudyFile, folder: Where = HERE) -> None:
    """What a study would cost these sites in bytes, and how many of them may be away. Starts nothing."""
    opened, agreed = open_folder(folder.resolve()), load(study)
    roster = _usable(opened, agreed)
    with seeded(agreed.study.seed, "initialisation"):
        model = build_model(agreed)
    down = 4 * params.length(params.shapes(model, trainable=False))
    up_, sites, rounds = 4 * layout_of(agreed, "update").length, len(roster.sites), agreed.study.rounds
    quorum = max(agreed.study.min_sites, roster.min_sites)
    if agreed.aggregation.secure:
        quorum = max(quorum, threshold(sites, roster.colluding))
        up_ = round(up_ * 2 / 3)  # three values in a 64-bit word
    typer.echo(f"{sites} sites, {rounds} rounds; up to {sites - quorum} may be away in a round")
    typer.echo(f"each site, each round: {down / 1e6:.1f} MB down, {up_ / 1e6:.1f} MB up")
    typer.echo(f"all of it: {sites * (rounds * (down + up_) + down) / 1e9:.2f} GB")
    for site in roster.sites if agreed.privacy is not None else ():
        said = guarantee.statement(agreed, nominal_patients=site.nominal_patients, rounds_charged=rounds)
        typer.echo(f"{site.name}: epsilon {said['epsilon']}, delta {said['delta']}, noise {said['noise_multiplier']}")


def report(out: Annotated[Path, typer.Argument(help="Folder of the run.")]) -> None:
    """Write report.html from what the run has left behind so far."""
    reports.write(out)
    typer.echo(str(out / "report.html"))


def _usable(folder: Folder, study: Study) -> Roster:
    """The roster in force, if this study can be run under it. Raises RunError, StudyError, AccountingError."""
    roster = folder.roster()
    if roster is None:
        raise RunError(f"{folder.path}: has no roster; add sites, then `server sign`")
    if not time.time() < roster.expires:
        raise RunError(f"{folder.path}: the roster has expired; `server sign`, and send it to the sites")
    if study.study.min_sites < roster.min_sites or study.study.min_sites > len(roster.sites):
        raise DataError(
            f"study.min_sites = {study.study.min_sites}; {roster.min_sites} (the roster's) to {len(roster.sites)} (all)"
        )
    if study.privacy is not None:
        guarantee.check_nominal(study, {site.name: site.nominal_patients for site in roster.sites})
    return roster


def _warn(folder: Folder) -> None:
    roster, now = folder.roster(), int(time.time())
    for path in (folder.root, folder.tls("gate")[0], folder.tls("loopback")[0]):
        if certificates.renewal_due(path.read_bytes(), now=now):
            typer.echo(f"{path}: expires soon or has; `server renew`")
    if roster is not None and not now < roster.expires - 14 * 24 * 3600:
        typer.echo("the roster expires in less than 14 days, or has; `server sign`, and send it to the sites")


def _ended(status: str) -> bool:
    return status.startswith("finished") or status == "unknown"
