"""Memory against the number of sites: 5 rounds in-process with 25, 100 and 200 sites, each in a process of its own.

python -m simulations.benchmarks.many_sites
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from server.federation import Options
from simulations import inprocess
from simulations.benchmarks import made_up
from simulations.faults import Faults

SITES, IMAGES, SIDE = (25, 100, 200), 40, 28


def measure(sites: int) -> dict[str, float]:
    """Seconds per round, and how many bytes the process's peak grew during the rounds and in all."""
    torch.set_num_threads(1)
    study = made_up.study(side=SIDE, study={"rounds": 5}, model={"head": "gap"})
    with tempfile.TemporaryDirectory() as name:
        folders = made_up.site_folders(Path(name), sites=sites, images=IMAGES, side=SIDE)
        roster = frozenset(folder.name for folder in folders)
        before, start = _peak(), time.perf_counter()
        inprocess.run(
            study, Options(out=Path(name) / "out", backend="inprocess", roster=roster), folders, Faults(scripted={})
        )
        return {"sites": sites, "seconds": time.perf_counter() - start, "peak": _peak(), "grown": _peak() - before}


def _peak() -> float:
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def main() -> None:
    """Measure and print; with a number, measure that many sites and print JSON alone."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    rows = []
    for sites in SITES:
        command = [sys.executable, "-P", "-m", "simulations.benchmarks.many_sites", str(sites)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - own command
        rows.append(json.loads(output.splitlines()[-1]))
    print(f"{'sites':>6}{'seconds, 5 rounds':>20}{'peak memory, MB':>18}{'grown in rounds, MB':>22}")
    for row in rows:
        print(f"{row['sites']:6.0f}{row['seconds']:20.1f}{row['peak'] / 1e6:18.0f}{row['grown'] / 1e6:22.0f}")
    ratio = rows[-1]["peak"] / rows[0]["peak"]
    print(f"peak memory, {SITES[-1]} sites over {SITES[0]}: {ratio:.3f} x")
    print(json.dumps({"benchmark": "many_sites", "ratio": ratio, "rows": rows}))


if __name__ == "__main__":
    main()
