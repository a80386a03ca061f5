"""Finished models at work on a folder of images: scores as tables, masks and boxes as DICOM objects, and pictures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch

from client import decoded, dicom, ensemble, sources
from client.dicom_objects.maker import Maker
from client.dicom_objects.origins import grid_among, read_origin
from client.drops import Dropped, Unusable
from client.ensemble import Rule
from client.index import progress_bar
from client.planes import Plane
from client.results import Counts, Tables
from client.sources import Found
from client.study_results import Placed, StudyResults, Wanted, apart
from client.train import device
from common.errors import DataError
from common.model_files import Model, open_model

SUMMARY = "prediction.json"
_MASKS = 2**29  # pixels x classes of one segmentation: a longer series gets several


def predict(
    folders: Sequence[Path],
    data: Path,
    out: Path,
    *,
    now: datetime,
    rule: Rule = "mean",
    window: bool = False,
    wanted: Wanted | None = None,
    threads: int = 1,
    quiet: bool = True,
) -> Counts:
    """Ask the models in `folders` about every image in `data` (a folder, or an .npz file); results go to `out`, a new
    folder.

    Guarantees: nothing in `data` is changed; every file is used or counted with a reason; results say what made them.
    Raises DataError or StudyError, one line, where models can't be used or don't fit each other, or `out` is in use or
    not writable.
    """
    torch.set_num_threads(threads)
    models = [open_model(folder) for folder in folders]
    ensemble.check(models, window=window)
    wanted = wanted or Wanted()
    maker = _maker(models, now, rule=rule, window=window, min_score=wanted.min_score)
    try:
        data, out = _places(data, out)
        tables = Tables(
            folder=out,
            study=models[0].study,
            several=len(models) > 1,
            voted=maker.rule == "vote",
            maker=maker,
            min_score=wanted.min_score,
        )
        with dicom.quiet(), tables:
            run = _Run(models=models, rule=rule, window=window, out=out, tables=tables, wanted=wanted)
            run.everything(data, quiet=quiet)
        values = {
            "schema": 1,
            "made": maker.made.isoformat(timespec="seconds"),
            "fedward": maker.version,
            "intended_use": maker.intended_use,
            "models": [model.provenance for model in models],
            **maker.options,
            **run.counts.plain,
        }
        (out / SUMMARY).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or type(error).__name__}") from None
    return run.counts


def _places(data: Path, out: Path) -> tuple[Path, Path]:
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    data, out = data.resolve(), out.resolve()
    if data.is_dir() and out.is_relative_to(data):
        raise DataError(f"{out}: lies inside the images' folder; results need a place of their own")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already; give a new folder, so that no results mix")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    return data, out


def _maker(models: Sequence[Model], now: datetime, *, rule: Rule, window: bool, min_score: float) -> Maker:
    task = models[0].study.study.task
    return Maker(
        name=models[0].study.study.name,
        version=version("fedward"),
        weights=tuple(model.weights_sha256 for model in models),
        studies=tuple(model.study.sha256 for model in models),
        intended_use=models[0].intended_use,
        made=now,
        rule=rule if len(models) > 1 else None,
        window=None if task == "classification" else window,
        min_score=min_score if task == "detection" else None,
    )


@dataclass(kw_only=True, eq=False)
class _Run:
    """One prediction on its way through a folder: study by study, in it series by series."""

    models: Sequence[Model]
    rule: Rule
    window: bool
    out: Path
    tables: Tables
    wanted: Wanted
    counts: Counts = field(default_factory=Counts)
    _used: set[str] = field(default_factory=set)  # files
    _lost: dict[str, list[tuple[Found, Unusable]]] = field(default_factory=dict)  # by file

    def everything(self, data: Path, *, quiet: bool) -> None:
        """All images below a folder, or in an .npz file."""
        found = self._scanned(data, quiet=quiet)
        for model in self.models:
            model.network.to(device())
        placed = sorted(apart(list(self._placed(found))), key=lambda one: (one.study, one.series))  # stable
        done = 0
        with progress_bar("Predicting", quiet=quiet or not found) as progress:
            for _, of_study in groupby(placed, key=lambda one: one.study):
                results = StudyResults(out=self.out, tables=self.tables, counts=self.counts, wanted=self.wanted)
                for _, of_series in groupby(of_study, key=lambda one: one.series):
                    for part in self._parts(list(of_series)):
                        self._predict(part, results)
                        results.end_part()
                        done += len(part)
                        progress(done, len(found))
                results.finish()
        self._count_lost()

    def _scanned(self, data: Path, *, quiet: bool) -> list[Found]:
        found: list[Found] = []
        with progress_bar("Reading", quiet=quiet) as progress:
            for item in sources.scan(
                data,
                "medmnist" if data.is_file() else "dicom",
                image_is_patient=True,
                require_annotation=False,
                fusion=None,
                progress=progress,
            ):
                if isinstance(item, Found):
                    found.append(item)
                elif isinstance(item, Dropped):
                    self.counts.dropped[item.reason] += 1
                    self.tables.problem("file", item.path, item.reason, item.detail)
        return found

    def _placed(self, found: Sequence[Found]) -> Iterator[Placed]:
        grids: dict[tuple[object, ...], list[Plane]] = {}
        for path, of_file in groupby(found, key=lambda one: one.source.path):
            images = list(of_file)
            study, series, uid = f"file {path}", path, None
            place, order = None, tuple[float, ...]()
            if images[0].source.kind == "dicom":
                try:
                    origin = read_origin(images[0].source.root / path)
                    study, series, uid = f"study {origin.study!r}", repr(origin.key), origin.uid
                    if origin.plane is not None:
                        firsts = grids.setdefault(origin.key, [])
                        number = grid_among(firsts, origin.plane)
                        series += f" {number:06d}"
                        place, order = float(origin.plane.origin @ firsts[number].normal), origin.order
                except Unusable as error:
                    self.tables.problem("result", path, error.reason, str(error))
                    self.counts.unwritten[error.reason] += len(images)
            for one in images:
                yield Placed(found=one, study=study, series=series, uid=uid, place=place, order=order)

    def _parts(self, series: Sequence[Placed]) -> Iterator[list[Placed]]:
        """A series in parts of whole files, whose masks can be held at once."""
        part: list[Placed] = []
        held, classes = 0, len(self.tables.study.study.classes)
        for _, of_file in groupby(series, key=lambda one: one.found.source.path):
            file = list(of_file)
            size = sum(one.found.height * one.found.width for one in file) * classes
            if part and held + size > _MASKS:
                yield part
                part, held = [], 0
            part, held = part + file, held + size
        yield part

    def _predict(self, part: Sequence[Placed], results: StudyResults) -> None:
        windows = list(dict.fromkeys(model.study.preprocessing.window for model in self.models))
        by_source = {one.found.source: one for one in part}
        for usable, others in decoded.batches([one.found for one in part], windows):
            for found, error in others:
                self._lost.setdefault(found.source.path, []).append((found, error))
            grey = [pixels for _, pixels in usable]
            poses = [found.pose for found, _ in usable]
            asked = ensemble.outcomes(self.models, grey, poses, rule=self.rule, window=self.window, where=device())
            for (found, pixels), outcome in zip(usable, asked, strict=True):
                self._used.add(found.source.path)
                self.counts.unturned += self._turns and not found.pose.directions
                results.add(by_source[found.source], pixels, outcome)

    @property
    def _turns(self) -> bool:
        return any(model.study.preprocessing.orientation == "patient" for model in self.models)

    def _count_lost(self) -> None:
        """Files without any usable image, and single images of others."""
        self.counts.used = len(self._used)
        for path, images in self._lost.items():
            if path not in self._used:
                error = images[0][1]
                self.counts.dropped[error.reason] += 1
                self.tables.problem("file", path, error.reason, str(error))
                continue
            for found, error in images:
                self.counts.dropped_images[error.reason] += 1
                self.tables.problem("image", path, error.reason, str(error), item=found.source.item)
