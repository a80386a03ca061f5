"""Real and broken DICOM files against values worked out by hand."""

import importlib.util
import logging
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client import dicom, dicom_pixels
from client.drops import Drop, Unusable


def made(pixels: NDArray[np.generic], **tags: object) -> FileDataset:
    """A small grey or colour file; `tags` replace or, as None, remove what it would have."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["one"])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.Modality = "SECRET-17", "Secret^Name", "DX"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Maker", "Model 3"
    frames = pixels.ndim == 3 and pixels.shape[-1] != 3
    dataset.Rows, dataset.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    if frames:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 and not frames else 1
    dataset.PhotometricInterpretation = "RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2"
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def written(dataset: FileDataset) -> bytes:
    buffer = pydicom.filebase.DicomBytesIO()
    with dicom.quiet():
        dataset.save_as(buffer, enforce_file_format=True)
    return bytes(buffer.getvalue())


LACKS_LIBJPEG = importlib.util.find_spec("libjpeg") is None
RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4)


def read(data: bytes) -> NDArray[np.float32]:
    with dicom.quiet():
        dicom.header(data)
        return dicom_pixels.pixels(data, window="dicom")


def reason_of(data: bytes) -> Drop:
    with pytest.raises(Unusable) as caught:
        read(data)
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.reason


def test_the_header_gives_the_allowed_tags_only() -> None:
    tags = dicom.header(written(made(RAMP, BurnedInAnnotation="YES", PixelSpacing=[0.5, 0.25], ImageLaterality="L")))
    assert (tags.patient_id, tags.modality, tags.scanner, tags.laterality) == ("SECRET-17", "DX", "Maker Model 3", "L")
    assert (tags.height, tags.width, tags.frames, tags.burned_in, tags.pixel_spacing) == (3, 4, 1, True, (0.5, 0.25))
    assert "Secret^Name" not in repr(tags)


def test_missing_tags_are_none() -> None:
    gone = ("PatientID", "Modality", "Manufacturer", "ManufacturerModelName")
    tags = dicom.header(written(made(RAMP, **dict.fromkeys(gone))))
    assert (tags.patient_id, tags.modality, tags.scanner, tags.burned_in, tags.study_uid) == (None,) * 5
    assert dicom.header(written(made(RAMP, PatientID="  "))).patient_id is None


@pytest.mark.parametrize(
    ("sop_class", "image_type", "kind"),
    [
        (CTImageStorage, ["ORIGINAL", "PRIMARY", "LOCALIZER", "TOP"], "CT Image: ORIGINAL, PRIMARY, LOCALIZER"),
        (CTImageStorage, ["DERIVED", "SECONDARY", "SCREEN SAVE"], "CT Image: DERIVED, SECONDARY, SCREEN SAVE"),
        (CTImageStorage, "ORIGINAL", "CT Image: ORIGINAL"),
        (SecondaryCaptureImageStorage, None, "Secondary Capture Image"),
        ("1.2.826.0.1.3680043.8.498.5", ["ORIGINAL", "Doe^Jane", "X" * 17], "another SOP class: ORIGINAL"),
    ],
)
def test_the_kind_is_the_sop_class_by_name_and_the_image_type_as_far_as_it_is_codes(
    sop_class: str, image_type: object, kind: str
) -> None:
    tags = {} if image_type is None else {"ImageType": image_type}
    with dicom.quiet():
        assert dicom.header(written(made(RAMP, SOPClassUID=sop_class, **tags))).image_kind == kind


def test_without_window_grey_values_go_from_smallest_to_largest() -> None:
    np.testing.assert_allclose(dicom_pixels.pixels(written(made(RAMP + 100)), window="dicom"), RAMP / 11, atol=1e-6)


def test_monochrome1_is_inverted() -> None:
    data = written(made(RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(dicom_pixels.pixels(data, window="dicom"), 1 - RAMP / 11, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 0, (4 - 4.5) / 4 + 0.5, (6 - 4.5) / 4 + 0.5, 1]),  # PS3.3 C.11.2.1.2.1 with c=5, w=5
        ("LINEAR_EXACT", [0, 0, (4 - 5) / 5 + 0.5, (6 - 5) / 5 + 0.5, 1]),  # C.11.2.1.3.2
        ("SIGMOID", [1 / (1 + np.exp(-4 * (x - 5) / 5)) for x in (0, 2, 4, 6, 11)]),  # C.11.2.1.3.1
    ],
)
def test_the_files_window_is_applied_as_the_standard_writes_it(function: str, expected: list[float]) -> None:
    data = written(made(RAMP, WindowCenter=5, WindowWidth=5, VOILUTFunction=function))
    found = dicom_pixels.pixels(data, window="dicom").reshape(-1)[[0, 2, 4, 6, 11]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rescale_comes_before_the_window_and_before_a_study_window() -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": -990, "WindowWidth": 21}
    data = written(made(RAMP, **tags))
    hounsfield = 2.0 * RAMP - 1000
    expected = np.clip((hounsfield + 990.5) / 20 + 0.5, 0, 1)
    np.testing.assert_allclose(dicom_pixels.pixels(data, window="dicom"), expected, atol=1e-5)
    np.testing.assert_allclose(
        dicom_pixels.pixels(data, window=(-990.0, 40.0)), np.clip((hounsfield + 1010) / 40, 0, 1), atol=1e-5
    )


def test_percentile_maps_the_1st_and_99th_to_0_and_1() -> None:
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    expected = np.clip((values - 99.99) / (9899.01 - 99.99), 0, 1)
    np.testing.assert_allclose(dicom_pixels.pixels(written(made(values)), window="percentile"), expected, atol=1e-5)


def test_a_voi_lookup_table_is_followed() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [12, 0, 8], np.array([x * x for x in range(12)], "<u2").tobytes()
    data = written(made(RAMP, VOILUTSequence=Sequence([table])))
    np.testing.assert_allclose(dicom_pixels.pixels(data, window="dicom"), RAMP.astype(float) ** 2 / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1050, "WindowWidth": 1301, "VOILUTFunction": "LINEAR_EXACT"}])
def test_padding_is_as_dark_as_the_darkest_pixel_whichever_way_grey_goes(
    photometric: str, padding: int, window: dict[str, object]
) -> None:
    values = (RAMP * 100 + 500).astype(np.uint16)  # 500 to 1600
    values[0, 0] = padding
    data = written(made(values, PhotometricInterpretation=photometric, PixelPaddingValue=padding, **window))
    found = dicom_pixels.pixels(data, window="dicom")
    low, high = (399.5, 1700.5) if window else (600, 1600)
    expected = (values - low) / (high - low)
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(found.ravel()[1:], expected.ravel()[1:], atol=1e-6)
    assert found[0, 0] == found.ravel()[1:].min() and found.max() > found[0, 0] + 0.5


def test_padding_counts_as_the_smallest_value() -> None:
    values = RAMP.astype(np.int16) + 10
    values[0, 0] = -2000
    found = dicom_pixels.pixels(written(made(values, PixelPaddingValue=-2000)), window="dicom")
    assert found[0, 0] == 0 and found[0, 1] == 0 and found[2, 3] == 1
    assert found[1, 0] == pytest.approx((14 - 11) / 10)


@pytest.mark.parametrize(
    ("kind", "stored"), [("u1", 8), ("<u2", 10), ("<u2", 12), ("<u2", 16), ("<i2", 12), ("<i2", 16)]
)
def test_bit_depths_signed_or_not_decode_alike(kind: str, stored: int) -> None:
    values = (RAMP.astype(kind) - (6 if kind == "<i2" else 0)).astype(kind)
    data = written(made(values, BitsStored=stored, HighBit=stored - 1))
    np.testing.assert_allclose(dicom_pixels.pixels(data, window="dicom"), RAMP / 11, atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(syntax: str) -> None:
    values = (np.arange(32 * 32, dtype=np.uint16) * 3 % 4096).reshape(32, 32)
    dataset = made(values, BitsStored=12, HighBit=11)
    plain = dicom_pixels.pixels(written(dataset), window="dicom")
    with dicom.quiet():
        dataset.compress(syntax)
    np.testing.assert_array_equal(dicom_pixels.pixels(written(dataset), window="dicom"), plain)
    assert dicom.header(written(dataset)).width == 32


def test_deflated_files_are_read_and_their_bombs_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made(np.zeros((600, 600), np.uint16))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data = written(dataset)
    assert len(data) < 20_000 and dicom_pixels.pixels(data, window="dicom").shape == (600, 600)
    monkeypatch.setattr(dicom, "BYTES_LIMIT", 400_000)
    assert reason_of(data) is Drop.TOO_LARGE


def test_colour_stays_colour_over_its_full_range() -> None:
    values = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7
    np.testing.assert_allclose(dicom_pixels.pixels(written(made(values)), window="dicom"), values / 255, atol=1e-6)


def test_ybr_becomes_rgb() -> None:
    values = np.zeros((2, 2, 3), np.uint8) + np.array([76, 85, 255], np.uint8)  # pure red, JFIF (ITU-R BT.601)
    found = dicom_pixels.pixels(written(made(values, PhotometricInterpretation="YBR_FULL")), window="dicom")
    np.testing.assert_allclose(found, np.broadcast_to([254 / 255, 0, 0], (2, 2, 3)), atol=0.01)


def test_each_frame_has_its_own_window_where_functional_groups_say_so() -> None:
    values = np.stack([RAMP, RAMP])
    groups = []
    for centre in (2, 6):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, 4, "LINEAR_EXACT"
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    data = written(made(values, PerFrameFunctionalGroupsSequence=Sequence(groups)))
    first, second = dicom_pixels.frames(data, window="dicom", wanted=[0, 1])
    np.testing.assert_allclose(first, np.clip(RAMP / 4, 0, 1), atol=1e-6)
    np.testing.assert_allclose(second, np.clip((RAMP - 4.0) / 4, 0, 1), atol=1e-6)


def test_one_bad_frame_does_not_take_the_others_along() -> None:
    good, missing = dicom_pixels.frames(written(made(np.stack([RAMP, RAMP]))), window="dicom", wanted=[0, 7])
    assert isinstance(good, np.ndarray) and isinstance(missing, Unusable)


BROKEN: dict[str, tuple[bytes, Drop]] = {
    "empty": (b"", Drop.NOT_AN_IMAGE),
    "text": (b"not dicom " * 100, Drop.NOT_AN_IMAGE),
    "preamble only": (b"\0" * 128 + b"DICM", Drop.NO_PIXELS),
    "no pixels": (written(made(RAMP, PixelData=None)), Drop.NO_PIXELS),
    "zero rows": (written(made(RAMP, Rows=0)), Drop.UNREADABLE),
    "no columns": (written(made(RAMP, Columns=None)), Drop.UNREADABLE),
    "truncated": (written(made(RAMP))[:-1], Drop.UNREADABLE),
    "more declared than there is": (written(made(RAMP, Rows=4)), Drop.UNREADABLE),
    "absurd size": (written(made(RAMP, Rows=65535, Columns=65535)), Drop.TOO_LARGE),
    "absurd frames": (written(made(RAMP, NumberOfFrames=2**31 - 1)), Drop.TOO_LARGE),
    "four samples": (written(made(RAMP, SamplesPerPixel=4)), Drop.UNSUPPORTED),
    "64 bits": (written(made(RAMP, BitsAllocated=64)), Drop.UNSUPPORTED),
    "broken slope": (written(made(RAMP, RescaleSlope="1e300", RescaleIntercept="-1e300")), Drop.UNREADABLE),
    "parametric map": (written(made(RAMP, SOPClassUID="1.2.840.10008.5.1.4.1.1.30")), Drop.NOT_AN_IMAGE),
    "segmentation": (written(made(RAMP, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")), Drop.NOT_AN_IMAGE),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_has_a_reason_and_a_line_without_identifiers(name: str) -> None:
    data, reason = BROKEN[name]
    assert reason_of(data) is reason


@pytest.mark.parametrize(("old", "new"), [(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")])
def test_a_bogus_transfer_syntax_is_unsupported(old: bytes, new: bytes) -> None:
    assert reason_of(written(made(RAMP)).replace(old, new)) is Drop.UNSUPPORTED


def test_a_compressed_stream_larger_than_declared_is_refused_before_it_is_decoded() -> None:
    values = (np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        dataset = made(values)
        with dicom.quiet():
            dataset.compress(syntax)
        dataset.Rows = 32
        with pytest.raises(Unusable, match="the compressed image has another size"):
            read(written(dataset))


def test_a_file_cut_off_anywhere_is_refused_by_its_header_and_its_pixels() -> None:
    dataset = made((np.arange(256, dtype=np.uint16)).reshape(16, 16))
    with dicom.quiet():
        dataset.compress(RLELossless)
    data = written(dataset)
    with dicom.quiet():
        for end in range(0, len(data) - 8, 7):
            with pytest.raises(Unusable):
                dicom.header(data[:end])
            with pytest.raises(Unusable):
                dicom_pixels.pixels(data[:end], window="dicom")


@pytest.mark.parametrize("name", ["MR_small_implicit", "MR_small_bigendian"])
def test_one_missing_byte_is_seen_in_the_header(name: str) -> None:
    data = (Path(pydicom.data.__file__).parent / "test_files" / f"{name}.dcm").read_bytes()  # pixels come last in these
    with dicom.quiet():
        assert dicom.header(data).frames == 1
        with pytest.raises(Unusable):
            dicom.header(data[:-1])


def test_pydicoms_own_files_are_each_used_or_have_the_right_reason() -> None:
    """All that pydicom ships, by name: the size of what is used, or why it isn't. Some needs libjpeg to be read."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    table = Path(__file__).with_name("pydicom_files.txt").read_text(encoding="utf-8").splitlines()
    expected = {
        name: "unsupported"
        if outcome.endswith(" by libjpeg") and LACKS_LIBJPEG
        else outcome.removesuffix(" by libjpeg")
        for name, outcome in (line.rsplit(": ", 1) for line in table)
    }
    found: dict[str, str] = {}
    with dicom.quiet():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                tags = dicom.header(path)
                image = dicom_pixels.pixels(path, window="dicom")
            except Unusable as error:
                found[path.relative_to(folder).as_posix()] = error.reason
                continue
            assert image.shape[:2] == (tags.height, tags.width) and image.min() >= 0 and image.max() <= 1
            found[path.relative_to(folder).as_posix()] = " x ".join(map(str, image.shape))
    assert found == expected


