"""Objects in an image: boxes with class and score."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from common import metrics
from common.annotation import Annotation
from common.metrics import Sums
from common.tasks import class_position, curves
from common.tasks.batch import Batch, Detections, Objects
from common.tasks.segmentation import class_map

OVERLAPS = np.linspace(0.5, 0.95, 10)  # IoU from which a proposal counts as found: COCO's ten
MOST = 100  # proposals of a class in an image that count: COCO's limit


@dataclass(frozen=True, kw_only=True)
class Detection:
    """torchvision's losses of RetinaNet and Faster R-CNN, by image; COCO's mean average precision.

    Images with masks and no boxes have a box around each connected part of a mask. A class without objects has no
    average precision and is left out of the means. `support` is the number of objects.
    """

    classes: tuple[str, ...]
    focal: bool  # RetinaNet's loss is focal in any case
    headline: str = "map50"

    def truth(self, annotation: Annotation) -> Objects | None:
        if annotation.boxes is None:
            return _outlined(annotation, self.classes)
        positions = [class_position(box.name, self.classes) for box in annotation.boxes]
        if None in positions:
            return None
        corners = [(box.x1, box.y1, box.x2, box.y2) for box in annotation.boxes]
        return Objects(
            boxes=np.array(corners, dtype=np.float32).reshape(-1, 4), classes=np.array(positions, dtype=np.int64)
        )

    def present(self, truth: Objects) -> frozenset[int]:
        return frozenset(truth.classes.tolist())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        from common.models.detector import detector_losses

        if batch.objects is None:
            raise ValueError("a batch for detection needs objects")
        device = batch.images.device
        targets = [
            {"boxes": torch.from_numpy(one.boxes).to(device), "labels": torch.from_numpy(one.classes).to(device)}
            for one in batch.objects
        ]
        return detector_losses(model, batch.images, targets, focal=self.focal)

    def predict(self, model: nn.Module, images: Tensor) -> list[Detections]:
        from common.models.detector import detect

        with torch.no_grad():
            found = detect(model, images)
        return [
            Detections(
                boxes=one["boxes"].float().cpu().numpy(),
                classes=one["labels"].cpu().numpy(),
                scores=one["scores"].float().cpu().numpy(),
            )
            for one in found
        ]

    def assess(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Detections]]:
        with torch.no_grad():
            losses = self.losses(model.train(), batch)  # torchvision's detectors have a loss in training mode only
        return losses, self.predict(model.eval(), batch.images)

    def sums_layout(self) -> dict[str, tuple[int, ...]]:
        """`objects` by class; `proposed` by class and score bin; `true`, those that found an object, by IoU too."""
        count = len(self.classes)
        bins = curves.bins(count * (1 + len(OVERLAPS)))
        return {"objects": (count,), "proposed": (count, bins), "true": (count, len(OVERLAPS), bins)}

    def image_sums(self, prediction: Detections, truth: Objects) -> Sums:
        sums = metrics.zeros(self.sums_layout())
        for position in {*truth.classes.tolist(), *prediction.classes.tolist()}:
            objects = truth.boxes[truth.classes == position]
            own = prediction.classes == position
            order = np.argsort(-prediction.scores[own], kind="stable")[:MOST]
            boxes, scores = prediction.boxes[own][order], prediction.scores[own][order]
            bins = curves.bin_of(scores, count=sums["proposed"].shape[1])
            sums["objects"][position] = len(objects)
            np.add.at(sums["proposed"][position], bins, 1)
            np.add.at(sums["true"][position].T, bins, found(boxes, objects))
        return sums

    def summarise(self, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
        objects = sums["objects"]
        precisions = [
            [curves.average_precision(true, proposed, objects=count) for true in by_overlap]
            for by_overlap, proposed, count in zip(sums["true"], sums["proposed"], objects, strict=True)
        ]
        return self._metrics(
            [None if None in row else np.array(row, dtype=np.float64) for row in precisions],
            [round(count) for count in objects],
        )

    def pooled(self, predictions: Sequence[Detections], truths: Sequence[Objects]) -> dict[str, Any]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        support = [int(sum((one.classes == position).sum() for one in truths)) for position in range(len(self.classes))]
        if not sum(support):
            return self._metrics([None] * len(support), support)
        with redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            known, found = COCO(), COCO()
            known.dataset, found.dataset = self._coco(truths), self._coco(predictions)
            known.createIndex()
            found.createIndex()
            evaluation = COCOeval(known, found, "bbox")
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
        return self._metrics(
            [precision[:, :, k].mean(axis=1) if count else None for k, count in enumerate(support)], support
        )

    def _coco(self, everything: Sequence[Objects | Detections]) -> Any:
        """COCO's own form: corner and size, numbers from 1."""
        annotations: list[dict[str, Any]] = []
        for image, one in enumerate(everything):
            scores = one.scores if isinstance(one, Detections) else np.zeros(len(one.boxes), dtype=np.float32)
            for (x1, y1, x2, y2), position, score in zip(
                one.boxes.tolist(), one.classes.tolist(), scores.tolist(), strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": position,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "score": score,
                    }
                )
        return {
            "images": [{"id": image} for image in range(len(everything))],
            "categories": [{"id": position} for position in range(len(self.classes))],
            "annotations": annotations,
        }

    def _metrics(self, precisions: Sequence[NDArray[np.float64] | None], support: Sequence[int]) -> dict[str, Any]:
        """From each class's average precision at the ten overlaps."""
        known = [of_class for of_class in precisions if of_class is not None]
        return {
            "map50": float(np.mean([of_class[0] for of_class in known])) if known else None,
            "map": float(np.mean(known)) if known else None,
            "per_class": {
                name: {
                    "ap50": None if of_class is None else float(of_class[0]),
                    "ap": None if of_class is None else float(of_class.mean()),
                    "support": count,
                }
                for name, of_class, count in zip(self.classes, precisions, support, strict=True)
            },
        }


