"""The model under attack: mislabelled patients in the real study, and an outsider who can ask the final model.

A mislabelled patient is learnt by heart if anybody is: with him the model answers his wrong annotation with a lower
loss than without. Nothing but the model is looked at, as whoever downloads it could; so this says what such an outsider
achieves, and never that nobody could achieve more.
"""

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import cache as caches
from client import index
from client.dataset import Images
from client.records import Row
from client.site import open_site
from client.train import predicted
from common.annotation import Annotation
from common.errors import DataError
from common.study import Study
from common.tasks import task_of
from simulations import training
from simulations.faults import Faults
from simulations.judge import load_model, pool_of
from simulations.membership.bounds import LEVEL, one_run
from simulations.partition import parse_partition
from simulations.sites import Federation, Say, prepare

CANARIES = 50
FEWEST = 10  # canaries below which nothing could be proved
SHARES = (1.0, 0.5, 0.2)  # of the canaries that are guessed at: the surest ones
UNPROTECTED_DELTA = 1e-5  # for a study without [privacy], to have a figure beside others


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How well the surest guesses did, and what that proves."""

    guesses: int
    correct: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an outsider with the final model achieves. `epsilon`: at least so much is lost, 95 % sure; 0: not shown."""

    canaries: int
    present: int
    patients: int
    sites: int
    delta: float
    guesses: tuple[Guesses, ...]

    @property
    def epsilon(self) -> float:
        """The best of the bounds, each of which took its part of the 5 %."""
        return max(one.epsilon for one in self.guesses)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "guesses": [asdict(one) for one in self.guesses], "epsilon": self.epsilon}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Patient:
    """A training patient at a site."""

    folder: Path
    rows: tuple[Row, ...]


