"""The Flower ServerApp: takes the study from the run, or from a simulation, and hands over to `federation`."""

import json
import os
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import wire
from common.errors import RunError, StudyError
from common.runtime import ended
from common.study import Study, from_json
from server import events, federation, heads, orders, report
from server.checkpoint import write_atomically
from server.control import Control
from server.exchange import Clock, Credentials, Exchange
from server.folder import open_folder

FOLDER = "FEDWARD_FEDERATION"  # environment of a deployment: the coordinator's folder


def make(study: Study, options: federation.Options, *, clock: Clock | None = None) -> ServerApp:
    """A ServerApp that runs this study; for runtimes that have no run config."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        wire.speak_as_server(run_id=context.run_id)
        federation.run(Exchange(grid, clock or Clock(), options.credentials), study, options)

    return made


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study in the run config's one key as it was ordered, with the sites of the roster, and report on it.

    Raises StudyError without a study, RunError for one that nobody ordered or without a roster.
    """
    text = context.run_config.get("study", "")
    if not isinstance(text, str) or not text:
        raise StudyError("study: the run config holds none; submit the study's canonical JSON under this key")
    if FOLDER not in os.environ:
        raise RunError(f"{FOLDER} names no folder of a federation: start the server with `server up`")
    study, folder = from_json(text), open_folder(Path(os.environ[FOLDER]))
    order, roster = orders.given(folder, study), folder.roster()
    if roster is None:
        raise RunError(f"{folder.path}: has no roster; add sites and sign one")
    out = Path(order.out)
    control = Control(folder)
    options = federation.Options(
        out=out,
        backend="deployment",
        roster=frozenset(site.name for site in roster.sites),
        nominal={site.name: site.nominal_patients for site in roster.sites},
        sites_of=partial(control.sites, roster.supernodes),
        credentials=Credentials(key=folder.online_key(), roster=roster),
        heads=folder.path / heads.NAME,
        pretrained=orders.pretrained(order, study),
        resume=order.resume,
    )
    try:
        make(study, options)(grid, context)
    except RunError:
        raise  # is in the log
    except Exception as error:
        if ended(error):
            raise  # by `server stop`, which writes it down
        with events.EventLog(out / "events.jsonl") as log:
            log.append({"event": "stopped", "reason": f"{type(error).__name__}: continue with `server resume`"})
        raise
    finally:
        control.close()
    summary = events.summary(events.read(out / "events.jsonl"))
    write_atomically(out / "summary.json", [json.dumps(summary, indent=1, allow_nan=False).encode()])
    report.write(out)
