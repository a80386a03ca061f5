"""How an image is shown to a person: which way its edges lie in the patient, and the shape of its pixels."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.dicom import FORMAT, opened, read_tags, refusing
from client.dicom_objects.opening import PLACES, decimals, geometry
from client.drops import Unusable

_OPPOSITE = str.maketrans("LRAPHF", "RLPAFH")
_LETTERS = re.compile("[LRAPHF]{1,3}")
_AXES = ("RL", "AP", "FH")  # towards less and towards more of x, y, z in the patient: DICOM PS3.3 C.7.6.2.1.1
_LEAST = 0.3  # share of a direction below which its letter is left out: 17 degrees


@dataclass(frozen=True, kw_only=True)
class View:
    """Letters at an image's edges, "" where the header says nothing; `aspect` is a pixel's height in its widths."""

    left: str = ""
    right: str = ""
    top: str = ""
    bottom: str = ""
    aspect: float = 1.0


def view_of(path: Path, frame: int = 0) -> View:
    """How a DICOM image's frame (from 0) is to be shown. A header that makes no sense says nothing; never raises.

    Edge case: an enhanced multi-frame image has its pixels' shape by its planes, its letters too.
    Source: DICOM PS3.3 C.7.6.1.1.1 (Patient Orientation), C.7.6.2.1.1 (image plane), 10.7.1.3 (pixel spacing).
    """
    try:
        with refusing(), opened(path) as file:
            tags = ["FrameOfReferenceUID", "PatientOrientation", "ImagerPixelSpacing", "PixelAspectRatio"]
            dataset = read_tags(file, [*tags, *FORMAT, *PLACES], pixels=False)
            size = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
            planes = geometry(dataset, size, int(dataset.get("NumberOfFrames") or 1)).planes
            if frame < len(planes) and (plane := planes[frame]) is not None:
                return _view(_letters(plane.across), _letters(plane.down), _ratio(np.array(plane.spacing)))
            named = [str(value) for value in dataset.get("PatientOrientation") or ()]
            across, down = named if len(named) == 2 and all(map(_LETTERS.fullmatch, named)) else ("", "")
            kinds = ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")
            shapes = [decimals(dataset, name) for name in kinds if dataset.get(name)]
            return _view(across, down, _ratio(shapes[0]) if shapes else 1.0)
    except (Unusable, OSError):
        return View()


def _view(across: str, down: str, aspect: float) -> View:
    return View(
        left=across.translate(_OPPOSITE), right=across, top=down.translate(_OPPOSITE), bottom=down, aspect=aspect
    )


def _letters(direction: NDArray[np.float64]) -> str:
    """Where a direction in the patient points to, its largest part first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_AXES[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) >= _LEAST)


def _ratio(shape: NDArray[np.float64]) -> float:
    """Height over width; 1 where these are no two lengths, or so far apart that nobody meant it."""
    if shape.shape != (2,) or not (np.isfinite(shape) & (shape > 0)).all():
        return 1.0
    ratio = float(shape[0] / shape[1])
    return ratio if 0.1 <= ratio <= 10 else 1.0