def attack(
    study: Study, *, data: str, sites: int, folder: Path, pretrained: Path | None, say: Say, watch: training.Watch
) -> Found:
    """Train the study once, with canaries that secret fair coins leave in or take out, and guess at the coins.

    Leaves sites and model in `folder`. Raises DataError where there are too few training patients, and what a training
    raises.
    """
    federation = prepare(
        study,
        source_study=study,
        data=data,
        partition=parse_partition("uniform"),
        sites=sites,
        shared=folder / "data",
        folder=folder / "sites",
        say=say,
        quiet=True,
    )
    patients = _training_patients(study, federation)
    count = min(CANARIES, len(patients) // 2)
    if count < FEWEST:
        raise DataError(f"--data {data}: {len(patients)} training patients; an audit needs at least {2 * FEWEST}")
    source = random.SystemRandom()
    canaries = [
        replace(patients[name], rows=mislabelled(study, name, patients, source))
        for name in source.sample(sorted(patients), count)
    ]
    present = np.array([secrets.randbits(1) for _ in canaries], np.bool_)
    _place(federation, canaries, present)
    task = training.Task(
        name="model",
        study=study.canonical,
        folders=federation.folders,
        out=folder,
        faults=Faults(scripted={}),
        pretrained=pretrained,
        nominal=federation.nominal,
        credentials=federation.credentials,
    )
    training.execute(task, watch)
    delta = UNPROTECTED_DELTA if study.privacy is None else study.privacy.delta
    scores = scores_of(
        study, folder, [canary.rows for canary in canaries], cache=open_site(federation.folders[0]).cache
    )
    return Found(
        canaries=count,
        present=int(present.sum()),
        patients=len(patients) - int((~present).sum()),
        sites=sites,
        delta=delta,
        guesses=guesses_of(scores, present, delta=delta),
    )


def _training_patients(study: Study, federation: Federation) -> dict[str, _Patient]:
    """By name; the same name at two sites would be two patients, which a partition never makes."""
    found: dict[str, _Patient] = {}
    for folder in federation.folders:
        rows: dict[str, list[Row]] = {}
        for row in pool_of(study, folder, "train").rows:
            rows.setdefault(row.patient, []).append(row)
        found |= {name: _Patient(folder=folder, rows=tuple(own)) for name, own in rows.items()}
    return found


def mislabelled(study: Study, name: str, patients: Mapping[str, _Patient], source: random.Random) -> tuple[Row, ...]:
    """The patient's images with a class that is not theirs; or with mask and boxes of another patient, of one who shows
    other classes, or none, if there is one.
    """
    task, own = task_of(study), patients[name].rows

    def shown(rows: Sequence[Row]) -> frozenset[int]:
        return task.present(task.truth(rows[0].annotation))

    if study.study.task == "classification":
        wrong = [other for position, other in enumerate(study.study.classes) if position not in shown(own)]
        label = source.choice(wrong)
        return tuple(replace(row, annotation=replace(row.annotation, label=label)) for row in own)
    others = {other: patient.rows for other, patient in sorted(patients.items()) if other != name}
    unlike = [rows for rows in others.values() if shown(rows) != shown(own)]
    donor = source.choice(unlike or list(others.values()))[0]
    return tuple(replace(row, annotation=fitted(donor, row)) for row in own)


def fitted(donor: Row, row: Row) -> Annotation:
    """The donor's annotation, stretched to the row's image."""
    known, (down, across) = donor.annotation, (row.height / donor.height, row.width / donor.width)
    mask, boxes = known.mask, known.boxes
    if mask is not None:
        rows = (np.arange(row.height) / down).astype(np.intp)
        columns = (np.arange(row.width) / across).astype(np.intp)
        mask = mask[np.ix_(rows, columns)]
    if boxes is not None:
        boxes = tuple(
            replace(box, x1=box.x1 * across, y1=box.y1 * down, x2=box.x2 * across, y2=box.y2 * down) for box in boxes
        )
    return replace(known, mask=mask, boxes=boxes)


def _place(federation: Federation, canaries: Sequence[_Patient], present: NDArray[np.bool_]) -> None:
    """Write the sites' indexes again: canaries that are in with their wrong annotations, the others not at all."""
    new = {row.image: row for canary in canaries for row in canary.rows}
    gone = {row.image for canary, stays in zip(canaries, present, strict=True) if not stays for row in canary.rows}
    for folder in federation.folders:
        rows = [new.get(row.image, row) for row in index.read(folder) if row.image not in gone]
        index.write(folder, rows, [])


def scores_of(study: Study, folder: Path, canaries: Sequence[Sequence[Row]], *, cache: Path) -> NDArray[np.float64]:
    """Of each canary the mean loss of his images under the final model, negative: high for who was learnt."""
    task, model = task_of(study), load_model(study, folder)
    rows = tuple(row for canary in canaries for row in canary)
    images = Images(
        study=study,
        rows=rows,
        truths=tuple(task.truth(row.annotation) for row in rows),
        cache=caches.open_cache(cache, study),
    )
    losses = np.array([loss for _, batch, _ in predicted(model, images, study) for loss in batch])
    owner = np.repeat(np.arange(len(canaries)), [len(canary) for canary in canaries])
    return -np.bincount(owner, weights=losses) / np.bincount(owner)


def guesses_of(scores: NDArray[np.float64], present: NDArray[np.bool_], *, delta: float) -> tuple[Guesses, ...]:
    """The highest scores are guessed to be in, as many of the lowest out; so for each of SHARES, fixed beforehand."""
    order, found = np.argsort(scores, kind="stable"), []
    for share in SHARES:
        half = max(1, int(share * len(scores) / 2))
        correct = int((~present[order[:half]]).sum() + present[order[-half:]].sum())
        epsilon = one_run(
            canaries=len(scores), guesses=2 * half, correct=correct, delta=delta, level=LEVEL / len(SHARES)
        )
        found.append(Guesses(guesses=2 * half, correct=correct, epsilon=epsilon))
    return tuple(found)
