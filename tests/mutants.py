"""Planted faults: whether the tests notice when one piece of a module's text is another."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("client", "common", "server", "simulations")


def survives(file: str, old: str, new: str, tests: Sequence[str], *, rooms: Sequence[str] = ROOMS) -> bool:
    """Whether all `tests` (arguments of pytest, paths from the root) pass although `old` in `file` became `new`.

    Everything happens in a copy of `rooms`, the tests and pyproject.toml, which comes first on the path. Slow and
    statistical tests are left out, and hypothesis draws the same examples each time.

    Raises ValueError unless `old` is in the file exactly once, RuntimeError when the tests could not be run at all (a
    fault that breaks the import is no fault to look for) or pytest ran none.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for room in (*rooms, "tests"):
            shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        text = (copy / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file}: {text.count(old)} places hold {old!r}, not one")
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests],
            cwd=copy,
            env={**os.environ, **threads, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{file}, {new!r}: the tests can't run:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
    return run.returncode == 0
