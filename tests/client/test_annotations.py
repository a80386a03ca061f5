"""Readers against small files written here by hand."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.annotations import Finding, Subject, coco, inside, masks, picture, tables, voc
from client.drops import Drop, Unusable
from common.annotation import Box
from common.errors import DataError


def png(values: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def subject(path: str = "images/a.png", **values: Any) -> Subject:
    return Subject(**{"path": path, "height": 10, "width": 20, **values})


def box(*corners: float) -> Box:
    return Box(x1=corners[0], y1=corners[1], x2=corners[2], y2=corners[3], name="x")


def test_boxes_are_cut_at_the_border_and_those_without_area_counted() -> None:
    boxes = [box(-5, 2, 8, 4), box(3, 3, 3, 9), box(30, 1, 40, 5), box(9, 9, 4, 4), box(float("nan"), 0, 5, 5)]
    kept, without = inside(boxes, height=10, width=20)
    assert without == 4 and [(b.x1, b.y1, b.x2, b.y2) for b in kept] == [(0, 2, 8, 4)]


def labels(root: Path, text: str, encoding: str = "utf-8") -> tables.Labels:
    (root / "labels.csv").write_text(text, encoding=encoding)
    found = tables.read_labels(root)
    assert found is not None
    return found


def label_of(found: tables.Labels, image: Subject) -> str | None:
    """What one reader says."""
    readings = found.readings(image)
    assert len(readings) < 2
    return readings[0].annotation.label if readings else None


def test_the_narrowest_key_of_labels_wins(tmp_path: Path) -> None:
    found = labels(tmp_path, "key,label,hospital\nP,patient,north\nS,study,north\nU,image,south\n./a.dcm,path,west\n")
    full = {"sop_uid": "U", "study_uid": "S", "patient_id": "P"}
    assert label_of(found, subject("a.dcm", **full)) == "path"
    assert label_of(found, subject("b.dcm", **full)) == "image"
    assert label_of(found, subject("b.dcm", **full | {"sop_uid": None})) == "study"
    assert label_of(found, subject("b.dcm", patient_id="P")) == "patient"
    assert label_of(found, subject("b.dcm")) is None
    assert found.columns(subject("a.dcm")) == {"hospital": "west"}
    assert not list(found.remarks())


def test_labels_that_match_no_image_are_named_by_line_and_not_by_key(tmp_path: Path) -> None:
    found = labels(tmp_path, "key,label\nSECRET,x\nb.png,y\n")
    found.readings(subject("b.png"))
    assert [(r.finding, r.place) for r in found.remarks()] == [(Finding.LABEL_WITHOUT_IMAGE, "labels.csv line 2")]


def test_contradictory_labels_are_refused_and_an_empty_one_is_none(tmp_path: Path) -> None:
    found = labels(tmp_path, "key,label\na,x\na,y\nb,\nc,z\nc,z\n")
    with pytest.raises(Unusable) as caught:
        found.readings(subject("a"))
    assert caught.value.reason is Drop.BAD_ANNOTATION
    assert label_of(found, subject("b")) is None and label_of(found, subject("c")) == "z"


def test_labels_of_several_readers_are_kept_apart(tmp_path: Path) -> None:
    found = labels(tmp_path, "key,label,reader,ward\na,x,anna,1\na,y,ben,1\nb,x,anna,\nc,x,anna,\nc,y,anna,\n")
    assert [(r.reader, r.annotation.label) for r in found.readings(subject("a"))] == [("anna", "x"), ("ben", "y")]
    assert label_of(found, subject("b")) == "x" and found.columns(subject("a")) == {"ward": "1"}
    with pytest.raises(Unusable, match="2 different"):
        found.readings(subject("c"))


def test_names_have_one_class_each(tmp_path: Path) -> None:
    assert tables.read_names(tmp_path) == {}
    (tmp_path / "names.csv").write_text("found,class\nLesion 1,lesion\nLesion 2,lesion\n")
    assert tables.read_names(tmp_path) == {"Lesion 1": "lesion", "Lesion 2": "lesion"}
    (tmp_path / "names.csv").write_text("found,class\nLesion 1,lesion\nLesion 1,node\n")
    with pytest.raises(DataError, match="line 3"):
        tables.read_names(tmp_path)


def test_spreadsheets_semicolons_and_byte_order_marks_are_understood(tmp_path: Path) -> None:
    assert label_of(labels(tmp_path, "key;label\na; x \n\n", "utf-8-sig"), subject("a")) == "x"


@pytest.mark.parametrize(
    "text",
    ["", "name,label\na,b\n", "key,label,label\na,b,c\n", "key,label\na\n", 'key,label\n"a,b\n', "key,label\na,b,c\n"],
)
def test_a_table_that_is_none_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"^labels\.csv") as caught:
        labels(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_each_file_has_one_patient(tmp_path: Path) -> None:
    assert tables.read_patients(tmp_path) is None
    (tmp_path / "patients.csv").write_text("file,patient\na.png,1\nb.png,1\n")
    assert tables.read_patients(tmp_path) == {"a.png": "1", "b.png": "1"}
    (tmp_path / "patients.csv").write_text("file,patient\na.png,1\na.png,2\n")
    with pytest.raises(DataError, match="line 3"):
        tables.read_patients(tmp_path)


def mask_reader(root: Path, name: str, data: bytes) -> masks.Masks:
    (root / "masks").mkdir(exist_ok=True)
    (root / "masks" / name).write_bytes(data)
    found = masks.read_masks(root, [f"masks/{name}"], images="images")
    assert found is not None
    return found


def test_instance_numbers_above_255_stay_above_zero(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255, 256, 512, 65535]], np.uint16)
    mask = mask_reader(tmp_path, "a.png", png(values)).annotation(subject(height=1, width=6)).mask
    assert mask is not None and mask.dtype == np.uint8 and mask.tolist() == [[0, 1, 255, 255, 255, 255]]


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGB"])
def test_label_maps_of_every_kind_give_their_numbers(kind: str) -> None:
    values = np.array([[0, 1], [1, 0]], np.uint8) * (255 if kind in ("1", "RGB") else 1)
    image = Image.fromarray(values)
    if kind == "P":
        image.putpalette([0, 0, 0, 200, 10, 10])
    elif kind != "L":
        image = image.convert(kind)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert (picture.label_map(buffer.getvalue()) > 0).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        png(np.zeros((10, 21), np.uint8)),
        png(np.eye(10, 20, dtype=np.uint8)[..., None] * np.array([1, 2, 3], np.uint8)),
    ],
)
def test_a_mask_of_another_size_or_kind_takes_its_image_out(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Unusable, match="mask") as caught:
        mask_reader(tmp_path, "a.png", data).annotation(subject())
    assert caught.value.reason is Drop.BAD_ANNOTATION


def test_masks_without_image_are_named(tmp_path: Path) -> None:
    reader = mask_reader(tmp_path, "z.png", png(np.zeros((10, 20), np.uint8)))
    assert reader.annotation(subject()).mask is None
    assert [r.place for r in reader.remarks()] == ["masks/z.png"]


def test_pictures_of_16_bits_go_from_smallest_to_largest_and_8_bits_keep_their_range() -> None:
    deep = np.array([[100, 200], [300, 1100]], np.uint16)
    np.testing.assert_allclose(picture.pixels(png(deep), window="dicom"), (deep - 100) / 1000, atol=1e-6)
    flat = np.array([[51, 102]], np.uint8)
    np.testing.assert_allclose(picture.pixels(png(flat), window="dicom"), [[0.2, 0.4]], atol=1e-6)


def test_truncated_and_absurd_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    assert picture.size(data) == (64, 64)
    with pytest.raises(Unusable) as caught:
        picture.size(data[:-300])
    assert caught.value.reason is Drop.UNREADABLE
    monkeypatch.setattr(picture, "SAMPLES_LIMIT", 64 * 63)
    with pytest.raises(Unusable) as caught:
        picture.size(data)
    assert caught.value.reason is Drop.TOO_LARGE


XML = """<annotation><size><width>20</width><height>10</height></size>
<object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>9.5</ymax></bndbox></object>
<object><name>cell</name><bndbox><xmin>5</xmin><ymin>2</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def voc_reader(root: Path, text: str) -> voc.Voc:
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / "a.xml").write_text(text, encoding="utf-8")
    for name, content in {"trainval": "a\nb\nc\n", "train": "a\n", "val": "b\n", "test": "c\n"}.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(content)
    files = ["Annotations/a.xml", *(f"ImageSets/Main/{name}.txt" for name in ("train", "val", "trainval", "test"))]
    return voc.read_voc(root, files)


