"""The DICOM objects in a folder of `client predict`, as they are found: what may be stored in an archive."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from client import dicom
from client.drops import Drop, Unusable
from client.pull.archive import Instance, Missing
from common.errors import DataError

SUMMARY = "prediction.json"
_FOLDERS = ("segmentations", "reports")
_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33")  # segmentation, comprehensive SR
_NAMES = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Manufacturer", "Modality",
    "SeriesDescription",
)  # fmt: skip


class Refusal(StrEnum):
    """Why an object is not stored, besides what an archive says of it."""

    NOT_OURS = "not_ours"  # no segmentation or report that Fedward wrote: never sent
    NO_STUDY = "no_study"  # the archive has no such study: the object would start a new one
    OTHER_PATIENT = "other_patient"  # the archive has this study under another PatientID
    TWO_PATIENTS = "two_patients"  # the archive has it under several: whose images the object names, nobody can tell
    RESULTS_THERE = "results_there"  # the study has a series of this kind and description, of another prediction


@dataclass(frozen=True, kw_only=True)
class Result:
    """An object to store. `patient` is its PatientID, "" where it has none; `series` its modality and description: of
    one study's models the same at each prediction.
    """

    path: Path
    instance: Instance
    patient: str
    series: tuple[str, str]
    syntax: str


def gather(folder: Path) -> tuple[list[Result], Counter[Refusal]]:
    """The objects below a folder of `predict`, those of one study in a row; and how many files there are not any.

    Raises DataError for a folder that `predict` has not finished.
    """
    if not (folder / SUMMARY).is_file():
        raise DataError(f"{folder}: no {SUMMARY}; give the folder of a finished `client predict`")
    found: list[Result] = []
    refused: Counter[Refusal] = Counter()
    with dicom.quiet():
        for path in _files(folder):
            try:
                found.append(_result(path))
            except (Unusable, Missing, OSError):
                refused[Refusal.NOT_OURS] += 1
    return sorted(found, key=lambda one: (one.instance.study, one.path)), refused


def _files(folder: Path) -> Iterator[Path]:
    for name in _FOLDERS:
        yield from sorted(path for path in (folder / name).glob("*.dcm") if not path.name.startswith("."))


def _result(path: Path) -> Result:
    with dicom.refusing(), dicom.opened(path) as file:
        dataset = dicom.read_tags(file, list(_NAMES), pixels=False)
        found = [dicom.text(dataset, name) or "" for name in _NAMES]
        kind, sop, study, series, patient, maker, modality, description = found
        syntax = str(dataset.file_meta.TransferSyntaxUID)
    if kind not in _CLASSES or maker != "Fedward":
        raise Unusable(Drop.NOT_AN_IMAGE, "not an object that Fedward wrote")
    return Result(
        path=path,
        instance=Instance(study=study, series=series, sop=sop, sop_class=kind),
        patient=patient,
        series=(modality, description),
        syntax=syntax,
    )
