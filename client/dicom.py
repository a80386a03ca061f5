"""What a DICOM file says of its image: a few allow-listed tags, checked. The pixels are client/dicom_pixels.py's.

A file is read with a list of the tags that are wanted, so no other tag is ever looked at. Messages name what is wrong,
never a tag's value: a patient's name can stand in any of them.
"""

import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.multival import MultiValue
from pydicom.valuerep import VR

from client.drops import Drop, Unusable
from client.pose import Pose, directions_of, ratio_of
from common.errors import DataError

# pydicom's remarks on odd values quote them. They go nowhere.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

SAMPLES_LIMIT = (
    100_000_000  # rows x columns x samples of one frame: four times the largest mammogram, 400 MB as float32
)
FRAMES_LIMIT = 100_000
BYTES_LIMIT = 4 * 2**30  # of one file; a deflated one is measured inflated


@dataclass(frozen=True, kw_only=True)
class Tags:
    """All that is kept of a DICOM header. None: missing or empty in the file."""

    height: int
    width: int
    frames: int = 1
    patient_id: str | None = None
    issuer: str | None = None  # who gave that number
    study_uid: str | None = None
    sop_uid: str | None = None
    modality: str | None = None
    image_kind: str | None = None  # SOP class and ImageType: "CT Image: ORIGINAL, PRIMARY, AXIAL"
    scanner: str | None = None  # manufacturer and model
    laterality: str | None = None
    burned_in: bool | None = None  # text in the pixels, as the file says
    pixel_spacing: tuple[float, float] | None = None  # mm between rows, between columns
    directions: str = ""  # as in Pose

    @property
    def pose(self) -> Pose:
        """How the image lies in the patient."""
        return Pose(directions=self.directions, ratio=ratio_of(self.pixel_spacing))


