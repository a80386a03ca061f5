"""Metrics for a private release: what one patient adds to a noised sum, how much that can be, and how to read the sum.

A release is one vector per patient, clipped to a public bound, summed over a pool and noised. Each patient counts as
one, however many images he has. What is read here are sums with noise: nothing is clamped before they are combined, so
that the noise of all parts averages out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.params import Shapes
from common.tasks.batch import Detections, Objects
from common.tasks.detection import MOST, found
from common.tasks.noisy_curves import REACH, Array, area_under_roc, average_precision, bin_of, ratio
from common.tasks.segmentation import Segmentation

MOST_TIED = 0.5  # share of pairs in one score bin above which bins say too little about the order of scores
OBJECTS_CAP = 3.0  # how long a patient's counts of objects, hits and half his false alarms may be and count in full
LARGEST_GAP = 3 - 2 * math.sqrt(2)  # the most that Dice is above IoU: at Dice 2 - sqrt 2

Sums = Mapping[str, Array]
Figure = tuple[str, str]  # name of a metric, and of a class; "" for all classes together


class Summed(Protocol):
    """A sum over patients that may be released with noise: functions of public values."""

    @property
    def layout(self) -> Shapes:
        """Names and shapes of the released vector, in its order."""

    @property
    def bound(self) -> float:
        """Most that one patient adds, in L2 norm: what noise multipliers are in units of."""


class Release(Summed, Protocol):
    """What is released about one task. Sums are named arrays of `layout`'s shapes, with or without noise.

    Guarantees: layout, bound and expectation are functions of public values; a patient's part depends on that patient
    alone and, with arithmetic set aside, has norm at most `bound` or is clipped to it by whoever adds it up.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The study's classes."""

    def part(self, predictions: Sequence[Any], truths: Sequence[Any]) -> Array:
        """One patient's flat vector, from predictions and truths of all his images, on the stored images' grids.

        Edge cases: no images give zeros; a value among the predictions that is not finite makes all of it NaN.
        """

    def support(self, sums: Sums) -> dict[str, tuple[tuple[float, int], ...]]:
        """By class: the counts that its metrics divide by, each with how many released values it is the sum of."""

    def figures(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, float]:
        """The metrics of these classes and of all of them together; NaN where a sum can't tell."""

    def doubts(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, str]:
        """Metrics that the sums can't tell even without noise, and why."""

    def expected(self, patients: float, prior: Sequence[float]) -> Array:
        """The flat sum that this many patients of a middling model may give: for planning. `prior`: each class's
        share of patients, public.
        """


def release_of(
    task: Literal["classification", "segmentation", "detection"],
    classes: Sequence[str],
    *,
    score_bins: int,
) -> Release:
    """The release of a study's task. Raises ValueError for fewer than two score bins."""
    if not score_bins >= 2:
        raise ValueError(f"score_bins = {score_bins}: at least 2, or no score is above another")
    names = tuple(classes)
    match task:
        case "classification":
            return ScoreHistograms(classes=names, score_bins=score_bins)
        case "segmentation":
            return Overlaps(classes=names)
        case "detection":
            return FoundObjects(classes=names, score_bins=score_bins)


