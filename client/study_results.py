"""What the models say of one study's images, gathered and written: pictures at once, segmentations, then the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client import overlays
from client.dicom_objects.findings import Finding
from client.dicom_objects.origins import Origin, read_origin
from client.dicom_objects.views import View, view_of
from client.dicom_objects.writing import GROUPS_LIMIT, write_report, write_segmentation
from client.drops import Unusable
from client.ensemble import Grey, Outcome
from client.planes import SAME
from client.results import Counts, Line, Tables
from client.sources import Found
from common.tasks.batch import Detections


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """An image of the scan. Images of one `series` can share a segmentation; `uid` is None where no DICOM result can be
    made: of a picture, or a file that doesn't say which image of which study it is. A slice has a `place`, in mm along
    the series, and an `order` among those at one place.
    """

    found: Found
    study: str
    series: str
    uid: str | None
    place: float | None = None
    order: tuple[float, ...] = ()


def apart(images: Sequence[Placed]) -> list[Placed]:
    """Series whose slices lie at one place several times, as echoes, diffusion weights or times do, as several.

    Guarantees: no two slices of a series are at one place. They are shared out by their order, then as they came.
    """
    taken: dict[str, list[set[int]]] = {}
    found = []
    for one in sorted(images, key=lambda one: one.order):
        if one.place is not None:
            stacks, cell = taken.setdefault(one.series, []), round(one.place / SAME)
            free = (k for k, cells in enumerate(stacks) if not cells & {cell - 1, cell, cell + 1})
            number = next(free, len(stacks))
            if number == len(stacks):
                stacks.append(set())
            stacks[number].add(cell)
            one = replace(one, series=f"{one.series} {number:06d}")
        found.append(one)
    return found


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to write beside the tables, and from which score on boxes go into reports and pictures."""

    overlays: bool = True
    objects: bool = True  # DICOM, or of pictures masks as PNG
    min_score: float = 0.3


