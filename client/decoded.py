"""Images that a scan has found, decoded in the order given, a few at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from client import sources
from client.arrays import read_array
from client.drops import Drop, Unusable
from client.ensemble import Grey
from client.preprocess import Window
from client.sources import Found

SAMPLES = 2**26  # stored pixels held at once
PART = 64  # images of one file decoded in one go, and of any held at once


def batches(
    found: Sequence[Found], windows: Collection[Window]
) -> Iterator[tuple[list[tuple[Found, Grey]], list[tuple[Found, Unusable]]]]:
    """Images with their pixels under each grey window, as many as may be held at once; and those that can't be used."""
    usable: list[tuple[Found, Grey]] = []
    others: list[tuple[Found, Unusable]] = []
    samples = 0
    for one, grey in _decoded(found, windows):
        if isinstance(grey, Unusable):
            others.append((one, grey))
        else:
            usable.append((one, grey))
            samples += one.height * one.width
        if len(usable) + len(others) >= PART or samples >= SAMPLES:
            yield usable, others
            usable, others, samples = [], [], 0
    if usable or others:
        yield usable, others


def _decoded(found: Sequence[Found], windows: Collection[Window]) -> Iterator[tuple[Found, Grey | Unusable]]:
    array = lru_cache(maxsize=2)(read_array)
    for _, group in groupby(found, key=lambda one: (one.source.path, one.source.array)):
        file = list(group)
        for start in range(0, len(file), PART):
            part = file[start : start + PART]
            places = [one.source for one in part]
            by_window = [sources.images(places, window=window, array=array) for window in windows]
            for one, *pixels in zip(part, *by_window, strict=True):
                yield one, _grey(one, dict(zip(windows, pixels, strict=True)))


def _grey(found: Found, pixels: Mapping[Window, NDArray[np.float32] | Unusable]) -> Grey | Unusable:
    good: dict[Window, NDArray[np.float32]] = {}
    for window, values in pixels.items():
        if isinstance(values, Unusable):
            return values
        if values.shape[:2] != (found.height, found.width):
            return Unusable(Drop.CHANGED, "another size than its header says")
        good[window] = values
    return good
