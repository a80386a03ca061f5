"""What a round costs beside the training in it: an in-process round against a bare PyTorch loop of the same work.

python -m simulations.benchmarks.overhead [SITES]
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from client.dataset import Images, open_dataset
from client.site import open_site
from common import params
from common.models import build_model
from common.randomness import seeded
from common.study import Study
from server.events import read
from server.federation import Options
from simulations import inprocess
from simulations.benchmarks import made_up
from simulations.faults import Faults

IMAGES, SIDE, ROUNDS = 500, 28, 5


def loss(model: torch.nn.Module, images: Images, positions: NDArray[np.int64]) -> torch.Tensor:
    """Mean cross-entropy of some images."""
    batch = images.batch(positions)
    return functional.cross_entropy(model(batch.images), cast(torch.Tensor, batch.labels))


def bare_round(model: torch.nn.Module, sites: list[tuple[Images, Images]], study: Study) -> None:
    """FedAvg written out: for each site, validate, train one epoch from the same weights, add to the weighted mean."""
    start, size = [p.detach().clone() for p in model.parameters()], study.training.batch_size or 1
    mean, weight = [torch.zeros_like(p) for p in start], 0
    for training, validation in sites:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)
            if len(validation):
                loss(model, validation, np.arange(len(validation)))
        optimizer = torch.optim.SGD(model.parameters(), lr=study.training.learning_rate, momentum=0.9)
        order = np.random.default_rng(0).permutation(len(training))
        for first in range(0, len(order), size):
            optimizer.zero_grad()
            torch.autograd.backward([loss(model, training, order[first : first + size])])
            optimizer.step()
        with torch.no_grad():
            for total, parameter in zip(mean, model.parameters(), strict=True):
                total += len(training) * parameter
        weight += len(training)
    with torch.no_grad():
        for parameter, total in zip(model.parameters(), mean, strict=True):
            parameter.copy_(total / weight)


def main() -> None:
    """Measure and print."""
    sites = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.set_num_threads(1)
    study = made_up.study(side=SIDE, study={"rounds": 2 * ROUNDS})
    with tempfile.TemporaryDirectory() as name:
        folders = made_up.site_folders(Path(name), sites=sites, images=IMAGES, side=SIDE)
        with seeded(0, "initialisation"):
            model = build_model(study)
        datasets = [open_dataset(open_site(folder), study).pools for folder in folders]
        pairs = [(pools["train"], pools["validation"]) for pools in datasets]
        bare: list[float] = []

        def watch(event: dict[str, object]) -> None:
            """Between two rounds of the federation: the same round bare, so that both see the same machine."""
            if event["event"] == "round":
                start = time.perf_counter()
                bare_round(model, pairs, study)
                bare.append(time.perf_counter() - start)

        roster = frozenset(folder.name for folder in folders)
        options = Options(out=Path(name) / "out", backend="inprocess", roster=roster, watch=watch)
        inprocess.run(study, options, folders, Faults(scripted={}))
        times = [e["time"] for e in read(Path(name) / "out" / "events.jsonl") if e["event"] == "round"]
    # Time between the ends of two rounds, less the bare round in between; the first, with cold caches, is left out.
    ours = [later - earlier - other for earlier, later, other in zip(times, times[1:], bare, strict=False)]
    ratios = [one / other for one, other in zip(ours, bare[1:], strict=True)]
    result = {
        "benchmark": "overhead",
        "sites": sites,
        "images_per_site": IMAGES,
        "parameters": params.length(params.shapes(model, trainable=False)),
        "bare_seconds": float(np.median(bare[1:])),
        "inprocess_seconds": float(np.median(ours)),
        "ratio": float(np.median(ratios)),
    }
    print(f"{'round of ' + str(sites) + ' sites':24}{'seconds':>10}")
    print(f"{'bare PyTorch loop':24}{result['bare_seconds']:10.3f}")
    print(f"{'Fedward in-process':24}{result['inprocess_seconds']:10.3f}   {result['ratio']:.3f} x")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
