"""Judges models with all predictions in one place, which only a simulation, or a site for itself, can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client.dataset import Images, open_dataset
from client.site import open_site
from client.train import device, predicted
from common import params
from common.layout import Pool
from common.model_files import load_network
from common.randomness import stream
from common.study import Study
from common.tasks import task_of

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A model's predictions on some images, on their stored grids."""

    study: Study
    images: Images
    predictions: tuple[Any, ...]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Exact metrics of all images together; {} where there are none."""
        if not self.predictions:
            return {}
        return {**task_of(self.study).pooled(self.predictions, self.images.truths), "images": len(self.images)}

    @cached_property
    def headline(self) -> float | None:
        """The task's headline metric, exact."""
        return self.metrics.get(task_of(self.study).headline)

    @cached_property
    def image_sums(self) -> NDArray[np.float64]:
        """Each image's summable contribution, flattened [images, S]."""
        task = task_of(self.study)
        rows = []
        for prediction, truth in zip(self.predictions, self.images.truths, strict=True):
            sums = task.image_sums(prediction, truth)
            rows.append(np.concatenate([np.ravel(sums[name]) for name in task.sums_layout()]))
        return np.stack(rows) if rows else np.zeros((0, 0))


def load_model(study: Study, out: Path) -> nn.Module:
    """The whole model that a run left in OUT, where it is to work. Raises as `common.model_files.load_network` does."""
    return load_network(study, out).to(device())


def judge(study: Study, model: nn.Module, images: Images) -> Judged:
    """The model's predictions on these images."""
    predictions = [p for _, _, batch in predicted(model, images, study) for p in batch]
    return Judged(study=study, images=images, predictions=tuple(predictions))


def pool_of(study: Study, folder: Path, pool: Pool) -> Images:
    """A site's images of one pool; there may be none."""
    return open_dataset(open_site(folder), study).pools[pool]


def everything(study: Study, folder: Path) -> Images:
    """All usable images of a site folder, whatever their pool."""
    pools = open_dataset(open_site(folder), study).pools
    parts = [pools["train"], pools["validation"], pools["test"]]
    return Images(
        study=study,
        rows=tuple(row for part in parts for row in part.rows),
        truths=tuple(truth for part in parts for truth in part.truths),
        cache=parts[0].cache,
    )


def together(parts: Sequence[Judged]) -> Judged:
    """Several sites' judged images as one set."""
    first = parts[0]
    images = Images(
        study=first.study,
        rows=tuple(row for part in parts for row in part.images.rows),
        truths=tuple(truth for part in parts for truth in part.images.truths),
        cache=first.images.cache,
    )
    return Judged(study=first.study, images=images, predictions=tuple(p for part in parts for p in part.predictions))


def difference(of: Judged, minus: Judged, *, seed: int, site: str) -> tuple[float, float] | None:
    """95 % interval of the difference in the headline metric between two models on the same images.

    Paired bootstrap over patients (Efron, Tibshirani 1993, ch. 13; percentile interval), from the summable metrics.
    None
    where fewer than 5 patients or fewer than half of the resamples define both metrics.
    """
    rows = of.images.rows
    patients = {patient: number for number, patient in enumerate(dict.fromkeys(row.patient for row in rows))}
    if len(patients) < 5:
        return None
    owner = np.array([patients[row.patient] for row in rows])
    rng = stream(seed, "bootstrap", site=site)
    drawn = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=RESAMPLES)
    found = []
    for counts in drawn:
        weights = counts[owner].astype(np.float64)
        one, other = _headline(of, weights), _headline(minus, weights)
        if one is not None and other is not None:
            found.append(one - other)
    if len(found) < RESAMPLES / 2:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _headline(judged: Judged, weights: NDArray[np.float64]) -> float | None:
    task = task_of(judged.study)
    sums = params.split(weights @ judged.image_sums, tuple(task.sums_layout().items()))
    value: float | None = task.summarise(sums)[task.headline]
    return value