# fmt: off
KEPT = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer", "ManufacturerModelName", "PatientID",
    "IssuerOfPatientID", "StudyInstanceUID", "Laterality", "ImageLaterality", "BurnedInAnnotation", "PixelSpacing",
    "ImagerPixelSpacing", "PatientOrientation", "ImageOrientationPatient", "ImageType",
]
FORMAT = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
]
# fmt: on
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NATIVE = {f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2")}
# Who decodes what. GDCM ends the whole process on some damaged JPEG files, so it works in a process of its own. So does
# libjpeg, which a site may add for 4.51 with 12 bits.
_JPEG, _JPEG_LS, _JPEG_2000 = ("4.50", "4.51"), ("4.80", "4.81"), ("4.90", "4.91")
_DECODERS = {"5": "pydicom", "4.57": "gdcm", "4.70": "gdcm"}
_DECODERS |= (
    dict.fromkeys(_JPEG, "pillow") | dict.fromkeys(_JPEG_LS, "pyjpegls") | dict.fromkeys(_JPEG_2000, "pylibjpeg")
)
COMPRESSED = {f"1.2.840.10008.1.2.{end}": decoder for end, decoder in _DECODERS.items()}
_VRS = frozenset(vr.value.encode() for vr in VR)
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation object",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is DICOM, with or without the preamble that old ones lack.

    Those begin with an element of group 8 that has a VR, or a length after which a later element of a header follows.
    """
    if head[128:132] == b"DICM" or head[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x02\x00\x00\x00"):
        return True
    if head[:2] not in (b"\x08\x00", b"\x00\x08") or len(head) < 8:
        return False
    if head[4:6] in _VRS:
        return True
    group, number, length = struct.unpack("<HHI", head[:8])
    later = head[8 + length : 12 + length]
    return group == 8 and len(later) == 4 and (group, number) < struct.unpack("<HH", later) < (0x30, 0)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings off. Python's filters belong to the whole process: use it around threads, not inside them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def header(source: bytes | Path) -> Tags:
    """The tags of a file that holds an image, without reading its pixels.

    Guarantees: rows, columns and frames are positive and within the limits; the pixels' bytes are all there.
    Raises Unusable, and no other error, for anything else.
    """
    with refusing(), opened(source) as file:
        dataset = read_tags(file, KEPT + FORMAT, pixels=False)
        start = file.tell()
        element = file.read(6)
        following = element[:4]
        # Tag, VR and length of the pixel element. Some files are encoded otherwise than they say; a length is even.
        start += 12 if element[4:] in (b"OB", b"OW", b"UN") else 8
        end = file.seek(0, io.SEEK_END)
        kind = _NOT_IMAGES.get(_sop_class(dataset))
        if kind:
            raise Unusable(Drop.NOT_AN_IMAGE, f"a DICOM {kind}, not an image")
        if following in (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00"):
            raise Unusable(Drop.UNSUPPORTED, "floating-point pixels are not supported")
        if following not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
            raise Unusable(Drop.NO_PIXELS, "a DICOM file without pixels")
        tags = checked(dataset, end - start)
        if str(dataset.file_meta.TransferSyntaxUID) in COMPRESSED:
            _walk_fragments(file, start, end)
        return tags


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever a parser of untrusted bytes throws is a fault of the file. Its text may quote the file: it goes."""
    try:
        yield
    except DataError:
        raise
    except (MemoryError, RecursionError):
        raise Unusable(Drop.TOO_LARGE, "the file asks for more memory or depth than there is") from None
    except Exception as error:
        if "does not support" in str(error):  # pydicom's word for every decoder that it asked
            raise Unusable(Drop.UNSUPPORTED, "no decoder here knows this kind of compressed pixels") from None
        raise Unusable(Drop.UNREADABLE, f"can't be decoded ({type(error).__name__})") from None


@contextmanager
def opened(source: bytes | Path) -> Iterator[BinaryIO]:
    """The file's bytes from the beginning; never more than BYTES_LIMIT of them. Raises Unusable, OSError."""
    if isinstance(source, bytes):
        yield _inflated(io.BytesIO(source), len(source))
        return
    with source.open("rb") as file:
        yield _inflated(file, source.stat().st_size)


def _inflated(file: BinaryIO, size: int) -> BinaryIO:
    """The file itself or, of a deflated one, the same as explicit little endian: pydicom inflates without a limit."""
    if size > BYTES_LIMIT:
        raise Unusable(Drop.TOO_LARGE, f"more than {BYTES_LIMIT // 2**30} GiB")
    head = file.read(1024)
    file.seek(0)
    if _DEFLATED not in head:
        return file
    if head[132:136] != b"\x02\x00\x00\x00":
        raise Unusable(Drop.UNSUPPORTED, "deflated without the length of the file meta group")
    start = 144 + struct.unpack("<I", head[140:144])[0]
    data = file.read()
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflate.decompress(data[start:], BYTES_LIMIT // 4)
    if not inflate.eof:
        raise Unusable(Drop.TOO_LARGE if inflate.unconsumed_tail else Drop.UNREADABLE, "the deflated part does not end")
    return io.BytesIO(data[:start].replace(_DEFLATED, _DEFLATED[:-3] + b"\0\0\0") + body)


def read_tags(file: BinaryIO, tags: list[str], *, pixels: bool) -> pydicom.FileDataset:
    """The elements named, of those before the pixels or with them; the transfer syntax is there even in old files.

    For use within `refusing`.
    """
    head = file.read(132)
    file.seek(0)
    if not looks_like_dicom(head):
        raise Unusable(Drop.NOT_AN_IMAGE, "not a DICOM file")
    dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=list(tags))
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(plain)
    return dataset


def checked(dataset: pydicom.FileDataset, stored: int) -> Tags:
    """The tags, once what they declare fits the limits and the `stored` bytes of pixels."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax not in _NATIVE | COMPRESSED.keys():
        raise Unusable(Drop.UNSUPPORTED, "a transfer syntax that can't be decoded here")
    height, width, samples = (int(dataset.get(name) or 0) for name in ("Rows", "Columns", "SamplesPerPixel"))
    count, bits = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("BitsAllocated") or 0)
    if height < 1 or width < 1:
        raise Unusable(Drop.UNREADABLE, f"{height} rows and {width} columns")
    if samples not in (1, 3) or bits not in (1, 8, 16, 32):
        raise Unusable(
            Drop.UNSUPPORTED, f"{samples} samples per pixel, {bits} bits allocated: 1 or 3 of 1, 8, 16 or 32 are read"
        )
    if height * width * samples > SAMPLES_LIMIT or not 1 <= count <= FRAMES_LIMIT:
        raise Unusable(
            Drop.TOO_LARGE, f"{count} frames of {height} x {width} x {samples}; limit {SAMPLES_LIMIT} samples a frame"
        )
    half = text(dataset, "PhotometricInterpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422")
    needed = math.ceil(height * width * (2 if half else samples) * bits * count / 8) if syntax in _NATIVE else 8 * count
    if stored < needed:
        raise Unusable(Drop.UNREADABLE, f"truncated: {stored} bytes of pixels where {needed} are declared")
    burned, model = (
        text(dataset, "BurnedInAnnotation"),
        (text(dataset, "Manufacturer"), text(dataset, "ManufacturerModelName")),
    )
    return Tags(
        patient_id=text(dataset, "PatientID"),
        issuer=text(dataset, "IssuerOfPatientID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
        modality=text(dataset, "Modality"),
        image_kind=_kind(dataset),
        scanner=" ".join(part for part in model if part) or None,
        laterality=text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
        burned_in=None if burned is None else burned.upper() == "YES",
        pixel_spacing=_spacing(dataset),
        directions=_directions(dataset),
        height=height,
        width=width,
        frames=count,
    )


def _walk_fragments(file: BinaryIO, place: int, end: int) -> None:
    """Refuses compressed pixels that are cut off: fragments say their length, a delimiter ends them (PS3.5 A.4)."""
    while place + 8 <= end:
        file.seek(place)
        tag, length = struct.unpack("<4sI", file.read(8))
        if tag == b"\xfe\xff\xdd\xe0":
            return
        if tag != b"\xfe\xff\x00\xe0":
            break
        place += 8 + length
    raise Unusable(Drop.UNREADABLE, "truncated: the compressed pixels do not end")


def text(dataset: pydicom.Dataset, name: str) -> str | None:
    """The (first) value, at most 64 printable characters, as the standard has it for these tags."""
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    text = "".join(c for c in str(value if value is not None else "") if c.isprintable()).strip()
    return text[:64] or None


def _sop_class(dataset: pydicom.FileDataset) -> str:
    return text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID") or ""


def _kind(dataset: pydicom.FileDataset) -> str | None:
    """As in Tags: the standard's name of the SOP class, and those of the first three values that are code strings."""
    uid = pydicom.uid.UID(_sop_class(dataset))
    name = uid.name.replace(" Storage", "") if uid.name != uid else "another SOP class" if uid else ""
    values = dataset.get("ImageType") or []
    codes = [str(v).strip() for v in (values if isinstance(values, MultiValue) else [values])[:3]]
    said = ", ".join(code for code in codes if re.fullmatch("[A-Z0-9_ ]{1,16}", code))
    return ": ".join(filter(None, (name, said))) or None


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    value = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if not isinstance(value, MultiValue) or len(value) != 2:
        return None
    rows, columns = float(value[0]), float(value[1])
    return (rows, columns) if 0 < rows < math.inf and 0 < columns < math.inf else None


def _directions(dataset: pydicom.Dataset) -> str:
    """As in Pose. What makes no sense says nothing."""
    plane, named = dataset.get("ImageOrientationPatient"), dataset.get("PatientOrientation")
    return directions_of(
        [float(value) for value in plane] if isinstance(plane, MultiValue) else [],
        [str(value) for value in named] if isinstance(named, MultiValue) else [],
    )
