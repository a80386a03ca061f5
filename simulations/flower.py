"""The same rounds through Flower's simulation runtime: sites as Ray actors on several CPUs or GPUs."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client import app as client_app
from common import wire
from common.errors import RunError
from common.study import Study
from server import federation
from server.exchange import Clock, Exchange
from simulations.faults import Faults
from simulations.inprocess import SimulatedGrid
from simulations.masks import MasksBeside, worker
from simulations.observer import observer


def run(study: Study, options: federation.Options, folders: Sequence[Path], faults: Faults, *, threads: int) -> None:
    """A whole federation over site folders `site-0` … of one parent, each with `threads` CPUs, one GPU shared where
    there is one.

    Guarantees: without faults the same bits as `inprocess.run` on one CPU with equal threads. Raises what
    federation.run raises.
    """
    parents, names = {folder.parent for folder in folders}, [folder.name for folder in folders]
    if len(parents) != 1 or names != [f"site-{number}" for number in range(len(folders))]:
        raise RunError(f"--backend ray needs sites site-0, site-1 …; these are {', '.join(names)}")
    os.environ |= {
        "FEDWARD_SITES": str(parents.pop()),
        "OMP_NUM_THREADS": str(threads),  # of the sites' processes
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    failed: list[BaseException] = []
    masked = study.aggregation.secure
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        wire.speak_as_server(run_id=context.run_id)
        try:
            clock = Clock()
            inner = MasksBeside(grid, study, {folder.name: folder for folder in folders}) if masked else grid
            watched = SimulatedGrid(inner, faults, clock, observer(study, options.out, folders))
            federation.run(Exchange(watched, clock, options.credentials), study, options)
        except BaseException as error:  # Flower would wrap it; the caller wants it as it is
            failed.append(error)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    gpus = torch.cuda.device_count()
    share = min(1.0, gpus * threads / (os.cpu_count() or 1)) if gpus else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # run_simulation is deprecated in 1.41 and without successor in Python
        run_simulation(
            server_app=app,
            client_app=worker if masked else client_app.app,
            num_supernodes=len(folders),
            backend_config={
                "init_args": {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False},
                "client_resources": {"num_cpus": threads, "num_gpus": share},
            },
        )
    if failed:
        raise failed[0]
