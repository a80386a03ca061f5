"""Models that were never trained, and predictions with them."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client import ensemble
from client.predict import predict
from client.results import Counts
from client.study_results import Wanted
from common import params
from common.models import build_model
from common.randomness import seeded
from common.study import Study
from server.model_card import save_model

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
UNET: dict[str, Any] = {
    "study": {"task": "segmentation", "classes": ["lesion"]},
    "model": {"name": "unet", "image_size": [32, 32], "head": "dense", "base_channels": 2},
}
RETINA: dict[str, Any] = {
    "study": {"task": "detection", "classes": ["lesion", "other"]},
    "model": {"name": "retinanet", "image_size": [64, 64], "head": "dense"},
}
FASTER: dict[str, Any] = {"study": RETINA["study"], "model": {**RETINA["model"], "name": "fasterrcnn"}}


def saved(folder: Path, study: Study, *, seed: int = 1) -> Path:
    """A model that was never trained."""
    folder.mkdir(parents=True)
    with seeded(seed, "test"):
        network = build_model(study)
    if study.model.name == "scatter":  # an untrained head is 0: it would answer alike whatever the features are
        with torch.no_grad(), seeded(seed, "test"):
            network.get_parameter("head.weight").normal_(std=0.02)
    if study.model.name == "retinanet":  # an untrained detector proposes nothing
        with torch.no_grad():
            bias: Any = network.get_parameter("head.classification_head.cls_logits.bias")
            bias.fill_(-1.0)
    elif study.model.name == "fasterrcnn":  # and one's proposals and scores are all alike
        spread = {"rpn.head.cls_logits": 0.1, "rpn.head.bbox_pred": 0.1}
        spread |= {"roi_heads.box_predictor.cls_score": 0.5, "roi_heads.box_predictor.bbox_pred": 0.1}
        with torch.no_grad(), seeded(seed, "test"):
            for name, std in spread.items():
                network.get_parameter(f"{name}.weight").normal_(std=std)
    elif study.study.task == "segmentation":  # half of the pixels, of any image like noise
        with torch.no_grad():
            noise = torch.from_numpy(np.random.default_rng(0).random((1, 1, *study.model.image_size), np.float32))
            logits = network((noise - 0.5) / 0.25)[0]
            network.get_parameter("head.bias").sub_(logits.flatten(1).median(dim=1).values)
    shapes = params.shapes(network, trainable=False)
    vector = params.vector_of(network, trainable=False)
    save_model(folder, study, run="r", shapes=shapes, weights=vector, validation={})
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(
    models: list[Path], data: Path, out: Path, *, rule: ensemble.Rule = "mean", window: bool = False, **wanted: Any
) -> Counts:
    return predict(models, data, out, now=NOW, rule=rule, window=window, wanted=Wanted(**wanted))
