"""Areas under curves from counts in few score bins that noise was added to: sums that can be below 0 and not whole."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

REACH = 6.0  # logits beyond this fall into the outermost bins

Array = NDArray[np.float64]


def bin_of(scores: Any, *, score_bins: int) -> NDArray[np.int64]:
    """The bin of each score: edges uniform in the logit from -6 to 6, the outermost bins open. Scores are numbers."""
    edges = 1 / (1 + np.exp(-np.linspace(-REACH, REACH, score_bins + 1)[1:-1]))
    return np.searchsorted(edges, np.asarray(scores, np.float64), side="right").astype(np.int64)


def area_under_roc(positives: Array, negatives: Array) -> Array:
    """AUC from counts by bin, lowest bin first, [..., bins] -> [...]; NaN without both kinds.

    A pair within a bin counts half. That leaves out that positives crowd at a bin's upper end and negatives at its
    lower; with densities taken as straight lines through the neighbouring bins this adds a twelfth of the pairs in
    adjacent bins, those in order less those out of it. Two thirds of the bias and more are gone (8 bins, logits of
    standard deviation 2: from 0.010 to 0.001), and noise still enters linearly.
    """
    ones, others = positives.sum(axis=-1), negatives.sum(axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    adjacent = positives[..., 1:] * negatives[..., :-1] - positives[..., :-1] * negatives[..., 1:]
    won = (positives * below).sum(axis=-1) + adjacent.sum(axis=-1) / 12
    known = (ones > 0) & (others > 0)
    area: Array = np.divide(won, ones * others, out=np.full_like(won, np.nan), where=known)
    return area


def average_precision(true: Array, false: Array, objects: float) -> float:
    """Area under the curve of precision over recall from counts by bin [bins], lowest bin first; NaN without objects.

    A bin's hits count with the mean of the precisions at both its ends (the first with that at its lower end).
    Precision, a ratio of sums that noise may turn negative, is kept in [0, 1]; the hits are not.
    """
    hits, alarms = true[::-1], false[::-1]
    so_far, proposed = np.cumsum(hits), np.cumsum(hits + alarms)
    precision = np.clip(np.divide(so_far, proposed, out=np.zeros_like(so_far), where=proposed > 0), 0, 1)
    before = np.concatenate([precision[:1], precision[:-1]])
    return ratio((hits * (precision + before) / 2).sum(), objects)


def ratio(part: Any, whole: Any) -> float:
    """part / whole; NaN where there is no whole."""
    return float(part / whole) if whole > 0 else math.nan
