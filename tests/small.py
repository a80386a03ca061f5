"""Small studies and site folders that many tests build on."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client import cohort, index
from client.site import site_toml
from common.study import Study, parse

torch.set_num_threads(1)

SIDE = 20  # pixels: the smallest round number that the cnn's three valid convolutions leave something of
KEY = bytes(range(32))


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond `limit` bytes: the kernel cuts writes short as a full disk does.

    Never around a whole test, as a fixture would be: where the tests' own output goes to a file, it is limited too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def study_values() -> dict[str, Any]:
    """A study that trains in a blink."""
    return {
        "study": {
            "schema": 1,
            "name": "tiny",
            "task": "classification",
            "classes": ["dark", "bright"],
            "rounds": 2,
            "min_sites": 2,
            "seed": 3,
        },
        "model": {"name": "cnn", "image_size": [SIDE, SIDE], "head": "gap"},
        "training": {"local_epochs": 1, "batch_size": 8, "learning_rate": 0.05},
    }


def tiny_study(**sections: dict[str, Any]) -> Study:
    """The tiny study with some keys changed: tiny_study(study={"rounds": 3})."""
    values = study_values()
    for section, changes in sections.items():
        values.setdefault(section, {}).update(changes)
    return parse(values, where="test")


def private_values() -> dict[str, Any]:
    """The tiny study under differential privacy: two rounds and a spare one, of one noised step each."""
    values = study_values()
    values["training"] = {"local_steps": 1, "learning_rate": 0.05, "momentum": 0.0}
    values["privacy"] = {"epsilon": 8.0, "delta": 1e-5, "images_per_patient": 1}
    return values


def private_study(**sections: dict[str, Any]) -> Study:
    """The tiny private study with some keys changed."""
    values = private_values()
    for section, changes in sections.items():
        values.setdefault(section, {}).update(changes)
    return parse(values, where="test")


def protect(folder: Path, *, nominal_patients: int = 20, epsilon: float = 12.0, delta: float = 1e-5) -> Path:
    """Give a site a privacy ledger."""
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    cohort.found(folder, epsilon=epsilon, delta=delta, nominal_patients=nominal_patients, shares=shares)
    return folder


def write_npz(path: Path, *, images: int, seed: int, official: bool = False) -> Path:
    """A MedMNIST file of noise whose brightness is its class."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, share in (("train", images), ("val", images // 4), ("test", images // 4)):
        count = share if official or split == "train" else 0
        labels = np.arange(count) % 2
        noise = rng.integers(0, 120, (count, SIDE, SIDE))
        arrays[f"{split}_images"] = (noise + 100 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(path, **arrays)
    return path


def write_site(folder: Path, *, images: int, seed: int) -> Path:
    """A site folder named as the folder is, with this many images (and patients)."""
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "patient.key").write_bytes(KEY)
    (folder / "keys" / "patient.key").chmod(0o600)
    (folder / "site.toml").write_text(site_toml(folder.name, simulated=True), encoding="utf-8")
    source = write_npz(folder.parent / f"{folder.name}.npz", images=images, seed=seed)
    index.build("medmnist", source, folder, patient_key=KEY)
    return folder


def toml_of(study: Study) -> str:
    """The study as a file."""
    lines = []
    for table, keys in study.model_dump(mode="json", by_alias=True).items():
        if isinstance(keys, dict):
            lines += [f"[{table}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    return "\n".join(lines) + "\n"
