"""A site's patients: their images and annotations from the index and the cache, split once and for all, in batches."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client import cache as caches
from client import cohort, index
from client.drops import Drop
from client.preprocess import Geometry, geometry, normalise
from client.records import Row
from client.site import Site, note_error, split_position
from common.errors import DataError
from common.layout import Pool
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch, Objects


@dataclass(frozen=True, kw_only=True)
class Patient:
    """All usable images under one patient identifier at this site: the unit of split, weighting and protection."""

    hash: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Some images with what the task needs of their annotations; `truths` are on the stored image's grid."""

    study: Study
    rows: tuple[Row, ...]
    truths: tuple[Any, ...]
    cache: caches.Cache
    _on_grid: dict[int, Any] = field(default_factory=dict)  # truths on the model's grid, computed once

    def __len__(self) -> int:
        return len(self.rows)

    def geometry(self, position: int) -> Geometry:
        """How the image at this position lies on the model's grid."""
        row = self.rows[position]
        return geometry((row.height, row.width), row.pose, self.study)

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The images at these positions, normalised, on the model's grid [B, C, h, w]."""
        arrays = self.cache.images([self.rows[i].image for i in positions])
        images = torch.from_numpy(normalise(arrays, self.study.preprocessing))
        targets = [self._target(int(i)) for i in positions]
        match self.study.study.task:
            case "classification":
                return Batch(images=images, labels=torch.tensor(targets, dtype=torch.int64))
            case "segmentation":
                return Batch(images=images, masks=torch.from_numpy(np.stack(targets)))
            case "detection":
                return Batch(images=images, objects=tuple(targets))

    def _target(self, position: int) -> Any:
        if position not in self._on_grid:
            truth = self.truths[position]
            if self.study.study.task == "segmentation":
                truth = self.geometry(position).mask_to_model(truth)
            elif self.study.study.task == "detection":
                truth = Objects(boxes=self.geometry(position).boxes_to_model(truth.boxes), classes=truth.classes)
            self._on_grid[position] = truth
        return self._on_grid[position]

    def restored(self, position: int, prediction: Any) -> Any:
        """A prediction on the model's grid as one on the stored image's grid: masks bool [K, H, W], boxes in its
        pixels.
        """
        match self.study.study.task:
            case "classification":
                return prediction
            case "segmentation":
                return self.geometry(position).maps_to_stored(prediction) >= 0.5
            case "detection":
                return replace(prediction, boxes=self.geometry(position).boxes_to_stored(prediction.boxes))

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Each image's class: the rarest, among these images, of those present in it; -1 where none is."""
        task = task_of(self.study)
        present = [task.present(truth) for truth in self.truths]
        frequency = Counter(name for names in present for name in names)
        return np.array([min(names, key=lambda n: (frequency[n], n), default=-1) for names in present], np.int64)

    @cached_property
    def balance(self) -> NDArray[np.float64]:
        """Weight of each image such that all classes that occur weigh the same; mean 1. Empty where there are no
        images.
        """
        if not len(self):
            return np.zeros(0)
        _, inverse, counts = np.unique(self.classes, return_inverse=True, return_counts=True)
        return np.asarray(len(self) / (counts.size * counts[inverse]), np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A site's usable images by pool, and what could not be used.

    Guarantees: a patient is in one pool only and stays there as others come and go (keyed hash), unless the public set
    came with an official split, which is kept; `unusable` counts every image of the index that is in no pool.
    """

    pools: dict[Pool, Images]
    patients: dict[Pool, int]
    unusable: dict[str, int]
    whole: bool = True  # False: images that can't be had now are left out, and should be looked for again


def open_dataset(site: Site, study: Study) -> Dataset:
    """The site's patients for this study. Preprocesses what the cache lacks; images that can't be decoded are moved to
    the index's dropped list, unless none can. Raises DataError then, and when the index or cache can't be used.
    Guarantees: no image flagged for text in its pixels is used where the policy drops those, however old the index is.
    Under [privacy] no patient's images decide about another's: what can't be had is left out, image by image, and the
    index stays as it is.
    """
    rows = index.read(site.folder)
    indexed = len(rows)
    if site.policy.drop_burned_in:
        rows = [row for row in rows if not row.burned_in]
    unusable: Counter[str] = Counter({Drop.BURNED_IN: indexed - len(rows)} if len(rows) < indexed else {})
    task, cache = task_of(study), caches.open_cache(site.cache, study)
    alone = study.privacy is not None
    undecodable = cache.ensure(rows, each_alone=alone)
    if undecodable and not alone:
        if len(undecodable) == len(rows):  # an archive that is empty for a while is no reason to forget its images
            raise DataError(
                f"{len(undecodable)} of {len(rows)} images can't be read: are they where they were? The index was left"
                " as it is; `client index` makes it anew"
            )
        index.remove(site.folder, undecodable)
    elif undecodable:
        text = f"{len(undecodable)} of {len(rows)} images can't be had: is their folder there, and room for the cache?"
        note_error(site, "images", DataError(text))
    rows = [row for row in rows if row.image not in undecodable]
    unusable.update(str(reason) for reason in undecodable.values())
    pools: dict[Pool, list[tuple[Row, Any]]] = {"train": [], "validation": [], "test": []}
    shares = _shares(site, study, {row.official for row in rows})
    for patient in patients_of(rows):
        pool = _pool(site, patient, shares)
        for row in patient.rows:
            try:
                truth = task.truth(row.annotation)
            except Exception:  # whatever is wrong with one annotation is its own image's matter
                truth = None
            if truth is None:
                unusable["no usable annotation for this task and its classes"] += 1
            else:
                pools[pool].append((row, truth))
    images = {
        pool: Images(
            study=study, rows=tuple(row for row, _ in found), truths=tuple(truth for _, truth in found), cache=cache
        )
        for pool, found in pools.items()
    }
    patients = {pool: len({row.patient for row in found.rows}) for pool, found in images.items()}
    whole = not (alone and undecodable)
    return Dataset(pools=images, patients=patients, unusable=dict(unusable), whole=whole)


def patients_of(rows: Sequence[Row]) -> list[Patient]:
    """The rows by patient, in an order that depends on the hashes alone."""
    grouped: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.patient, row.image)):
        grouped.setdefault(row.patient, []).append(row)
    return [Patient(hash=patient, rows=tuple(found)) for patient, found in grouped.items()]


def _shares(site: Site, study: Study, officials: Collection[str | None]) -> tuple[float, float, float]:
    """Shares of train, validation and test among patients without an official pool.

    Where a ledger exists they are its own, fixed for the life of the cohort: no study and no patient moves them. Else
    they are the study's, as far as the official split leaves them open.
    """
    fixed = cohort.shares_of(site.folder, patient_key=site.patient_key)
    if fixed is not None:
        return fixed["train"], fixed["validation"], fixed["test"]
    train, validation, test = study.study.split
    if any(officials):
        test = 0.0  # the official test images are elsewhere
        validation = 0.0 if "validation" in officials else validation
    return train, validation, test


def _pool(site: Site, patient: Patient, shares: tuple[float, float, float]) -> Pool:
    """Official where there is one; else by keyed hash."""
    for official in ("test", "validation"):  # a patient in two official parts is held out
        if any(row.official == official for row in patient.rows):
            return "test" if official == "test" else "validation"
    train, validation, test = shares
    position = split_position(site, patient.hash) * (train + validation + test)
    if position < train:
        return "train"
    return "validation" if position < train + validation else "test"


def fingerprint(site: Site) -> tuple[int, int, bool]:
    """Changes when the site's usable images do: the index's modification time in nanoseconds, its size in bytes, and
    whether the policy leaves some of it out.
    """
    status = (site.folder / "index.sqlite").stat()
    return status.st_mtime_ns, status.st_size, site.policy.drop_burned_in


def batches(
    images: Images, *, size: int, steps: int | None, epochs: int | None, sampler: bool, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Positions of each step's images: whole passes in a fresh order each (the last batch of a pass may be smaller),
    or a
    number of steps over as many passes as that takes. With `sampler`, images are drawn by class balance, with
    replacement.
    """
    if not len(images):
        return
    done = 0
    probabilities = images.balance / images.balance.sum()
    for _ in range(epochs if epochs is not None else (steps or 0)):
        order = rng.choice(len(images), len(images), p=probabilities) if sampler else rng.permutation(len(images))
        for start in range(0, len(order), size):
            if steps is not None and done == steps:
                return
            yield order[start : start + size]
            done += 1
