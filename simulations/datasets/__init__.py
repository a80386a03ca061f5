"""Where a simulation's images come from: the data SPEC grammar, resolved to a format and a path for the index."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from common.errors import DataError, RunError
from simulations.datasets.phantom import VERSION, write_phantom

Kind = Literal["phantom", "medmnist", "voc", "coco", "masks", "dicom"]
Format = Literal["medmnist", "voc", "coco", "masks", "dicom"]

FORMS = "phantom | phantom:PATIENTS | medmnist:FILE | voc:DIR | coco:DIR | masks:DIR | dicom:DIR"
DEFAULT_PATIENTS = 240
MAX_PATIENTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A data SPEC, parsed: what kind, and the path it names or, for the phantom, the number of patients."""

    kind: Kind
    path: Path | None = None
    patients: int = 0

    def __str__(self) -> str:
        return f"phantom:{self.patients}" if self.path is None else f"{self.kind}:{self.path}"


def parse_spec(text: str) -> Spec:
    """A data SPEC from what a person typed. Looks at no file; `~` is the home directory.

    Guarantees: parse_spec(str(spec)) == spec.
    Raises DataError, one line that names the spec, what is wrong and the allowed forms.
    """
    kind, colon, rest = text.partition(":")
    if kind not in get_args(Kind):
        raise DataError(f"data {text!r}: {kind!r} is not a kind of data; allowed: {FORMS}")
    if kind == "phantom":
        patients = rest if colon else str(DEFAULT_PATIENTS)
        if not re.fullmatch("[0-9]{1,9}", patients) or not 1 <= int(patients) <= MAX_PATIENTS:
            raise DataError(f"data {text!r}: PATIENTS is a whole number from 1 to {MAX_PATIENTS}; allowed: {FORMS}")
        return Spec(kind="phantom", patients=int(patients))
    if not rest.strip():
        raise DataError(f"data {text!r}: the path after {kind}: is missing; allowed: {FORMS}")
    return Spec(kind=kind, path=Path(rest).expanduser())  # type: ignore[arg-type]


def materialise(spec: Spec, folder: Path, *, seed: int) -> tuple[Format, Path]:
    """The format and path of the files behind a spec, for the index; the phantom is written to `folder`/phantom first.

    Guarantees: a phantom that is already there, whole and of equal patients, seed and version is not written again; one
    that is half-written or another is replaced. Nothing is deleted that this function did not begin itself.
    Raises DataError when the path does not exist or is of the wrong kind, RunError when the phantom can't be written.
    """
    if spec.path is None:
        return "dicom", _phantom(spec, folder, seed=seed)
    if not spec.path.exists():
        raise DataError(f"data {str(spec)!r}: {spec.path} does not exist: give the path of a {_wanted(spec)}")
    if spec.path.is_file() != (spec.kind == "medmnist"):
        raise DataError(f"data {str(spec)!r}: {spec.path} is not a {_wanted(spec)}; allowed: {FORMS}")
    return spec.kind, spec.path  # type: ignore[return-value]


def _wanted(spec: Spec) -> str:
    return "file (.npz)" if spec.kind == "medmnist" else "folder"


def _phantom(spec: Spec, folder: Path, *, seed: int) -> Path:
    """A marker beside the phantom says what was begun and, in the end, that it is finished: half is never used."""
    path, marker = folder / "phantom", folder / "phantom.json"
    wanted = {"patients": spec.patients, "seed": seed, "version": VERSION}
    try:
        found = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else None
        if found == {**wanted, "finished": True} and path.is_dir():
            return path
    except (OSError, ValueError):
        found = {}
    if found is None and path.exists():
        raise DataError(f"data {str(spec)!r}: {path} is in the way: move it or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _mark(marker, {**wanted, "finished": False})
        if path.exists():
            shutil.rmtree(path)
        write_phantom(path, patients=spec.patients, seed=seed)
        _mark(marker, {**wanted, "finished": True})
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise RunError(f"{path}: the phantom can't be written ({why}): make room or choose another folder") from error
    return path


def _mark(marker: Path, values: dict[str, object]) -> None:
    """Written beside and renamed, so that a marker is whole or absent."""
    draft = marker.with_name(marker.name + ".part")
    draft.write_text(json.dumps(values), encoding="utf-8")
    os.replace(draft, marker)