@dataclass(kw_only=True, eq=False)
class StudyResults:
    """The results of one study, or of one file that belongs to none."""

    out: Path
    tables: Tables
    counts: Counts
    wanted: Wanted
    _lines: list[Line] = field(default_factory=list)
    _findings: list[Finding] = field(default_factory=list)
    _origins: dict[Path, Origin] = field(default_factory=dict)
    _masks: dict[Path, tuple[NDArray[np.bool_], list[Line]]] = field(default_factory=dict)

    def add(self, image: Placed, grey: Grey, outcome: Outcome) -> None:
        """One image's outcome; `grey` is what its picture is drawn on."""
        source = image.found.source
        files: dict[str, str] = {}
        self.counts.images += 1
        number = f"{self.counts.images:06d}"
        if self.wanted.overlays:
            pixels = next(iter(grey.values()))
            drawn = overlays.overlay(
                pixels,
                outcome,
                classes=self._classes,
                min_score=self.wanted.min_score,
                notes=self._notes,
                view=view_of(source.root / source.path, source.item) if source.kind == "dicom" else View(),
            )
            files["overlay"] = self._write("overlays", f"{number}.png", drawn)
        if outcome.doubt is not None:
            files["doubt"] = self._write("doubt", f"{number}.png", overlays.grey(outcome.doubt, self._notes))
        line = self.tables.line(image.found, uid=image.uid or "", outcome=outcome, files=files)
        self._lines.append(line)
        if not self.wanted.objects:
            return
        path = source.root / source.path
        if image.uid is None:
            self._mask_pictures(number, line, outcome.prediction)
            return
        if path not in self._origins:
            self._origins[path] = read_origin(path)
        if not isinstance(outcome.prediction, Detections) and outcome.prediction.ndim == 3:
            origin, shape = self._origins[path], outcome.prediction.shape
            masks, lines = self._masks.setdefault(path, (np.zeros((origin.frames, *shape), np.bool_), []))
            masks[source.item] = outcome.prediction
            lines.append(line)
        else:
            self._findings += self._found(self._origins[path], source.item, outcome)

    def end_part(self) -> None:
        """Write the segmentation of the images since the last one; they are of one series."""
        if not self._masks:
            return
        name = f"{self.counts.written['segmentations'] + 1:06d}.dcm"
        lines = [line for _, of_file in self._masks.values() for line in of_file]
        try:
            write_segmentation(
                self._place("segmentations", name),
                [self._origins[path] for path in self._masks],
                [masks for masks, _ in self._masks.values()],
                classes=self._classes,
                maker=self.tables.maker,
            )
        except Unusable as error:
            self.tables.no_result(lines, error)
            self.counts.unwritten[error.reason] += len(lines)
        else:
            self.counts.written["segmentations"] += 1
            for line in lines:
                line.files["segmentation"] = f"segmentations/{name}"
        self._masks.clear()

    def finish(self) -> None:
        """Write the study's report, in parts where it would be too long, and the tables' lines."""
        if self._origins and self.tables.study.study.task != "segmentation":
            names = []
            try:
                for part in self._parts():
                    name = f"{self.counts.written['reports'] + 1:06d}.dcm"
                    origins = list(self._origins.values())
                    write_report(self._place("reports", name), origins, part, maker=self.tables.maker)
                    self.counts.written["reports"] += 1
                    names.append(f"reports/{name}")
            except Unusable as error:
                self.tables.no_result(self._lines, error)
                self.counts.unwritten[error.reason] += len(self._lines)
            for line in self._lines:
                line.files["report"] = " ".join(names)
        for line in self._lines:
            self.tables.add(line)

    def _parts(self) -> list[list[Finding]]:
        """The findings in parts that a report holds; one part where nothing was found."""
        parts: list[list[Finding]] = [[]]
        groups = 0
        for finding in self._findings:
            if parts[-1] and groups + finding.groups > GROUPS_LIMIT:
                parts.append([])
                groups = 0
            parts[-1].append(finding)
            groups += finding.groups
        return parts

    def _found(self, origin: Origin, frame: int, outcome: Outcome) -> list[Finding]:
        prediction, classes = outcome.prediction, self._classes
        if not isinstance(prediction, Detections):
            scores = {name: float(value) for name, value in zip(classes, prediction, strict=True)}
            votes = {} if outcome.votes is None else dict(zip(classes, outcome.votes.tolist(), strict=True))
            best = outcome.best
            return [
                Finding(
                    origin=origin,
                    frame=frame,
                    name=None if best is None else classes[best],
                    scores=scores,
                    votes=votes,
                    disagreement=outcome.disagreement,
                )
            ]
        found = []
        for k in np.flatnonzero(prediction.scores >= self.wanted.min_score):
            x1, y1, x2, y2 = (float(value) for value in prediction.boxes[k])
            name = classes[int(prediction.classes[k])]
            found.append(
                Finding(
                    origin=origin,
                    frame=frame,
                    name=name,
                    scores={name: float(prediction.scores[k])},
                    box=(x1, y1, x2, y2),
                    disagreement=outcome.apart(int(k)),
                )
            )
        return found

    def _mask_pictures(self, number: str, line: Line, prediction: object) -> None:
        """Masks of a picture, one file for each class."""
        if not isinstance(prediction, np.ndarray) or prediction.ndim != 3:
            return
        for k, mask in enumerate(prediction):
            name = f"{number}-{k + 1}-{overlays.slug(self._classes[k])}.png"
            self._write("masks", name, overlays.grey(mask, self._notes))
        line.files["masks"] = f"masks/{number}-*.png"

    def _place(self, kind: str, name: str) -> Path:
        folder = self.out / kind
        folder.mkdir(exist_ok=True)
        return folder / name

    def _write(self, kind: str, name: str, data: bytes) -> str:
        self._place(kind, name).write_bytes(data)
        self.counts.written[kind] += 1
        return f"{kind}/{name}"

    @property
    def _classes(self) -> Sequence[str]:
        return self.tables.study.study.classes

    @property
    def _notes(self) -> Mapping[str, str]:
        return self.tables.maker.details