@dataclass(frozen=True, kw_only=True)
class ScoreHistograms:
    """Classification: images by class or not (1 or 0) and bin of that class's score; an image weighs 1 / his images.

    With two classes the last one's histograms say everything; with more, each class has its own against the rest.

    Guarantees: one image has a 1 in each histogram, so that the norm is sqrt(histograms), and a mean of such vectors
    is no longer.
    """

    classes: tuple[str, ...]
    score_bins: int

    @property
    def measured(self) -> tuple[int, ...]:
        """Positions of the classes that have histograms."""
        return (1,) if len(self.classes) == 2 else tuple(range(len(self.classes)))

    @property
    def layout(self) -> Shapes:
        return (("scores", (len(self.measured), 2, self.score_bins)),)

    @property
    def bound(self) -> float:
        return math.sqrt(len(self.measured))

    def part(self, predictions: Sequence[NDArray[np.float32]], truths: Sequence[int]) -> Array:
        scores = np.zeros(self.layout[0][1])
        row, position = np.arange(len(self.measured)), np.array(self.measured)
        for prediction, truth in zip(predictions, truths, strict=True):
            if not np.isfinite(prediction).all():
                return np.full(scores.size, np.nan)
            place = bin_of(prediction[position], score_bins=self.score_bins)
            scores[row, (position == truth).astype(int), place] += 1 / len(truths)
        return scores.ravel()

    def support(self, sums: Sums) -> dict[str, tuple[tuple[float, int], ...]]:
        return {
            self.classes[position]: tuple((float(kind.sum()), self.score_bins) for kind in of_class)
            for position, of_class in zip(self.measured, sums["scores"], strict=True)
        }

    def _of(self, sums: Sums, classes: Sequence[str]) -> Array:
        return sums["scores"][[self.measured.index(self.classes.index(name)) for name in classes]]

    def figures(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, float]:
        scores = self._of(sums, classes)
        areas = area_under_roc(scores[:, 1], scores[:, 0])
        both: dict[Figure, float] = {("auc", ""): _mean(areas)}
        if len(self.classes) > 2:
            return both | {("auc", name): float(area) for name, area in zip(classes, areas, strict=True)}
        if classes and self.score_bins % 2 == 0:  # then an edge lies at the score 0.5
            half, (negatives, positives) = self.score_bins // 2, scores[0]
            right = negatives[:half].sum(), positives[half:].sum()
            specificity, sensitivity = ratio(right[0], negatives.sum()), ratio(right[1], positives.sum())
            both |= {
                ("accuracy", ""): ratio(sum(right), scores.sum()),
                ("balanced_accuracy", ""): (specificity + sensitivity) / 2,
                ("sensitivity", ""): sensitivity,
                ("specificity", ""): specificity,
            }
        return both

    def doubts(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, str]:
        scores = self._of(sums, classes)
        tied = [ratio((one[0] * one[1]).sum(), one[0].sum() * one[1].sum()) for one in scores]
        text = "{:.0%} of the pairs share a score bin, so their order is unknown: take more score_bins"
        shares = {("auc", ""): _mean(tied)} | {("auc", name): share for name, share in zip(classes, tied, strict=True)}
        return {figure: text.format(min(share, 1.0)) for figure, share in shares.items() if share > MOST_TIED}

    def expected(self, patients: float, prior: Sequence[float]) -> Array:
        """Scores whose logits are normal with standard deviation 2 and, at equal shares, have an AUC of 0.89."""
        from scipy.special import ndtr

        edges = np.linspace(-REACH, REACH, self.score_bins + 1)
        edges[[0, -1]] = -math.inf, math.inf
        spread = 2.0
        kinds = np.array([np.diff(ndtr((edges - sign * 0.875 * spread) / spread)) for sign in (-1, 1)])
        shares = np.array([(1 - prior[position], prior[position]) for position in self.measured])
        flat: Array = (patients * shares[:, :, None] * kinds).ravel()
        return flat


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Segmentation: a patient's mean Dice d and IoU i over those of his images and classes that show something.

    The vector is (2 d - 1, (d - i) / LARGEST_GAP - 1/2, 1); zeros where nothing is shown. Coordinates that are
    centred are read with half the noise of (d, 1), and as IoU is nearly told by Dice (i = d / (2 - d) in one image),
    its rest takes 6 % more noise in place of 22 %.

    Guarantees: d is in [0, 1] and d - i in [0, LARGEST_GAP], so that the norm is at most sqrt(1 + 1/4 + 1) = 1.5.
    """

    classes: tuple[str, ...]

    @property
    def layout(self) -> Shapes:
        return (("dice", ()), ("gap", ()), ("patients", ()))

    @property
    def bound(self) -> float:
        return 1.5

    def part(self, predictions: Sequence[NDArray[np.bool_]], truths: Sequence[NDArray[np.uint8]]) -> Array:
        task, dice, iou, shown = Segmentation(classes=self.classes, focal=False), 0.0, 0.0, 0.0
        for prediction, truth in zip(predictions, truths, strict=True):
            sums = task.image_sums(prediction, truth)
            dice, iou, shown = dice + sums["dice"].sum(), iou + sums["iou"].sum(), shown + sums["support"].sum()
        if not shown:
            return np.zeros(3)
        return self._vector(dice / shown, iou / shown)

    def _vector(self, dice: float, iou: float) -> Array:
        return np.array([2 * dice - 1, (dice - iou) / LARGEST_GAP - 0.5, 1.0])

    def support(self, sums: Sums) -> dict[str, tuple[tuple[float, int], ...]]:
        return {"": ((float(sums["patients"]), 1),)}

    def figures(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, float]:
        if not classes:
            return {("dice", ""): math.nan, ("iou", ""): math.nan}
        dice = (1 + ratio(sums["dice"], sums["patients"])) / 2
        gap = (ratio(sums["gap"], sums["patients"]) + 0.5) * LARGEST_GAP
        return {("dice", ""): dice, ("iou", ""): dice - gap}

    def doubts(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, str]:
        return {}

    def expected(self, patients: float, prior: Sequence[float]) -> Array:
        """Dice 0.8 for everybody."""
        return patients * self._vector(0.8, 0.8 / 1.2)


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """Detection: by class the objects, and by score bin the proposals that find one (IoU 0.5 or more) or none.

    Means over the patient's images, divided by OBJECTS_CAP. Who has more than that is clipped, and counts for less: as
    a whole, so that his hits, false alarms and objects keep their proportions. Of false alarms half are counted, as
    there are many of them and each says little; patients who have very many still count for less than others, and the
    figure is then too high (measured with 20 false alarms for each object, unevenly spread: 0.03 to 0.05).
    """

    classes: tuple[str, ...]
    score_bins: int

    @property
    def layout(self) -> Shapes:
        count = len(self.classes)
        return (("objects", (count,)), ("true", (count, self.score_bins)), ("false", (count, self.score_bins)))

    @property
    def bound(self) -> float:
        return 1.0

    def part(self, predictions: Sequence[Detections], truths: Sequence[Objects]) -> Array:
        objects, true, false = (np.zeros(shape) for _, shape in self.layout)
        for prediction, truth in zip(predictions, truths, strict=True):
            if not all(np.isfinite(values).all() for values in (prediction.boxes, prediction.scores, truth.boxes)):
                return np.full(objects.size + true.size + false.size, np.nan)
            for position in range(len(self.classes)):
                own = prediction.classes == position
                order = np.argsort(-prediction.scores[own], kind="stable")[:MOST]
                place = bin_of(prediction.scores[own][order], score_bins=self.score_bins)
                sought = truth.boxes[truth.classes == position]
                hits = found(prediction.boxes[own][order], sought)[:, 0]  # at OVERLAPS[0], 0.5
                objects[position] += len(sought)
                np.add.at(true[position], place, hits)
                np.add.at(false[position], place, (1 - hits) / 2)
        flat = np.concatenate([objects, true.ravel(), false.ravel()])
        return flat / (max(len(truths), 1) * OBJECTS_CAP)

    def support(self, sums: Sums) -> dict[str, tuple[tuple[float, int], ...]]:
        return {name: ((float(count), 1),) for name, count in zip(self.classes, sums["objects"], strict=True)}

    def figures(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, float]:
        rows = [self.classes.index(name) for name in classes]
        values = [average_precision(sums["true"][row], 2 * sums["false"][row], sums["objects"][row]) for row in rows]
        return {("map50", ""): _mean(values)} | {("ap50", n): v for n, v in zip(classes, values, strict=True)}

    def doubts(self, sums: Sums, classes: Sequence[str]) -> dict[Figure, str]:
        return {}

    def expected(self, patients: float, prior: Sequence[float]) -> Array:
        """As many hits as false alarms, spread over the bins, seven of ten objects found, everybody at the cap."""
        share = np.asarray(prior, np.float64)
        rise = np.linspace(0.0, 2.0, self.score_bins)[None] / self.score_bins
        parts = (share, 0.7 * share[:, None] * rise, 0.35 * share[:, None] * rise[:, ::-1])
        flat = np.concatenate([part.ravel() for part in parts])
        unit: Array = patients * flat / np.linalg.norm(flat)
        return unit


def _mean(values: Sequence[float] | Array) -> float:
    return float(np.mean(values)) if len(values) else math.nan
