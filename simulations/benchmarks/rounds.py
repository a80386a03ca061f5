"""Rounds without training: Fedward in-process and under Ray against Flower's own simulation (its FedAvg), in one run.

python -m simulations.benchmarks.rounds
"""

import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from server.federation import Options
from simulations import flower, inprocess
from simulations.benchmarks import made_up
from simulations.faults import Faults

SITES, ROUNDS, SIDE = 4, 3, 28

peer_client = ClientApp()


@peer_client.train()
@peer_client.evaluate()
def answer(message: Message, _context: Context) -> Message:
    """Flower's side of a round: the weights back as they came."""
    reply = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    if message.metadata.message_type == "train":
        reply["arrays"] = message.content["arrays"]
    return Message(reply, reply_to=message)


def peer(parameters: int) -> float:
    """Seconds of Flower's own simulation."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        FedAvg(min_available_nodes=SITES, min_train_nodes=SITES, min_evaluate_nodes=SITES).start(
            grid=grid, initial_arrays=ArrayRecord([np.zeros(parameters, np.float32)]), num_rounds=ROUNDS
        )

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(server_app=app, client_app=peer_client, num_supernodes=SITES)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    study = made_up.study(
        side=SIDE, study={"rounds": ROUNDS}, training={"local_epochs": None, "local_steps": 1, "batch_size": 1}
    )
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        folders = made_up.site_folders(Path(name), sites=SITES, images=8, side=SIDE)
        roster = frozenset(folder.name for folder in folders)
        for backend in ("inprocess", "ray"):
            options = Options(out=Path(name) / backend, backend=backend, roster=roster)
            start = time.perf_counter()
            if backend == "ray":
                flower.run(study, options, folders, Faults(scripted={}), threads=1)
            else:
                inprocess.run(study, options, folders, Faults(scripted={}))
            seconds[f"fedward {backend}"] = time.perf_counter() - start
    seconds["flower simulation"] = peer(parameters=60_000)
    print(f"{ROUNDS} rounds, {SITES} sites, next to no training")
    for label, value in seconds.items():
        print(f"{label:22}{value:8.2f} s   {value / seconds['flower simulation']:.3f} x")
    print(json.dumps({"benchmark": "rounds", "sites": SITES, "rounds": ROUNDS, "seconds": seconds}))


if __name__ == "__main__":
    main()
