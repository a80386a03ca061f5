"""What one model or several make of an image: one prediction on the stored grid, and how far the models disagree."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from client import agreement, preprocess, sliding
from client.pose import STORED, Pose
from client.train import evaluation_batch, precision
from common.errors import DataError, StudyError
from common.model_files import Model
from common.randomness import seeded
from common.tasks import task_of
from common.tasks.batch import Detections
from common.tasks.detection import MOST, overlap_of

Rule = Literal["mean", "vote"]
Grey = Mapping[preprocess.Window, NDArray[np.float32]]  # a stored image [H, W] or [H, W, 3] in [0, 1], by grey window
_SAME = 0.55  # overlap from which boxes of two models are one object: Solovyev et al. 2021, section 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A prediction on the stored image's grid: mean scores float32 [K] (sum 1), bool [K, H, W], or Detections.

    `disagreement` is from 0, of one mind, to 1; None where there is one model only. `doubt` is the same by pixel
    [H, W], of a segmentation. `finders` says of each box how many models propose it, `votes` of each class [K] to how
    many it is the most probable; None unless they have voted.
    """

    prediction: Any
    disagreement: float | None
    doubt: NDArray[np.float32] | None = None
    finders: NDArray[np.int64] | None = None
    votes: NDArray[np.int64] | None = None
    models: int = 1

    @property
    def best(self) -> int | None:
        """The class of a whole image with the most votes, or the highest score; None where two are equal."""
        values = self.prediction if self.votes is None else self.votes
        ahead = np.flatnonzero(values == values.max())
        return int(ahead[0]) if len(ahead) == 1 else None

    def apart(self, box: int) -> float | None:
        """Disagreement on a box: the share of models that don't propose it."""
        return None if self.finders is None else 1 - int(self.finders[box]) / self.models


def check(models: Sequence[Model], *, window: bool) -> None:
    """Raises StudyError unless these models answer the same question, and can be asked by windows if that is wanted."""
    first = models[0].study
    for model in models[1:]:
        own = model.study.study
        if (own.task, own.classes) != (first.study.task, first.study.classes):
            raise StudyError(
                f"models of {own.task} of {', '.join(own.classes)} and of {first.study.task} of"
                f" {', '.join(first.study.classes)} can't answer together: give models of one task and its classes"
            )
    if len({model.weights_sha256 for model in models}) < len(models):
        raise StudyError("the same model is given twice: it would agree with itself")
    if window and first.study.task == "classification":
        raise StudyError("--window: a classifier has learnt whole images; leave it out")


def outcomes(
    models: Sequence[Model],
    pixels: Sequence[Grey],
    poses: Sequence[Pose] | None = None,
    *,
    rule: Rule,
    window: bool,
    where: torch.device,
) -> Iterator[Outcome]:
    """The models' outcome for each stored image; `pixels` has it for the grey window of each model. `poses` say how
    the images lie in the patient; without them they are taken as stored.

    Guarantees: each image becomes model input by the code that training uses, bit for bit; with `window` that holds of
    images that are not larger than the model. Raises DataError when a model gives values that aren't finite.
    """
    combine = _COMBINE[models[0].study.study.task]
    lie = poses or [STORED] * len(pixels)
    asked = [
        _answers(model, [one[model.study.preprocessing.window] for one in pixels], lie, window, where)
        for model in models
    ]
    for answers in zip(*asked, strict=True):
        yield combine(answers, rule)


def model_input(pixels: Sequence[NDArray[np.float32]], poses: Sequence[Pose], model: Model) -> torch.Tensor:
    """Stored images as the model's input [n, C, h, w], normalised."""
    both = zip(pixels, poses, strict=True)
    kept = np.stack([preprocess.kept(one, model.study, pose) for one, pose in both]).astype(np.float32)
    return torch.from_numpy(preprocess.normalise(kept, model.study.preprocessing))


