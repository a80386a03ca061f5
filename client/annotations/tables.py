"""`labels.csv` and `patients.csv`: tables beside the images."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.annotations import Finding, Remark, Split, Subject
from client.drops import Drop, Unusable
from client.readers import Reading
from common.annotation import Annotation
from common.errors import DataError

LABELS, PATIENTS, NAMES = "labels.csv", "patients.csv", "names.csv"


@dataclass
class Labels:
    """`labels.csv`: `key,label` and any further columns. A key is a relative path, SOPInstanceUID, StudyInstanceUID or
    patient, as `patients.csv` or the PatientID names it: the narrowest wins, in that order. An empty label is no label;
    the row's further columns still count. A column `reader` says who gave the label: then an image may have one from
    each.
    """

    rows: dict[str, list[tuple[int, dict[str, str]]]]
    files: frozenset[str] = frozenset({LABELS})
    _used: set[str] = field(default_factory=set)

    def readings(self, subject: Subject) -> list[Reading]:
        by_reader: dict[str, set[str]] = {}
        for _, row in self._of(subject):
            if row["label"]:
                by_reader.setdefault(row.get("reader", ""), set()).add(row["label"])
        for labels in by_reader.values():
            if len(labels) > 1:
                raise Unusable(Drop.BAD_ANNOTATION, f"{LABELS} gives it {len(labels)} different labels")
        return [Reading(reader=name, annotation=Annotation(label=found.pop())) for name, found in by_reader.items()]

    def official(self, subject: Subject) -> Split | None:
        return None

    def columns(self, subject: Subject) -> dict[str, str]:
        return {k: v for _, row in self._of(subject)[:1] for k, v in row.items() if k not in ("key", "label", "reader")}

    def remarks(self) -> Iterator[Remark]:
        for key, rows in self.rows.items():
            if key not in self._used:
                for line, _ in rows:
                    yield Remark(finding=Finding.LABEL_WITHOUT_IMAGE, place=f"{LABELS} line {line}")

    def _of(self, subject: Subject) -> list[tuple[int, dict[str, str]]]:
        keys = [subject.path, subject.sop_uid, subject.study_uid, subject.patient, subject.patient_id]
        present = [key for key in keys if key is not None and key in self.rows]
        self._used.update(present)
        return self.rows[present[0]] if present else []


def read_labels(root: Path) -> Labels | None:
    """The folder's `labels.csv`, or None. Raises DataError when it is no such table."""
    table = _table(root / LABELS, ("key", "label"))
    if table is None:
        return None
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in table:
        rows.setdefault(row["key"].removeprefix("./"), []).append((line, row))
    return Labels(rows=rows)


def read_patients(root: Path) -> dict[str, str] | None:
    """`patients.csv`, file (relative path) to patient, or None where there is none. Raises DataError."""
    table = _table(root / PATIENTS, ("file", "patient"))
    if table is None:
        return None
    patients: dict[str, str] = {}
    for line, row in table:
        file = row["file"].removeprefix("./")
        if not row["patient"] or patients.setdefault(file, row["patient"]) != row["patient"]:
            raise DataError(f"{PATIENTS} line {line}: each file needs exactly one patient")
    return patients


def read_names(root: Path) -> dict[str, str]:
    """`names.csv`, a name found in a DICOM object to the study's class. Empty where there is none. Raises DataError."""
    names: dict[str, str] = {}
    for line, row in _table(root / NAMES, ("found", "class")) or []:
        if not row["class"] or names.setdefault(row["found"], row["class"]) != row["class"]:
            raise DataError(f"{NAMES} line {line}: each name needs exactly one class")
    return names


def _table(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]] | None:
    """Lines (from 1) and rows of a CSV file with a header; comma or, as in many countries, semicolon."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: can't be read as UTF-8 text ({type(error).__name__})") from None
    first = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=";" if ";" in first and "," not in first else ",", strict=True
    )
    try:
        names = [name.strip() for name in next(reader, [])]
        if not set(needed) <= set(names) or len(set(names)) != len(names):
            raise DataError(f"{path.name} line 1: the first line must name the columns {','.join(needed)}, each once")
        rows = []
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(names):
                raise DataError(
                    f"{path.name} line {reader.line_num}: {len(values)} fields where the first line names {len(names)}"
                )
            rows.append((reader.line_num, {name: value.strip() for name, value in zip(names, values, strict=True)}))
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num}: not CSV ({error})") from None
    return rows
