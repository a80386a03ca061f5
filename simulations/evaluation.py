"""An existing model on other data: all usable images, whatever split they come with."""

import json
from pathlib import Path
from typing import Any

import torch

from common.model_files import study_of
from server.checkpoint import write_atomically
from simulations.judge import everything, judge, load_model
from simulations.sites import master, usable


def evaluate(model: Path, *, data: str, out: Path, threads: int, quiet: bool) -> dict[str, Any]:
    """Metrics of the model on all usable images of `data`; also written to OUT/evaluation.json.

    Raises DataError or StudyError, one line, where model or data can't be used.
    """
    torch.set_num_threads(threads)
    study = study_of(model)
    network = load_model(study, model)
    folder = out / "data"
    source = master(study, data=data, folder=folder, say=lambda _: None, quiet=quiet)
    rows, unusable = usable(source, study)
    judged = judge(study, network, everything(study, folder))
    result = {
        "schema": 1,
        "study": {"name": study.study.name, "hash": study.sha256},
        "data": data,
        "patients": len({row.patient for row in rows}),
        "images": len(rows),
        "unusable": unusable,
        "metrics": judged.metrics,
    }
    write_atomically(out / "evaluation.json", [json.dumps(result, indent=1, allow_nan=False).encode()])
    return result