def _answers(
    model: Model,
    pixels: Sequence[NDArray[np.float32]],
    poses: Sequence[Pose],
    window: bool,
    where: torch.device,
) -> Iterator[Any]:
    """One model's answers on the stored grids: probabilities [K], maps of them [K, H, W], or Detections."""
    grid = model.study.model.image_size
    lie = [
        preprocess.geometry((one.shape[0], one.shape[1]), pose, model.study)
        for one, pose in zip(pixels, poses, strict=True)
    ]
    larger = [window and (one.upright[0] > grid[0] or one.upright[1] > grid[1]) for one in lie]
    smaller = [k for k, is_larger in enumerate(larger) if not is_larger]
    whole = _raw(model, [pixels[k] for k in smaller], [poses[k] for k in smaller], where)
    for one, geometry, is_larger in zip(pixels, lie, larger, strict=True):
        if is_larger:
            yield _slid(model, one, geometry, where)
        else:
            found = next(whole)
            match model.study.study.task:
                case "classification":
                    yield found
                case "segmentation":
                    yield geometry.maps_to_stored(found)
                case "detection":
                    boxes = geometry.boxes_to_stored(found.boxes)
                    yield Detections(boxes=boxes, classes=found.classes, scores=found.scores)


def _slid(
    model: Model, pixels: NDArray[np.float32], geometry: preprocess.Geometry, where: torch.device
) -> NDArray[np.float32] | Detections:
    grid, pose = geometry.model, geometry.pose
    corners, upright = sliding.windows(geometry.upright, grid), pose.turned(pixels, axes=(0, 1))
    cuts = [sliding.cut(upright, corner, grid) for corner in corners]
    found = _raw(model, cuts, [STORED] * len(cuts), where)  # they are upright
    if model.study.study.task == "segmentation":
        maps = sliding.blended(found, corners, geometry.upright, classes=len(model.study.study.classes))
        return pose.back(maps)
    boxes = sliding.merged(found, corners, grid, geometry.upright)
    stored = pose.boxes_back(boxes.boxes.astype(np.float64), geometry.stored).astype(np.float32)
    return replace(boxes, boxes=stored)


def _raw(
    model: Model, pixels: Sequence[NDArray[np.float32]], poses: Sequence[Pose], where: torch.device
) -> Iterator[Any]:
    """Answers on the model's grid, a few images at a time."""
    task, size = task_of(model.study), evaluation_batch(model.study)
    for start in range(0, len(pixels), size):
        images = model_input(pixels[start : start + size], poses[start : start + size], model).to(where)
        with precision(where), seeded(model.study.study.seed, "evaluation"):
            found = task.predict(model.network, images)
        for one in found:
            if not np.isfinite(one.scores if isinstance(one, Detections) else one).all():
                raise DataError("the model gives values that are not finite: its training diverged")
            yield one


def _classified(answers: Sequence[NDArray[np.float32]], rule: Rule) -> Outcome:
    """Mean probabilities, and the models that have a class ahead of all others."""
    said = np.stack(answers)
    mean = said.mean(axis=0).astype(np.float32)
    if len(said) == 1:
        return Outcome(prediction=mean, disagreement=None)
    highest = said == said.max(axis=1, keepdims=True)
    ahead = highest & (highest.sum(axis=1, keepdims=True) == 1)
    votes = ahead.sum(axis=0) if rule == "vote" else None
    return Outcome(prediction=mean, disagreement=float(divergence(said)), votes=votes, models=len(said))


def _segmented(answers: Sequence[NDArray[np.float32]], rule: Rule) -> Outcome:
    """Pixels of a mean probability of one half or more, or that more than half of the models count to the class."""
    own = [answer >= 0.5 for answer in answers]
    if len(answers) == 1:
        return Outcome(prediction=own[0], disagreement=None)
    share = np.mean(answers if rule == "mean" else own, axis=0, dtype=np.float32)
    mask: NDArray[np.bool_] = np.asarray(share >= 0.5 if rule == "mean" else share > 0.5)
    alike = [
        1.0 if (same := agreement.dice(a[k], b[k])) is None else same
        for a, b in combinations(own, 2)
        for k in range(len(mask))
    ]
    doubt = np.zeros(mask.shape[1:], np.float32)
    for k in range(len(mask)):
        said = np.stack([answer[k] for answer in answers])
        np.maximum(doubt, divergence(np.stack((said, 1 - said), axis=1)), out=doubt)
    return Outcome(prediction=mask, disagreement=1 - float(np.mean(alike)), doubt=doubt)


