"""Where the pixels of a slice lie in the patient, and which pixel of another slice lies there too."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.drops import Drop, Unusable

SAME = 0.05  # mm: planes nearer than this are one; files round positions to 0.01 or so
_PARALLEL = 1e-3  # sine of the angle, 0.06 degrees: half a pixel over 500 mm
_GRID = 0.25, 0.15  # of a pixel, and mm: see `same_grid`
_BAND = 1 << 20  # pixels worked on at once
_HALF = 0.5 + 1e-6  # a centre on the border of two pixels belongs to the second, however it was rounded


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """A slice's grid in the patient's coordinates, in mm. `across` runs from column to column, `down` from row to row.

    Source: DICOM PS3.3 C.7.6.2.1.1.
    """

    origin: NDArray[np.float64]  # [3]: the centre of the first pixel
    across: NDArray[np.float64]  # [3], of length 1
    down: NDArray[np.float64]  # [3], of length 1
    spacing: tuple[float, float]  # between rows, between columns
    size: tuple[int, int]  # rows, columns

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """[3], of length 1: the direction in which `offsets` grow."""
        return np.cross(self.across, self.down)

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [..., 3] as (column, row) [..., 2], foot of the perpendicular; 0, 0 is the first pixel's centre."""
        away = points - self.origin
        return np.stack((away @ self.across / self.spacing[1], away @ self.down / self.spacing[0]), axis=-1)

    def offsets(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far points [..., 3] lie off the plane, with sign."""
        return (points - self.origin) @ self.normal

    def parallel(self, other: "Plane") -> bool:
        """Whether two slices never meet, whichever way they face."""
        return bool(np.linalg.norm(np.cross(self.normal, other.normal)) < _PARALLEL)

    def same_grid(self, other: "Plane") -> bool:
        """Whether two slices have one grid, wherever it begins: in the other's directions and spacing no pixel lies a
        quarter of its size away, nor 0.15 mm: 0.02 degrees for 400 mm.

        Two that share it with a third are twice that apart at most: a pixel's centre stays in its own pixel, and in its
        own slice down to 0.6 mm from slice to slice. Programs that compute directions anew for each slice round more
        finely.
        """
        if self.size != other.size:
            return False
        rows, columns = self.size[0] - 1, self.size[1] - 1
        right = columns * (self.across * self.spacing[1] - other.across * other.spacing[1])
        down = rows * (self.down * self.spacing[0] - other.down * other.spacing[0])
        farthest = max(float(np.linalg.norm(corner)) for corner in (right, down, right + down))
        return farthest < min(_GRID[0] * min(*self.spacing, *other.spacing), _GRID[1])


def plane(
    position: NDArray[np.float64], orientation: NDArray[np.float64], spacing: NDArray[np.float64], size: tuple[int, int]
) -> Plane:
    """A slice from its DICOM attributes (three, six and two numbers). Raises Unusable unless they describe one."""
    values = np.array([*position, *orientation, *spacing], np.float64)
    if values.shape != (11,) or not np.isfinite(values).all() or np.abs(values[:3]).max() > 1e6:
        raise Unusable(Drop.BAD_ANNOTATION, "position, orientation or spacing that are no numbers in mm")
    across, down, between = values[3:6], values[6:9], (float(values[9]), float(values[10]))
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if not all(abs(n - 1) < 0.01 for n in lengths) or not abs(across @ down) < 0.01:
        raise Unusable(Drop.BAD_ANNOTATION, "an orientation that is not two perpendicular directions")
    if not all(1e-4 < n < 1e4 for n in between):
        raise Unusable(Drop.BAD_ANNOTATION, "a pixel spacing that is no distance in mm")
    return Plane(origin=values[:3], across=across / lengths[0], down=down / lengths[1], spacing=between, size=size)


def step_between(offsets: NDArray[np.float64]) -> float:
    """Smallest distance between neighbours among offsets [n] of parallel slices; inf where all are one."""
    gaps = np.diff(np.sort(offsets))
    return float(gaps[gaps > SAME].min(initial=math.inf))


def nearest(offsets: NDArray[np.float64], wanted: NDArray[np.float64], step: float) -> NDArray[np.intp]:
    """Position of the nearest of the sorted offsets [n >= 1] for each wanted one [...]; -1 where none lies within half
    a step.
    """
    right = np.clip(np.searchsorted(offsets, wanted), 1, max(1, len(offsets) - 1))
    left = right - 1
    right = np.minimum(right, len(offsets) - 1)
    chosen = np.where(np.abs(wanted - offsets[left]) <= np.abs(wanted - offsets[right]), left, right)
    return np.where(np.abs(wanted - offsets[chosen]) <= step / 2 * (1 + 1e-6), chosen, -1)


def sampled(
    stack: Sequence[Plane], offsets: NDArray[np.float64], image: Plane, step: float
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """Which pixels of a stack of parallel slices lie under an image's pixels, in whatever way the image cuts it.

    `offsets` say how far each slice lies off one of them. Yields position in `stack`, places in the image and places in
    that slice, both counted along the rows. A slice is as thick as `step` in mm. Image pixels that no slice covers do
    not occur, others once.
    """
    order = np.argsort(offsets, kind="stable")
    level = stack[order[0]]
    # A distance and a place in a slice are linear in column and row: known at three corners, known everywhere.
    corners = image.origin + np.stack((np.zeros(3), image.spacing[1] * image.across, image.spacing[0] * image.down))
    away = level.offsets(corners) + offsets[order[0]]
    band = max(1, _BAND // image.size[1])
    for start in range(0, image.size[0], band):
        row = np.arange(start, min(start + band, image.size[0]))[:, None]
        column = np.arange(image.size[1])[None]
        chosen = nearest(offsets[order], _linear(away, column, row), step)
        for k in np.flatnonzero(np.bincount(chosen.ravel() + 1)[1:]):
            position = int(order[k])
            height, width = stack[position].size
            at = stack[position].pixels(corners)
            there_column = np.floor(_linear(at[:, 0], column, row) + _HALF)
            there_row = np.floor(_linear(at[:, 1], column, row) + _HALF)
            inside = (chosen == k) & (there_column >= 0) & (there_column < width)
            inside &= (there_row >= 0) & (there_row < height)
            place = there_row[inside].astype(np.intp) * width + there_column[inside].astype(np.intp)
            yield position, np.flatnonzero(inside) + start * image.size[1], place


def _linear(corners: NDArray[np.float64], column: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.float64]:
    """What is corners[0] at the first pixel, corners[1] at the next column's and corners[2] at the next row's."""
    values: NDArray[np.float64] = corners[0] + (corners[1] - corners[0]) * column + (corners[2] - corners[0]) * row
    return values
