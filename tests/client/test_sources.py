"""Folders as archives and public sets leave them: every file once, used or with a reason."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_cases import encapsulated
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage

from client import sources
from client.annotations import Finding, Remark
from client.drops import Drop, Dropped, Unusable
from client.sources import Found, Source, detect, scan
from common.errors import DataError


def png(path: Path, seed: int, size: tuple[int, int] = (6, 8), dtype: str = "uint8") -> NDArray[Any]:
    values = np.random.default_rng(seed).integers(0, 200, size).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, "PNG")
    return values


def dcm(
    path: Path, uid: str, patient: str | None, *, frames: int = 1, value: int = 0, issuer: str | None = None
) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, uid
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = SecondaryCaptureImageStorage, uid, "1.2.9"
    if patient is not None:
        dataset.PatientID = patient
    if issuer is not None:
        dataset.IssuerOfPatientID = issuer
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 6, 8, 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.NumberOfFrames = 7, 0, frames
    pixels = (np.arange(48 * frames, dtype=np.int64) ** 2 + value) % 251
    dataset.PixelData = pixels.astype(np.uint8).tobytes()
    dataset["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def taken(path: Path, form: Any = None, **options: Any) -> tuple[list[Found], dict[str, Drop], list[Remark]]:
    """What a scan gives, after checking that it accounts for each file exactly once."""
    items = list(scan(path, form or detect(path), **options))
    found = [item for item in items if isinstance(item, Found)]
    dropped = {item.path: item.reason for item in items if isinstance(item, Dropped)}
    if path.is_dir():
        there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}
        assert {item.source.path for item in found} | set(dropped) == there
        assert not {item.source.path for item in found} & set(dropped)
        assert len(dropped) == sum(isinstance(item, Dropped) for item in items)
    return found, dropped, [item for item in items if isinstance(item, Remark)]


def undecodable(path: Path, uid: str, patient: str, *, bad: int = 1, frames: int = 1, value: int = 0) -> None:
    """A file of compressed frames, whole by its header, whose first frames no decoder can make anything of."""
    dcm(path, uid, patient, frames=frames, value=value)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    streams = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    streams[:bad] = [b"\xff" * len(stream) for stream in streams[:bad]]
    encapsulated(dataset, streams, RLELossless).save_as(path)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_several_files_of_one_uid_the_first_that_can_be_decoded_is_found(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    undecodable(tmp_path / order[0] / "x.dcm", "1.2.3", "P")
    shutil.copyfile(tmp_path / order[0] / "x.dcm", tmp_path / order[0] / "y.dcm")  # of the same content
    dcm(tmp_path / order[1] / "x.dcm", "1.2.3", "P")
    dcm(tmp_path / order[1] / "z.dcm", "1.2.3", "P", value=7)
    found, dropped, _ = taken(tmp_path, "dicom", require_annotation=False)
    assert [one.source.path for one in found] == [f"{order[1]}/x.dcm"]
    assert isinstance(sources.pixels(found[0].source, window="dicom"), np.ndarray)
    lost = Drop.UNREADABLE if order[0] == "a" else Drop.DUPLICATE
    assert dropped == {f"{order[0]}/x.dcm": lost, f"{order[0]}/y.dcm": lost, f"{order[1]}/z.dcm": Drop.DUPLICATE}


def test_of_damaged_files_of_one_uid_that_with_the_fewest_bad_frames_is_found(tmp_path: Path) -> None:
    for name, bad in (("a", 3), ("b", 2), ("c", 2)):
        undecodable(tmp_path / f"{name}.dcm", "1.2.3", "P", bad=bad, frames=4, value=bad)
    undecodable(tmp_path / "d.dcm", "1.2.3", "Q", frames=2)  # another patient's file is no copy
    found, dropped, remarks = taken(tmp_path, "dicom", require_annotation=False)
    assert Counter(one.source.path for one in found) == {"b.dcm": 4, "d.dcm": 2}
    assert dropped == {"a.dcm": Drop.UNREADABLE, "c.dcm": Drop.DUPLICATE}
    assert [remark.finding for remark in remarks] == [Finding.SAME_IN_TWO_PATIENTS]


def packed(kind: str) -> bytes:
    """An archive of one file, as Python's own libraries make it."""
    stream = io.BytesIO()
    if kind in ("zip", "npz"):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.dcm", b"x" * 400)
    elif kind in ("tar", "tgz"):
        with tarfile.open(fileobj=stream, mode="w" if kind == "tar" else "w:gz") as archive:
            info = tarfile.TarInfo("a.dcm")
            info.size = 400
            archive.addfile(info, io.BytesIO(b"x" * 400))
    else:
        stream.write({"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](b"x" * 400))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "gz", "bz2", "xz"])
def test_a_packed_archive_is_told_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    dcm(tmp_path / "a.dcm", "1.2.3", "P")
    for name in ("export", "export.dcm", f"export.{kind}"):
        (tmp_path / name).write_bytes(packed(kind))
    (tmp_path / "arrays.npz").write_bytes(packed("npz"))
    (tmp_path / "list.xlsx").write_bytes(packed("zip"))
    items = list(scan(tmp_path, "dicom", require_annotation=False))
    found = {item.path: (item.reason, item.detail) for item in items if isinstance(item, Dropped)}
    assert found.pop("arrays.npz")[0] is found.pop("list.xlsx")[0] is Drop.NOT_AN_IMAGE
    wanted = (Drop.PACKED_ARCHIVE, "a packed archive: unpack it")
    assert found == dict.fromkeys(("export", "export.dcm", f"export.{kind}"), wanted)


def test_a_seven_zip_archive_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes.fromhex("377abcaf271c0004") + bytes(300))  # 7zFormat.txt, SignatureHeader
    png(tmp_path / "a.png", 0)
    assert taken(tmp_path, "dicom", image_is_patient=True, require_annotation=False)[1] == {"x": Drop.PACKED_ARCHIVE}


def test_a_name_that_is_not_utf_8_is_said(tmp_path: Path) -> None:
    dcm(tmp_path / "a.dcm", "1.2.3", "P")
    latin = os.fsencode(tmp_path) + "/Röntgen".encode("latin-1")
    try:
        os.mkdir(latin)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    for name in (b"b.dcm", "ü.dcm".encode()):
        with open(latin + b"/" + name, "wb") as file:
            file.write((tmp_path / "a.dcm").read_bytes())
    items = list(scan(tmp_path, "dicom", require_annotation=False))
    assert [item.source.path for item in items if isinstance(item, Found)] == ["a.dcm"]
    found = {item.path: (item.reason, item.detail) for item in items if isinstance(item, Dropped)}
    why = (Drop.UNREADABLE, "its name, or its folder's, is not UTF-8: rename it")
    assert found == {"R\\udcf6ntgen/b.dcm": why, "R\\udcf6ntgen/ü.dcm": why}


def test_a_patient_id_of_two_issuers_is_one_patient_and_a_remark_until_patients_csv_parts_them(tmp_path: Path) -> None:
    for name, patient, issuer in (("a", "7", None), ("b", "7", "NORTH"), ("c", "7", "SOUTH"), ("d", "7", "NORTH")):
        dcm(tmp_path / f"{name}.dcm", f"1.2.{ord(name)}", patient, issuer=issuer)
    dcm(tmp_path / "e.dcm", "1.2.9", "8", issuer="SOUTH")  # one issuer of another patient's number
    found, _, remarks = taken(tmp_path, "dicom", require_annotation=False)
    assert {one.patient for one in found} == {"7", "8"}
    assert remarks == [Remark(finding=Finding.SEVERAL_ISSUERS, place="c.dcm (another than b.dcm)")]
    (tmp_path / "patients.csv").write_text("file,patient\nc.dcm,7 south\n")
    found, _, remarks = taken(tmp_path, "dicom", require_annotation=False)
    assert {one.patient for one in found} == {"7", "7 south", "8"} and remarks == []


def test_nothing_is_decoded_but_copies_that_differ_and_none_after_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, uid, value in (("a", "1.2.3", 0), ("b", "1.2.3", 0), ("c", "1.2.4", 0), ("d", "1.2.5", 0)):
        dcm(tmp_path / f"{name}.dcm", uid, "P", value=value)
    decoded: list[str] = []
    whole = sources.images

    def counted(places: Sequence[Source], **options: Any) -> Iterator[Any]:
        decoded.append(places[0].path)
        return whole(places, **options)

    monkeypatch.setattr(sources, "images", counted)
    taken(tmp_path, "dicom", require_annotation=False)
    assert decoded == []
    dcm(tmp_path / "e.dcm", "1.2.5", "P", value=1)
    taken(tmp_path, "dicom", require_annotation=False)
    assert decoded == ["d.dcm"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A DICOM folder with labels for two patients and much that is no use."""
    dcm(tmp_path / "deep" / "er" / "IM0", "1.2.1", "P1")
    dcm(tmp_path / "b.dcm", "1.2.2", "P1", value=1)
    dcm(tmp_path / "c.dcm", "1.2.3", "P2", value=2)
    dcm(tmp_path / "nobody.dcm", "1.2.4", None, value=3)
    dcm(tmp_path / "unlabelled.dcm", "1.2.5", "P3", value=4)
    dcm(tmp_path / "again.dcm", "1.2.1", "P1")
    dcm(tmp_path / "wrong-mask.dcm", "1.2.6", "P2", value=5)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:-9])
    (tmp_path / "zero.dcm").touch()
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "labels.csv").write_text(
        "key,label,ward\nP1,sick,A\n1.2.3,well,B\nP9,sick,C\n1.2.4,well,\n1.2.6,well,\n"
    )
    png(tmp_path / "masks" / "1.2.3.png", 1)
    png(tmp_path / "masks" / "1.2.6.png", 2, (7, 8))
    png(tmp_path / "masks" / "1.2.99.png", 3)
    boxes = {
        "images": [{"id": 0, "file_name": "1.2.3", "height": 6, "width": 8}, {"id": 1, "file_name": "b.dcm"}],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 3, 3]}],
        "categories": [{"id": 1, "name": "nodule"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def test_a_dicom_folder_is_accounted_for_file_by_file(archive: Path) -> None:
    found, dropped, remarks = taken(archive)
    by_path = {item.source.path: item for item in found}
    assert set(by_path) == {"again.dcm", "b.dcm", "c.dcm"}
    assert dropped == {
        "deep/er/IM0": Drop.DUPLICATE,
        "nobody.dcm": Drop.NO_PATIENT_ID,
        "unlabelled.dcm": Drop.NO_ANNOTATION,
        "wrong-mask.dcm": Drop.BAD_ANNOTATION,
        "cut.dcm": Drop.UNREADABLE,
        "zero.dcm": Drop.EMPTY_FILE,
        "LICENSE": Drop.NOT_AN_IMAGE,
        "labels.csv": Drop.ANNOTATION_FILE,
        "boxes.json": Drop.ANNOTATION_FILE,
        "masks/1.2.3.png": Drop.ANNOTATION_FILE,
        "masks/1.2.6.png": Drop.ANNOTATION_FILE,
        "masks/1.2.99.png": Drop.ANNOTATION_FILE,
    }
    whole = by_path["c.dcm"].annotation
    assert whole.label == "well" and whole.mask is not None and whole.mask.shape == (6, 8)
    assert whole.boxes is not None and [(b.x2, b.name) for b in whole.boxes] == [(4, "nodule")]
    assert by_path["b.dcm"].annotation.boxes == () and by_path["again.dcm"].annotation.boxes is None
    assert by_path["b.dcm"].columns == {"ward": "A"} and by_path["b.dcm"].patient == "P1"
    places = {remark.place for remark in remarks if remark.finding is Finding.LABEL_WITHOUT_IMAGE}
    assert places == {"labels.csv line 4", "labels.csv line 5", "masks/1.2.99.png"}


def test_files_without_patient_or_annotation_are_used_on_request(archive: Path) -> None:
    found, dropped, _ = taken(archive, image_is_patient=True, require_annotation=False)
    assert {"nobody.dcm", "unlabelled.dcm"} <= {item.source.path for item in found}
    assert not {Drop.NO_PATIENT_ID, Drop.NO_ANNOTATION} & set(dropped.values())


def test_every_frame_is_an_image_of_one_used_file(tmp_path: Path) -> None:
    dcm(tmp_path / "a.dcm", "1.2.1", "P", frames=3)
    (tmp_path / "labels.csv").write_text("key,label\nP,x\n")
    found, _, _ = taken(tmp_path)
    assert [(item.source.item, item.annotation.label) for item in found] == [(0, "x"), (1, "x"), (2, "x")]
    first, third = sources.images([found[0].source, found[2].source], window="dicom")
    assert isinstance(first, np.ndarray) and isinstance(third, np.ndarray) and not np.array_equal(first, third)


def test_one_image_under_two_patients_is_kept_twice_and_named(tmp_path: Path) -> None:
    dcm(tmp_path / "a.dcm", "1.2.1", "P1")
    dcm(tmp_path / "b.dcm", "1.2.1", "P2")
    found, dropped, remarks = taken(tmp_path, "dicom", require_annotation=False)
    assert len(found) == 2 and not dropped
    assert [(r.finding, r.place) for r in remarks] == [(Finding.SAME_IN_TWO_PATIENTS, "b.dcm")]


def test_links_cannot_loop_and_strange_files_are_not_opened(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    items = list(scan(tmp_path, "dicom", image_is_patient=True, require_annotation=False))
    reasons = {item.path: item.reason for item in items if isinstance(item, Dropped)}
    assert reasons == {"self": Drop.UNREADABLE, "gone": Drop.UNREADABLE, "pipe": Drop.NOT_AN_IMAGE}
    assert [item.source.path for item in items if isinstance(item, Found)] == ["a.png"]


def test_names_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"gr\xfc\xdfe.png")).write_bytes(b"x")
    (tmp_path / "grüße.txt").write_text("x")
    items = list(scan(tmp_path, "dicom"))
    assert [item.reason for item in items if isinstance(item, Dropped)] == [Drop.UNREADABLE, Drop.NOT_AN_IMAGE]
    assert all(item.path.encode() for item in items if isinstance(item, Dropped))


def test_images_and_masks_are_matched_by_name_and_copies_found(tmp_path: Path) -> None:
    for name, seed in {"a": 1, "b": 2, "c": 1}.items():
        png(tmp_path / "images" / f"{name}.png", seed)
    png(tmp_path / "images" / "bare.png", 4)
    for name in "abc":
        png(tmp_path / "masks" / f"{name}.png", 9, dtype="uint16")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "a.png").read_bytes()[:60])
    found, dropped, _ = taken(tmp_path)
    assert [item.source.path for item in found] == ["images/a.png", "images/b.png"]
    assert dropped["images/c.png"] is Drop.DUPLICATE and dropped["images/bare.png"] is Drop.NO_ANNOTATION
    assert dropped["images/cut.png"] is Drop.UNREADABLE and dropped["masks/c.png"] is Drop.ANNOTATION_FILE
    assert found[0].patient != found[1].patient


def test_patients_csv_says_whose_a_picture_is(tmp_path: Path) -> None:
    for name, seed in {"a": 1, "b": 2, "c": 3}.items():
        png(tmp_path / "images" / f"{name}.png", seed)
        png(tmp_path / "masks" / f"{name}.png", 9)
    (tmp_path / "patients.csv").write_text("file,patient\nimages/a.png,1\nimages/b.png,1\n")
    found, dropped, _ = taken(tmp_path)
    assert [item.patient for item in found] == ["1", "1"]
    assert dropped["images/c.png"] is Drop.NO_PATIENT_ID and dropped["patients.csv"] is Drop.ANNOTATION_FILE


def test_a_voc_folder_keeps_its_official_split(tmp_path: Path) -> None:
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    xml = f"<annotation><object><name>x</name><bndbox>{corners}</bndbox></object></annotation>"
    for name, seed in {"a": 1, "b": 2}.items():
        png(tmp_path / "JPEGImages" / f"{name}.png", seed)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml)
    png(tmp_path / "SegmentationClass" / "a.png", 5)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("b\n")
    found, dropped, _ = taken(tmp_path)
    assert [item.official for item in found] == [None, "test"]
    assert dropped["SegmentationClass/a.png"] is Drop.NOT_AN_IMAGE


def test_a_coco_folder_is_recognised(tmp_path: Path) -> None:
    png(tmp_path / "val" / "a.png", 1)
    png(tmp_path / "val" / "other.png", 2)
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    found, dropped, _ = taken(tmp_path)
    assert [(item.source.path, item.official) for item in found] == [("val/a.png", "validation")]
    assert dropped["val/other.png"] is Drop.NO_ANNOTATION


def npz(path: Path, **replaced: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in {"train": 4, "val": 2, "test": 3}.items():
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 5, 5), np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 2, (count, 1), np.uint8)
    arrays.update(replaced)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_labels_may_be_given_to_the_patients_of_patients_csv(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        png(tmp_path / f"{name}.png", seed)
    dcm(tmp_path / "d.dcm", "1.2.1", "P1")
    (tmp_path / "patients.csv").write_text("file,patient\na.png,p1\nb.png,p2\nc.png,p2\nd.dcm,p3\n")
    (tmp_path / "labels.csv").write_text("key,label\np1,sick\np2,well\nc.png,odd\nP1,in the header\n")
    found, _, remarks = taken(tmp_path, "dicom")
    labels = {one.source.path: one.annotation.label for one in found}
    assert labels == {"a.png": "sick", "b.png": "well", "c.png": "odd", "d.dcm": "in the header"} and not remarks


def test_medmnist_images_are_patients_with_an_official_split(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    found, _, _ = taken(path)
    assert Counter(item.official for item in found) == {"train": 4, "validation": 2, "test": 3}
    assert found[5].patient == "validation-1" and len({item.patient for item in found}) == 9
    with np.load(path) as arrays:
        np.testing.assert_allclose(
            sources.pixels(found[5].source, window="dicom"), arrays["val_images"][1] / 255, atol=1e-6
        )
        assert found[5].annotation.label == str(arrays["val_labels"][1, 0])


@pytest.mark.parametrize(
    "replaced",
    [
        {"val_images": None},
        {"val_images": np.zeros((2, 5, 5), np.float32)},
        {"val_images": np.zeros((2, 5, 5, 5), np.uint8)},
        {"val_images": np.zeros((3, 5, 5), np.uint8)},
        {"val_labels": np.zeros((2, 14), np.uint8)},
        {"val_labels": np.array([{"a": 1}, None], dtype=object)},
    ],
)
def test_an_npz_that_is_not_medmnist_is_an_error_of_one_line(tmp_path: Path, replaced: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^a\.npz: ") as caught:
        taken(npz(tmp_path / "a.npz", **replaced))
    assert "\n" not in str(caught.value)


class Payload:
    """What an attacker would put in an array of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_an_npz_with_pickled_objects_runs_nothing(tmp_path: Path) -> None:
    objects = np.array([[Payload(tmp_path / "ran")], [None]], dtype=object)
    for name in ("val_labels", "val_images"):
        with pytest.raises(DataError, match=name):
            taken(npz(tmp_path / "a.npz", **{name: objects}))
    assert not (tmp_path / "ran").exists()


def corrupt(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield b""
    yield b"PK\x03\x04 nothing"
    yield data[: len(data) // 2]
    at = data.index(b"train_labels.npy") + 140  # inside an array: the checksum is wrong
    yield data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 5, 5), np.uint8))
    yield buffer.getvalue()


@pytest.mark.parametrize("which", range(5))
def test_a_corrupt_npz_is_an_error_of_one_line(tmp_path: Path, which: int) -> None:
    path = npz(tmp_path / "a.npz")
    path.write_bytes(list(corrupt(path))[which])
    with pytest.raises(DataError, match=r"^a\.npz: "):
        taken(path)


@pytest.mark.parametrize("form", ["medmnist", "voc", "coco", "masks", "dicom"])
def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path, form: Any) -> None:
    with pytest.raises(DataError, match=r"no such|not a folder"):
        list(scan(tmp_path / "missing", form))
    with pytest.raises(DataError, match=r"empty|no such"):
        list(scan(tmp_path, form))


def test_a_file_that_has_gone_is_unreadable_and_does_not_stop_the_others(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    (found,), _, _ = taken(tmp_path, "dicom", image_is_patient=True, require_annotation=False)
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unusable) as caught:
        sources.pixels(found.source, window="dicom")
    assert caught.value.reason is Drop.UNREADABLE


@pytest.mark.parametrize(
    ("name", "used", "dropped", "boxless"),
    [("bccd", 364, {"annotation_file": 368, "not_an_image": 1}, 2), ("nuclei", 289, {"annotation_file": 289}, 0)],
)
@pytest.mark.skipif("FEDWARD_DATA" not in os.environ, reason="FEDWARD_DATA names no folder of real images")
def test_real_sets_have_the_counts_of_their_description(
    name: str, used: int, dropped: dict[str, int], boxless: int
) -> None:
    found, reasons, remarks = taken(Path(os.environ["FEDWARD_DATA"]) / name)
    assert len(found) == used and Counter(map(str, reasons.values())) == dropped
    assert sum(remark.finding is Finding.BOX_WITHOUT_AREA for remark in remarks) == boxless