@pytest.mark.skipif(LACKS_LIBJPEG, reason="pylibjpeg-libjpeg is not installed: pip install 'fedward[jpeg12]'")
def test_jpeg_of_12_bits_is_the_image_that_other_compressions_give() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    lossy, other = (dicom_pixels.pixels(folder / name, window="dicom") for name in ("JPGExtended.dcm", "JPEG2000.dcm"))
    assert lossy.shape == other.shape == (1024, 256)
    assert np.corrcoef(lossy.ravel(), other.ravel())[0, 1] > 0.9  # both are lossy, and end at other values


def test_jpeg_of_12_bits_names_the_extra_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unusable, match=r"fedward\[jpeg12\]") as caught:
        read((Path(pydicom.data.__file__).parent / "test_files" / "JPGExtended.dcm").read_bytes())
    assert caught.value.reason is Drop.UNSUPPORTED


@pytest.mark.parametrize("first", ["ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "Modality"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_may_begin_with_any_element_of_its_first_group(first: str, syntax: str) -> None:
    is_big = syntax == ExplicitVRBigEndian
    dataset = made(RAMP.astype(">u2") if is_big else RAMP, ImageType=["ORIGINAL", "PRIMARY"], StudyDate="20200101")
    for element in list(dataset):
        if element.tag < pydicom.tag.Tag(first):
            del dataset[element.tag]
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == ImplicitVRLittleEndian, not is_big
    pydicom.filewriter.write_dataset(buffer, dataset)
    data = bytes(buffer.getvalue())
    assert dicom.looks_like_dicom(data[:132])
    np.testing.assert_allclose(read(data), RAMP / 11, atol=1e-6)


@pytest.mark.parametrize(
    "head", [b"\x08\x00\x08\x00\x04\x00\x00\x00", b"\x00\x08\x00\x08\x00\x00\x00\x04", b"\x08\x00ab"]
)
def test_what_only_begins_with_the_group_is_no_dicom(head: bytes) -> None:
    assert not dicom.looks_like_dicom(head + bytes(200)) and not dicom.looks_like_dicom(head)


def test_the_same_image_in_several_transfer_syntaxes_is_the_same() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    ends = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    images = [dicom_pixels.pixels(folder / f"MR_small{end}.dcm", window="dicom") for end in ends]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_a_damaged_lossless_jpeg_ends_neither_the_process_nor_the_next_image() -> None:
    data = (Path(pydicom.data.__file__).parent / "test_files" / "SC_rgb_jpeg_gdcm.dcm").read_bytes()
    at = data.index(b"\xff\xd8\xff")
    whole = read(data)
    for place, value in ((2, 0), (17, 255), (22, 255), (38, 0)):  # GDCM 3.2.6 calls abort() over each of these
        damaged = data[: at + place] + bytes([value]) + data[at + place + 1 :]
        assert reason_of(damaged) is Drop.UNREADABLE
        np.testing.assert_array_equal(read(data), whole)


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), dicom.quiet(), pytest.raises(Unusable):
        dicom.header(zlib.compress(b"SECRET"))
    assert not caplog.records
