"""Chooses and reads example images for the report of a simulation."""

import numpy as np

from client import sources
from client.drops import Unusable
from common.tasks import task_of
from simulations.judge import Judged
from simulations.pictures import Picture

MOST = 8


def examples(judged: Judged) -> list[Picture]:
    """Up to `MOST` images, as many of each class as of the others, in the images' own order: chosen without looking
    at how
    well the model does on them. Images that can't be read again are left out."""
    task = task_of(judged.study)
    groups: dict[frozenset[int], list[int]] = {}
    for position, truth in enumerate(judged.images.truths):
        groups.setdefault(task.present(truth), []).append(position)
    ordered = [groups[key] for key in sorted(groups, key=sorted)]
    chosen = [group[turn] for turn in range(MOST) for group in ordered if turn < len(group)][:MOST]
    return [picture for position in sorted(chosen) if (picture := _picture(judged, position)) is not None]


def _picture(judged: Judged, position: int) -> Picture | None:
    study, row = judged.study, judged.images.rows[position]
    truth, prediction = judged.images.truths[position], judged.predictions[position]
    try:
        image = sources.pixels(row.source, window=study.preprocessing.window)
    except Unusable:
        return None
    if study.study.task == "classification":
        truth = study.study.classes[truth]
    elif study.study.task == "segmentation":
        truth = np.stack([truth == k for k in range(1, len(study.study.classes) + 1)])
    return Picture(image=image, caption=row.image[:8], truth=truth, prediction=prediction)
