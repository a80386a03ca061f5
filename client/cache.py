"""Preprocessed images of a site, memory-mapped: [n, C, h, w] float16 in [0, 1], before mean and std.

One folder per preprocessing, which `settings.json` names: `images.f16` holds the values, `images.txt` the ids in the
same order, one per line. An id is written only once its values are on the disk, so a kill at any moment leaves a cache
that is right as far as it says.
cache_shrink.py puts smaller files in their place; whoever has the old ones mapped goes on reading them.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import dicom, preprocess, sources
from client.arrays import read_array
from client.drops import Drop, Unusable
from client.index import progress_bar
from client.records import Row
from common.errors import DataError
from common.study import Study

VERSION = 2  # of the preprocessing code: raise it when equal settings give other values
_WAVE = 32  # files decoded between two writes
_PART = 64  # images of one file decoded in one go


@dataclass(kw_only=True, eq=False)
class Cache:
    """An opened cache. Several processes may read and add at once: adding locks, reading needs no lock."""

    folder: Path
    study: Study
    _positions: dict[str, int] = field(default_factory=dict)
    _ids_read: int = 0  # bytes of images.txt that `_positions` holds
    _map: NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, np.float16))
    _file: tuple[int, int] | None = None  # the images.f16 that all this is of: another one may take its place

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, h, w of one image."""
        return (self.study.model.channels, *self.study.model.image_size)

    def ensure(
        self, rows: Sequence[Row], *, each_alone: bool = False, jobs: int | None = None, quiet: bool = True
    ) -> dict[str, Drop]:
        """Preprocess what the cache lacks; the images that can't be decoded, with the reason.

        Raises DataError when the images' folder is not there at all, or the cache can't be written. With `each_alone`
        these are reasons of the images concerned: what keeps one from being had keeps no other, but that on a full
        disk one more may take the place of the last.
        """
        self._refresh()
        missing = [row for row in rows if row.image not in self._positions]
        for root in {row.source.root for row in missing}:
            if not (each_alone or root.is_dir()):
                raise DataError(f"{root}: the images' folder is not there; mount it, or index the images' new place")
        missing.sort(key=lambda row: (row.source.path, row.source.array, row.source.item))
        files = [list(group) for _, group in groupby(missing, key=lambda row: (row.source.path, row.source.array))]
        parts = [file[start : start + _PART] for file in files for start in range(0, len(file), _PART)]
        array = lru_cache(maxsize=2)(read_array)
        failed: dict[str, Drop] = {}

        def decoded(part: Sequence[Row]) -> list[tuple[str, NDArray[np.float16] | Drop]]:
            return [(row.image, self._decoded(row, pixels)) for row, pixels in zip(part, opened(part), strict=True)]

        def opened(part: Sequence[Row]) -> Iterator[NDArray[np.float32] | Unusable]:
            window = self.study.preprocessing.window
            return sources.images([row.source for row in part], window=window, array=array)

        with (
            progress_bar("Preprocessing", quiet=quiet or not missing) as progress,
            dicom.quiet(),
            ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool,
        ):
            for start in range(0, len(parts), _WAVE):
                outcomes = [outcome for part in pool.map(decoded, parts[start : start + _WAVE]) for outcome in part]
                found = {image: value for image, value in outcomes if not isinstance(value, Drop)}
                failed.update({image: value for image, value in outcomes if isinstance(value, Drop)})
                if each_alone:
                    failed.update(dict.fromkeys(self._unwritten(found), Drop.UNREADABLE))
                else:
                    self.add_many(found)
                progress(min(start + _WAVE, len(parts)), len(parts))
        return failed

    def _unwritten(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
        """Add these, together or else one by one; the ids of those for which there was no room."""
        try:
            self.add_many(arrays)
        except DataError:
            for image, array in arrays.items():
                try:
                    self.add_many({image: array})
                except DataError:
                    yield image

    def add_many(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add preprocessed images [C, h, w] in [0, 1] by id. One that is there already stays as it is.

        Guarantees: after a kill or a full disk the cache holds what it held, and perhaps some of these, whole.
        Raises DataError for another shape, values outside [0, 1] (NaN included), or when writing fails.
        """
        for image, array in arrays.items():
            if array.shape != self.shape or not ((array >= 0) & (array <= 1)).all():
                raise DataError(f"an image of shape {array.shape} for a cache of {self.shape}, values in [0, 1]")
            if not image or not image.isascii() or not image.isprintable():
                raise DataError("an image id for the cache is printable ASCII")
        try:
            with self._locked():
                self._refresh()
                new = {image: array for image, array in arrays.items() if image not in self._positions}
                if new:
                    values = b"".join(np.ascontiguousarray(array, "<f2").tobytes() for array in new.values())
                    _append(self.folder / "images.f16", len(self._positions) * self._bytes, values)
                    _append(self.folder / "images.txt", self._ids_read, "".join(f"{image}\n" for image in new).encode())
                    self._refresh()
        except OSError as error:
            raise DataError(f"{self.folder}: the cache can't be written ({error.strerror or error})") from None

    def images(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """The images of these ids, in this order: [n, C, h, w] float32 in [0, 1].

        Raises DataError for an id that was never added, or a damaged cache.
        """
        if any(image not in self._positions for image in ids):
            self._refresh()
        try:
            positions = [self._positions[image] for image in ids]
        except KeyError:
            raise DataError(f"{self.folder}: an image is not in the cache; preprocess it first") from None
        if not positions:
            return np.zeros((0, *self.shape), np.float32)
        return self._map[positions].astype(np.float32)

    @property
    def _bytes(self) -> int:
        return 2 * int(np.prod(self.shape))

    def _decoded(self, row: Row, pixels: NDArray[np.float32] | Unusable) -> NDArray[np.float16] | Drop:
        if isinstance(pixels, Unusable):
            return pixels.reason
        if pixels.shape[:2] != (row.height, row.width):
            return Drop.CHANGED
        return preprocess.kept(pixels, self.study, row.pose)

    def _refresh(self) -> None:
        """Learn of ids that this or another process has added, of all of them where the cache was made smaller.

        Raises DataError where values are missing for them.
        """
        try:
            while not self._read():
                pass
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.folder}: the cache can't be read ({type(error).__name__}); delete it") from None

    def _read(self) -> bool:
        """Whether ids and values were read that belong together. The map keeps its file, whatever takes its place."""
        path = self.folder / "images.f16"
        with path.open("rb") as values:
            file = _identity(os.fstat(values.fileno()))
            if file != self._file:
                self._positions, self._ids_read, self._map, self._file = {}, 0, np.zeros(0, np.float16), file
            with (self.folder / "images.txt").open("rb") as ids:
                ids.seek(self._ids_read)
                lines = ids.read()
            if _identity(path.stat()) != file:
                return False
            complete = lines[: lines.rfind(b"\n") + 1]  # a kill may leave half a line: it was never there
            for line in complete.splitlines():
                self._positions.setdefault(line.decode("ascii"), len(self._positions))
            self._ids_read += len(complete)
            if os.fstat(values.fileno()).st_size < len(self._positions) * self._bytes:
                raise DataError(f"{self.folder}: the cache is cut short; delete the folder and it is made anew")
            if len(self._map) < len(self._positions):
                shape = (len(self._positions), *self.shape)
                self._map = np.memmap(values, "<f2", mode="r", shape=shape)
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def open_cache(folder: Path, study: Study) -> Cache:
    """The cache below `folder` for this study's preprocessing; made when there is none.

    Guarantees: studies with the same image size, channels, window, aspect and orientation share one, others never do.
    Raises DataError when it can't be made or is damaged.
    """
    values = {
        "version": VERSION,
        "image_size": study.model.image_size,
        "channels": study.model.channels,
        "window": study.preprocessing.window,
        "aspect": study.preprocessing.aspect,
    }
    if study.preprocessing.orientation != "stored":
        values["orientation"] = study.preprocessing.orientation
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / digest
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("images.f16", "images.txt", "settings.json"):
            (place / name).touch(mode=0o600)
        if not (place / "settings.json").stat().st_size:
            (place / "settings.json").write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{place}: the cache can't be made ({error.strerror or error})") from None
    cache = Cache(folder=place, study=study)
    cache._refresh()
    return cache


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _append(path: Path, end: int, data: bytes) -> None:
    """Write at `end`, in place of anything that a kill left behind it, and have it on the disk. All or nothing."""
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
