"""How far the readers of an image agree: Dice of outlines, IoU of boxes, kappa of labels."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.drops import Drop, Unusable
from common.annotation import Box

MATCH = 0.5  # IoU from which boxes of two readers are one object
_BOXES_LIMIT = 1000  # of one reader and class: the matching takes the cube of it
Said = TypeVar("Said")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the readers of one image agree; empty where fewer than two of them said something of the kind."""

    path: str  # relative to the images' folder
    item: int  # frame
    labels: Mapping[str, str] = field(default_factory=dict)  # reader to label
    dice: Mapping[str, float] = field(default_factory=dict)  # class to the mean over pairs of readers
    iou: Mapping[str, float] = field(default_factory=dict)  # class to the mean over pairs of readers


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float | None:
    """Dice of two readers' outlines of a class; None where both are empty."""
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else None


def overlap(first: Sequence[Box], second: Sequence[Box]) -> float | None:
    """Mean IoU of two readers' boxes of a class, 0 for an object that one has not seen; None where there is none."""
    pairs = matched(first, second)
    objects = len(first) + len(second) - len(pairs)
    return sum(iou for _, _, iou in pairs) / objects if objects else None


def over_pairs(said: Sequence[Said], measure: Callable[[Said, Said], float | None]) -> float | None:
    """Mean of a measure over all pairs of readers that have one; None where no pair has."""
    found = [value for a, b in combinations(said, 2) if (value := measure(a, b)) is not None]
    return float(np.mean(found)) if found else None


def matched(first: Sequence[Box], second: Sequence[Box]) -> list[tuple[int, int, float]]:
    """Which boxes of two readers are one object, and their IoU: the pairing with the largest sum of IoUs, of pairs of
    MATCH or more. Each box is in one pair at most.
    """
    from scipy.optimize import linear_sum_assignment

    if max(len(first), len(second)) > _BOXES_LIMIT:
        raise Unusable(Drop.TOO_LARGE, f"more than {_BOXES_LIMIT} boxes of a class by one of several readers")
    a, b = (np.array([(o.x1, o.y1, o.x2, o.y2) for o in boxes]).reshape(-1, 1, 4) for boxes in (first, second))
    b = b.reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    common = sides.prod(axis=-1)
    iou = common / ((a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - common)
    pairs = zip(*linear_sum_assignment(np.where(iou >= MATCH, iou, 0), maximize=True), strict=True)
    return [(int(i), int(j), float(iou[i, j])) for i, j in pairs if iou[i, j] >= MATCH]


def cohen(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two readers' labels of the same images; None where chance alone would agree, or no image is.

    Source: Cohen 1960.
    """
    counts = Counter(pairs)
    total = sum(counts.values())
    rows, columns = Counter[str](), Counter[str]()
    for (one, other), n in counts.items():
        rows[one] += n
        columns[other] += n
    same = sum(n for (one, other), n in counts.items() if one == other)
    chance = sum(rows[name] * columns[name] for name in rows)
    return (same * total - chance) / (total**2 - chance) if total**2 > chance else None


def fleiss(images: Iterable[Sequence[str]]) -> float | None:
    """Fleiss' kappa of the labels that each image's readers, two or more, gave it; None where chance alone would agree.

    Images weigh the same, also where they have different numbers of readers. Source: Fleiss 1971, equations 1 to 6.
    """
    agreed, totals = [], Counter[str]()
    for labels in images:
        counts = Counter(labels)
        totals.update(counts)
        agreed.append(sum(n * (n - 1) for n in counts.values()) / (len(labels) * (len(labels) - 1)))
    chance = sum((n / totals.total()) ** 2 for n in totals.values())
    return (float(np.mean(agreed)) - chance) / (1 - chance) if agreed and len(totals) > 1 else None


def summary(agreements: Sequence[Agreement]) -> dict[str, object]:
    """A site's agreements as plain values for its quality report; they stay at the site.

    "dice" and "iou": by class mean over images and number of images. "fleiss_kappa" over all images with labels of
    several readers, and "cohen_kappa" for each pair of readers with the number of images that both have read.
    """
    labelled = [one.labels for one in agreements if one.labels]
    names = sorted({reader for labels in labelled for reader in labels})
    pairs = {
        (a, b): [(labels[a], labels[b]) for labels in labelled if a in labels and b in labels]
        for a, b in combinations(names, 2)
    }
    return {
        "images": len(agreements),
        "dice": _means(one.dice for one in agreements),
        "iou": _means(one.iou for one in agreements),
        "fleiss_kappa": fleiss([list(labels.values()) for labels in labelled]),
        "cohen_kappa": [
            {"readers": list(pair), "images": len(found), "kappa": cohen(found)}
            for pair, found in pairs.items()
            if found
        ],
    }


def _means(values: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    by_class: dict[str, list[float]] = {}
    for one in values:
        for name, value in one.items():
            by_class.setdefault(name, []).append(value)
    return {name: {"mean": float(np.mean(found)), "images": len(found)} for name, found in sorted(by_class.items())}
