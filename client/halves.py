"""The two halves of a site's secrets: the worker's and the SuperNode's, and whether anybody else can read them."""

import stat
from collections.abc import Iterable
from pathlib import Path

Closed = tuple[Path, int]  # a file, and the bits of its mode that must not be set


def of_worker(site: Path) -> list[Closed]:
    """All of SITE/keys."""
    return [(path, 0o077) for path in sorted((site / "keys").iterdir())]


def of_supernode(site: Path) -> list[Closed]:
    """The secrets of SITE/supernode. The one that both halves hold may be a group's."""
    folder = site / "supernode"
    return [(folder / "node.key", 0o077), (folder / "runtime.key", 0o077), (folder / "executor.secret", 0o007)]


def open_to_others(files: Iterable[Closed]) -> list[Path]:
    """Those that somebody else may read; a file that is missing is for others to say."""
    return [path for path, closed in files if path.exists() and stat.S_IMODE(path.stat().st_mode) & closed]