def found(boxes: NDArray[np.float32], objects: NDArray[np.float32]) -> NDArray[np.float64]:
    """Which of the boxes [n, 4], best first, find an object of their own at each overlap: 0 or 1, [n, 10].

    COCO's greedy rule: in order of score each box takes the free object that it overlaps most, if that is enough.
    """
    found = np.zeros((len(boxes), len(OVERLAPS)))
    if not (len(boxes) and len(objects)):
        return found
    overlap = overlap_of(boxes.astype(np.float64), objects.astype(np.float64))
    free = np.ones((len(OVERLAPS), len(objects)), dtype=bool)
    level = np.arange(len(OVERLAPS))
    for position in np.flatnonzero(overlap.max(axis=1) >= OVERLAPS[0]):
        # Of equal overlaps COCO takes the last object.
        candidates = np.where(free, overlap[position], -1.0)[:, ::-1]
        best = len(objects) - 1 - candidates.argmax(axis=1)
        taken = (overlap[position, best] >= OVERLAPS) & free[level, best]
        free[level[taken], best[taken]] = False
        found[position] = taken
    return found


def overlap_of(boxes: NDArray[np.float64], objects: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union [n, m]; 0 where neither has an area."""
    corner = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], objects[None, :, 2:]) - corner, 0, None)
    common = sides.prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] + (objects[:, 2:] - objects[:, :2]).prod(axis=1)[None]
    union = area - common
    overlap: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlap


def _outlined(annotation: Annotation, classes: Sequence[str]) -> Objects | None:
    """Boxes around the connected parts of a mask, diagonal neighbours included; None where there is no usable mask.

    Objects of one class that touch are one, unless the study has one class and the mask numbers its objects.
    """
    kinds = class_map(annotation, classes)
    if kinds is None or annotation.mask is None:
        return None
    numbered = annotation.mask if len(classes) == 1 and annotation.mask_names is None else kinds
    corners, positions = [], []
    for number, region in enumerate(ndimage.find_objects(numbered), start=1):
        if region is None:
            continue
        top, left = (side.start for side in region)
        parts, _ = ndimage.label(numbered[region] == number, structure=np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            corners.append((left + columns.start, top + rows.start, left + columns.stop, top + rows.stop))
            positions.append(0 if len(classes) == 1 else number - 1)
    return Objects(
        boxes=np.array(corners, dtype=np.float32).reshape(-1, 4), classes=np.array(positions, dtype=np.int64)
    )
