"""One image of a site's index: as a value, and as a record of the index's tables."""

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.annotations import Split
from client.pose import STORED, Pose
from client.sources import Source
from common.annotation import Annotation, Box

SCHEMA = 4
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE image (image TEXT PRIMARY KEY, patient TEXT NOT NULL, study TEXT,
    path TEXT NOT NULL, kind TEXT NOT NULL, array TEXT NOT NULL, item INTEGER NOT NULL,
    height INTEGER NOT NULL, width INTEGER NOT NULL, modality TEXT, scanner TEXT, burned_in INTEGER, official TEXT,
    label TEXT, mask BLOB, mask_names TEXT, boxes TEXT, columns TEXT NOT NULL,
    directions TEXT NOT NULL, ratio REAL NOT NULL, image_kind TEXT);
CREATE TABLE dropped (path TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    array TEXT NOT NULL, item INTEGER);
CREATE TABLE remark (finding TEXT NOT NULL, place TEXT NOT NULL);
CREATE TABLE agreement (path TEXT NOT NULL, item INTEGER NOT NULL, found TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One usable image. `image` is its name everywhere: a keyed hash of patient, content and position in the file."""

    image: str
    patient: str  # keyed hash
    study: str | None  # keyed hash
    source: Source
    height: int  # pixels as stored
    width: int
    modality: str | None
    scanner: str | None
    burned_in: bool | None  # text in the pixels, as the file says
    official: Split | None
    annotation: Annotation
    columns: Mapping[str, str]
    pose: Pose = STORED
    image_kind: str | None = None  # SOP class and ImageType


def to_record(row: Row) -> tuple[Any, ...]:
    """A record of the table `image`, its columns in order."""
    known, source = row.annotation, row.source
    boxes = None
    if known.boxes is not None:
        boxes = json.dumps([[box.x1, box.y1, box.x2, box.y2, box.name] for box in known.boxes])
    return (
        *(row.image, row.patient, row.study, source.path, source.kind, source.array, source.item),
        *(row.height, row.width),
        *(row.modality, row.scanner, row.burned_in, row.official, known.label),
        None if known.mask is None else zlib.compress(np.ascontiguousarray(known.mask).tobytes(), 1),
        None if known.mask_names is None else json.dumps(known.mask_names),
        *(boxes, json.dumps(dict(row.columns))),
        *(row.pose.directions, row.pose.ratio, row.image_kind),
    )


def from_record(root: Path, record: sqlite3.Row) -> Row:
    """The row of a record, with its paths below `root`. Raises ValueError or zlib.error for a damaged one."""
    size = (record["height"], record["width"])
    names, boxes = record["mask_names"], record["boxes"]
    annotation = Annotation(
        label=record["label"],
        mask=None if record["mask"] is None else _mask(record["mask"], size),
        mask_names=None if names is None else tuple(json.loads(names)),
        boxes=None
        if boxes is None
        else tuple(Box(x1=x1, y1=y1, x2=x2, y2=y2, name=name) for x1, y1, x2, y2, name in json.loads(boxes)),
    )
    source = Source(root=root, path=record["path"], kind=record["kind"], array=record["array"], item=record["item"])
    kept = ("image", "patient", "study", "height", "width", "modality", "scanner", "official", "image_kind")
    burned_in = None if record["burned_in"] is None else bool(record["burned_in"])
    return Row(
        **{name: record[name] for name in kept},
        source=source,
        burned_in=burned_in,
        annotation=annotation,
        columns=json.loads(record["columns"]),
        pose=Pose(directions=record["directions"], ratio=record["ratio"]),
    )


def _mask(blob: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    values = zlib.decompressobj().decompress(blob, size[0] * size[1] + 1)
    return np.frombuffer(values, np.uint8).reshape(size)
