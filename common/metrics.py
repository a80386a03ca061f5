"""Metric sums: they are added, site by site, and become means once, when they are shown."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Sums = dict[str, NDArray[np.float64]]


def zeros(layout: Mapping[str, tuple[int, ...]]) -> Sums:
    """The sums of no images at all."""
    return {name: np.zeros(shape) for name, shape in layout.items()}


def add(total: Sums, part: Mapping[str, NDArray[np.float64]]) -> None:
    """`total` grows by `part`, name by name. Raises KeyError or ValueError when names or shapes differ."""
    if total.keys() != part.keys():
        raise KeyError(f"sums of {sorted(part)} for {sorted(total)}")
    for name, value in part.items():
        if np.shape(value) != total[name].shape:
            raise ValueError(f"{name}: shape {np.shape(value)} for {total[name].shape}")
        total[name] += value


def total_of(layout: Mapping[str, tuple[int, ...]], parts: Iterable[Mapping[str, NDArray[np.float64]]]) -> Sums:
    """All parts added up."""
    total = zeros(layout)
    for part in parts:
        add(total, part)
    return total