def test_voc_boxes_are_read_as_written_and_the_official_split_kept(tmp_path: Path) -> None:
    reader = voc_reader(tmp_path, XML)
    found = reader.annotation(subject("JPEGImages/a.jpg")).boxes
    assert found is not None and [(b.x1, b.y1, b.x2, b.y2, b.name) for b in found] == [(1, 2, 20, 9.5, "cell")]
    assert [r.finding for r in reader.remarks()] == [Finding.BOX_WITHOUT_AREA]
    assert reader.annotation(subject("JPEGImages/b.jpg")).boxes is None
    splits = [reader.official(subject(f"JPEGImages/{name}.jpg")) for name in "abcd"]
    assert splits == ["train", "validation", "test", None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        XML.replace("<xmin>1<", "<xmin>one<"),
        XML.replace("<name>cell</name>", ""),
        XML.replace("<width>20<", "<width>21<"),
        '<!DOCTYPE a [<!ENTITY b "bbbb">]>' + XML,
        "<?xml version='1.0'?>\n<!ENTITY b 'b'>" + XML,
    ],
)
def test_wrong_xml_takes_its_image_out(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unusable, match="its XML") as caught:
        voc_reader(tmp_path, text).annotation(subject("JPEGImages/a.jpg"))
    assert caught.value.reason is Drop.BAD_ANNOTATION


