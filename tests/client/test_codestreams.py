"""Compressed frames: nothing is decoded that declares another size than the header, wherever it declares it."""

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from dicom_cases import encapsulated, jp2, slice_
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless

from client import codestreams, dicom, dicom_pixels
from client.drops import Drop, Unusable

FILES = Path(pydicom.data.__file__).parent / "test_files"
SIZE = (32, 48)


def stream() -> bytes:
    dataset = slice_(0, size=SIZE)
    with dicom.quiet():
        dataset.compress(JPEG2000Lossless)
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def pixels(dataset: FileDataset) -> NDArray[np.float32]:
    buffer = io.BytesIO()
    with dicom.quiet():
        dataset.save_as(buffer, enforce_file_format=True)
        dicom.header(buffer.getvalue())
        return dicom_pixels.pixels(buffer.getvalue(), window="dicom")


def siz(height: int, width: int, components: int = 1) -> bytes:
    """The beginning of a JPEG 2000 codestream, ISO/IEC 15444-1 A.5.1, that declares so many pixels."""
    sizes = (width, height, 0, 0, width, height, 0, 0)
    return b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 38 + 3 * components, 0, *sizes, components) + b"\x07\x01\x01" * 9


def refused_undecoded(dataset: FileDataset, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    with monkeypatch.context() as never:
        never.setattr(dicom_pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
        never.setattr(dicom_pixels._apart, "decoded", lambda *_: pytest.fail("decoded"))
        with pytest.raises(Unusable, match=words) as caught:
            pixels(dataset)
    assert caught.value.reason is Drop.UNREADABLE


@pytest.mark.parametrize("length", [None, bytes(4), b"\0\0\0\1" + (10**6).to_bytes(8, "big")])
def test_a_jp2_file_is_the_image_that_its_codestream_is(length: bytes | None) -> None:
    bare = stream()
    assert codestreams.bare(jp2(bare, length=length)) == bare == codestreams.bare(bare)
    whole = np.arange(SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE) / (SIZE[0] * SIZE[1] - 1)
    found = pixels(encapsulated(slice_(0, size=SIZE), [jp2(bare, length=length)], JPEG2000Lossless))
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, *range(2, 8), 2**32 - 1])
@pytest.mark.parametrize("long", [None, 0, 15, 2**64 - 1])
def test_a_jp2_file_without_a_codestream_is_refused_and_ends(length: int, long: int | None) -> None:
    damaged = jp2(stream())[:12] + length.to_bytes(4, "big") + b"ftyp"
    damaged += (b"" if long is None else long.to_bytes(8, "big")) + bytes(64)
    with pytest.raises(Unusable) as caught:
        pixels(encapsulated(slice_(0, size=SIZE), [damaged], JPEG2000Lossless))
    assert caught.value.reason is Drop.UNREADABLE


@pytest.mark.parametrize("declared", [siz(9000, 9000), siz(32, 48, 9), siz(32, 47)])
def test_a_codestream_of_another_size_than_declared_is_refused_undecoded_in_a_jp2_file_too(
    declared: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (declared, jp2(declared)):
        dataset = encapsulated(slice_(0, size=SIZE), [found], JPEG2000Lossless)
        refused_undecoded(dataset, monkeypatch, "another size")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize(
    "start",
    [b"\r\n\x87\n" + bytes(60), b"\xff\xd8\xff\xd0\xff\xc1" + bytes(60), b"\xff\xd8" + bytes(60), siz(32, 48)[:30]],
)
def test_a_stream_that_begins_otherwise_than_its_kind_is_refused_undecoded(
    syntax: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_undecoded(encapsulated(slice_(0, size=SIZE), [start], syntax), monkeypatch, "doesn't begin")


def test_the_frame_that_is_decoded_is_the_one_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = encapsulated(slice_(0, size=SIZE), [stream(), siz(9000, 9000)], JPEG2000Lossless)
    second = dataset.PixelData.index(siz(9000, 9000)[:60]) - 8
    first = dataset.PixelData.index(b"\xff\x4f") - 8
    dataset.ExtendedOffsetTable = struct.pack("<Q", second - first)
    dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(siz(9000, 9000)))
    refused_undecoded(dataset, monkeypatch, "another size")


def test_a_jp2_file_of_pydicoms_is_read() -> None:
    with dicom.quiet():
        assert dicom_pixels.pixels(FILES / "GDCMJ2K_TextGBR.dcm", window="dicom").shape == (400, 400, 3)
