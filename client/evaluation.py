"""A finished model judged on the site's own patients, for the site itself: exact figures, which are not to be sent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from client import train
from client.dataset import open_dataset
from client.site import Site
from common.layout import Pool
from common.model_files import open_model
from common.tasks import task_of

HELD_OUT: tuple[Pool, ...] = ("validation", "test")
ALL: tuple[Pool, ...] = ("train", *HELD_OUT)


def evaluate(site: Site, model: Path, *, pools: Sequence[Pool] = HELD_OUT, threads: int = 1) -> dict[str, Any]:
    """Metrics by pool of the model in this folder on the site's patients.

    Patients who were trained on flatter the model: by default only those of the other pools count.
    Raises DataError or StudyError, one line, where model or data can't be used.
    """
    torch.set_num_threads(threads)
    opened = open_model(model)
    study, network = opened.study, opened.network.to(train.device())
    dataset, task, found = open_dataset(site, study), task_of(study), {}
    for pool in pools:
        images = dataset.pools[pool]
        predictions = [one for _, _, batch in train.predicted(network, images, study) for one in batch]
        figures = dict(task.pooled(predictions, images.truths)) if predictions else {}
        found[pool] = {**figures, "images": len(images), "patients": dataset.patients[pool]}
    return {"schema": 1, "model": opened.provenance, "unusable": dataset.unusable, "metrics": found}
