"""The header of an image that a result is written for: patient, study, series and place, as its file has them.

Unlike the reading of images for training, this takes the patient's identity: a result belongs to the patient's record
and stays at the site, beside the images.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pydicom

from client.dicom import FORMAT, opened, read_tags, refusing, text
from client.dicom_objects.opening import PLACES, decimals
from client.drops import Drop, Unusable

# fmt: off
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (  # type 2: a result has to have them, empty where the image has none
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)
_KEPT = (
    "IssuerOfPatientID", "PatientAge", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription",
    "Modality", "SeriesNumber", "Laterality", "BodyPartExamined", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "InstanceNumber",
)
_FORMS = {
    "PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
# fmt: on


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """An image's header. One segmentation can speak for images of one `key`: same series, size, place and direction."""

    dataset: pydicom.FileDataset
    study: str
    uid: str
    frames: int
    key: tuple[object, ...]


def read_origin(path: Path) -> Origin:
    """The header of an image file, without pixels. Values of no valid form count as missing, as no result may carry
    them.

    Raises Unusable, and no other error but OSError, where the file does not say which image of which study it is.
    """
    with refusing(), opened(path) as file:
        dataset = read_tags(file, [*_NEEDED, *_MAY_BE_EMPTY, *_KEPT, *FORMAT, *PLACES], pixels=False)
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
        direction = tuple(round(float(v), 4) for v in decimals(dataset, "ImageOrientationPatient"))
        series = (text(dataset, "SeriesInstanceUID"), text(dataset, "FrameOfReferenceUID"))
        spacing = str(dataset.get("PixelSpacing"))
        size = int(dataset.Rows), int(dataset.Columns), str(dataset.SOPClassUID)
        uid = str(dataset.SOPInstanceUID)
        return Origin(
            dataset=dataset,
            study=str(dataset.StudyInstanceUID),
            uid=uid,
            frames=frames,
            key=(*series, *size, direction, spacing, uid if described or not direction else ""),
        )
