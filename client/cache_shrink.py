"""Takes preprocessed images out of a site's caches that its index no longer has: a patient's who was taken out, say."""

import fcntl
import json
import os
import shutil
from collections.abc import Set
from pathlib import Path

import numpy as np

from client.index_file import opened, sync
from common.errors import DataError

_PART = 64  # images copied in one go


def shrink(site: Path, folder: Path) -> int:
    """Leave in the caches below `folder` only images of the index in `site`; how many were taken out.

    A cache that doesn't say how large its images are is one that no study opens any more: it goes as a whole.
    Guarantees: atomic, whatever is killed; a process that has a cache open goes on with what it had.
    Raises DataError when the index can't be read, or a cache not be written: it then is as it was.
    """
    with opened(site) as database:
        wanted = {image for (image,) in database.execute("SELECT image FROM image")}
    try:
        return sum(_shrink(path.parent, wanted) for path in sorted(folder.glob("*/images.txt")))
    except OSError as error:
        raise DataError(
            f"{folder}: images that the index no longer has can't be taken out ({error.strerror or error});"
            " delete the folder, and it is made anew"
        ) from None


def _shrink(place: Path, wanted: Set[str]) -> int:
    values, ids = place / "images.f16", place / "images.txt"
    new_values, new_ids, empty = (place / f"{name}.new" for name in ("images.f16", "images.txt", "empty"))
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = [line.decode("ascii", "replace") for line in ids.read_bytes().splitlines(keepends=True)]
        held = [line[:-1] for line in held if line.endswith("\n")]
        size = _size(place)
        if size is None or values.stat().st_size < size * len(held):
            shutil.rmtree(place)
            return len(held)
        kept = [position for position, image in enumerate(held) if image in wanted]
        if len(kept) == len(held):
            return 0
        try:
            for path in (new_values, new_ids, empty):
                path.unlink(missing_ok=True)  # of a run that was killed
                path.touch(mode=0o600)
            stored = np.memmap(values, np.uint8, mode="r", shape=(len(held), size))
            with new_values.open("wb") as file:
                for start in range(0, len(kept), _PART):
                    file.write(stored[kept[start : start + _PART]].tobytes())
            new_ids.write_bytes("".join(f"{held[position]}\n" for position in kept).encode("ascii", "replace"))
            for path in (new_values, new_ids):
                sync(path)
            # Ids never stand beside values of another file: in between there are none.
            for source, target in ((empty, ids), (new_values, values), (new_ids, ids)):
                os.replace(source, target)
                sync(place)
        finally:
            for path in (new_values, new_ids, empty):
                path.unlink(missing_ok=True)
        return len(held) - len(kept)


def _size(place: Path) -> int | None:
    """Bytes of one image of a cache; None where it doesn't say."""
    try:
        said = json.loads((place / "settings.json").read_bytes())
        height, width = said["image_size"]
        return 2 * int(said["channels"]) * int(height) * int(width)
    except (OSError, ValueError, KeyError, TypeError):
        return None