def coco_reader(root: Path, objects: list[dict[str, Any]], **image: Any) -> coco.Coco:
    content = {
        "images": [{"id": 3, "file_name": "a.png", "height": 10, "width": 20} | image, {"id": 4, "file_name": "b.png"}],
        "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}],
        "annotations": [{"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4]} | item for item in objects],
    }
    (root / "val.json").write_text(json.dumps(content))
    return coco.read_coco(root, ["val.json"])


SQUARE = [[4, 2, 12, 2, 12, 6, 4, 6]]  # 8 x 4 pixels
COUNTS = [2, 3, 195]  # column by column: rows 2, 3, 4 of the first column


def test_coco_boxes_become_corners_and_crowds_are_ignored(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "bbox": [0, 0, 9, 9]}
    reader = coco_reader(tmp_path, [{}, {"bbox": [5, 5, 0, 2]}, crowd, {"category_id": 2, "bbox": [15, 5, 10, 2]}])
    found = reader.annotation(subject())
    assert found.boxes is not None and found.mask is None
    assert [(b.x1, b.y1, b.x2, b.y2, b.name) for b in found.boxes] == [(1, 2, 4, 6, "nine"), (15, 5, 20, 7, "two")]
    assert reader.annotation(subject("images/b.png")).boxes == ()  # looked at, and nothing there
    assert reader.annotation(subject("images/c.png")).boxes is None  # not looked at
    assert reader.official(subject()) == "validation"
    assert [r.finding for r in reader.remarks()] == [Finding.BOX_WITHOUT_AREA]


def test_coco_polygons_and_run_lengths_become_masks_by_category(tmp_path: Path) -> None:
    runs = {"size": [10, 20], "counts": COUNTS}
    found = coco_reader(tmp_path, [{"segmentation": SQUARE}, {"category_id": 2, "segmentation": runs}]).annotation(
        subject()
    )
    expected = np.zeros((10, 20), np.uint8)
    expected[2:6, 4:12] = 2  # "nine" has the larger id
    expected[2:5, 0] = 1
    assert found.mask_names == ("two", "nine") and found.mask is not None
    np.testing.assert_array_equal(found.mask, expected)


def test_compressed_run_lengths_are_those_of_pycocotools(tmp_path: Path) -> None:
    from pycocotools import mask as api

    rng = np.random.default_rng(5)
    for density in (0.02, 0.5, 0.98):
        shape = (rng.random((10, 20)) < density).astype(np.uint8)
        runs = api.encode(np.asfortranarray(shape))
        segmentation = {"size": [10, 20], "counts": runs["counts"].decode()}
        found = coco_reader(tmp_path, [{"category_id": 2, "segmentation": segmentation}]).annotation(subject())
        np.testing.assert_array_equal(found.mask, shape)


def test_an_object_without_shape_among_shapes_gives_no_mask(tmp_path: Path) -> None:
    reader = coco_reader(tmp_path, [{"segmentation": SQUARE}, {}])
    assert reader.annotation(subject()).mask is None
    empty = reader.annotation(subject("images/b.png"))
    assert empty.mask is not None and not empty.mask.any()


@pytest.mark.parametrize(
    "item",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": "1234"},
        {"bbox": None},
        {"category_id": 5},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [[0, 0, 1e12, 0, 1e12, 1e12]]},
        {"segmentation": [[0, 0, float("nan"), 0, 5, 5]]},
        {"segmentation": {"size": [10, 20], "counts": [2, 3, 196]}},
        {"segmentation": {"size": [10, 20], "counts": [2, -3, 201]}},
        {"segmentation": {"size": [10, 20], "counts": [2, 3, 10**30]}},
        {"segmentation": {"size": [10, 21], "counts": [2, 3, 205]}},
        {"segmentation": {"size": [10, 20], "counts": "ooooooooooooo"}},
        {"segmentation": {"size": [10, 20], "counts": "\u20ac"}},
    ],
)
def test_an_object_that_is_not_coco_takes_its_image_out(tmp_path: Path, item: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as caught:
        coco_reader(tmp_path, [item]).annotation(subject())
    assert caught.value.reason is Drop.BAD_ANNOTATION


def test_coco_of_another_size_takes_its_image_out(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="11 x 20"):
        coco_reader(tmp_path, [{}], height=11).annotation(subject())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": [], "annotations": [{"image_id": 1}], "categories": []}', '{"images": 3}']
)
def test_a_file_that_is_not_coco_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=r"^boxes\.json: not a COCO file"):
        coco.read_coco(tmp_path, ["boxes.json"])


def test_masks_and_boxes_of_multi_frame_files_are_refused(tmp_path: Path) -> None:
    many = subject(frames=2)
    with pytest.raises(Unusable, match="2 frames"):
        coco_reader(tmp_path, [{}]).annotation(many)
    with pytest.raises(Unusable, match="2 frames"):
        mask_reader(tmp_path, "a.png", png(np.zeros((10, 20), np.uint8))).annotation(many)
