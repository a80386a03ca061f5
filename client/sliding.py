"""Images larger than the model, window by window at their own resolution: maps are blended, boxes are merged."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.tasks.batch import Detections
from common.tasks.detection import MOST, overlap_of

OVERLAP = 0.5  # of neighbouring windows, as a share of their side
_SAME = 0.5  # overlap from which two boxes are one object: what the detectors use inside a window
_EDGE = 2.0  # pixels: a box that ends so near an inner border may be cut there
Corner = tuple[int, int]  # row and column of a window's first pixel; negative where the image is narrower


def windows(stored: tuple[int, int], model: tuple[int, int]) -> list[Corner]:
    """First pixels of windows of the model's size, evenly spaced, half of each covered by the next.

    Guarantees: every pixel lies in one; none begins or ends outside the image but along a side that is shorter than the
    model's, where the image is in the middle, as padding at training has it.
    """
    rows, columns = (_starts(*pair) for pair in zip(stored, model, strict=True))
    return [(top, left) for top in rows for left in columns]


def cut(pixels: NDArray[np.float32], corner: Corner, model: tuple[int, int]) -> NDArray[np.float32]:
    """The window [h, w] or [h, w, 3] of an image of one of these shapes; black where there is no image."""
    found = np.zeros((*model, *pixels.shape[2:]), pixels.dtype)
    there, here = _common(corner, model, (pixels.shape[0], pixels.shape[1]))
    found[here] = pixels[there]
    return found


def blended(
    maps: Iterable[NDArray[np.float32]], corners: Sequence[Corner], size: tuple[int, int], *, classes: int
) -> NDArray[np.float32]:
    """The windows' maps [K, h, w] as one [K, H, W]: means in which a window counts least at its border.

    Guarantees: each value lies between the smallest and the largest that a window has there.
    """
    total, weight = np.zeros((classes, *size), np.float32), np.zeros(size, np.float32)
    for found, corner in zip(maps, corners, strict=True):
        shape = (found.shape[1], found.shape[2])
        down, right = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in shape)
        counts = np.outer(down, right).astype(np.float32)
        there, here = _common(corner, shape, size)
        total[(slice(None), *there)] += (found * counts)[(slice(None), *here)]
        weight[there] += counts[here]
    return np.clip(total / weight, 0, 1, out=total)


def merged(
    parts: Iterable[Detections], corners: Sequence[Corner], model: tuple[int, int], size: tuple[int, int]
) -> Detections:
    """The windows' boxes as one image's, in its pixels, best first, at most 100.

    Of boxes of one class that overlap by more than half of their union the best stays. A box that a window's border
    seems to have cut also gives way to a whole one that half of it lies in, whatever their scores.
    """
    boxes, classes, scores, is_cut = [np.zeros((0, 4))], [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, np.bool_)]
    for found, (top, left) in zip(parts, corners, strict=True):
        own = found.boxes.astype(np.float64) + np.array((left, top, left, top))
        border = np.array((left, top, left + model[1], top + model[0]), np.float64)
        inner = np.array((left > 0, top > 0, border[2] < size[1], border[3] < size[0]))
        height, width = size
        boxes.append(np.clip(own, 0, (width, height, width, height)))
        is_cut.append(((np.abs(own - border) < _EDGE) & inner).any(axis=1))
        classes.append(found.classes)
        scores.append(found.scores.astype(np.float64))
    box, score = np.concatenate(boxes), np.concatenate(scores)
    kind, halved = np.concatenate(classes), np.concatenate(is_cut)
    areas = (box[:, 2:] - box[:, :2]).prod(axis=1)
    chosen: list[int] = []
    free = areas > 0
    for position in np.lexsort((-score, halved)):
        if not free[position]:
            continue
        chosen.append(int(position))
        shared = overlap_of(box, box[position : position + 1])[:, 0]
        common = shared * (areas + areas[position]) / (1 + shared)
        gone = (shared > _SAME) | (halved & (common > areas / 2))
        free &= ~(gone & (kind == kind[position]))
        free[position] = False
    chosen = sorted(chosen, key=lambda k: -score[k])[:MOST]
    return Detections(
        boxes=box[chosen].astype(np.float32), classes=kind[chosen], scores=score[chosen].astype(np.float32)
    )


def _starts(side: int, window: int) -> list[int]:
    if side <= window:
        return [-((window - side) // 2)]
    count = math.ceil((side - window) / (window * (1 - OVERLAP))) + 1
    return [round(start) for start in np.linspace(0, side - window, count)]


def _common(
    corner: Corner, window: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What image and window share, as rows and columns of the image and of the window."""
    first = [max(0, start) for start in corner]
    last = [min(side, start + n) for start, n, side in zip(corner, window, size, strict=True)]
    there = slice(first[0], last[0]), slice(first[1], last[1])
    here = slice(first[0] - corner[0], last[0] - corner[0]), slice(first[1] - corner[1], last[1] - corner[1])
    return there, here
