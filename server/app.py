"""The Flower ServerApp: takes the study from the run, or from a simulation, and hands over to `federation`."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import wire
from common.errors import StudyError
from common.study import Study, from_json
from server import federation
from server.exchange import Clock, Exchange


def make(study: Study, options: federation.Options, *, clock: Clock | None = None) -> ServerApp:
    """A ServerApp that runs this study; for runtimes that have no run config."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        wire.speak_as_server(run_id=context.run_id)
        federation.run(Exchange(grid, clock or Clock()), study, options)

    return made


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study in the run config's one key, into the folder that FEDWARD_OUT names, with the sites
    FEDWARD_ROSTER lists.
    """
    text = context.run_config.get("study", "")
    if not isinstance(text, str) or not text:
        raise StudyError("study: the run config holds none; submit the study's canonical JSON under this key")
    roster = frozenset(filter(None, os.environ.get("FEDWARD_ROSTER", "").split(",")))
    options = federation.Options(out=Path(os.environ.get("FEDWARD_OUT", "out")), backend="deployment", roster=roster)
    make(from_json(text), options)(grid, context)
