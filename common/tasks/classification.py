"""One class for each image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from common import metrics
from common.annotation import Annotation
from common.metrics import Sums
from common.tasks import class_position, curves, ratio, total_sums
from common.tasks.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy, focal if asked (Lin et al. 2017, gamma 2); AUC one class against the rest.

    With two classes the last is the positive one: `auc` and `operating_point` are its own. With more, `auc` is the mean
    over the classes that have both positives and negatives, and `operating_point` a list with a point for each of them.
    """

    classes: tuple[str, ...]
    focal: bool
    headline: str = "auc"

    def truth(self, annotation: Annotation) -> int | None:
        return None if annotation.label is None else class_position(annotation.label, self.classes)

    def present(self, truth: int) -> frozenset[int]:
        return frozenset({truth})

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError("a batch for classification needs labels")
        return self._losses(model(batch.images).float(), batch.labels)

    def predict(self, model: nn.Module, images: Tensor) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return _probabilities(model(images).float())

    def assess(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[NDArray[np.float32]]]:
        if batch.labels is None:
            raise ValueError("a batch for classification needs labels")
        with torch.no_grad():
            logits = model.eval()(batch.images).float()
            return self._losses(logits, batch.labels), _probabilities(logits)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")
        return (1 - torch.exp(-entropy)) ** 2 * entropy if self.focal else entropy

    def sums_layout(self) -> dict[str, tuple[int, ...]]:
        """`scores`: images by class, whether they are of it (0 no, 1 yes), and bin of that class's score. `predicted`
        and `correct`: images by predicted class, and those among them that are of it."""
        count = len(self.classes)
        return {"scores": (count, 2, curves.bins(2 * count)), "predicted": (count,), "correct": (count,)}

    def image_sums(self, prediction: NDArray[np.float32], truth: int) -> Sums:
        sums = metrics.zeros(self.sums_layout())
        position = np.arange(len(self.classes))
        bin_of = curves.bin_of(prediction, count=sums["scores"].shape[2])
        sums["scores"][position, (position == truth).astype(int), bin_of] = 1
        predicted = int(np.argmax(prediction))
        sums["predicted"][predicted] = 1
        sums["correct"][predicted] = predicted == truth
        return sums

    def summarise(self, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
        scores = sums["scores"]
        areas = [curves.area_under_roc(of_class[1], of_class[0]) for of_class in scores]
        points = [curves.operating_point(of_class[1], of_class[0]) for of_class in scores]
        return self._metrics(sums, areas, points)

    def pooled(self, predictions: Sequence[NDArray[np.float32]], truths: Sequence[int]) -> dict[str, Any]:
        from torchmetrics.functional.classification import binary_auroc

        probability = np.array(predictions, dtype=np.float32).reshape(-1, len(self.classes))
        areas: list[float | None] = []
        points: list[tuple[float, float, float] | None] = []
        for position in range(len(self.classes)):
            score, positive = probability[:, position], np.array(truths, dtype=np.int64) == position
            if not 0 < positive.sum() < len(positive):
                areas.append(None)
                points.append(None)
                continue
            areas.append(float(binary_auroc(torch.from_numpy(score), torch.from_numpy(positive).long())))
            needed = math.ceil(curves.SENSITIVITY * positive.sum() - 1e-9)
            threshold = np.sort(score[positive])[-needed]
            kept, spared = (score[positive] >= threshold).mean(), (score[~positive] < threshold).mean()
            points.append((float(threshold), float(kept), float(spared)))
        return self._metrics(total_sums(self, predictions, truths), areas, points)

    def _metrics(
        self,
        sums: Mapping[str, NDArray[np.float64]],
        areas: Sequence[float | None],
        points: Sequence[tuple[float, float, float] | None],
    ) -> dict[str, Any]:
        support = sums["scores"][:, 1].sum(axis=1)
        images = support.sum()
        others = images - support
        right_others = others - (sums["predicted"] - sums["correct"])
        sensitivity = [ratio(*pair) for pair in zip(sums["correct"], support, strict=True)]
        specificity = [ratio(*pair) for pair in zip(right_others, others, strict=True)]
        known_areas = [area for area in areas if area is not None]
        known_sensitivity = [value for value in sensitivity if value is not None]
        marked = [
            {"class": name, "threshold": point[0], "sensitivity": point[1], "specificity": point[2]}
            for name, point in zip(self.classes, points, strict=True)
            if point is not None
        ]
        binary = len(self.classes) == 2
        return {
            "auc": areas[-1] if binary else _mean(known_areas),
            "accuracy": ratio(sums["correct"].sum(), images),
            "balanced_accuracy": _mean(known_sensitivity),
            "per_class": {
                name: {
                    "sensitivity": sensitivity[position],
                    "specificity": specificity[position],
                    "support": round(support[position]),
                    "auc": areas[position],
                }
                for position, name in enumerate(self.classes)
            },
            "operating_point": (marked[-1] if marked else None) if binary else marked,
        }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _probabilities(logits: Tensor) -> list[NDArray[np.float32]]:
    return list(torch.softmax(logits, dim=1).cpu().numpy())
