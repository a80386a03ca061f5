"""How an image lies in the patient, and turned so that it lies as others do: by quarter turns and flips alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
_LETTERS = re.compile("[LRAPHF]{1,3}")
_AXES = ("RL", "AP", "FH")  # towards less and towards more of x, y, z in the patient: DICOM PS3.3 C.7.6.2.1.1
_AXIS_OF = {letter: axis for axis, letters in enumerate(_AXES) for letter in letters}
_MOST = 10.0  # times as high as wide, or as wide as high: beyond it nobody meant it


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where in the patient an image's columns and rows count up to, and the shape of its pixels.

    `directions` are two letters of LRAPHF, of different axes, as "LF" of a frontal radiograph that is shown as usual;
    "" where the header doesn't say. `ratio` is a pixel's height in its widths, 1 where it doesn't say.

    Upright means: columns to the patient's left, or to the back where left and right are not in the image; rows to the
    feet, or to the back where these are not. Guarantees: whatever its directions, an upright picture of one thing is
    the same; `back` undoes `turned`, and `boxes_back` undoes `boxes`, exactly.
    """

    directions: str = ""
    ratio: float = 1.0

    @property
    def upright_ratio(self) -> float:
        """A pixel's height in its widths, once it's upright."""
        return 1 / self.ratio if self._transposed else self.ratio

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Height and width upright, of those stored; and the other way round."""
        return (stored[1], stored[0]) if self._transposed else stored

    def turned(self, image: NDArray[Scalar], *, axes: tuple[int, int] = (-2, -1)) -> NDArray[Scalar]:
        """A stored image upright; `axes` are its rows and columns."""
        image = np.swapaxes(image, *axes) if self._transposed else image
        flipped = tuple(axis for axis, flips in zip(axes, self._flips, strict=True) if flips)
        return np.flip(image, flipped) if flipped else image

    def back(self, image: NDArray[Scalar]) -> NDArray[Scalar]:
        """An upright image [..., h, w] as it was stored [..., H, W]."""
        flipped = tuple(axis for axis, flips in zip((-2, -1), self._flips, strict=True) if flips)
        image = np.flip(image, flipped) if flipped else image
        return np.ascontiguousarray(np.swapaxes(image, -2, -1) if self._transposed else image)

    def boxes(self, boxes: NDArray[np.float64], stored: tuple[int, int]) -> NDArray[np.float64]:
        """Corners xyxy [n, 4] on the stored grid as on the upright one."""
        boxes = boxes[:, [1, 0, 3, 2]] if self._transposed else boxes
        return self._flipped(boxes, self.size(stored))

    def boxes_back(self, boxes: NDArray[np.float64], stored: tuple[int, int]) -> NDArray[np.float64]:
        """Corners xyxy [n, 4] on the upright grid as on the stored one."""
        boxes = self._flipped(boxes, self.size(stored))
        return boxes[:, [1, 0, 3, 2]] if self._transposed else boxes

    def _flipped(self, boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        boxes = boxes.copy()
        for flips, side, (low, high) in zip(self._flips, size, ((1, 3), (0, 2)), strict=True):
            if flips:
                boxes[:, [low, high]] = side - boxes[:, [high, low]]
        return boxes

    @property
    def _wanted(self) -> tuple[str, str]:
        """Letters that columns and rows count up to, upright."""
        axes = {_AXIS_OF[letter] for letter in self.directions}
        return "L" if 0 in axes else "P", "F" if 2 in axes else "P"

    @property
    def _transposed(self) -> bool:
        return bool(self.directions) and _AXIS_OF[self.directions[0]] != _AXIS_OF[self._wanted[0]]

    @property
    def _flips(self) -> tuple[bool, bool]:
        """Of rows and of columns, after the transposition."""
        if not self.directions:
            return False, False
        first, second = self.directions[0], self.directions[1]
        across, down = (second, first) if self._transposed else (first, second)
        return down != self._wanted[1], across != self._wanted[0]


STORED = Pose()  # taken as it is


def directions_of(orientation: Sequence[float], letters: Sequence[str]) -> str:
    """Directions from Image Orientation (Patient), six numbers, else from Patient Orientation, two texts; "" where
    neither says which two axes of the patient an image shows.

    Source: DICOM PS3.3 C.7.6.2.1.1, C.7.6.1.1.1.
    """
    values = np.array(orientation, np.float64)
    if values.shape == (6,) and np.isfinite(values).all() and (np.abs(values.reshape(2, 3)).max(axis=1) > 0.5).all():
        first = [max(range(3), key=lambda axis: abs(way[axis])) for way in values.reshape(2, 3)]
        found = "".join(_AXES[axis][int(way[axis] > 0)] for axis, way in zip(first, values.reshape(2, 3), strict=True))
    elif len(letters) == 2 and all(map(_LETTERS.fullmatch, letters)):
        found = letters[0][0] + letters[1][0]
    else:
        return ""
    return found if _AXIS_OF[found[0]] != _AXIS_OF[found[1]] else ""


def ratio_of(spacing: tuple[float, float] | None) -> float:
    """A pixel's height in its widths, from the distances between rows and between columns; 1 where that's no shape."""
    ratio = 1.0 if spacing is None else spacing[0] / spacing[1]
    return ratio if 1 / _MOST <= ratio <= _MOST else 1.0
