"""Public pre-training: weights made from images that nobody needs to protect, for a study to start from.

Under differential privacy a network that already sees edges and shapes needs few steps, and one whose last layer alone
is trained needs little signal: that is where public images pay.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client import index
from client.dataset import Images, open_dataset
from client.records import Row
from client.train import device, local_train
from common import params
from common.errors import StudyError
from common.layout import Pool
from common.models import build_model, head_names
from common.parts import Freeze
from common.randomness import seeded
from common.study import Study, parse
from server.checkpoint import write_atomically
from simulations.datasets import parse_spec
from simulations.datasets.phantom import LABELS
from simulations.judge import judge
from simulations.sites import master, usable

Say = Callable[[str], None]
IMAGES_PER_PATIENT = 2.5  # of the phantom, on average
HELD_OUT = 0.1  # of the patients, on whom `metrics` are measured
# Ordinary training, whatever the study does: (learning rate, batch size) of AdamW with half a cosine.
RECIPES = {"classification": (1e-3, 16), "segmentation": (2e-3, 8), "detection": (4e-4, 4)}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A file of weights, and what a study has to say to start from it."""

    path: Path
    sha256: str
    parameters: int  # values in the file
    freeze: Freeze  # what a study of few patients leaves as it is: it trains norms and last layer, about 1,000 values
    whole: bool  # the last layer is in the file too: the public images have the study's own classes
    classes: tuple[str, ...]  # that the weights were made for
    images: int  # trained on
    metrics: Mapping[str, Any]  # of held-out public images; {} where there are none

    @property
    def lines(self) -> str:
        """TOML for the study's `[model]`."""
        return (
            f'pretrained_sha256 = "{self.sha256}"\n'
            f'freeze = "{self.freeze}"         # "all_but_head" trains less; "backbone" and "none" more\n'
        )


def pretrain(
    study: Study, *, images: int, epochs: int, out: Path, seed: int, data: str = "phantom", say: Say = lambda _: None
) -> Pretrained:
    """Train the study's network on public images and write it to `out`, a .safetensors file for `--pretrained`.

    `data` is a data SPEC: the phantom, which is made up, or a public set. The classes are those of the data; where they
    are not the study's, the last layer is left out of the file and starts afresh in the study. At most `images` of
    nine tenths of the patients are trained on.

    Guarantees: reads no other images; equal arguments give equal bytes on one CPU with equal threads.
    Raises StudyError for a model that has nothing to pre-train and for numbers that are not positive; DataError for
    data that can't be used.
    """
    if study.model.name == "scatter":
        raise StudyError("model.name = 'scatter' has fixed features: there is nothing to pre-train")
    if min(images, epochs) < 1:
        raise StudyError(f"{images} images, {epochs} epochs: pre-training needs at least one of each")
    if parse_spec(data).kind == "phantom":
        data = f"phantom:{math.ceil(max(images, 10) / IMAGES_PER_PATIENT / (1 - HELD_OUT))}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pretraining-") as folder:
        public, pools = _public(study, data, Path(folder) / "public", epochs=epochs, seed=seed, say=say)
        train = replace(pools["train"], rows=pools["train"].rows[:images], truths=pools["train"].truths[:images])
        with seeded(seed, "initialisation"):
            model = build_model(public).to(device())
        for epoch in range(1, epochs + 1):
            local_train(model, train, public, site="pre-training", round=epoch)
            say(f"pass {epoch} of {epochs}")
        metrics = judge(public, model, pools["test"]).metrics
    whole = public.study.classes == study.study.classes
    values, sha256 = _write(model, out, data=data, public=public, whole=whole)
    return Pretrained(
        path=out,
        sha256=sha256,
        parameters=values,
        freeze="all_but_norms" if public.model.norm == "group" else "all_but_head",
        whole=whole,
        classes=public.study.classes,
        images=len(train),
        metrics=metrics,
    )


def _public(
    study: Study, data: str, folder: Path, *, epochs: int, seed: int, say: Say
) -> tuple[Study, Mapping[Pool, Images]]:
    """The study as it is for the public images, and those images."""
    values = study.model_dump(mode="json", by_alias=True)
    rate, batch = RECIPES[study.study.task]
    public: dict[str, Any] = {
        "study": {
            **{key: values["study"][key] for key in ("schema", "name", "task", "classes")},
            "rounds": epochs,
            "split": [1 - HELD_OUT, 0.0, HELD_OUT],
            "seed": seed,
        },
        "model": {**values["model"], "pretrained_sha256": "", "freeze": "none"},
        "preprocessing": values["preprocessing"],
        "training": {
            "local_epochs": 1,
            "batch_size": batch,
            "optimizer": "adamw",
            "learning_rate": rate,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "augmentation": "standard",
            "class_balance": "weighted" if study.study.task == "classification" else "none",
        },
    }
    source = master(parse(public, where="pre-training"), data=data, folder=folder, say=say, quiet=True)
    found = _classes(study, index.read(source.folder), phantom=parse_spec(data).kind == "phantom")
    public["study"]["classes"] = list(study.study.classes if set(found) <= set(study.study.classes) else found)
    made = parse(public, where="pre-training")
    usable(source, made)
    return made, open_dataset(source, made).pools


def _classes(study: Study, rows: Sequence[Row], *, phantom: bool) -> tuple[str, ...]:
    """The classes that public images are annotated with."""
    task, known = study.study.task, [row.annotation for row in rows]
    if task == "classification":
        return LABELS if phantom else tuple(sorted({one.label for one in known if one.label is not None}))
    if phantom:
        return LABELS[1:]
    outlined = tuple(sorted({name for one in known for name in one.mask_names or ()})) or ("object",)
    boxed = tuple(sorted({box.name for one in known for box in one.boxes or ()}))
    return boxed if task == "detection" and boxed else outlined


def _write(model: nn.Module, out: Path, *, data: str, public: Study, whole: bool) -> tuple[int, str]:
    """The weights as a file; how many, and its SHA-256."""
    left_out = set() if whole else set(head_names(model))
    kept = {name: parameter for name, parameter in model.named_parameters() if name not in left_out}
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in kept.items())
    about = {"data": data, "classes": public.study.classes, "epochs": public.study.rounds, "seed": public.study.seed}
    # One entry: several would come in any order, and the file's hash is its name.
    text = json.dumps({**about, "torch": str(torch.__version__)}, sort_keys=True)
    file = params.to_bytes(shapes, params.flatten(kept.values()), metadata={"pretraining": text})
    write_atomically(out, [file])
    return params.length(shapes), hashlib.sha256(file).hexdigest()
