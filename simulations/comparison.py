"""What federating gained: the same work done with all data in one place, and by each site alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.layout import Pool
from common.study import Study, parse
from common.tasks import task_of
from simulations.faults import Faults
from simulations.judge import Judged, difference, everything, judge, load_model, pool_of, together
from simulations.sites import Federation
from simulations.training import Task


def tasks(study: Study, federation: Federation, task: Task) -> dict[str, Task]:
    """Training runs to compare `task`, the federation, with: "pooled", each site's name, and for a private study
    "unprotected", the same federation without privacy.

    Each makes as many passes over its images as the federation's sites made over theirs; where the study counts
    steps, a site alone makes as many as in the federation, and pooled training as many as all sites together. All are
    without privacy: within a hospital, and where the images are shared anyway, nobody needs it.
    """
    images = [count.images for count in federation.counts]
    pooled = _alone(unprotected(study, images=sum(images)), steps=len(federation.folders))
    folder = task.out / "comparison"
    quiet = replace(task, faults=Faults(scripted={}), backend="inprocess", nominal={}, credentials=None)
    runs = {"pooled": replace(quiet, study=pooled.canonical, folders=(federation.pooled,), out=folder / "pooled")}
    enrolled = task.credentials if federation.unprotected == federation.folders else None  # these take signed orders
    for site, count in zip(federation.unprotected, federation.counts, strict=True):
        if count.patients:
            alone = _alone(unprotected(study, images=count.images), steps=1)
            out = folder / f"alone-{site.name}"
            runs[site.name] = replace(quiet, study=alone.canonical, folders=(site,), out=out, credentials=enrolled)
    if study.privacy is not None:
        same = unprotected(study, images=round(sum(images) / len(images)))
        runs[UNPROTECTED] = replace(
            task,
            study=same.canonical,
            folders=federation.unprotected,
            out=folder / UNPROTECTED,
            nominal={},
            credentials=None,
        )
    return {name: replace(run, name=f"{task.name} / {name}") for name, run in runs.items()}


def unprotected(study: Study, *, images: int) -> Study:
    """A private study without its privacy, for a site of this many images: as many steps, on batches as large as the
    draws are on average. Another study as it is.
    """
    if study.privacy is None:
        return study
    values = study.model_dump(mode="json", by_alias=True)
    values["privacy"] = None
    values["training"] |= {
        "class_prior": [],
        "batch_size": max(1, round(study.privacy.sample_rate * study.study.split[0] * images)),
    }
    for key in ("secure", "lanes", "range", "weight_cap"):  # the sum is the same in the clear
        del values["aggregation"][key]
    values["aggregation"] |= {"weights": "images" if study.aggregation.weights == "nominal" else "equal"}
    return parse(values, where="comparison")


def _alone(study: Study, *, steps: int) -> Study:
    """The study for one site: no quorum, plain averaging (of one), `steps` times its local steps."""
    values = study.model_dump(mode="json", by_alias=True)
    values["study"] |= {"min_sites": 1}
    values["aggregation"] = {"algorithm": "fedavg", "weights": "images"}
    if study.training.local_steps is not None:
        values["training"] |= {"local_steps": steps * study.training.local_steps}
    return parse(values, where="comparison")


UNPROTECTED = "unprotected"


class Judges:
    """A study's models on the images that none of them has trained on."""

    def __init__(self, study: Study, federation: Federation) -> None:
        self._study = study
        self._central = everything(study, federation.central) if federation.central else None
        self._folders = federation.folders
        self._own = {folder.name: pool_of(study, folder, self.pool) for folder in federation.folders}
        self._done: dict[Path, tuple[dict[str, Judged], Judged]] = {}

    @property
    def pool(self) -> Pool:
        """Which patients of its own a site is judged on: "test", or "validation" where the official test images are
        elsewhere.
        """
        return "validation" if self._central is not None else "test"

    def of(self, out: Path) -> tuple[dict[str, Judged], Judged]:
        """The model that a run left, on each site's held-out patients and on the common test images."""
        if out not in self._done:
            model = load_model(self._study, out)
            own = {site: judge(self._study, model, images) for site, images in self._own.items()}
            central = judge(self._study, model, self._central) if self._central else together(list(own.values()))
            self._done[out] = own, central
        return self._done[out]

    def validation(self, out: Path) -> dict[str, Any]:
        """Exact metrics of the model that a run left, on all sites' validation patients."""
        if self.pool == "validation":
            return together(list(self.of(out)[0].values())).metrics
        model = load_model(self._study, out)
        images = [pool_of(self._study, folder, "validation") for folder in self._folders]
        return together([judge(self._study, model, one) for one in images]).metrics


def compared(study: Study, judges: Judges, federated: Path, runs: Mapping[str, Task]) -> dict[str, Any]:
    """The `comparison` part of summary.json."""
    headline, seed = task_of(study).headline, study.study.seed
    own, _ = judges.of(federated)
    alone = {name: judges.of(run.out) for name, run in runs.items() if name not in ("pooled", UNPROTECTED)}
    values = [central.headline for _, central in alone.values() if central.headline is not None]
    sites: dict[str, Any] = {}
    for site, judged in own.items():
        row: dict[str, Any] = {
            "patients": len({row.patient for row in judged.images.rows}),
            "alone": None,
            "federated": judged.headline,
            "difference": None,
            "low": None,
            "high": None,
        }
        if site in alone:
            other = alone[site][0][site]
            row["alone"] = other.headline
            if judged.headline is not None and other.headline is not None:
                row["difference"] = judged.headline - other.headline
                interval = difference(judged, other, seed=seed, site=site)
                row["low"], row["high"] = interval or (None, None)
        sites[site] = row
    return {
        "pooled": {"test": judges.of(runs["pooled"].out)[1].metrics},
        "alone": {site: {"test": central.metrics} for site, (_, central) in alone.items()},
        "alone_mean": {"test": {headline: float(np.mean(values)) if values else None}},
        "gain": {"headline": headline, "on": judges.pool, "sites": sites},
        **({UNPROTECTED: {"test": judges.of(runs[UNPROTECTED].out)[1].metrics}} if UNPROTECTED in runs else {}),
    }
