"""What is known about one stored image, in one type whatever file it came from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Box:
    """An object on the stored image: corners in pixels, origin 0 at the top left corner of the first pixel, x2 > x1
    and y2 > y1.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    name: str  # class name, or its position in the study's classes as text


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotation:
    """Label, mask and boxes of one stored image; None means not annotated for that purpose, which is not the same as
    empty.

    A mask is uint8 [height, width] on the stored image's grid, 0 background. With `mask_names`, value k is the class
    `mask_names[k - 1]`; without, value k is the k-th class of the study, and with one class any value above 0 is that
    class. `box_names` are classes that whoever drew the boxes looks for, besides those of the boxes; None: not known.
    """

    label: str | None = None  # class name, or its position in the study's classes as text
    mask: NDArray[np.uint8] | None = None
    mask_names: tuple[str, ...] | None = None
    boxes: tuple[Box, ...] | None = None
    box_names: tuple[str, ...] | None = None
