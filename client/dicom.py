"""DICOM bytes to grey or colour values in [0, 1] and a few allow-listed tags; the only door of pydicom in this room.

A file is read with a list of the tags that are wanted, so no other tag is ever looked at. Messages name what is wrong,
never a tag's value: a patient's name can stand in any of them.
"""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from client.decoder import Decoder
from client.drops import Drop, Unusable
from client.preprocess import Window, to_unit
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
    study_uid: str | None = None
    sop_uid: str | None = None
    modality: str | None = None
    scanner: str | None = None  # manufacturer and model
    laterality: str | None = None
    burned_in: bool | None = None  # text in the pixels, as the file says
    pixel_spacing: tuple[float, float] | None = None  # mm between rows, between columns


# fmt: off
_KEPT = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer", "ManufacturerModelName", "PatientID",
    "StudyInstanceUID", "Laterality", "ImageLaterality", "BurnedInAnnotation", "PixelSpacing", "ImagerPixelSpacing",
]
FORMAT = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
]
_GREY = [
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
]
_PIXELS = [
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
]
# fmt: on
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NATIVE = {f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2")}
# Who decodes what. GDCM ends the whole process on some damaged JPEG files, so it works in a process of its own.
_JPEG, _JPEG_LS, _JPEG_2000 = ("4.50", "4.51"), ("4.80", "4.81"), ("4.90", "4.91")
_DECODERS = {"5": "pydicom", "4.57": "gdcm", "4.70": "gdcm"}
_DECODERS |= (
    dict.fromkeys(_JPEG, "pillow") | dict.fromkeys(_JPEG_LS, "pyjpegls") | dict.fromkeys(_JPEG_2000, "pylibjpeg")
)
_COMPRESSED = {f"1.2.840.10008.1.2.{end}": decoder for end, decoder in _DECODERS.items()}
_gdcm = Decoder()
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation object",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is DICOM, with or without the preamble that old ones lack."""
    return head[128:132] == b"DICM" or head[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x02\x00\x00\x00")


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
        dataset = read_tags(file, _KEPT + FORMAT, pixels=False)
        start = file.tell()
        following = file.read(4)
        start += 8 if dataset.original_encoding[0] else 12  # tag, VR and length of the pixel element
        end = file.seek(0, io.SEEK_END)
        kind = _NOT_IMAGES.get(text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID") or "")
        if kind:
            raise Unusable(Drop.NOT_AN_IMAGE, f"a DICOM {kind}, not an image")
        if following in (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00"):
            raise Unusable(Drop.UNSUPPORTED, "floating-point pixels are not supported")
        if following not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
            raise Unusable(Drop.NO_PIXELS, "a DICOM file without pixels")
        tags = checked(dataset, end - start)
        if str(dataset.file_meta.TransferSyntaxUID) in _COMPRESSED:
            _walk_fragments(file, start, end)
        return tags


def pixels(source: bytes | Path, *, window: Window, frame: int = 0) -> NDArray[np.float32]:
    """One frame (from 0) as `frames` gives it. Raises Unusable, and no other error."""
    (found,) = frames(source, window=window, wanted=[frame])
    if isinstance(found, Unusable):
        raise found
    return found


def frames(source: bytes | Path, *, window: Window, wanted: Iterable[int]) -> Iterator[NDArray[np.float32] | Unusable]:
    """The wanted frames, [H, W] or [H, W, 3] float32 in [0, 1] after modality LUT, window, inversion; or what is wrong.

    Window "dicom" is the file's VOI LUT or window, else the frame's smallest to largest value; grey values that the
    file calls padding count as the smallest. Colour becomes RGB over its full range.
    Raises Unusable, and no other error, for a file without any usable frame.
    Source: DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.5 8.2.
    """
    with refusing(), opened(source) as file:
        dataset = read_tags(file, _KEPT + FORMAT + _GREY + _PIXELS, pixels=True)
        if "PixelData" not in dataset:
            raise Unusable(Drop.NO_PIXELS, "a DICOM file without pixels")
        tags = checked(dataset, len(dataset.PixelData))
    for frame in wanted:
        try:
            with refusing():
                yield _frame(dataset, frame, tags, window)
        except Unusable as error:
            yield error


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
    if syntax not in _NATIVE | _COMPRESSED.keys():
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
        study_uid=text(dataset, "StudyInstanceUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
        modality=text(dataset, "Modality"),
        scanner=" ".join(part for part in model if part) or None,
        laterality=text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
        burned_in=None if burned is None else burned.upper() == "YES",
        pixel_spacing=_spacing(dataset),
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


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    value = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if not isinstance(value, MultiValue) or len(value) != 2:
        return None
    rows, columns = float(value[0]), float(value[1])
    return (rows, columns) if 0 < rows < math.inf and 0 < columns < math.inf else None


def stored_frame(dataset: pydicom.FileDataset, frame: int, tags: Tags) -> NDArray[Any]:
    """A frame (from 0, one of `tags`) as it is stored, [H, W] or [H, W, 3]. For use within `refusing`."""
    decoder = _COMPRESSED.get(str(dataset.file_meta.TransferSyntaxUID), "")
    if decoder:
        stream = get_frame(dataset.PixelData, frame, number_of_frames=tags.frames)
        if _codestream_size(stream) not in (None, (tags.height, tags.width)):
            raise Unusable(Drop.UNREADABLE, "the compressed image has another size than the header says")
    stored: NDArray[Any]
    if decoder == "gdcm":
        form = {name: dataset.get(name) for name in FORMAT if name != "NumberOfFrames"}
        stored = _gdcm.decoded(str(dataset.file_meta.TransferSyntaxUID), form, stream)
    else:
        stored = pixel_array(dataset, index=frame, decoding_plugin=decoder)
    if stored.shape[:2] != (tags.height, tags.width):
        raise Unusable(Drop.UNREADABLE, "the decoded image has another size than the header says")
    return stored


def _frame(dataset: pydicom.FileDataset, frame: int, tags: Tags, window: Window) -> NDArray[np.float32]:
    if not 0 <= frame < tags.frames:
        raise Unusable(Drop.CHANGED, f"frame {frame} of a file of {tags.frames}")
    stored = stored_frame(dataset, frame, tags)
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
        return to_unit(stored, window, limits=(0, 255 if stored.dtype == np.uint8 else 65535))
    if stored.ndim == 3:
        return to_unit(stored, window, limits=(0, 2 ** int(dataset.get("BitsStored") or 8) - 1))
    grey = _windowed(stored, _with_groups(dataset, frame), window)
    if not np.isfinite(grey).all():
        raise Unusable(Drop.UNREADABLE, "grey values that are not finite: rescale or window is broken")
    return 1 - grey if photometric == "MONOCHROME1" else grey


def _with_groups(dataset: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """Rescale, window and padding of a frame: an enhanced multi-frame file keeps them in functional groups."""
    found = pydicom.Dataset()
    found.file_meta = dataset.file_meta  # tells the byte order of lookup tables
    found.update({e.tag: e for e in dataset if e.keyword in _GREY or e.keyword in FORMAT})
    shared, each = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    for group in [*(shared or [])[:1], *(each or [])[frame : frame + 1]]:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(macro) or [])[:1]:
                found.update({e.tag: e for e in item if e.keyword in _GREY})
    return found


def _windowed(stored: NDArray[Any], rules: pydicom.Dataset, window: Window) -> NDArray[np.float32]:
    padding = rules.get("PixelPaddingValue")
    valid = np.ones(stored.shape, bool)
    if isinstance(padding, int):
        limit = rules.get("PixelPaddingRangeLimit")
        first, last = sorted((padding, limit if isinstance(limit, int) else padding))
        valid = (stored < first) | (stored > last)
    values = np.asarray(apply_modality_lut(stored, rules))
    if not valid.all() and valid.any():
        values = np.where(valid, values, values[valid].min())
    if window != "dicom":
        return to_unit(values, window)
    if rules.get("VOILUTSequence"):
        looked_up = apply_voi(values if values.dtype.kind in "iu" else values.astype(np.int64), rules)
        return to_unit(looked_up, window, limits=(0, 2 ** int(rules.VOILUTSequence[0].LUTDescriptor[2]) - 1))
    centre, width = _number(rules, "WindowCenter"), _number(rules, "WindowWidth")
    function = text(rules, "VOILUTFunction") or "LINEAR"
    if centre is None or width is None or not width >= (1 if function == "LINEAR" else 1e-9):
        return to_unit(values, window)
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
        return (1 / (1 + np.exp(exponent))).astype(np.float32)
    low, high = centre - width / 2, centre + width / 2
    if function == "LINEAR":  # is one grey value narrower than its width, C.11.2.1.2.1; width 1 is a threshold
        high = max(high - 1, low + 1e-6)
    return to_unit(values, window, limits=(low, high))


def _number(dataset: pydicom.Dataset, name: str) -> float | None:
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG, JPEG-LS or JPEG 2000 stream declares itself; a decoder would allocate that much."""
    if stream[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left
    if stream[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack(">2H", stream[place + 5 : place + 9])
            return height, width
        place += 1 if marker == 0xFF else 2 + struct.unpack(">H", stream[place + 2 : place + 4])[0]
    return None


def decoded_by_gdcm(syntax: str, form: Mapping[str, Any], stream: bytes) -> NDArray[Any]:
    """One compressed frame as stored, from the elements that describe its pixels. For a process of its own."""
    dataset = pydicom.Dataset()
    for name, value in form.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate([stream])
    return pixel_array(dataset, index=0, decoding_plugin="gdcm")
