"""Writes the phantom: DICOM files of chest-like X-ray images as several vendors would, with labels, masks and boxes."""

import csv
import datetime
import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from common.errors import DataError
from common.randomness import derive, stream
from simulations.datasets.anatomy import Picture, expose, grow
from simulations.datasets.vendors import HOSPITALS, Vendor, allotted, processed, shape_of, stored, window

VERSION = 1  # of what a seed gives; a change of any byte written is a new version
LABELS = ("normal", "lesion")
PREVALENCE = 0.45  # patients with lesions
AT_HOME = 0.8  # share of a vendor's patients at its main hospital

_ENCODERS = {
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pydicom",
}
_SOP_CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
_FIRST_DAY = datetime.date(2021, 1, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A patient: number from 0, label, whose machine, where, and the pictures, two to a study."""

    number: int
    label: str
    vendor: Vendor
    hospital: str
    pictures: tuple[Picture, ...]


def cases(
    *, patients: int, seed: int, image_size: int = 128, images_per_patient: tuple[int, int] = (1, 4)
) -> Iterator[Case]:
    """The phantom's patients, drawn one by one.

    Guarantees: a function of the arguments; a patient's images show the same anatomy and lesions and have his label;
    PREVALENCE of the patients, to the nearest whole number, have 1 to 3 lesions; any twelve in turn have all vendors.
    Raises DataError for arguments that no phantom can have.
    """
    fewest, most = images_per_patient
    if patients < 1 or image_size < 32 or not 1 <= fewest <= most:
        raise DataError(
            "a phantom has at least 1 patient, images of at least 32 pixels, and 1 or more images per patient"
        )
    rng = stream(seed, "phantom")
    sick = rng.permutation(patients) < round(PREVALENCE * patients)
    for number, vendor in enumerate(allotted(patients, rng)):
        rng = stream(seed, "phantom patient", site=str(number))
        lesions = int(rng.integers(1, 4)) if sick[number] else 0
        home = vendor.hospital if rng.random() < AT_HOME else int(rng.integers(len(HOSPITALS)))
        chest = grow(rng, lesions=lesions)
        height, width = shape_of(vendor, image_size)
        pictures = tuple(
            expose(chest, rng, height=height, width=width) for _ in range(int(rng.integers(fewest, most + 1)))
        )
        yield Case(
            number=number,
            label=LABELS[lesions > 0],
            vendor=vendor,
            hospital=HOSPITALS[home],
            pictures=pictures,
        )


def write_phantom(
    folder: Path, *, patients: int, seed: int, image_size: int = 128, images_per_patient: tuple[int, int] = (1, 4)
) -> None:
    """A DICOM folder as a PACS leaves it: `HOSPITAL/…` in the vendors' layouts, and beside them `labels.csv`,
    `masks/<SOPInstanceUID>.png` (0 and 1, for every image) and `boxes.json` (COCO, every image listed).

    `image_size` is the longer side in pixels, `images_per_patient` the fewest and the most.

    Guarantees: equal arguments give equal bytes; every file opens with pydicom and decodes to what was drawn, to within
    half a stored step; labels, masks and boxes agree. Names, numbers and makers are invented.
    Raises DataError for arguments that no phantom can have and for a folder that is not empty; OSError from the disk.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: the folder of a new phantom must be empty")
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    # UIDs differ between phantoms of different size or content, as those of different images must.
    root = f"phantom {VERSION} {patients} {image_size} {images_per_patient}"
    labels: list[tuple[str, str, str, str]] = []
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for case in cases(patients=patients, seed=seed, image_size=image_size, images_per_patient=images_per_patient):
        for position, picture in enumerate(case.pictures):
            dataset, place = _dataset(case, position, seed=seed, root=root)
            uid = str(dataset.SOPInstanceUID)
            path = folder / case.hospital / place
            path.parent.mkdir(parents=True, exist_ok=True)
            pydicom.dcmwrite(path, dataset, enforce_file_format=True)
            Image.fromarray(picture.mask).save(masks / f"{uid}.png")
            labels.append((uid, case.label, case.hospital, case.vendor.scanner))
            height, width = picture.mask.shape
            images.append({"id": len(images) + 1, "file_name": uid, "width": width, "height": height})
            for x1, y1, x2, y2 in picture.boxes:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": int(picture.mask[y1:y2, x1:x2].sum()),
                        "iscrowd": 0,
                    }
                )
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}
    (folder / "boxes.json").write_text(json.dumps(coco), encoding="utf-8")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("key", "label", "hospital", "scanner"), *labels])
    (folder / "labels.csv").write_text(table.getvalue(), encoding="utf-8", newline="\n")


