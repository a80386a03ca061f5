"""What a program can see of a site's images: a tiny copy of each and how bright it is. Each is decoded once.

They are kept in the site folder, for its owner alone, and never leave it.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import dicom, sources
from client.chain import write_privately
from client.drops import Dropped, Unusable
from client.index import progress_bar
from client.preprocess import LUMINANCE
from client.sources import Source
from common.errors import DataError

NAME = "looks.npz"
VERSION = 2  # of what is kept: raise it when equal images give something else
SIDE, BINS = 32, 64  # pixels of the tiny copy; steps of brightness
_WAVE = 64  # files decoded between two steps of the progress bar


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One image with its file's own window, values in [0, 1]: area means [SIDE, SIDE] and shares of pixels [BINS]."""

    tiny: NDArray[np.float32]
    brightness: NDArray[np.float32]


def look(
    folder: Path, wanted: Sequence[tuple[str, Source]], *, jobs: int | None = None, quiet: bool = True
) -> tuple[dict[str, Look], dict[str, Dropped]]:
    """Images by id, and those that can't be decoded: where they are, and why. What was seen before isn't decoded again.

    Raises DataError when the images' folder is not there at all.
    """
    known = _load(folder / NAME)
    seen = {image: known[image] for image, _ in wanted if image in known}
    missing = sorted((w for w in wanted if w[0] not in seen), key=lambda w: (w[1].path, w[1].array, w[1].item))
    for root in {source.root for _, source in missing}:
        if not root.is_dir():
            raise DataError(f"{root}: the images' folder is not there; mount it, or index the images' new place")
    files = [list(group) for _, group in groupby(missing, key=lambda w: (w[1].path, w[1].array))]
    failed: dict[str, Dropped] = {}

    def decoded(file: Sequence[tuple[str, Source]]) -> list[tuple[str, Look | Dropped]]:
        images = sources.images([source for _, source in file], window="dicom")
        return [
            (image, _dropped(source, pixels) if isinstance(pixels, Unusable) else seen_in(pixels))
            for (image, source), pixels in zip(file, images, strict=True)
        ]

    with (
        progress_bar("Looking at images", quiet=quiet or not missing) as progress,
        dicom.quiet(),
        ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(files), _WAVE):
            for image, found in (one for file in pool.map(decoded, files[start : start + _WAVE]) for one in file):
                if isinstance(found, Dropped):
                    failed[image] = found
                else:
                    seen[image] = found
            progress(min(start + _WAVE, len(files)), len(files))
    if missing or len(known) != len(seen):
        _save(folder / NAME, seen)
    return seen, failed


def _dropped(source: Source, error: Unusable) -> Dropped:
    return Dropped(path=source.path, reason=error.reason, detail=str(error), array=source.array, item=source.item)


def seen_in(pixels: NDArray[np.float32]) -> Look:
    """An image [H, W] or [H, W, 3] in [0, 1]."""
    grey = luminance(pixels)
    counts, _ = np.histogram(grey, bins=BINS, range=(0, 1))
    return Look(tiny=smaller(grey, (SIDE, SIDE)), brightness=(counts / grey.size).astype(np.float32))


def luminance(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W] of an image with or without colour."""
    return pixels @ LUMINANCE if pixels.ndim == 3 else pixels


def smaller(grey: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W] to this size: each pixel is the mean over the area that it covers."""
    return np.asarray(_areas(size[0], grey.shape[0]) @ grey @ _areas(size[1], grey.shape[1]).T, np.float32)


def _areas(small: int, large: int) -> NDArray[np.float32]:
    """[small, large]: how much of each small pixel lies on which large one."""
    ends = np.arange(small + 1)[:, None] * large / small
    place = np.arange(large)[None]
    shared = np.minimum(ends[1:], place + 1) - np.maximum(ends[:-1], place)
    return np.asarray(np.clip(shared, 0, None) * small / large, np.float32)


def _load(path: Path) -> dict[str, Look]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                return {}
            return dict(_looks(file))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _looks(file: Any) -> Iterator[tuple[str, Look]]:
    tiny, brightness = file["tiny"].astype(np.float32), file["brightness"].astype(np.float32)
    for position, image in enumerate(file["images"]):
        yield str(image), Look(tiny=tiny[position], brightness=brightness[position])


def _save(path: Path, seen: dict[str, Look]) -> None:
    stream = io.BytesIO()
    np.savez(
        stream,
        version=np.int64(VERSION),
        images=np.array(list(seen), dtype=str),
        tiny=np.array([one.tiny for one in seen.values()], np.float16).reshape(-1, SIDE, SIDE),
        brightness=np.array([one.brightness for one in seen.values()], np.float16).reshape(-1, BINS),
    )
    try:
        write_privately(path, stream.getvalue())
    except OSError:  # a full disk: the next time they are decoded again
        path.unlink(missing_ok=True)
