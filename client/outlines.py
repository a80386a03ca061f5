"""Closed outlines to the pixels inside them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.drops import Drop, Unusable

_CROSSINGS_LIMIT = 50_000_000  # of outlines with pixel rows: seconds, however many corners they have
_CHUNK = 1 << 20


def filled(outlines: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W]: pixels whose centre lies inside an odd number of outlines, each [n, 2] (column, row), closed by itself.

    A pixel's centre has whole coordinates. An outline in another is a hole in it, and one that touches itself to cut
    out a hole does. A centre on an edge is inside to the right of it or below it, so neighbours share no pixel.
    Raises Unusable for outlines that would take minutes.
    Source: even-odd rule by scan lines, Foley et al., Computer Graphics, section 3.6.
    """
    height, width = size
    toggles = np.zeros((height, width + 1), np.uint8)
    left = _CROSSINGS_LIMIT
    for outline in outlines:
        begin, end = outline, np.roll(outline, -1, axis=0)
        top = np.minimum(begin[:, 1], end[:, 1])
        first = np.clip(np.ceil(top), 0, height)
        last = np.clip(np.ceil(np.maximum(begin[:, 1], end[:, 1])), 0, height)
        crossed = (last - first).astype(np.int64)
        total = np.cumsum(crossed)
        left -= int(total[-1]) if len(total) else 0
        if left < 0:
            raise Unusable(Drop.TOO_LARGE, f"outlines that cross pixel rows more than {_CROSSINGS_LIMIT} times")
        start = 0
        while start < len(outline):
            done = total[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(total, done + _CHUNK, "right")))
            part = slice(start, stop)
            edge = np.repeat(np.arange(start, stop), crossed[part])
            row = first[edge] + np.arange(len(edge)) - (total[edge] - crossed[edge] - done)
            (x0, y0), (x1, y1) = begin[edge].T, end[edge].T
            column = np.clip(np.ceil(x0 + (row - y0) * (x1 - x0) / (y1 - y0)), 0, width)
            np.bitwise_xor.at(toggles, (row.astype(np.intp), column.astype(np.intp)), 1)
            start = stop
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width] > 0
