"""The final model as two files: weights that any safetensors reader opens, and a card that says what they are."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import params
from common.study import Study
from server.checkpoint import write_atomically


def architecture_hash(shapes: params.Shapes) -> str:
    """Hex digest of parameter names and shapes: equal where weights fit."""
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def save_model(
    out: Path,
    study: Study,
    *,
    run: str,
    shapes: params.Shapes,
    weights: NDArray[np.float32],
    validation: dict[str, Any],
) -> None:
    """Write OUT/model.safetensors and OUT/model.json, each atomically, the card last."""
    data = params.to_bytes(shapes, weights, metadata={"study": study.canonical, "study_hash": study.sha256, "run": run})
    write_atomically(out / "model.safetensors", [data])
    card = {
        "schema": 1,
        "study": study.model_dump(mode="json", by_alias=True),
        "study_hash": study.sha256,
        "run": run,
        "fedward": version("fedward"),
        "architecture_hash": architecture_hash(shapes),
        "parameters": int(weights.size),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "task": study.study.task,
        "classes": list(study.study.classes),
        "validation": validation,
        "intended_use": "research; not a medical device; check it on your own patients before any decision rests on it",
    }
    write_atomically(out / "model.json", [json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False).encode()])