def _detected(answers: Sequence[Detections], rule: Rule) -> Outcome:
    """Weighted boxes fusion: boxes of several models that overlap are one, its corners the mean by score.

    With "mean" its score is the mean over all models, 0 of those that don't see it; with "vote" it stays where more
    than half do, with their mean. Source: Solovyev, Wang, Gabruseva 2021, section 3.
    """
    if len(answers) == 1:
        return Outcome(prediction=answers[0], disagreement=None)
    proposed = [(float(one.scores[k]), m, k) for m, one in enumerate(answers) for k in range(len(one.scores))]
    groups: list[tuple[int, list[tuple[float, int, NDArray[np.float64]]]]] = []  # class; score, model, corners
    middles: list[NDArray[np.float64]] = []
    for score, m, k in sorted(proposed, key=lambda one: -one[0]):
        box, kind = answers[m].boxes[k].astype(np.float64), int(answers[m].classes[k])
        shared = overlap_of(np.array(middles).reshape(-1, 4), box[None])[:, 0]
        fits = [kind == other and all(model != m for _, model, _ in members) for other, members in groups]
        shared = np.where(np.array(fits, bool), shared, 0)
        if len(shared) and shared.max() > _SAME:
            best = int(shared.argmax())
            groups[best][1].append((score, m, box))
            middles[best] = _middle(groups[best][1])
        else:
            groups.append((kind, [(score, m, box)]))
            middles.append(box)
    found = []
    for (kind, members), box in zip(groups, middles, strict=True):
        total = sum(score for score, _, _ in members)
        if rule == "mean":
            found.append((total / len(answers), kind, len(members), box))
        elif 2 * len(members) > len(answers):
            found.append((total / len(members), kind, len(members), box))
    found.sort(key=lambda one: -one[0])
    found = found[:MOST]
    scores = np.array([one[0] for one in found], np.float32)
    finders = np.array([one[2] for one in found], np.int64)
    apart = float((scores * (1 - finders / len(answers))).sum() / scores.sum()) if scores.sum() > 0 else 0.0
    prediction = Detections(
        boxes=np.array([one[3] for one in found], np.float32).reshape(-1, 4),
        classes=np.array([one[1] for one in found], np.int64),
        scores=scores,
    )
    return Outcome(prediction=prediction, disagreement=apart, finders=finders, models=len(answers))


def divergence(said: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far models' distributions [M, K, ...] lie apart: 0 where all are equal, 1 where each is sure of another.

    The mean Kullback-Leibler divergence from their mean, in units of its largest value, the logarithm of M or K.
    Source: Lakshminarayanan et al. 2017, section 3.4 ("disagreement").
    """
    p = np.clip(said.astype(np.float64), 1e-12, 1)
    mean = p.mean(axis=0)
    apart = (p * (np.log(p) - np.log(mean))).sum(axis=1).mean(axis=0) / math.log(min(said.shape[:2]))
    return np.asarray(np.clip(apart, 0, 1), np.float64)


def _middle(members: Sequence[tuple[float, int, NDArray[np.float64]]]) -> NDArray[np.float64]:
    weights = np.array([max(score, 1e-9) for score, _, _ in members])
    middle: NDArray[np.float64] = (weights[:, None] * np.stack([box for _, _, box in members])).sum(0) / weights.sum()
    return middle


_COMBINE: dict[str, Any] = {"classification": _classified, "segmentation": _segmented, "detection": _detected}
