"""Picture files (PNG, JPEG, TIFF, BMP) to grey or colour values in [0, 1], or to label maps, by Pillow."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.dicom import SAMPLES_LIMIT
from client.drops import Drop, Unusable
from client.preprocess import Window, to_unit

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # its remarks on damaged files, at best repeated below
# Our own limit is checked before anything is decoded and is the same as for DICOM.
Image.MAX_IMAGE_PIXELS = None


def size(data: bytes) -> tuple[int, int]:
    """Height and width. Decodes all of it: nothing in a picture's header tells that it was cut off. Raises Unusable."""
    with _opened(data) as image:
        image.load()
        return image.height, image.width


def pixels(data: bytes, *, window: Window) -> NDArray[np.float32]:
    """[H, W] or [H, W, 3] float32 in [0, 1], on the grid as stored: EXIF orientation and transparency are ignored.

    Window "dicom" is the full range for 8 bits, smallest to largest value for more. Raises Unusable, no other error.
    """
    with _opened(data) as image:
        if image.mode in ("1", "L", "LA", "La"):
            return to_unit(np.asarray(image.convert("L")), window, limits=(0, 255))
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image)
            if not np.isfinite(values).all():
                raise Unusable(Drop.UNREADABLE, "grey values that are not finite")
            return to_unit(values, window)
        return to_unit(np.asarray(image.convert("RGB")), window, limits=(0, 255))


def label_map(data: bytes) -> NDArray[np.uint8]:
    """[H, W] uint8 from an 8- or 16-bit grey, two-coloured or palette picture; palette entries are their numbers.

    Guarantees: 0 stays 0 and everything else stays above 0 (values above 255 become 255, never wrap). Raises Unusable.
    """
    with _opened(data) as image:
        values: NDArray[Any] = np.asarray(image)
        if values.ndim == 3 and image.mode in ("RGB", "RGBA", "LA"):
            colour = values[..., :1] if image.mode == "LA" else values[..., :3]
            if not (colour == colour[..., :1]).all():
                raise Unusable(
                    Drop.BAD_ANNOTATION, "a coloured mask: masks are grey or palette pictures of class numbers"
                )
            values = colour[..., 0]
        if values.ndim != 2 or values.dtype.kind not in "biu" or values.min() < 0:
            raise Unusable(
                Drop.BAD_ANNOTATION, f"a mask of kind {image.mode}: masks are grey or palette pictures of class numbers"
            )
        clipped: NDArray[np.uint8] = np.minimum(values, 255).astype(np.uint8)
        return clipped


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.height * image.width * len(image.getbands()) > SAMPLES_LIMIT or not image.height * image.width:
                raise Unusable(Drop.TOO_LARGE, f"{image.height} x {image.width} pixels; limit {SAMPLES_LIMIT} samples")
            if getattr(image, "n_frames", 1) != 1:
                raise Unusable(Drop.UNSUPPORTED, "a picture file of several pages")
            yield image
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(Drop.UNREADABLE, f"not a readable picture ({type(error).__name__})") from None
