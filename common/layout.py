"""The public layout of the one vector that a site sends: what stands where follows from the study alone."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from common import guarantee, params
from common.errors import DataError
from common.kinds import Answering
from common.metrics import Sums
from common.models import build_model
from common.study import Study
from common.tasks import task_of

Pool = Literal["train", "validation", "test"]
LARGEST = 2.0**26  # of one value in an answer; more is training gone astray, and could not be added up
POOLS: dict[str, tuple[Pool, ...]] = {"count": (), "update": ("validation",), "evaluate": ("validation", "test")}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tensors first, then the site's weight, then metric sums; each part a tuple of (name, shape).

    An `update` carries weight x (local weights - order's weights), the weight, and validation sums of the order's
    weights.
    An `evaluate` answer carries validation and test sums alone.
    Under `[privacy]` an update carries public weight x noised update and nothing else, an `evaluate` answer one noised
    release of metrics (`common.tasks.release`), if the study has any, and a `count` answer one noised histogram of
    classes (`common.tasks.counts`), if the study has that.
    """

    tensors: params.Shapes
    sums: params.Shapes  # "weight" first in an update; then "POOL/NAME"

    @property
    def tensor_length(self) -> int:
        return params.length(self.tensors)

    @property
    def length(self) -> int:
        return self.tensor_length + params.length(self.sums)

    @property
    def sha256(self) -> str:
        """Hex digest of names, shapes and order: part of what an order binds."""
        return hashlib.sha256(json.dumps([self.tensors, self.sums]).encode()).hexdigest()

    def pack(self, tensors: NDArray[np.float32], sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        """The flat vector. Raises ValueError or KeyError when a part is missing or has another size, DataError when a
        value is too large to be added up.
        """
        parts = [np.asarray(sums[name], np.float32).reshape(shape).ravel() for name, shape in self.sums]
        vector = np.concatenate([np.asarray(tensors, np.float32).ravel(), *parts])
        if vector.shape != (self.length,) or set(sums) != {name for name, _ in self.sums}:
            raise ValueError(f"{vector.size} values for a layout of {self.length}")
        if not np.abs(vector).max(initial=0.0) < LARGEST:
            raise DataError(
                f"a value of {np.abs(vector).max():.3g}: training has diverged; lower training.learning_rate"
            )
        return vector

    def unpack_sums(self, tail: NDArray[np.float64]) -> Sums:
        """Named sums from the vector's part behind the tensors."""
        return params.split(tail, self.sums)


def metric_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """The sums of one pool: loss and images beside the task's own."""
    return {"loss": (), "images": (), **task_of(study).sums_layout()}


@lru_cache(maxsize=8)
def layout_of(study: Study, kind: Answering) -> Layout:
    """The layout of an answer of this kind, the same at every party that has the study. Allocates no weights."""
    with torch.device("meta"):
        tensors = params.shapes(build_model(study), trainable=True) if kind == "update" else ()
    if study.privacy is not None:
        sums: params.Shapes = ()
        if kind == "evaluate" and study.privacy.evaluation is not None:
            sums = guarantee.metrics_of(study).layout
        if kind == "count" and guarantee.counts(study):
            sums = guarantee.counts_of(study).layout
        return Layout(tensors=tensors, sums=sums)
    weight: params.Shapes = (("weight", ()),) if kind == "update" else ()
    named = tuple((f"{pool}/{name}", shape) for pool in POOLS[kind] for name, shape in metric_shapes(study).items())
    return Layout(tensors=tensors, sums=weight + named)
