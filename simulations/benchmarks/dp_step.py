"""One private step against a plain SGD step: time and memory, beside Opacus's hooks and its ghost clipping.

python -m simulations.benchmarks.dp_step [--steps N] [--case NAME]

All on one core, patients with one image each, the same images for all. Fedward's time covers everything from the draw
of patients to the released gradient; the peers and the plain step get their batch ready. Time is processor time, the
least of N steps taken in turns; memory is what the resident set rises by during two steps in a process of its own.
"""

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from client.dp.gradients import Observed, one_by_one, trained
from client.dp.layers import layer_by_layer
from client.dp.patients import blank_of
from client.dp.step import Plan, exact_sum, noised_gradient
from common.clip import Bounds
from common.models import build_model
from common.noise import fresh_key
from common.randomness import seeded
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch
from simulations.benchmarks import made_up

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "cnn gap 28 px": ({"model": {"name": "cnn", "image_size": [28, 28], "head": "gap"}}, 32),
    "cnn 28 px": ({"model": {"name": "cnn", "image_size": [28, 28]}}, 32),
    "cnn 64 px": ({"model": {"name": "cnn", "image_size": [64, 64]}}, 32),
    "unet 8, 128 px": ({"model": {"name": "unet", "image_size": [128, 128], "base_channels": 8}}, 8),
    "unet 16, 128 px": ({"model": {"name": "unet", "image_size": [128, 128], "base_channels": 16}}, 8),
}
WAYS = ("plain SGD", "fedward", "one by one", "opacus hooks", "opacus ghost")
Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """Patients in memory, one image each."""

    whole: Batch
    blank: Batch

    def __len__(self) -> int:
        return len(self.whole.images)

    def images(self, position: int) -> int:
        return 1

    def batch(self, position: int, chosen: NDArray[np.int64]) -> Batch:
        one = slice(position, position + 1)
        labels, masks = self.whole.labels, self.whole.masks
        return Batch(
            images=self.whole.images[one],
            labels=None if labels is None else labels[one],
            masks=None if masks is None else masks[one],
        )

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.ones(len(self))

    @property
    def shares(self) -> NDArray[np.float64]:
        return np.ones(len(self))


def study_of(case: str) -> Study:
    """The study of a case."""
    sections = CASES[case][0]
    segmentation = sections["model"]["name"] == "unet"
    task = {"task": "segmentation", "classes": ["organ"]} if segmentation else {}
    return made_up.study(side=32, study=task, **sections)


def step_of(case: str, way: str) -> Step:
    """One step of a way with a model and images of its own."""
    study, images = study_of(case), CASES[case][1]
    task, (height, width) = task_of(study), study.model.image_size
    with seeded(0, "benchmark"):
        model = build_model(study).train()
        pixels = torch.randn(images, study.model.channels, height, width)
        labels = torch.randint(0, 2, (images,))
        masks = torch.randint(0, 2, (images, height, width), dtype=torch.uint8)
    segmentation = study.study.task == "segmentation"
    batch = Batch(images=pixels, masks=masks) if segmentation else Batch(images=pixels, labels=labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    private: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": images}
    if way == "plain SGD":

        def plain() -> None:
            optimizer.zero_grad()
            torch.autograd.backward([task.losses(model, batch).mean()])
            optimizer.step()

        return plain
    if way == "opacus hooks":
        hooked: Any = GradSampleModule(model, loss_reduction="mean")
        hooks: Any = DPOptimizer(optimizer, **private)

        def with_hooks() -> None:
            hooks.zero_grad()
            task.losses(hooked, batch).mean().backward()  # type: ignore[no-untyped-call]
            hooks.step()

        return with_hooks
    if way == "opacus ghost":
        wrapped: Any = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, loss_reduction="mean")
        ghost: Any = DPOptimizerFastGradientClipping(optimizer, **private)

        def with_ghost() -> None:
            ghost.zero_grad()
            DPTensorFastGradientClipping(wrapped, ghost, task.losses(wrapped, batch), "mean").backward()
            ghost.step()

        return with_ghost
    patients, what = Ready(whole=batch, blank=blank_of(study)), trained(model)
    plan = Plan(
        sample_rate=1.0,
        noise_multiplier=1.0,
        bounds=Bounds(clip_norms=(1.0,)),
        nominal_patients=images,
        local_steps=1,
        slots=images,
    )
    gradients = layer_by_layer if way == "fedward" else one_by_one

    def private_step() -> None:
        exact = exact_sum(
            model, what, patients, task.losses, plan, gradients, augment=None, key=fresh_key(), observed=Observed()
        )
        flat = torch.from_numpy(noised_gradient(exact, plan, key=fresh_key()))
        for parameter, _, place in what.places():
            parameter.grad = flat[place].view_as(parameter)
        optimizer.step()

    return private_step


def seconds(case: str, *, steps: int) -> dict[str, float]:
    """Processor seconds of a step by way: the least of `steps`, taken in turns."""
    ways = {way: step_of(case, way) for way in WAYS}
    least = dict.fromkeys(WAYS, float("inf"))
    for _ in range(steps + 1):  # the first of each warms up, and is never the least
        for way, step in ways.items():
            start = time.process_time()
            step()
            least[way] = min(least[way], time.process_time() - start)
    return least


def _resident(name: str) -> int:
    """A figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status holds no {name}")


def peak(case: str, way: str) -> int:
    """Bytes by which two steps raise the resident set at most; in a process of its own."""
    _alone()
    step = step_of(case, way)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest mark so far
    before = _resident("VmRSS")
    step()
    step()
    return _resident("VmHWM") - before


def _alone() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="one private step against a plain one")
    parser.add_argument("--steps", type=int, default=20, help="steps of each way, of which the fastest counts")
    parser.add_argument("--case", action="append", choices=CASES, help="only these cases")
    asked = parser.parse_args()
    _alone()
    linux, found = Path("/proc/self/clear_refs").exists(), {}
    print(f"{'':18}" + "".join(f"{way:>24}" for way in WAYS))
    for case in asked.case or CASES:
        times, memory = seconds(case, steps=asked.steps), dict.fromkeys(WAYS, 0)
        if linux:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                memory = {way: pool.apply(peak, (case, way)) for way in WAYS}
        base = times["plain SGD"]
        cells = [f"{1e3 * times[w]:7.1f} ms {times[w] / base:4.2f} x {memory[w] / 2**20:5.0f} MiB" for w in WAYS]
        print(f"{case:18}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
        found[case] = {"seconds": times, "bytes": memory, "ratio": {way: times[way] / base for way in WAYS}}
    print(json.dumps({"benchmark": "dp_step", "target": 1.3, "cases": found}))


if __name__ == "__main__":
    main()
