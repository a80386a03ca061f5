"""From a pool of patients to a noised vector: how a model does on them, or how common the classes are."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.dataset import Images
from client.train import evaluation_batch, precision
from common import clip, noise, params
from common.event import Event
from common.tasks import task_of
from common.tasks.counts import ClassCounts
from common.tasks.release import Release, Summed


@dataclass(kw_only=True)
class Seen:
    """What the site alone may know of a release."""

    patients: int = 0
    unusable: int = 0  # of them: an image, the model or a prediction failed; they count as nothing


def parts(model: nn.Module, images: Images, release: Release) -> Iterator[NDArray[np.float64]]:
    """One vector for each patient of a pool, before any clip; the model's mode is put back. Not for release.

    Guarantees: a patient's vector is a function of the model and of his own images alone. They are in no batch with
    another's, where a score could change in its last bit, and so its bin, with who else is there. An error, whatever
    it is, gives NaN and nothing else.
    """
    mode = model.training
    try:
        model.eval()
        for rows in _by_patient(images):
            try:
                part = _part(model, images, release, rows)
            except Exception:
                part = np.full(params.length(release.layout), np.nan)
            yield part
    finally:
        model.train(mode)


def class_parts(images: Images, release: ClassCounts) -> Iterator[NDArray[np.float64]]:
    """One vector for each patient of a pool: the classes that his images show, before any clip. Not for release.

    Guarantees: a patient's vector is a function of his own annotations alone. An error, whatever it is, gives NaN and
    nothing else.
    """
    task = task_of(images.study)
    for rows in _by_patient(images):
        try:
            part = release.part([task.present(images.truths[row]) for row in rows])
        except Exception:
            part = np.full(params.length(release.layout), np.nan)
        yield part


def _by_patient(images: Images) -> list[list[int]]:
    """The positions of each patient's images."""
    grouped: dict[str, list[int]] = {}
    for position, row in enumerate(images.rows):
        grouped.setdefault(row.patient, []).append(position)
    return list(grouped.values())


def _part(model: nn.Module, images: Images, release: Release, rows: list[int]) -> NDArray[np.float64]:
    task, where, size = task_of(images.study), next(model.parameters()).device, evaluation_batch(images.study)
    predictions = []
    for start in range(0, len(rows), size):
        positions = rows[start : start + size]
        batch = images.batch(positions).to(where)
        with torch.no_grad(), precision(where):
            raw = task.predict(model, batch.images)
        if not all(_finite(one) for one in raw):
            return np.full(params.length(release.layout), np.nan)
        predictions += [images.restored(position, one) for position, one in zip(positions, raw, strict=True)]
    return release.part(predictions, [images.truths[row] for row in rows])


def _finite(prediction: object) -> bool:
    """Whether an array has numbers only: a probability map that has none becomes an ordinary mask on its way."""
    return not isinstance(prediction, np.ndarray) or bool(np.isfinite(prediction).all())


def exact_sum(vectors: Iterable[NDArray[np.float64]], release: Summed, *, seen: Seen) -> clip.GridSum:
    """The integer sum of the patients' vectors, each clipped to the bound less the slack. Not for release.

    Guarantees: with one patient more, less, or (twice that) another in his place, the sum changes by at most
    `clip.GRID_STEPS` steps in L2 norm, whatever the vectors are.
    Edge cases: a vector that is not finite, or whose norm is not, adds nothing; no patients give zeros.
    Raises ValueError for a vector of another length: `release` is not the one that the vectors were made by.
    """
    bounds, length = clip.Bounds(clip_norms=(release.bound,)), params.length(release.layout)
    total = np.zeros(length, np.float64)
    for vector in vectors:
        if vector.shape != (length,):
            raise ValueError(f"a patient's vector of shape {vector.shape} for {length} released values")
        seen.patients += 1
        norm = math.hypot(*vector.tolist())
        if not math.isfinite(norm):
            seen.unusable += 1
            continue
        total += vector * clip.factors(np.array([[norm]]), bounds, weights=np.ones(1))[0, 0]
    return clip.to_grid(total, bounds)


def noised_sum(exact: clip.GridSum, event: Event, *, key: bytes) -> NDArray[np.float32]:
    """What may leave the site: the sum with the noise of one step of the event. Nothing is divided or clamped.

    `key`: a fresh one for each release (`common.noise.fresh_key`); equal keys would send the difference in the clear.
    Raises ValueError for an event that is not a sum over the whole pool on the grid of `common.clip`.
    """
    if not (event.sample_rate == 1 and event.grid * clip.GRID_STEPS == 1):
        raise ValueError(f"sample rate {event.sample_rate}, grid {event.grid}: a release is a sum over the whole pool")
    deviation = event.noise_multiplier * clip.GRID_STEPS
    values = noise.gaussian(exact.steps.size, standard_deviation=deviation, key=key)
    return clip.release(exact, values, divisor=1.0)


def released(
    vectors: Iterable[NDArray[np.float64]], release: Summed, event: Event, *, key: bytes
) -> tuple[NDArray[np.float32], Seen]:
    """The noised vector of one release over a pool, and what stays at the site.

    Guarantees: one step of `event`; the same number of finite values whoever is in the pool: no patients, none usable.
    """
    seen = Seen()
    return noised_sum(exact_sum(vectors, release, seen=seen), event, key=key), seen
