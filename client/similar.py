"""Which images are nearly the same: exported twice, in another window, size or compression, or turned to negative."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.97  # correlation of details from which two images are nearly the same
FLAT = 0.004  # deviation of details below which an image shows nothing that could be compared
_BLOCK = 512  # images compared with all others in one go
_MOST = 32  # others of one image that are followed: enough to hold a group together


def blank(tiny: NDArray[np.float32]) -> bool:
    """Whether a tiny copy [n, n] shows nothing."""
    return not float(_details(tiny[None])[0].std()) >= FLAT


def groups(images: Mapping[str, NDArray[np.float32]]) -> list[list[str]]:
    """Images by id whose tiny copies [n, n] are nearly the same, in groups of two or more, by id; blank ones are left
    out.

    Two belong together when the details of their copies, less what is smooth, correlate by ALIKE or more, or by -ALIKE
    or less. A group is held together by neighbours: its two ends may differ more.
    Guarantees: the same groups in whatever order the images come. All pairs are compared: 50,000 images take minutes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(name for name, tiny in images.items() if not blank(tiny))
    if len(names) < 2:
        return []
    details = _details(np.stack([images[name] for name in names])).reshape(len(names), -1)
    details -= details.mean(axis=1, keepdims=True)
    details /= np.linalg.norm(details, axis=1, keepdims=True)
    pairs: list[NDArray[np.intp]] = []
    for start in range(0, len(names), _BLOCK):
        alike = np.abs(details[start : start + _BLOCK] @ details[start:].T) >= ALIKE
        one, other = np.nonzero(np.triu(alike, 1))
        nth = np.arange(len(one)) - np.searchsorted(one, one)  # of this image's others
        pairs.append(np.stack((one, other))[:, nth < _MOST] + start)
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(names), len(names)))
    _, which = connected_components(graph, directed=False)
    return _several(names, which)


def _several(names: Sequence[str], which: NDArray[np.int32]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name, group in zip(names, which.tolist(), strict=True):
        found.setdefault(group, []).append(name)
    return [group for group in found.values() if len(group) > 1]


def _details(tiny: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copies [k, n, n] less their means over 5 x 5 neighbours: what is left when a chest is a chest."""
    from scipy.ndimage import uniform_filter

    smooth = uniform_filter(tiny, size=(1, 5, 5), mode="nearest")
    return np.asarray(tiny - smooth, np.float32)
