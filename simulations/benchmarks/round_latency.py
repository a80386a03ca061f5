"""How long a round takes that trains next to nothing: three sites on two cores, deployed as hospitals deploy it.

Fedward in the clear and under secure aggregation, and Flower as it comes (a SuperLink and SuperNodes that start a
process for each message) with FedAvg and no evaluation, in one run. Seconds between the ends of two rounds in a row.

python -m simulations.benchmarks.round_latency [ROUNDS]
"""

import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common.layout import layout_of
from common.study import Study
from server.events import Event
from simulations.benchmarks import made_up
from simulations.benchmarks.real_processes import Federation, federation, running
from simulations.loopback import free_ports, until

SITES, SIDE, CORES = 3, 28, 2
PEER = {
    "pyproject.toml": """[project]
name = "peer"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "peer.server:app"
clientapp = "peer.client:app"

[tool.flwr.app.config]
out = ""
rounds = 1
parameters = 1
""",
    "peer/__init__.py": "",
    "peer/client.py": """from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    reply = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(reply), reply_to=message)
""",
    "peer/server.py": f"""import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    said = context.run_config

    def note(number, arrays):
        with open(said["out"], "a") as file:
            file.write(f"{{time.time()}}\\n")

    FedAvg(fraction_evaluate=0.0, min_available_nodes={SITES}, min_train_nodes={SITES}).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(said["parameters"], np.float32)]),
        num_rounds=said["rounds"],
        evaluate_fn=note,
    )
""",
}


def study_of(rounds: int, *, secure: bool, name: str) -> Study:
    """One step on one image of 28 x 28 pixels a round."""
    return made_up.study(
        side=SIDE,
        study={"rounds": rounds, "min_sites": 2, "name": name},
        training={"local_epochs": None, "local_steps": 1, "batch_size": 1},
        aggregation={"weights": "equal", "secure": secure},
    )


def between(events: list[Event]) -> list[float]:
    """Seconds from the end of each round to that of the next."""
    ends = [event["time"] for event in events if event["event"] == "round"]
    return [later - earlier for earlier, later in pairwise(ends)]


def fedward(made: Federation, base: Path, *, rounds: int, secure: bool) -> list[float]:
    """Seconds of each round but the first."""
    name = "secure" if secure else "clear"
    found = made.run(study_of(rounds, secure=secure, name=name), base / name, seconds=60 + 60 * rounds)
    return between(found)


def peer(base: Path, *, rounds: int, parameters: int) -> list[float]:
    """The same of Flower as it comes, but for the installation of packages at run time."""
    first, out = free_ports(1 + SITES), base / "rounds"
    for name, text in PEER.items():
        (base / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "app" / name).write_text(text, encoding="utf-8")
    out.touch()
    commands = Path(sys.executable).parent
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    with ExitStack() as stack:

        def start(name: str, command: str, *arguments: str) -> None:
            own = {**path, "FLWR_HOME": str(base / name)}
            stack.enter_context(running(base, name, str(commands / command), *arguments, environment=own))

        address = f"127.0.0.1:{first}"
        start(
            "superlink",
            "flower-superlink",
            *("--insecure", f"--port={first}", f"--database={base / 'state.sqlite'}"),
            "--disable-runtime-dependency-installation",
        )
        until(lambda: "running" in (base / "superlink.out").read_text().lower(), "Flower's SuperLink", seconds=180)
        for number in range(SITES):
            own = ("--insecure", f"--superlink={address}", f"--port={first + 1 + number}")
            start(f"supernode-{number}", "flower-supernode", *own)
        client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="benchmark")],
        )
        with closing(client):
            config: dict[str, bool | float | int | str] = {"out": str(out), "rounds": rounds, "parameters": parameters}
            fab = Fab(content=build_fab_from_disk(base / "app"))
            client.StartRun(StartRunRequest(fab=fab, override_config=user_config_to_proto(config)))
        until(lambda: len(out.read_text().splitlines()) > rounds, "Flower's rounds", seconds=60 + 60 * rounds)
    ends = [float(line) for line in out.read_text().splitlines()][1:]  # the first was before any round
    return [later - earlier for earlier, later in pairwise(ends)]


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        folders = made_up.site_folders(base, sites=SITES, images=8, side=SIDE)
        with federation(base, folders) as made:
            seconds["fedward"] = fedward(made, base, rounds=rounds, secure=False)
            seconds["fedward, secure aggregation"] = fedward(made, base, rounds=rounds, secure=True)
        (base / "peer").mkdir()
        parameters = layout_of(study_of(1, secure=False, name="x"), "update").tensor_length
        seconds["flower as it comes"] = peer(base / "peer", rounds=rounds, parameters=parameters)
    print(f"a round that trains next to nothing, {SITES} sites, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':30}{'median, s':>12}{'least, s':>12}{'most, s':>12}")
    for label, values in seconds.items():
        print(f"{label:30}{statistics.median(values):12.2f}{min(values):12.2f}{max(values):12.2f}")
    print(json.dumps({"benchmark": "round_latency", "sites": SITES, "rounds": rounds, "seconds": seconds}))


if __name__ == "__main__":
    main()
