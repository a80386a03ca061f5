"""Small models, losses and patients that the tests of private training share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small import tiny_study
from torch import Tensor, nn

from client.dp.gradients import Clip, Losses, Trained, Way
from client.dp.microbatch import Microbatch, Views, pack
from client.dp.patients import blank_of
from common.models import build_model
from common.randomness import seeded
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch, Objects

torch.set_num_threads(1)

MODELS: dict[str, dict[str, Any]] = {
    "cnn gap": {"model": {"name": "cnn", "image_size": [20, 20], "head": "gap"}},
    "cnn dense": {"model": {"name": "cnn", "image_size": [24, 20], "head": "dense", "norm": "none"}},
    "resnet18": {"model": {"name": "resnet18", "image_size": [16, 16], "head": "dense"}},
    "unet": {
        "study": {"task": "segmentation", "classes": ["a", "b"]},
        "model": {"name": "unet", "image_size": [32, 16], "base_channels": 2, "head": "dense"},
    },
    "unet without norm": {
        "study": {"task": "segmentation", "classes": ["a"]},
        "model": {"name": "unet", "image_size": [16, 16], "base_channels": 2, "norm": "none", "head": "dense"},
    },
    "retinanet": {
        "study": {"task": "detection", "classes": ["a", "b"]},
        "model": {"name": "retinanet", "image_size": [64, 64], "head": "dense"},
    },
    "fasterrcnn": {
        "study": {"task": "detection", "classes": ["a", "b"]},
        "model": {"name": "fasterrcnn", "image_size": [64, 64], "head": "dense"},
    },
}


def study_of(name: str) -> Study:
    return tiny_study(**MODELS[name])


def model_of(study: Study) -> nn.Module:
    with seeded(1, "test model"):
        return build_model(study).train()


def losses_of(study: Study) -> Losses:
    return task_of(study).losses


def ill_conditioned(model: nn.Module) -> nn.Module:
    """Weights as a malicious server may send them: large parts that cancel, so that rounding is most of a gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 4:
                parameter.sub_(parameter.flatten(1).mean(dim=1).view(-1, 1, 1, 1)).mul_(2.0**6)
            elif name.endswith("bias"):
                parameter.add_(2.0**18)
    return model


def random_batch(study: Study, count: int, *, rng: np.random.Generator) -> Batch:
    """Images of noise with random truth."""
    height, width = study.model.image_size
    classes = len(study.study.classes)
    images = torch.from_numpy(rng.normal(size=(count, study.model.channels, height, width)).astype(np.float32))
    match study.study.task:
        case "classification":
            return Batch(images=images, labels=torch.from_numpy(rng.integers(0, classes, count)))
        case "segmentation":
            masks = rng.integers(0, classes + 1, (count, height, width)).astype(np.uint8)
            return Batch(images=images, masks=torch.from_numpy(masks))
        case "detection":
            return Batch(images=images, objects=tuple(_objects(study, rng) for _ in range(count)))


def _objects(study: Study, rng: np.random.Generator) -> Objects:
    height, width = study.model.image_size
    count = int(rng.integers(0, 4))
    corner = rng.uniform(0, 0.5, (count, 2)) * (width, height)
    size = rng.uniform(0.2, 0.5, (count, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return Objects(boxes=boxes, classes=rng.integers(0, len(study.study.classes), count))


def some_views(study: Study, counts: tuple[int, ...], *, seed: int = 0) -> list[Views]:
    """A patient for each count, with that many images."""
    rng = np.random.default_rng(seed)
    return [
        Views(batch=random_batch(study, count, rng=rng), weight=1.0, seed=100 + position)
        for position, count in enumerate(counts)
    ]


def micro_of(study: Study, counts: tuple[int, ...], *, slots: int, seed: int = 0) -> Microbatch:
    (micro,) = pack(
        some_views(study, counts, seed=seed), slots=slots, blank=blank_of(study), most=max(counts, default=1)
    )
    return micro


def matrix(way: Way, model: nn.Module, what: Trained, losses: Losses, micro: Microbatch) -> NDArray[np.float64]:
    """Each patient's gradient [patients, values], through the way's only door: factors of one at a time."""
    rows = []
    for position in range(len(micro.segments)):
        rows.append(way(model, what, losses, micro, only(position)).numpy())
    return np.array(rows)


def only(position: int) -> Clip:
    """Factor 1 for the patient at this position, 0 for all others, however many are asked for at once."""
    seen = 0

    def clip(norms: Tensor) -> Tensor:
        nonlocal seen
        made = torch.zeros_like(norms)
        if seen <= position < seen + len(norms):
            made[position - seen] = 1
        seen += len(norms)
        return made

    return clip


@dataclass(kw_only=True)
class Ward:
    """Patients in memory: one batch of images each."""

    study: Study
    batches: list[Batch]
    patient_weights: list[float] | None = None
    patient_shares: list[float] | None = None
    broken: Callable[[int], bool] = lambda _: False

    def __len__(self) -> int:
        return len(self.batches)

    def images(self, position: int) -> int:
        return len(self.batches[position].images)

    def batch(self, position: int, chosen: NDArray[np.int64]) -> Batch:
        if self.broken(position):
            raise OSError("this file is gone")
        own = self.batches[position]
        return Batch(
            images=own.images[chosen],
            labels=None if own.labels is None else own.labels[chosen],
            masks=None if own.masks is None else own.masks[chosen],
            objects=None if own.objects is None else tuple(own.objects[i] for i in chosen),
        )

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.array(self.patient_weights or [1.0] * len(self), np.float64)

    @property
    def shares(self) -> NDArray[np.float64]:
        return np.array(self.patient_shares or [1.0] * len(self), np.float64)

    @property
    def blank(self) -> Batch:
        return blank_of(self.study)


def ward(study: Study, counts: tuple[int, ...], *, seed: int = 0) -> Ward:
    return Ward(study=study, batches=[one.batch for one in some_views(study, counts, seed=seed)])
