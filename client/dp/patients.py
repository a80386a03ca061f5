"""What the private step asks of the data: patients by position, their images, their weights, and a blank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from client.dataset import Images
from common.study import Study
from common.tasks.batch import Batch, Objects

MOST_BOXES = 1000  # in an image: what a loss needs of memory and time has a public bound


class Patients(Protocol):
    """The patients of one pool. Their number is private."""

    def __len__(self) -> int:
        """Patients in the pool; may be 0."""

    def images(self, position: int) -> int:
        """How many images this patient has."""

    def batch(self, position: int, chosen: NDArray[np.int64]) -> Batch:
        """These of the patient's images, of the same shape as `blank`. An error makes him a blank in this draw."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each patient's clipped gradient is multiplied by, in [0, 1]: class balance from public numbers."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """What the sample rate is multiplied by for each patient, in [0, 1]: class balance by sampling."""

    @property
    def blank(self) -> Batch:
        """One image that shows nothing, of the study's shape: padding."""


def blank_of(study: Study) -> Batch:
    """One blank of the study's shape: zeros, first class, no mask, no object."""
    height, width = study.model.image_size
    images = torch.zeros(1, study.model.channels, height, width)
    match study.study.task:
        case "classification":
            return Batch(images=images, labels=torch.zeros(1, dtype=torch.int64))
        case "segmentation":
            return Batch(images=images, masks=torch.zeros(1, height, width, dtype=torch.uint8))
        case "detection":
            nothing = Objects(boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int64))
            return Batch(images=images, objects=(nothing,))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nobody:
    """The patients of a site whose images can't be had: none, and nobody may notice."""

    study: Study

    def __len__(self) -> int:
        return 0

    def images(self, position: int) -> int:
        raise IndexError(position)

    def batch(self, position: int, chosen: NDArray[np.int64]) -> Batch:
        raise IndexError(position)

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.zeros(0)

    @property
    def shares(self) -> NDArray[np.float64]:
        return np.zeros(0)

    @cached_property
    def blank(self) -> Batch:
        return blank_of(self.study)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The patients of a dataset's pool, in the pool's order; `class_weights` [K] and `class_shares` [K] are public.

    A patient's class is that of his rarest image, by the public numbers: the largest of his images' weights (shares).
    """

    pool: Images
    class_weights: tuple[float, ...] = ()  # none: all weigh 1
    class_shares: tuple[float, ...] = ()

    @cached_property
    def _rows(self) -> tuple[NDArray[np.int64], ...]:
        grouped: dict[str, list[int]] = {}
        for position, row in enumerate(self.pool.rows):
            grouped.setdefault(row.patient, []).append(position)
        return tuple(np.array(rows, np.int64) for rows in grouped.values())

    def __len__(self) -> int:
        return len(self._rows)

    def images(self, position: int) -> int:
        return len(self._rows[position])

    def batch(self, position: int, chosen: NDArray[np.int64]) -> Batch:
        batch = self.pool.batch(self._rows[position][chosen])
        if batch.objects is not None and any(len(one.boxes) > MOST_BOXES for one in batch.objects):
            raise ValueError(f"more than {MOST_BOXES} boxes in an image")
        return batch

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        return self._of_patients(self.class_weights)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        return self._of_patients(self.class_shares)

    @cached_property
    def blank(self) -> Batch:
        return blank_of(self.pool.study)

    def _of_patients(self, of_class: Sequence[float]) -> NDArray[np.float64]:
        if not of_class:
            return np.ones(len(self))
        from common.tasks import task_of

        task = task_of(self.pool.study)
        of_image = [
            max((of_class[name] for name in task.present(truth)), default=min(of_class)) for truth in self.pool.truths
        ]
        return np.array([max(of_image[row] for row in rows) for rows in self._rows], np.float64)
