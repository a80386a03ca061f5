"""The tables of a prediction: one line for each image and each box, and one for everything that could not be used."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from client.dicom_objects.maker import Maker
from client.drops import Drop, Unusable
from client.ensemble import Outcome
from client.sources import Found
from common.study import Study
from common.tasks.batch import Detections

IMAGES, BOXES, PROBLEMS = "predictions.csv", "boxes.csv", "problems.csv"
UNDECIDED = "undecided"
_PLACE = ("file", "array", "frame", "sop_instance_uid")
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(kw_only=True)
class Counts:
    """What became of what. Guarantees: used + sum(dropped.values()) is the number of files found."""

    used: int = 0  # files
    dropped: Counter[Drop] = field(default_factory=Counter)  # files without any image that could be used
    images: int = 0
    unturned: int = 0  # of them, taken as stored though they are to be turned: their headers don't say how they lie
    dropped_images: Counter[Drop] = field(default_factory=Counter)  # single images of files of several
    written: Counter[str] = field(default_factory=Counter)  # files by kind
    unwritten: Counter[Drop] = field(default_factory=Counter)  # images whose DICOM result could not be made

    @property
    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "files": self.used + sum(self.dropped.values()),
            "used": self.used,
            "dropped": {str(reason): n for reason, n in self.dropped.items()},
            "images": self.images,
            "unturned": self.unturned,
            "dropped_images": {str(reason): n for reason, n in self.dropped_images.items()},
            "written": dict(self.written),
            "unwritten": {str(reason): n for reason, n in self.unwritten.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One image's line, and those of its boxes. `files` holds more of it: what to path, relative to the tables."""

    values: Mapping[str, Any]
    boxes: tuple[Mapping[str, Any], ...]
    files: dict[str, str]


@dataclass(kw_only=True, eq=False)
class Tables:
    """Tables that are being written; they get their names when the block ends without an error."""

    folder: Path
    study: Study
    several: bool  # models
    voted: bool  # so they have decided
    maker: Maker
    min_score: float
    _open: dict[str, tuple[TextIO, Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        classes, task = self.study.study.classes, self.study.study.task
        apart = ("disagreement",) if self.several else ()
        made = ("model_sha256", "study_sha256", "made")
        own: tuple[str, ...]
        files: tuple[str, ...]
        match task:
            case "classification":
                votes = tuple(f"votes:{name}" for name in classes) if self.voted else ()
                own, files = ("predicted", *(f"score:{name}" for name in classes), *votes), ("report", "overlay")
            case "segmentation":
                own, files = tuple(f"pixels:{name}" for name in classes), ("segmentation", "masks", "doubt", "overlay")
            case "detection":
                own, files = ("boxes", "best_score"), ("report", "overlay")
        self._start(IMAGES, (*_PLACE, *own, *apart, *files, *made))
        if task == "detection":
            found_by = ("found_by",) if self.several else ()
            self._start(BOXES, (*_PLACE, "class", "score", *_CORNERS, *found_by, *made))
        self._start(PROBLEMS, ("what", "file", "frame", "reason", "detail"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, (file, _) in self._open.items():
            file.close()
            if kind is None:
                (self.folder / f".{name}.part").replace(self.folder / name)

    def line(self, found: Found, *, uid: str, outcome: Outcome, files: dict[str, str]) -> Line:
        """What the tables say of an image. `uid` is its SOPInstanceUID, "" of a picture."""
        classes, prediction, source = self.study.study.classes, outcome.prediction, found.source
        place = {"file": source.path, "array": source.array, "frame": source.item + 1, "sop_instance_uid": uid}
        values: dict[str, Any] = {**place, **self._made}
        if outcome.disagreement is not None:
            values["disagreement"] = round(outcome.disagreement, 6)
        if isinstance(prediction, Detections):
            values["boxes"] = int((prediction.scores >= self.min_score).sum())
            values["best_score"] = round(float(prediction.scores.max()), 6) if len(prediction.scores) else ""
            return Line(values=values, boxes=tuple(self._boxes(place, prediction, outcome)), files=files)
        if prediction.ndim == 3:
            values |= {f"pixels:{name}": int(mask.sum()) for name, mask in zip(classes, prediction, strict=True)}
        else:
            values["predicted"] = UNDECIDED if outcome.best is None else classes[outcome.best]
            values |= {f"score:{name}": round(float(p), 6) for name, p in zip(classes, prediction, strict=True)}
            if outcome.votes is not None:
                values |= {f"votes:{name}": int(n) for name, n in zip(classes, outcome.votes, strict=True)}
        return Line(values=values, boxes=(), files=files)

    def add(self, line: Line) -> None:
        """Write a line, and those of its boxes."""
        self._open[IMAGES][1].writerow({**line.values, **line.files})
        for values in line.boxes:
            self._open[BOXES][1].writerow(values)

    def problem(self, what: str, path: str, reason: Drop, detail: str, *, item: int | None = None) -> None:
        """A file, an image or a result (`what`) that there is not. `item` counts from 0."""
        frame = "" if item is None else item + 1
        values = {"what": what, "file": path, "frame": frame, "reason": str(reason), "detail": detail}
        self._open[PROBLEMS][1].writerow(values)

    def no_result(self, lines: Sequence[Line], error: Unusable) -> None:
        """The images of these lines have no DICOM result."""
        for path in dict.fromkeys(line.values["file"] for line in lines):
            self.problem("result", path, error.reason, str(error))

    def _boxes(self, place: Mapping[str, Any], prediction: Detections, outcome: Outcome) -> Iterator[Mapping[str, Any]]:
        for k, corners in enumerate(prediction.boxes.tolist()):
            values = {**place, **self._made, "class": self.study.study.classes[int(prediction.classes[k])]}
            values["score"] = round(float(prediction.scores[k]), 6)
            values |= dict(zip(_CORNERS, (round(v, 3) for v in corners), strict=True))
            if outcome.finders is not None:
                values["found_by"] = int(outcome.finders[k])
            yield values

    @property
    def _made(self) -> dict[str, str]:
        details = self.maker.details
        return {
            "model_sha256": details["weights_sha256"],
            "study_sha256": details["study_sha256"],
            "made": details["made"],
        }

    def _start(self, name: str, columns: Sequence[str]) -> None:
        file = (self.folder / f".{name}.part").open("w", encoding="utf-8", newline="")
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        self._open[name] = (file, writer)
