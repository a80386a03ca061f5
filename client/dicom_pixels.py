"""Pixels of DICOM files as grey or colour values in [0, 1]. The header is client/dicom.py's."""

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from client.codestreams import bare, size
from client.decoder import Decoder
from client.dicom import COMPRESSED, FORMAT, KEPT, Tags, checked, opened, read_tags, refusing, text
from client.drops import Drop, Unusable
from client.preprocess import Window, to_unit

# fmt: off
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
_FORM = [name for name in FORMAT if name != "NumberOfFrames"]
_EXTENDED = "1.2.840.10008.1.2.4.51"
_apart = Decoder()


def pixels(source: bytes | Path, *, window: Window, frame: int = 0) -> NDArray[np.float32]:
    """One frame (from 0) as `frames` gives it. Raises Unusable, and no other error."""
    (found,) = frames(source, window=window, wanted=[frame])
    if isinstance(found, Unusable):
        raise found
    return found


def frames(source: bytes | Path, *, window: Window, wanted: Iterable[int]) -> Iterator[NDArray[np.float32] | Unusable]:
    """The wanted frames, [H, W] or [H, W, 3] float32 in [0, 1] after modality LUT, window, inversion; or what is wrong.

    Window "dicom" is the file's VOI LUT or window, else the frame's smallest to largest value; grey values that the
    file calls padding count as the darkest that are none. Colour becomes RGB over its full range.
    Raises Unusable, and no other error, for a file without any usable frame.
    Source: DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.5 8.2.
    """
    with refusing(), opened(source) as file:
        dataset = read_tags(file, KEPT + FORMAT + _GREY + _PIXELS, pixels=True)
        if "PixelData" not in dataset:
            raise Unusable(Drop.NO_PIXELS, "a DICOM file without pixels")
        tags = checked(dataset, len(dataset.PixelData))
    for frame in wanted:
        try:
            with refusing():
                yield _frame(dataset, frame, tags, window)
        except Unusable as error:
            yield error


def stored_frame(dataset: pydicom.FileDataset, frame: int, tags: Tags) -> NDArray[Any]:
    """A frame (from 0, one of `tags`) as it is stored, [H, W] or [H, W, 3]. For use within `refusing`.

    Guarantees: a decoder is given no compressed stream but one that declares the header's size itself.
    """
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    decoder = COMPRESSED.get(syntax, "")
    if syntax == _EXTENDED and int(dataset.get("BitsStored") or 0) > 8:  # Pillow reads 8 bits of a pixel
        decoder = "libjpeg"
        if importlib.util.find_spec("libjpeg") is None:
            raise Unusable(Drop.UNSUPPORTED, "JPEG of 12 bits: pip install 'fedward[jpeg12]' adds a decoder, under GPL")
    stored: NDArray[Any]
    if decoder:
        stream, form = _stream(dataset, frame, tags), {name: dataset.get(name) for name in _FORM}
        apart = decoder in ("gdcm", "libjpeg")
        stored = _apart.decoded(syntax, form, stream) if apart else _decoded(syntax, form, stream, decoder)
    else:
        stored = pixel_array(dataset, index=frame)
    if stored.shape[:2] != (tags.height, tags.width):
        raise Unusable(Drop.UNREADABLE, "the decoded image has another size than the header says")
    return stored


def _stream(dataset: pydicom.FileDataset, frame: int, tags: Tags) -> bytes:
    """A compressed frame, of the size that the header says: whoever decodes it allocates what it declares."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if all(offsets) else None
    stream = bare(get_frame(dataset.PixelData, frame, number_of_frames=tags.frames, extended_offsets=extended))
    declared = size(stream)
    if declared is None and str(dataset.file_meta.TransferSyntaxUID) != RLELossless:  # which declares none
        raise Unusable(Drop.UNREADABLE, "the compressed image doesn't begin as its kind does")
    if declared not in (None, (tags.height, tags.width, int(dataset.SamplesPerPixel))):
        raise Unusable(Drop.UNREADABLE, "the compressed image has another size than the header says")
    return stream


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
    inverted = photometric == "MONOCHROME1"
    grey = _windowed(stored, _with_groups(dataset, frame), window, darkest=np.max if inverted else np.min)
    if not np.isfinite(grey).all():
        raise Unusable(Drop.UNREADABLE, "grey values that are not finite: rescale or window is broken")
    return 1 - grey if inverted else grey


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


def _windowed(
    stored: NDArray[Any], rules: pydicom.Dataset, window: Window, *, darkest: Callable[[NDArray[Any]], Any]
) -> NDArray[np.float32]:
    """Grey in [0, 1], not yet inverted. `darkest` of the values that aren't padding is what padding becomes."""
    padding = rules.get("PixelPaddingValue")
    valid = np.ones(stored.shape, bool)
    if isinstance(padding, int):
        limit = rules.get("PixelPaddingRangeLimit")
        first, last = sorted((padding, limit if isinstance(limit, int) else padding))
        valid = (stored < first) | (stored > last)
    values = np.asarray(apply_modality_lut(stored, rules))
    if not valid.all() and valid.any():
        values = np.where(valid, values, darkest(values[valid]))
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


def decoded_apart(syntax: str, form: Mapping[str, Any], stream: bytes) -> NDArray[Any]:
    """One compressed frame as stored, from the elements that describe its pixels. For a process of its own."""
    return _decoded(syntax, form, stream, "pylibjpeg" if syntax == _EXTENDED else "gdcm")


def _decoded(syntax: str, form: Mapping[str, Any], stream: bytes, decoder: str) -> NDArray[Any]:
    dataset = pydicom.Dataset()
    for name, value in form.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate([stream])
    return pixel_array(dataset, index=0, decoding_plugin=decoder)
