"""Areas under curves from counts in score bins: what several sites can add up without showing a score."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

REACH = 16.0  # logits beyond this fall into the outermost bins; float32 probabilities near 1 go no further
SENSITIVITY = 0.95  # of the operating point

Counts = NDArray[np.float64]


def bins(histograms: int) -> int:
    """Bins in each of so many histograms: about 32,768 in all, so that the sums stay small beside a model."""
    return max(64, min(2048, 2**15 // histograms))


def bin_of(scores: ArrayLike, *, count: int) -> NDArray[np.int64]:
    """The bin of each score in [0, 1]; bins are uniform in the logit, so that scores crowded near 0 or 1 stay apart."""
    score = np.asarray(scores, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(score) - np.log1p(-score), -REACH, REACH)
    position: NDArray[np.int64] = np.clip((logit + REACH) / (2 * REACH) * count, 0, count - 1).astype(np.int64)
    return position


def lower_edge(position: int, *, count: int) -> float:
    """The least score of a bin: a threshold that takes the whole bin in. 0 for the first."""
    return 0.0 if position == 0 else float(1 / (1 + np.exp(REACH - 2 * REACH * position / count)))


def area_under_roc(positives: Counts, negatives: Counts) -> float | None:
    """AUC from counts by bin, lowest bin first; scores in one bin count as equal. None without both kinds."""
    pairs = positives.sum() * negatives.sum()
    if not pairs > 0:
        return None
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / pairs)


def operating_point(positives: Counts, negatives: Counts) -> tuple[float, float, float] | None:
    """Highest threshold that keeps a sensitivity of 0.95, and both rates there. None without both kinds."""
    if not (positives.sum() > 0 and negatives.sum() > 0):
        return None
    sensitivity = np.cumsum(positives[::-1])[::-1] / positives.sum()
    position = int(np.flatnonzero(sensitivity >= SENSITIVITY - 1e-12)[-1])
    specificity = negatives[:position].sum() / negatives.sum()
    return lower_edge(position, count=len(positives)), float(sensitivity[position]), float(specificity)


def average_precision(true: Counts, proposed: Counts, *, objects: float) -> float | None:
    """COCO's average precision over 101 recall levels, from true positives and all proposals by bin, lowest bin first.

    Within a bin true and false are taken as evenly mixed; exact when no bin holds two. None without objects.
    """
    if not objects > 0:
        return None
    true, proposed = true[::-1], proposed[::-1]
    found, seen = np.cumsum(true), np.cumsum(proposed)
    levels = np.linspace(0, 1, 101)
    needed = np.maximum(np.ceil(levels * objects - 1e-9), 1)  # true positives that reach each level
    place = np.searchsorted(found, needed, side="left")
    reached = place < len(found)
    needed, place = needed[reached], place[reached]
    share = (needed - found[place] + true[place]) / true[place]  # of the bin's proposals that come before
    # Precision at each level and at the end of each bin; a level counts the best from there on.
    precision = np.concatenate(
        [
            needed / (seen[place] - (1 - share) * proposed[place]),
            np.divide(found, seen, out=np.zeros_like(found), where=seen > 0),
        ]
    )
    recall = np.concatenate([needed, found])
    order = np.argsort(recall, kind="stable")
    best = np.append(np.maximum.accumulate(precision[order][::-1])[::-1], 0.0)
    return float(best[np.searchsorted(recall[order], np.ceil(levels * objects - 1e-9), side="left")].mean())
