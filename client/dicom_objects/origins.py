"""The header of an image that a result is written for: patient, study, series and place, as its file has them.

Unlike the reading of images for training, this takes the patient's identity: a result belongs to the patient's record
and stays at the site, beside the images.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from client.dicom import FORMAT, opened, read_tags, refusing, text
from client.dicom_objects.opening import PLACES, geometry
from client.drops import Drop, Unusable
from client.planes import SAME, Plane

# fmt: off
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (  # type 2: a result has to have them, empty where the image has none
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)
_KEPT = (
    "IssuerOfPatientID", "PatientAge", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription",
    "Modality", "SeriesNumber", "Laterality", "BodyPartExamined", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)
# What tells images of one place from each other, in the order of their weight.
_ORDER = (
    "DiffusionBValue", "EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime",
    "InstanceNumber",
)
_FORMS = {
    "PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
# fmt: on


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """An image's header. One report can speak for images of one `study`: same patient and study; one segmentation for
    those of one `key` whose `plane`s are of the same grid, at different places; without a plane for one image alone.

    `places` say in mm how far each frame lies along the image's normal; None where the header does not say where they
    lie, or several lie at one place. `plane` is a single slice's, that has a place. `order` sorts images of one place.
    """

    dataset: pydicom.FileDataset
    study: tuple[str | None, ...]  # patient's number, its issuer and StudyInstanceUID: UIDs alone repeat by mistake
    uid: str
    frames: int
    key: tuple[object, ...]
    places: tuple[float, ...] | None
    plane: Plane | None
    order: tuple[float, ...]


def read_origin(path: Path) -> Origin:
    """The header of an image file, without pixels. Values of no valid form count as missing, as no result may carry
    them.

    Raises Unusable, and no other error but OSError, where the file does not say which image of which study it is.
    """
    with refusing(), opened(path) as file:
        dataset = read_tags(file, [*_NEEDED, *_MAY_BE_EMPTY, *_KEPT, *_ORDER, *FORMAT, *PLACES], pixels=False)
        for name in _NEEDED:
            if text(dataset, name) is None:
                raise Unusable(Drop.UNSUPPORTED, f"no result can be written for an image without {name}")
        for name in _MAY_BE_EMPTY:
            value = str(dataset.get(name) or "")
            if name not in dataset or (name in _FORMS and not re.fullmatch(_FORMS[name], value)):
                setattr(dataset, name, None if name in _FORMS else "")
        if text(dataset, "Modality") is None:
            dataset.Modality = "OT"
        frames = int(dataset.get("NumberOfFrames") or 1)
        described = "PerFrameFunctionalGroupsSequence" in dataset or frames > 1
        planes = _planes(dataset, frames)
        places = _places(planes)
        plane = None if described or places is None else planes[0]
        study = tuple(text(dataset, name) for name in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID"))
        series = (text(dataset, "SeriesInstanceUID"), text(dataset, "FrameOfReferenceUID"))
        size = int(dataset.Rows), int(dataset.Columns), str(dataset.SOPClassUID)
        uid = str(dataset.SOPInstanceUID)
        return Origin(
            dataset=dataset,
            study=study,
            uid=uid,
            frames=frames,
            key=(*study, *series, *size, uid if plane is None else ""),
            places=places,
            plane=plane,
            order=tuple(_number(dataset, name) for name in _ORDER),
        )


def grid_among(firsts: list[Plane], plane: Plane) -> int:
    """Which of the grids that were seen so far, in their first images, is this image's; a new one is put at the end."""
    number = next((k for k, first in enumerate(firsts) if plane.same_grid(first)), len(firsts))
    if number == len(firsts):
        firsts.append(plane)
    return number


def _planes(dataset: pydicom.Dataset, frames: int) -> list[Plane]:
    """The frames' planes; none unless the header says where all of them lie."""
    try:
        planes = geometry(dataset, (int(dataset.Rows), int(dataset.Columns)), frames).planes
    except Unusable:  # a place that is none
        return []
    found = [plane for plane in planes if plane is not None]
    return found if len(found) == len(planes) and text(dataset, "FrameOfReferenceUID") is not None else []


def _places(planes: list[Plane]) -> tuple[float, ...] | None:
    """See Origin. Frames that are not parallel have no places either."""
    if not planes or not all(plane.parallel(planes[0]) for plane in planes):
        return None
    found = [float(plane.origin @ planes[0].normal) for plane in planes]
    gaps = np.diff(np.sort(found))
    return tuple(found) if (gaps > SAME).all() else None


def _number(dataset: pydicom.Dataset, name: str) -> float:
    try:
        value = float(text(dataset, name) or 0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
