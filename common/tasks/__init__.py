"""What a study's task means in numbers: truth from annotations, a loss for every image, predictions and metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from common import metrics
from common.annotation import Annotation
from common.metrics import Sums
from common.study import Study
from common.tasks.batch import Batch


class Task(Protocol):
    """One of the three tasks, for one study's classes (K of them).

    Truth is an int (classification), uint8 [H, W] with values 0 to K (segmentation) or Objects (detection); a
    prediction is float32 [K] probabilities, float32 [K, h, w] probability maps or Detections. `predict` answers on the
    model's grid; the metrics want everything on the stored image's grid, and of segmentation bool [K, H, W].

    Guarantees: an image's loss and sums depend on no other image; `summarise` of all images' sums added up is within
    0.005 of `pooled` of the same images; a number that the images can't tell is None, never 0.
    """

    @property
    def headline(self) -> str:
        """The one metric that stands for the task: "auc", "dice" or "map50"."""

    def truth(self, annotation: Annotation) -> Any | None:
        """The truth in an annotation; None when not annotated for this task, or with a class unknown to the study."""

    def present(self, truth: Any) -> frozenset[int]:
        """Positions of the classes that the image shows."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each image [B], differentiable; the model is in train mode."""

    def predict(self, model: nn.Module, images: Tensor) -> list[Any]:
        """A prediction for each image [B, C, H, W]; the model is in eval mode, no gradient is kept."""

    def assess(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Any]]:
        """`losses` and `predict` of a batch without gradients, in one pass where the model allows; sets the model's
        mode.
        """

    def sums_layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the sums: a function of the study alone."""

    def image_sums(self, prediction: Any, truth: Any) -> Sums:
        """What one image adds to the sums."""

    def summarise(self, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
        """Metrics from sums over any number of images, as plain values."""

    def pooled(self, predictions: Sequence[Any], truths: Sequence[Any]) -> dict[str, Any]:
        """The same metrics from all predictions in one place, exact."""


def task_of(study: Study) -> Task:
    """The study's task."""
    classes, focal = study.study.classes, study.training.class_balance == "focal"
    match study.study.task:
        case "classification":
            from common.tasks.classification import Classification

            return Classification(classes=classes, focal=focal)
        case "segmentation":
            from common.tasks.segmentation import Segmentation

            return Segmentation(classes=classes, focal=focal)
        case "detection":
            from common.tasks.detection import Detection

            return Detection(classes=classes, focal=focal)


def total_sums(task: Task, predictions: Iterable[Any], truths: Iterable[Any]) -> Sums:
    """The sums of many images, float64; zeros for none."""
    parts = (task.image_sums(prediction, truth) for prediction, truth in zip(predictions, truths, strict=True))
    return metrics.total_of(task.sums_layout(), parts)


def ratio(part: float, whole: float) -> float | None:
    """part / whole, or None where there is no whole: an absent number, not 0."""
    return float(part / whole) if whole > 0 else None


def class_position(name: str, classes: Sequence[str]) -> int | None:
    """Position of a class given by name, or by its position as text; None when it is neither. Names come first."""
    if name in classes:
        return classes.index(name)
    return int(name) if name.isascii() and name.isdecimal() and int(name) < len(classes) else None
