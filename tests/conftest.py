"""Fixtures that tests of several rooms share."""

import os
import signal
from pathlib import Path

import pytest
from small import write_site

# Processes that run tests side by side ignore Ctrl-C, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def site_folders(tmp_path: Path) -> list[Path]:
    """Three sites of unequal size."""
    sizes = (24, 40, 16)
    return [write_site(tmp_path / f"site-{k}", images=size, seed=k) for k, size in enumerate(sizes)]


@pytest.fixture
def real_data() -> Path:
    """The folder of real images that FEDWARD_DATA names."""
    folder = os.environ.get("FEDWARD_DATA")
    if not folder:
        pytest.skip("FEDWARD_DATA is not set: the tests on real images need it")
    return Path(folder)
