"""Random small changes of training images, with masks and boxes moving along."""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.tasks.batch import Batch, Objects

SHIFT: Final = 0.06  # of the side, either way
SCALE: Final = 0.1  # either way from 1
TURN: Final = 10.0  # degrees either way; not for boxes, which would no longer be tight
CONTRAST: Final = 0.15  # either way from 1
BRIGHTNESS: Final = 0.2  # either way, in units of the normalised image (its standard deviations)


def augment(batch: Batch, *, rng: np.random.Generator) -> Batch:
    """The study's augmentation "standard": mirror (half of the images), shift, scale, turn, contrast and brightness.

    What comes in from outside repeats the border, in image and mask alike. Boxes move exactly, are clipped to the
    image, and stay while their centre does (Liu et al. 2016, SSD, section 2.2): of the others too little is left.

    Guarantees: equal generators give equal bits; an image's change depends on its position in the batch alone, not on
    what is in it or in the others; nothing of the given batch is changed.
    """
    count, _, height, width = batch.images.shape
    draw = rng.random((count, 7)) * 2 - 1
    mirror = np.where(draw[:, 0] < 0, -1.0, 1.0)
    scale = 1 + SCALE * draw[:, 1]
    shift = SHIFT * draw[:, 2:4] * (width, height)
    angle = np.deg2rad(TURN * draw[:, 4]) * (batch.objects is None)
    grid = _grid(mirror, scale, shift, angle, like=batch.images)
    contrast, brightness = (
        _column(values, like=batch.images)[..., None] for values in (1 + CONTRAST * draw[:, 5], BRIGHTNESS * draw[:, 6])
    )
    images = F.grid_sample(batch.images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    masks = batch.masks
    if masks is not None:
        moved = F.grid_sample(
            masks[:, None].to(batch.images), grid, mode="nearest", padding_mode="border", align_corners=False
        )
        masks = moved[:, 0].to(masks.dtype)
    objects = batch.objects
    if objects is not None:
        objects = tuple(
            _moved(one, mirror=mirror[i], scale=scale[i], shift=shift[i], size=(height, width))
            for i, one in enumerate(objects)
        )
    return Batch(images=images * contrast + brightness, labels=batch.labels, masks=masks, objects=objects)


def _grid(
    mirror: NDArray[np.float64],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    angle: NDArray[np.float64],
    *,
    like: Tensor,
) -> Tensor:
    """Where each pixel of images [B, C, height, width] comes from, [B, height, width, 2], -1 to 1 from edge to edge.

    A point p goes to scale * turn(mirror(p - centre)) + centre + shift, all in pixels; this is the way back.
    """
    height, width = like.shape[2:]
    x = torch.arange(width, device=like.device)[None, None, :] + 0.5 - width / 2 - _column(shift[:, 0], like=like)
    y = torch.arange(height, device=like.device)[None, :, None] + 0.5 - height / 2 - _column(shift[:, 1], like=like)
    cosine, sine = _column(np.cos(angle) / scale, like=like), _column(np.sin(angle) / scale, like=like)
    back_x = _column(mirror, like=like) * (cosine * x + sine * y)
    back_y = cosine * y - sine * x
    return torch.stack([back_x / (width / 2), back_y / (height / 2)], dim=-1)


def _column(values: NDArray[np.float64], *, like: Tensor) -> Tensor:
    """One number for each image as [B, 1, 1] beside the images."""
    return torch.from_numpy(values).to(like)[:, None, None]


def _moved(
    objects: Objects, *, mirror: float, scale: float, shift: NDArray[np.float64], size: tuple[int, int]
) -> Objects:
    height, width = size
    centre = np.array([width / 2, height / 2])
    factor = np.array([mirror * scale, scale])
    ends = [(corner - centre) * factor + centre + shift for corner in (objects.boxes[:, :2], objects.boxes[:, 2:])]
    low, high = np.minimum(*ends), np.maximum(*ends)
    middle = (low + high) / 2
    stays = ((middle > 0) & (middle < (width, height))).all(axis=1)
    boxes = np.concatenate([np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))], axis=1)
    return Objects(boxes=boxes[stays].astype(np.float32), classes=objects.classes[stays])
