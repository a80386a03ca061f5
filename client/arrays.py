"""MedMNIST's .npz files: for each official split an array of images and one of labels. Nothing is ever unpickled."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.annotations import Split
from common.errors import DataError

PARTS: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"), ("test", "test"))
BYTES_LIMIT = 64 * 2**30  # of one file, unpacked


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a file says of the images of one official split."""

    array: str  # name of the array that holds them
    official: Split
    height: int
    width: int
    labels: tuple[int, ...]  # one for each image


def parts(path: Path) -> Iterator[Part]:
    """Each of `PARTS` in turn. Raises DataError as `read_array`, or where images and labels don't fit together."""
    for part, official in PARTS:
        images, labels = read_array(path, f"{part}_images"), _member(path, f"{part}_labels")
        if labels.size != len(images) or labels.dtype.kind not in "iu":
            raise DataError(f"{path.name}: {part}_labels must be one whole number for each of {len(images)} images")
        yield Part(
            array=f"{part}_images",
            official=official,
            height=images.shape[1],
            width=images.shape[2],
            labels=tuple(labels.reshape(-1).tolist()),
        )


def read_array(path: Path, name: str) -> NDArray[np.uint8]:
    """One array of an .npz file, uint8 [n, H, W] or [n, H, W, 3]. Raises DataError; never unpickles."""
    images = _member(path, name)
    if (
        images.dtype != np.uint8
        or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3))
        or 0 in images.shape[1:]
    ):
        shape = "x".join(map(str, images.shape))
        raise DataError(f"{path.name}: {name} is {images.dtype} {shape}; images are uint8 [n, H, W] or [n, H, W, 3]")
    return images


def _member(path: Path, name: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > BYTES_LIMIT:
                raise DataError(f"{path.name}: more than {BYTES_LIMIT // 2**30} GiB unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    except KeyError:
        raise DataError(
            f"{path.name}: has no {name}; a MedMNIST file has train, val and test images and labels"
        ) from None
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{path.name}: {name} is no readable numpy array ({type(error).__name__}): get the file again"
        ) from None
