"""Site folders of random images, and studies over them, that several benchmarks measure with."""

from pathlib import Path
from typing import Any

import numpy as np

from client import index
from common.study import Study, parse
from simulations.sites import write_site

KEY = bytes(32)


def study(*, side: int, **sections: dict[str, Any]) -> Study:
    """A classification study at `side` x `side` pixels with some keys changed."""
    values: dict[str, Any] = {
        "study": {
            "schema": 1,
            "name": "benchmark",
            "task": "classification",
            "classes": ["no", "yes"],
            "rounds": 3,
            "min_sites": 1,
        },
        "model": {"name": "cnn", "image_size": [side, side]},
        "training": {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.01},
    }
    for section, changes in sections.items():
        values.setdefault(section, {}).update(changes)
    return parse(values, where="benchmark")


def site_folders(folder: Path, *, sites: int, images: int, side: int) -> list[Path]:
    """`sites` site folders with `images` random images each, all in one shared cache."""
    rng = np.random.default_rng(0)
    total = sites * images
    arrays: dict[str, Any] = {
        "train_images": rng.integers(0, 256, (total, side, side), dtype=np.uint8),
        "train_labels": (np.arange(total) % 2)[:, None].astype(np.uint8),
    }
    for split in ("val", "test"):
        arrays |= {f"{split}_images": arrays["train_images"][:0], f"{split}_labels": arrays["train_labels"][:0]}
    source = folder / "random.npz"
    np.savez(source, **arrays)
    master = write_site(folder / "all", rows=[], cache=folder / "cache", key=KEY)
    index.build("medmnist", source, master, patient_key=KEY)
    rows = index.read(master)
    return [
        write_site(folder / f"site-{k}", rows=rows[k::sites], cache=folder / "cache", key=KEY) for k in range(sites)
    ]
