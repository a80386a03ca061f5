"""The outline of each class in an image: K independent masks, background is none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from common.annotation import Annotation
from common.metrics import Sums
from common.tasks import class_position, ratio, total_sums
from common.tasks.batch import Batch


def class_map(annotation: Annotation, classes: Sequence[str]) -> NDArray[np.uint8] | None:
    """The mask with value k for the k-th class, [height, width]; None without one or where it shows another class."""
    mask, count = annotation.mask, len(classes)
    if mask is None:
        return None
    if annotation.mask_names is None:
        if count == 1:
            return (mask > 0).astype(np.uint8)
        return mask if mask.max(initial=0) <= count else None
    table = np.zeros(256, dtype=np.uint8)
    for value in np.unique(mask[mask > 0]):
        name = annotation.mask_names[value - 1] if value <= len(annotation.mask_names) else ""
        position = class_position(name, classes)
        if position is None:
            return None
        table[value] = position + 1
    return table[mask]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Binary cross-entropy plus soft Dice of each image and class; Dice and IoU as means over images and classes.

    An image counts for a class when truth or prediction shows it: 0 / 0 is no overlap to measure. `support` is the
    number of such images; `dice_pooled` is Dice with the pixels of all images in one, averaged over classes.
    """

    classes: tuple[str, ...]
    focal: bool
    headline: str = "dice"

    def truth(self, annotation: Annotation) -> NDArray[np.uint8] | None:
        return class_map(annotation, self.classes)

    def present(self, truth: NDArray[np.uint8]) -> frozenset[int]:
        return frozenset((np.flatnonzero(np.bincount(truth.ravel(), minlength=1)[1:])).tolist())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.masks is None:
            raise ValueError("a batch for segmentation needs masks")
        return self._losses(model(batch.images).float(), batch.masks)

    def _losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        value = torch.arange(1, len(self.classes) + 1, device=logits.device)[None, :, None, None]
        truth = (masks[:, None] == value).float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        if self.focal:
            entropy = (1 - torch.exp(-entropy)) ** 2 * entropy
        probability = torch.sigmoid(logits)
        common = (probability * truth).sum(dim=(2, 3))
        sizes = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
        dice = (2 * common + 1) / (sizes + 1)  # the 1 keeps an empty mask finite, and its gradient useful
        return entropy.mean(dim=(1, 2, 3)) + (1 - dice).mean(dim=1)

    def predict(self, model: nn.Module, images: Tensor) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return list(torch.sigmoid(model(images).float()).cpu().numpy())

    def assess(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[NDArray[np.float32]]]:
        if batch.masks is None:
            raise ValueError("a batch for segmentation needs masks")
        with torch.no_grad():
            logits = model.eval()(batch.images).float()
            return self._losses(logits, batch.masks), list(torch.sigmoid(logits).cpu().numpy())

    def sums_layout(self) -> dict[str, tuple[int, ...]]:
        """By class: sums of Dice and IoU over the images that count, their number, and megapixels of each kind."""
        return {name: (len(self.classes),) for name in ("dice", "iou", "support", "common", "predicted", "true")}

    def image_sums(self, prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> Sums:
        count = len(self.classes)
        true = np.bincount(truth.ravel(), minlength=count + 1)[1:].astype(np.float64)
        predicted = np.count_nonzero(prediction, axis=(1, 2)).astype(np.float64)
        common = np.array([np.count_nonzero(prediction[k] & (truth == k + 1)) for k in range(count)], dtype=np.float64)
        sizes = true + predicted
        counts = sizes > 0
        zero = np.zeros(count)
        return {
            "dice": np.divide(2 * common, sizes, out=zero.copy(), where=counts),
            "iou": np.divide(common, sizes - common, out=zero.copy(), where=counts),
            "support": counts.astype(np.float64),
            "common": common / 1e6,
            "predicted": predicted / 1e6,
            "true": true / 1e6,
        }

    def summarise(self, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
        support, sizes = sums["support"], sums["predicted"] + sums["true"]
        known = sizes > 0
        return {
            "dice": ratio(sums["dice"].sum(), support.sum()),
            "iou": ratio(sums["iou"].sum(), support.sum()),
            "dice_pooled": float((2 * sums["common"][known] / sizes[known]).mean()) if known.any() else None,
            "per_class": {
                name: {
                    "dice": ratio(sums["dice"][position], support[position]),
                    "iou": ratio(sums["iou"][position], support[position]),
                    "support": round(support[position]),
                }
                for position, name in enumerate(self.classes)
            },
        }

    def pooled(self, predictions: Sequence[NDArray[np.bool_]], truths: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """Overlaps are sums already: nothing is lost by adding them up."""
        return self.summarise(total_sums(self, predictions, truths))
