"""What passes between data, model and task: a batch on the model's grid, and boxes."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """Objects of one image: corners xyxy in pixels [n, 4] float32 and class positions [n] int64. n may be 0."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Objects that a model proposes, best first, with scores [n] float32 in [0, 1]."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Model input [B, C, H, W] float32 and, on the same grid, what the task needs of: labels [B] int64, masks [B, H,
    W] uint8 (0 background, k = k-th class), objects (one per image).
    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    objects: tuple[Objects, ...] | None = None

    def to(self, where: torch.device) -> Self:
        """The batch with its tensors on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(where)

        return replace(self, images=self.images.to(where), labels=moved(self.labels), masks=moved(self.masks))
