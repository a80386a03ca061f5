"""What a killed server continues from: one self-describing .safetensors file per closed round, written atomically."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import RunError
from server.aggregate import ServerState

KEEP = 2  # newest checkpoints kept: if the newest is damaged from outside, the one before is still there


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """All state after a closed round. `kept` is the best weights so far, or the mean of the later half's, as the study
    selects; empty until there are any.
    """

    run: str
    study_hash: str
    architecture: str  # digest of the model's parameter names and shapes
    round: int
    state: ServerState
    weights: NDArray[np.float32]  # all parameters, frozen ones included
    kept: NDArray[np.float32]
    kept_score: float | None  # of the best weights on validation
    prior: tuple[float, ...] = ()  # each class's share, where the study has it released; round 0 is its checkpoint


def write_atomically(path: Path, parts: Iterable[bytes]) -> None:
    """A file that is either whole under its name or not there. Raises RunError (disk full, no permission); `path` is
    then as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path}: can't be written ({error.strerror}); free space or choose another --out") from error


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of its round and remove those older than the newest `KEEP`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        "weights": checkpoint.weights,
        "trained": checkpoint.state.weights,
        "momentum": checkpoint.state.momentum,
        "second_moment": checkpoint.state.second_moment,
        "kept": checkpoint.kept,
    }
    metadata = {
        "format": "fedward-checkpoint-1",
        "run": checkpoint.run,
        "study_hash": checkpoint.study_hash,
        "architecture": checkpoint.architecture,
        "round": str(checkpoint.round),
        "kept_score": json.dumps(checkpoint.kept_score),
        "prior": json.dumps(checkpoint.prior),
    }
    write_atomically(folder / f"round-{checkpoint.round:06d}.safetensors", [save(arrays, metadata)])
    for old in _all(folder)[:-KEEP]:
        old.unlink(missing_ok=True)


def newest(folder: Path, *, study_hash: str, architecture: str) -> Checkpoint | None:
    """The newest whole checkpoint, or None where none was ever written.

    Raises RunError when there are checkpoints and none is whole, or when they belong to another study or architecture.
    """
    paths = _all(folder)
    for path in reversed(paths):
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            checkpoint = Checkpoint(
                run=metadata["run"],
                study_hash=metadata["study_hash"],
                architecture=metadata["architecture"],
                round=int(metadata["round"]),
                state=ServerState(
                    weights=arrays["trained"], momentum=arrays["momentum"], second_moment=arrays["second_moment"]
                ),
                weights=arrays["weights"],
                kept=arrays["kept"],
                kept_score=json.loads(metadata["kept_score"]),
                prior=tuple(json.loads(metadata.get("prior", "[]"))),  # a release from before didn't write it
            )
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
        if checkpoint.study_hash != study_hash:
            raise RunError(
                f"{path}: belongs to another study; resume with the study it was started with, or choose a new --out"
            )
        if checkpoint.architecture != architecture:
            raise RunError(
                f"{path}: was made by another architecture of the same study; install the release that wrote it"
            )
        return checkpoint
    if paths:
        raise RunError(f"{paths[-1]}: damaged, and so are all before it; start again with a new --out")
    return None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))
