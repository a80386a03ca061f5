"""Drawn patients packed into batches of one fixed number of images, so that shapes say nothing about patients."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from client.dp.patients import Patients
from client.dp.sampler import Drawn, choose
from common.tasks.batch import Batch

Augment = Callable[[Batch, np.random.Generator], Batch]


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """One drawn patient's images (k of them, all in one batch), and the weight of his clipped gradient."""

    batch: Batch
    weight: float
    seed: int  # secret: of what is random within the model


@dataclass(frozen=True, kw_only=True, eq=False)
class Microbatch:
    """A batch whose images are those of whole patients, one after the other, then blanks.

    `segments` are the patients' places in the batch, each of `most` images at most, a public number; `view_weights`
    [slots] are 1 / k for each of a patient's k images and 0 for a blank, so that a patient's loss is the mean over his
    images.
    """

    batch: Batch
    segments: tuple[slice, ...]
    view_weights: Tensor
    weights: tuple[float, ...]  # of the clipped gradients, one for each patient
    seeds: tuple[int, ...]
    most: int

    @property
    def slots(self) -> int:
        """Places for images."""
        return len(self.view_weights)


def views(
    patients: Patients, drawn: Drawn, *, images_per_patient: int, augmentations: int, augment: Augment | None
) -> Views | None:
    """The patient's images for this step: at most `images_per_patient`, each `augmentations` times, changed at random.

    None where his images can't be had, or are of another shape than the blank: he is a blank then, never an error that
    would say that he is here.
    """
    try:
        chosen = choose(drawn, images=patients.images(drawn.position), most=images_per_patient)
        batch = patients.batch(drawn.position, np.tile(chosen, augmentations))
        if augment is not None:
            batch = augment(batch, drawn.generator("augmentation"))
    except Exception:  # whatever goes wrong with one patient's data must not show
        return None
    count = len(batch.images)
    if not (0 < count <= images_per_patient * augmentations and _form(batch, count) == _form(patients.blank, 1)):
        return None
    weight, seed = float(patients.weights[drawn.position]), drawn.number("model")
    return Views(batch=batch, weight=weight, seed=seed)


def _form(batch: Batch, count: int) -> list[object]:
    """What batches that are put behind each other must have in common; False for parts not of `count` images."""
    tensors = [batch.images, batch.labels, batch.masks]
    parts = [None if one is None else (one.shape[1:], one.dtype, len(one) == count) for one in tensors]
    return [*parts, batch.objects is None or len(batch.objects) == count, batch.objects is None]


def pack(found: Iterable[Views], *, slots: int, blank: Batch, most: int) -> Iterator[Microbatch]:
    """Micro-batches of `slots` images, no patient of more than `most` and none in two of them, filled up with blanks.

    Guarantees: at least one micro-batch, of blanks where there is no patient; all have one shape.
    Raises ValueError for a patient with more images.
    """
    if not 1 <= most <= slots:
        raise ValueError(f"{slots} slots for patients with {most} images: at least images x augmentations")
    waiting: list[Views] = []
    used, packed = 0, False
    for one in found:
        count = len(one.batch.images)
        if count > most:
            raise ValueError(f"a patient with {count} images: at most {most}")
        if used + count > slots:
            yield _filled(waiting, slots=slots, blank=blank, most=most)
            waiting, used, packed = [], 0, True
        waiting.append(one)
        used += count
    if waiting or not packed:
        yield _filled(waiting, slots=slots, blank=blank, most=most)


def _filled(found: Sequence[Views], *, slots: int, blank: Batch, most: int) -> Microbatch:
    counts = [len(one.batch.images) for one in found]
    ends = np.cumsum([0, *counts]).tolist()
    view_weights = torch.zeros(slots)
    segments = tuple(slice(start, end) for start, end in pairwise(ends))
    for segment, count in zip(segments, counts, strict=True):
        view_weights[segment] = 1 / count
    return Microbatch(
        batch=join([one.batch for one in found] + [blank] * (slots - ends[-1])),
        segments=segments,
        view_weights=view_weights,
        weights=tuple(one.weight for one in found),
        seeds=tuple(one.seed for one in found),
        most=most,
    )


def without(micro: Microbatch, positions: Collection[int], *, blank: Batch) -> Microbatch:
    """The same with blanks in the place of these patients: all others stay where they are."""
    kept = [position for position in range(len(micro.segments)) if position not in positions]
    view_weights, images = micro.view_weights.clone(), [part(micro.batch, slice(i, i + 1)) for i in range(micro.slots)]
    for position in positions:
        view_weights[micro.segments[position]] = 0
        for place in range(*micro.segments[position].indices(micro.slots)):
            images[place] = blank.to(micro.batch.images.device)
    return replace(
        micro,
        batch=join(images),
        segments=tuple(micro.segments[position] for position in kept),
        view_weights=view_weights,
        weights=tuple(micro.weights[position] for position in kept),
        seeds=tuple(micro.seeds[position] for position in kept),
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of one kind behind each other."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    masks = [batch.masks for batch in batches if batch.masks is not None]
    objects = [batch.objects for batch in batches if batch.objects is not None]
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        labels=torch.cat(labels) if labels else None,
        masks=torch.cat(masks) if masks else None,
        objects=tuple(one for several in objects for one in several) if objects else None,
    )


def part(batch: Batch, where: slice) -> Batch:
    """Some of a batch's images."""
    return Batch(
        images=batch.images[where],
        labels=None if batch.labels is None else batch.labels[where],
        masks=None if batch.masks is None else batch.masks[where],
        objects=None if batch.objects is None else batch.objects[where],
    )