def _dataset(case: Case, position: int, *, seed: int, root: str) -> tuple[FileDataset, str]:
    """One image as its vendor writes it, and the path of its file within the hospital's folder."""
    vendor, study = case.vendor, position // 2
    study_uid = _uid(seed, root, f"study {case.number} {study}")
    series_uid = _uid(seed, root, f"series {case.number} {study}")
    image_uid = _uid(seed, root, f"image {case.number} {position}")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_SOP_CLASSES[vendor.modality])
    meta.MediaStorageSOPInstanceUID = image_uid
    native = vendor.transfer_syntax not in _ENCODERS
    meta.TransferSyntaxUID = UID(vendor.transfer_syntax) if native else ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(0, "phantom", "implementation")
    meta.ImplementationVersionName = f"PHANTOM_{VERSION}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))

    day = _FIRST_DAY + datetime.timedelta(days=case.number % 300 + 45 * study)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = image_uid
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = f"{day:%Y%m%d}"
    dataset.StudyTime = f"{8 + case.number % 10:02d}0000"
    dataset.ContentTime = f"{8 + case.number % 10:02d}{position:02d}00"
    dataset.AccessionNumber = ""
    dataset.Modality = vendor.modality
    dataset.Manufacturer = vendor.manufacturer
    if vendor.model:
        dataset.ManufacturerModelName = vendor.model
    dataset.ReferringPhysicianName = ""
    dataset.StationName = f"{case.hospital.upper()}1"
    dataset.StudyDescription = "Thorax p.a."
    dataset.SeriesDescription = "PA"
    dataset.PatientName = f"Phantom^Number {case.number}"
    dataset.PatientID = vendor.patient_id.format(case.number)
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.StudyID = str(study + 1)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = position % 2 + 1
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation = "NO"
    grey = processed(vendor, case.pictures[position].pixels)
    spacing = f"{400 / max(grey.shape):.4f}"  # the picture is 400 mm long
    setattr(dataset, "PixelSpacing" if vendor.modality == "CR" else "ImagerPixelSpacing", [spacing, spacing])
    _add_pixels(dataset, vendor, grey)
    for keyword in vendor.leaves_out:
        if keyword in dataset:
            delattr(dataset, keyword)
    if not native:
        dataset.compress(
            vendor.transfer_syntax, encoding_plugin=_ENCODERS[vendor.transfer_syntax], generate_instance_uid=False
        )
    place = vendor.layout.format(
        patient=case.number,
        patient_id=dataset.PatientID,
        study=study + 1,
        image=position + 1,
        study_uid=study_uid,
        series_uid=series_uid,
        image_uid=image_uid,
    )
    return dataset, place


def _add_pixels(dataset: FileDataset, vendor: Vendor, grey: NDArray[np.float32]) -> None:
    numbers = stored(vendor, grey)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = vendor.photometric
    dataset.Rows, dataset.Columns = numbers.shape
    dataset.BitsAllocated = 8 * numbers.itemsize
    dataset.BitsStored = vendor.bits
    dataset.HighBit = vendor.bits - 1
    dataset.PixelRepresentation = int(vendor.signed)
    if vendor.rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept = (f"{value:g}" for value in vendor.rescale)
        dataset.RescaleType = "US"
    if vendor.windows:
        centre, width = window(vendor)
        dataset.WindowCenter = [f"{c:g}" for c in (centre, centre - width / 8)[: vendor.windows]]
        dataset.WindowWidth = [f"{w:g}" for w in (width, width / 2)[: vendor.windows]]
    if vendor.modality == "DX":
        dataset.PresentationLUTShape = "INVERSE" if vendor.photometric == "MONOCHROME1" else "IDENTITY"
    dataset.PixelData = numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OB" if vendor.bits == 8 else "OW"


def _uid(seed: int, root: str, name: str) -> UID:
    """A valid UID under the root for UUIDs, a function of its arguments. Source: DICOM PS3.5 B.2."""
    digest = derive(seed, root, site=name).to_bytes(32, "big")
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}")
