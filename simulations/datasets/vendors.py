"""The phantom's makers of X-ray machines, all invented: how each stores the same picture, and what it leaves out."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HOSPITALS = ("lakeside", "northgate", "st-anna", "valley")


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """One maker's habits. Stored numbers run from `low` (or, inverted, `high`) for grey 0 to the other for grey 1."""

    manufacturer: str
    model: str  # "": the tag is missing
    modality: Literal["CR", "DX"]
    transfer_syntax: str
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    bits: int  # stored
    signed: bool
    low: int
    high: int
    rescale: tuple[float, float] | None  # slope, intercept; None: the tags are missing
    windows: int  # 0: missing, the stored numbers then use all bits; 2: a second, narrower one besides
    patient_id: str  # format of the patient's number
    layout: str  # format of the file's path from patient, study, series, image and their UIDs
    leaves_out: tuple[str, ...]  # optional tags
    shape: tuple[float, float]  # height and width in shares of the image size
    gamma: float  # of the processing: the vendor's look
    hospital: int  # of HOSPITALS: where most of its machines stand
    share: int  # patients out of twelve

    @property
    def scanner(self) -> str:
        return f"{self.manufacturer} {self.model}".strip()


VENDORS = (
    Vendor(
        manufacturer="Halden Imaging", model="Fjord DR 3", modality="DX", transfer_syntax="1.2.840.10008.1.2.1",
        photometric="MONOCHROME2", bits=12, signed=False, low=180, high=3700, rescale=(1, 0), windows=1,
        patient_id="HX-{:06d}", layout="{patient_id}/{study_uid}/{series_uid}/{image_uid}.dcm", leaves_out=(),
        shape=(1, 1), gamma=1.0, hospital=0, share=3,
    ),
    Vendor(
        manufacturer="Kestrel Medical", model="Merlin 500", modality="CR", transfer_syntax="1.2.840.10008.1.2.4.90",
        photometric="MONOCHROME1", bits=10, signed=False, low=40, high=980, rescale=None, windows=1,
        patient_id="{:010d}", layout="DICOM/PA{patient:06d}/ST{study:02d}/SE01/IM{image:04d}",
        leaves_out=("ViewPosition", "BurnedInAnnotation", "SeriesDescription"), shape=(1, 0.875), gamma=1.15,
        hospital=1, share=2,
    ),
    Vendor(
        manufacturer="Orvieto Radiografia", model="Campo 2", modality="DX", transfer_syntax="1.2.840.10008.1.2.4.80",
        photometric="MONOCHROME2", bits=16, signed=False, low=900, high=47000, rescale=(0.25, -200), windows=2,
        patient_id="{:05d}/OR", layout="{patient:05d}_{study}_{image}.dcm", leaves_out=("StudyDescription",),
        shape=(0.875, 1), gamma=0.9, hospital=2, share=2,
    ),
    Vendor(
        manufacturer="Tanager Systems", model="", modality="CR", transfer_syntax="1.2.840.10008.1.2.5",
        photometric="MONOCHROME2", bits=8, signed=False, low=0, high=255, rescale=None, windows=0,
        patient_id="TS{:04d}A", layout="{image_uid}",
        leaves_out=("StudyDescription", "SeriesDescription", "PixelSpacing", "StationName", "BurnedInAnnotation"),
        shape=(1, 1), gamma=1.05, hospital=3, share=2,
    ),
    Vendor(
        manufacturer="Umbra Röntgen", model="Altus", modality="CR", transfer_syntax="1.2.840.10008.1.2",
        photometric="MONOCHROME1", bits=12, signed=False, low=0, high=4095, rescale=(1, 0), windows=0,
        patient_id="{:06d}-71", layout="2021/{patient_id}/{image}.DCM",
        leaves_out=("BodyPartExamined", "PatientOrientation"), shape=(1, 0.9375), gamma=0.95, hospital=1, share=2,
    ),
    Vendor(
        manufacturer="Sola Health", model="Prisma S", modality="DX", transfer_syntax="1.2.840.10008.1.2.1.99",
        photometric="MONOCHROME2", bits=16, signed=True, low=-30000, high=21000, rescale=(1, 32768), windows=1,
        patient_id="SOLA.{:d}", layout="{study_uid}/{image_uid}.dcm", leaves_out=("PatientSex", "StationName"),
        shape=(0.9375, 1), gamma=1.1, hospital=0, share=1,
    ),
)  # fmt: skip


def shape_of(vendor: Vendor, image_size: int) -> tuple[int, int]:
    """Height and width in pixels of this vendor's images."""
    return round(vendor.shape[0] * image_size), round(vendor.shape[1] * image_size)


def processed(vendor: Vendor, grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """A picture in [0, 1] with the vendor's look, in [0, 1]."""
    return grey ** np.float32(vendor.gamma)


def stored(vendor: Vendor, grey: NDArray[np.float32]) -> NDArray[np.integer]:
    """Grey values in [0, 1] as the vendor's stored numbers: uint8, uint16 or int16.

    Guarantees: decoding loses at most half a stored step.
    """
    share = 1 - grey.astype(np.float64) if vendor.photometric == "MONOCHROME1" else grey.astype(np.float64)
    numbers = np.rint(vendor.low + share * (vendor.high - vendor.low))
    return numbers.astype(np.uint8 if vendor.bits == 8 else np.int16 if vendor.signed else np.uint16)


def window(vendor: Vendor) -> tuple[float, float]:
    """Centre and width, after rescale, of a window from `low` to `high`. Source: DICOM PS3.3 C.11.2.1.2.1."""
    slope, intercept = vendor.rescale or (1.0, 0.0)
    low, high = slope * vendor.low + intercept, slope * vendor.high + intercept
    return (low + high + 1) / 2, high - low + 1


def allotted(patients: int, rng: np.random.Generator) -> list[Vendor]:
    """A vendor per patient: each run of twelve has every vendor, as often as its share says, in random order."""
    deck = [position for position, vendor in enumerate(VENDORS) for _ in range(vendor.share)]
    dealt = [position for _ in range(math.ceil(patients / len(deck))) for position in rng.permutation(deck)]
    return [VENDORS[position] for position in dealt[:patients]]
