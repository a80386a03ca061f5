"""One round's work at a site: evaluate the weights that came, train from them, hand back one flat vector."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.augment import augment
from client.dataset import Dataset, Images, batches
from common import metrics, params
from common.errors import DataError
from common.layout import POOLS, layout_of, metric_shapes
from common.parts import Training
from common.randomness import seeded, stream
from common.study import Study
from common.tasks import task_of

EVALUATION_BATCH = 64  # images at most, and fewer of large ones: has no influence on results
EVALUATION_PIXELS = 2**21


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(where: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic on GPUs that have it (its range is float32's, so no loss scaling); float32 elsewhere."""
    if where.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def update(model: nn.Module, dataset: Dataset, study: Study, *, site: str, round: int) -> NDArray[np.float32]:
    """Answer to an `update` order: the model holds the order's weights, and afterwards the site's own.

    The vector (common.layout) is weight x (local - order's weights), the weight, and validation sums of the order's
    weights.
    A site without training images answers with weight 0. Raises DataError when training gives values that aren't
    finite.
    """
    sums = pool_sums(model, dataset, study, "update")
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    local_train(model, dataset.pools["train"], study, site=site, round=round)
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    weight = _weight(dataset, study)
    with torch.no_grad():
        change = params.flatten(torch.sub(new, old).mul_(weight) for new, old in zip(after, before, strict=True))
    if not np.isfinite(change).all():
        raise DataError(
            "training gave weights that are not finite: lower training.learning_rate, or look at the images"
        )
    return layout_of(study, "update").pack(change, {"weight": np.array(weight), **sums})


def evaluate(model: nn.Module, dataset: Dataset, study: Study) -> NDArray[np.float32]:
    """Answer to an `evaluate` order: validation and test sums of the weights that the model holds."""
    return layout_of(study, "evaluate").pack(np.zeros(0, np.float32), pool_sums(model, dataset, study, "evaluate"))


def _weight(dataset: Dataset, study: Study) -> float:
    if not len(dataset.pools["train"]):
        return 0.0
    match study.aggregation.weights:
        case "images":
            return float(len(dataset.pools["train"]))
        case "patients":
            return float(dataset.patients["train"])
        case "equal":
            return 1.0
        case "nominal":
            raise ValueError("a study under [privacy] is trained by client.private")


def local_train(model: nn.Module, images: Images, study: Study, *, site: str, round: int) -> int:
    """Train in place on these images as the study says; returns the steps taken (0 where there are no images).

    Guarantees: equal arguments on one CPU with equal threads give equal bits; torch's global generator is as before.
    """
    training, task = study.training, task_of(study)
    where = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in trained] if study.aggregation.algorithm == "fedprox" else None
    optimizer = make_optimizer(trained, training, rate=learning_rate(training, round=round, rounds=study.study.rounds))
    shuffle = stream(study.study.seed, "shuffle", site=site, round=round)
    motion = stream(study.study.seed, "augmentation", site=site, round=round)
    if training.batch_size is None:
        raise ValueError("a study under [privacy] is trained by client.private")
    order = batches(
        images,
        size=training.batch_size,
        steps=training.local_steps,
        epochs=training.local_epochs,
        sampler=training.class_balance == "sampler",
        rng=shuffle,
    )
    steps = 0
    model.train()
    with seeded(study.study.seed, "training", site=site, round=round):
        for positions in order:
            batch = images.batch(positions)
            if training.augmentation == "standard":
                batch = augment(batch, rng=motion)
            with precision(where):
                losses = task.losses(model, batch.to(where))
            if training.class_balance == "weighted":
                losses = losses * torch.from_numpy(images.balance[positions]).to(losses)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward([losses.mean()])
            if anchor is not None:  # the proximal term's gradient, as a function of the weights alone
                for parameter, start in zip(trained, anchor, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach() - start, alpha=study.aggregation.proximal_mu)
            optimizer.step()
            steps += 1
    return steps


def learning_rate(training: Training, *, round: int, rounds: int) -> float:
    """The local learning rate in a round (1-based): constant, or half a cosine that ends near 0 (Loshchilov, Hutter
    2017).
    """
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (round - 1) / rounds))


def make_optimizer(trained: list[nn.Parameter], training: Training, *, rate: float) -> torch.optim.Optimizer:
    """The study's local optimiser over these parameters."""
    decay = training.weight_decay
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(trained, lr=rate, momentum=training.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(trained, lr=rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(trained, lr=rate, weight_decay=decay)


def pool_sums(model: nn.Module, dataset: Dataset, study: Study, kind: Any) -> metrics.Sums:
    """Metric sums of the weights that the model holds, named POOL/SUM, over the pools that this kind of answer
    covers.
    """
    named: metrics.Sums = {}
    for pool in POOLS[kind]:
        total = metrics.total_of(metric_shapes(study), image_sums(model, dataset.pools[pool], study))
        named |= {f"{pool}/{name}": value for name, value in total.items()}
    return named


def image_sums(model: nn.Module, images: Images, study: Study) -> Iterator[metrics.Sums]:
    """Each image's contribution to the metric sums, with its loss, in the images' order."""
    task = task_of(study)
    for positions, losses, predictions in predicted(model, images, study):
        for position, loss, prediction in zip(positions, losses, predictions, strict=True):
            own = task.image_sums(prediction, images.truths[position])
            yield {"loss": np.asarray(loss), "images": np.ones(()), **own}


def evaluation_batch(study: Study) -> int:
    """Images that are evaluated at once, so that large ones don't take more memory than training does."""
    height, width = study.model.image_size
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // (height * width)))


def predicted(
    model: nn.Module, images: Images, study: Study
) -> Iterator[tuple[NDArray[np.int64], list[float], list[Any]]]:
    """Positions, losses and predictions on the stored images' grids, batch by batch; the model's mode is put back."""
    task, where, mode = task_of(study), next(model.parameters()).device, model.training
    try:
        size = evaluation_batch(study)
        for start in range(0, len(images), size):
            positions = np.arange(start, min(start + size, len(images)))
            batch = images.batch(positions).to(where)
            with precision(where), seeded(study.study.seed, "evaluation"):
                losses, raw = task.assess(model, batch)
            if not torch.isfinite(losses).all():
                raise DataError("the weights give losses that are not finite: training diverged, or an image is broken")
            stored = [images.restored(int(p), prediction) for p, prediction in zip(positions, raw, strict=True)]
            yield positions, losses.tolist(), stored
    finally:
        model.train(mode)
