"""The quality report: its counts, what it points at, what it finds alike, and the page in a browser."""

import base64
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from small import tiny_study, write_site

from client import attention, index, looks, quality, quality_page, similar
from client.__main__ import main
from client.agreement import Agreement
from client.annotations import Finding, Remark
from client.dataset import open_dataset
from client.drops import Drop, Dropped
from client.quality_pictures import _quantiles, marked
from client.quality_sections import percent
from client.site import Site, open_site
from client.sources import Source
from common.annotation import Annotation, Box

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def structure(seed: int, size: tuple[int, int] = (96, 80)) -> NDArray[np.float32]:
    """An image with something to see, in [0.1, 0.9]."""
    rng = np.random.default_rng(seed)
    image = np.zeros(size)
    for _ in range(12):
        y, x, high, wide = rng.integers(0, 60, 2).tolist() + rng.integers(6, 30, 2).tolist()
        image[y : y + high, x : x + wide] += rng.uniform(0.2, 1)
    return (0.1 + 0.8 * image / image.max()).astype(np.float32)


def pictures(folder: Path, images: dict[str, NDArray[Any]], labels: dict[str, str], patients: dict[str, str]) -> Path:
    folder.mkdir()
    for name, values in images.items():
        Image.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("key,label\n" + "".join(f"{n}.png,{v}\n" for n, v in labels.items()))
    (folder / "patients.csv").write_text("file,patient\n" + "".join(f"{n}.png,{v}\n" for n, v in patients.items()))
    return folder


def run(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["client", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Ten images of five patients: one exported twice within a patient, one again under another patient, one blank."""
    images = {f"i{n}": structure(n) for n in range(7)}
    images["again"] = looks.smaller(images["i0"], (60, 50)) ** 1.2
    images["negative"] = 1 - images["i1"]
    images["blank"] = np.full((40, 40), 0.5)
    patients = {f"i{n}": f"p{n // 2}" for n in range(7)} | {"again": "p0", "negative": "p2", "blank": "p9"}
    labels = dict.fromkeys(images, "well") | {"i3": "sick"}
    folder = pictures(tmp_path / "data", images, labels, patients)
    (folder / "cut.png").write_bytes((folder / "i0.png").read_bytes()[:100])
    with (folder / "labels.csv").open("a") as table:
        table.write("gone.png,well\n")
    assert run("index", folder, "--out", tmp_path / "site", "--quiet", monkeypatch=monkeypatch) == 0
    return open_site(tmp_path / "site")


def test_every_file_and_every_image_is_counted_once(site: Site) -> None:
    found = quality.gather(site)
    assert found.counts.files == 13 == found.counts.used + sum(found.counts.dropped.values())
    assert found.share == pytest.approx(10 / 11)
    assert len(found.cards) == 10 and found.counts.patients == 5
    for groups in (found.modalities, found.scanners, found.pools, found.burned_in):
        assert sum(group.images for group in groups) == 10
    assert [(group.name, group.images, group.patients) for group in found.classes] == [("well", 9, 5), ("sick", 1, 1)]
    assert found.images_per_patient == (1, 2.0, 3)


def test_the_parts_are_those_that_training_uses(tmp_path: Path) -> None:
    own = open_site(write_site(tmp_path / "site", images=60, seed=1))
    rows = index.read(own.folder)
    for officials in ((None,), ("train", "test"), ("train", "validation"), ("train", "validation", "test")):
        changed = [replace(row, official=officials[k % len(officials)]) for k, row in enumerate(rows)]
        index.write(own.folder, changed, [])
        pools = open_dataset(own, tiny_study()).pools
        found = {card.image: card.pool for card in quality.gather(own).cards.values()}
        assert found == {row.image: pool for pool, images in pools.items() for row in images.rows}
        assert len(set(found.values())) == 3 or officials == ("train", "validation")


def test_what_is_alike_is_found_within_and_across_patients(site: Site) -> None:
    found = quality.gather(site)
    seen = quality.see(site, found)
    name = {card.image: card.source.path for card in found.cards.values()}
    assert [{name[image] for image in group} for group in seen.within] == [{"i0.png", "again.png"}]
    assert [{name[image] for image in group} for group in seen.across] == [{"i1.png", "negative.png"}]
    assert [name[image] for image in seen.blank] == ["blank.png"] and not seen.failed


def test_the_groups_are_those_of_a_naive_comparison_in_any_order() -> None:
    base = [structure(seed) for seed in range(12)]
    images = {
        f"{k}-{v}": looks.seen_in(np.clip(image + v / 50, 0, 1)).tiny for k, image in enumerate(base) for v in range(3)
    }
    wanted = [[f"{k}-{v}" for v in range(3)] for k in range(12)]
    assert sorted(similar.groups(images)) == sorted(wanted)
    turned = dict(reversed(images.items()))
    assert similar.groups(turned) == similar.groups(images)
    assert similar.groups({}) == similar.groups({"a": images["0-0"]}) == []


def test_many_copies_of_one_image_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "_BLOCK", 7)
    tiny = looks.seen_in(structure(1)).tiny
    (group,) = similar.groups({f"{n:03d}": tiny for n in range(100)})
    assert len(group) == 100


def test_tiny_copies_are_means_over_areas() -> None:
    image = np.random.default_rng(0).random((64, 96)).astype(np.float32)
    np.testing.assert_allclose(looks.smaller(image, (32, 32)), image.reshape(32, 2, 32, 3).mean((1, 3)), rtol=1e-5)
    np.testing.assert_allclose(looks.smaller(image[:2, :2], (4, 4)), np.kron(image[:2, :2], np.ones((2, 2))), rtol=1e-6)
    odd = looks.smaller(image[:50, :33], (32, 32))
    assert odd.shape == (32, 32) and odd.min() >= image.min() and odd.max() <= image.max()
    assert looks.seen_in(image).brightness.sum() == pytest.approx(1)


def test_an_image_is_decoded_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = quality.gather(site)
    first = quality.see(site, found)
    assert stat.S_IMODE((site.folder / "looks.npz").stat().st_mode) == 0o600
    with monkeypatch.context() as never:
        never.setattr(looks.sources, "images", lambda *_, **__: pytest.fail("decoded again"))
        second = quality.see(site, found)
    assert first.across == second.across
    for image, one in first.looks.items():
        np.testing.assert_allclose(one.tiny, second.looks[image].tiny, atol=1e-3)
    (site.folder / "looks.npz").write_bytes(b"damaged")
    assert quality.see(site, found).across == first.across


def test_images_that_cannot_be_decoded_are_named_and_count_as_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = quality.gather(site)
    (next(iter(found.cards.values())).source.root / "i3.png").write_bytes(b"\x89PNG damaged")  # since it was indexed
    seen = quality.see(site, found)
    assert [(one.path, one.reason) for one in seen.failed.values()] == [("i3.png", Drop.UNREADABLE)]
    assert len(seen.looks) == 9
    assert any("can't be decoded" in point for point in attention.points(found, seen))
    assert run("quality", site.folder, "--json", monkeypatch=monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["used"], said["images"], said["patients"], said["undecodable"]) == (9, 9, 5, 1)
    assert said["dropped"] == {"annotation_file": 2, "unreadable": 2} and said["files"] == 13
    assert said["share_used"] == pytest.approx(9 / 11)
    assert said["classes"] == {"well": 9}  # the one sick image is the damaged one
    page = (site.folder / "quality.html").read_text()
    (line,) = re.findall(r"<tr>[^/]*i3\.png.*?</tr>", page)
    assert "unreadable" in line and next(iter(seen.failed.values())).detail in line
    assert "no image was decoded" not in page
    assert "no image was decoded" in quality_page.render(site, quality.gather(site), None)


def test_single_frames_that_cannot_be_decoded_leave_their_file_used(site: Site) -> None:
    rows = index.read(site.folder)
    frames = [replace(row, source=replace(row.source, path="many.dcm", item=k)) for k, row in enumerate(rows[:4])]
    others = [replace(row, source=replace(row.source, path=f"{k}.dcm")) for k, row in enumerate(rows[4:])]
    index.write(site.folder, [*frames, *others], [])
    failed = {row.image: Dropped(path="many.dcm", reason=Drop.UNREADABLE, item=row.source.item) for row in frames[:3]}
    counts = quality.gather(site, failed=failed).counts
    assert (counts.used, counts.images, counts.dropped, counts.dropped_images) == (7, 7, {}, {Drop.UNREADABLE: 3})
    failed[frames[3].image] = Dropped(path="many.dcm", reason=Drop.UNREADABLE, item=3)
    found = quality.gather(site, failed=failed)
    assert (found.counts.used, found.counts.images) == (6, 6)
    assert (found.counts.dropped, found.counts.dropped_images) == ({Drop.UNREADABLE: 1}, {})
    assert [(one.path, one.item) for one in found.dropped] == [("many.dcm", None)]


def test_attention_names_what_a_person_should_look_at(site: Site) -> None:
    found = quality.gather(site)
    points = "\n".join(attention.points(found, quality.see(site, found)))
    for text in ("1 file not used", "different patients", "show nothing", "sick (1 patient)", "label without image"):
        assert text in points
    fine, line = attention.line(found)
    assert not fine and line.startswith("90.9% of the files used (10 images, 5 patients, 2 classes);")


def test_lost_files_and_readers_who_disagree_are_points(site: Site) -> None:
    rows, lost = index.read(site.folder), [Drop.EMPTY_FILE] * 3 + [Drop.TOO_LARGE]
    others: list[Any] = [Dropped(path=f"{k}.dcm", reason=reason) for k, reason in enumerate(lost)]
    apart = {"dice": {"lesion": 0.1, "node": 0.9}, "iou": {"lesion": 0.0}, "labels": {"anna": "x", "ben": "y"}}
    index.write(site.folder, rows, [*others, Agreement(path="a", item=0, **apart)])  # type: ignore[arg-type]
    points = attention.points(quality.gather(site), None)
    assert points[0].startswith("Only 71.4% of the files are used")
    assert "3 files not used for this reason: empty file." in points
    assert "1 file not used for this reason: too large." in points
    wanted = "lesion (Dice 0.10, 1 image), lesion (IoU of boxes 0.00, 1 image) and labels of anna and ben (kappa 0.00)"
    assert f"Readers agree little on {wanted}: do they mean the same?" in points
    index.write(site.folder, rows, [Agreement(path="a", item=0, dice={"lesion": 0.5}, labels={"a": "x", "b": "x"})])
    assert not [p for p in attention.points(quality.gather(site), None) if "Readers" in p or "Only" in p]


def test_numbers_of_two_issuers_are_a_point(site: Site) -> None:
    index.write(site.folder, index.read(site.folder), [Remark(finding=Finding.SEVERAL_ISSUERS, place="b (unlike a)")])
    (point,) = [p for p in attention.points(quality.gather(site), None) if "IssuerOfPatientID" in p]
    assert point.startswith("1 file with a PatientID") and "patients.csv" in point


def test_localizers_and_captures_among_annotated_images_are_points_and_named(site: Site) -> None:
    kinds = ["CT Image: ORIGINAL, PRIMARY, LOCALIZER"] * 2 + ["CT Image: DERIVED, SECONDARY, SCREEN SAVE"]
    kinds += ["Secondary Capture Image", "CT Image: ORIGINAL, PRIMARY, AXIAL"]
    rows = index.read(site.folder)
    of = dict(zip((row.image for row in rows), kinds, strict=False))
    rows = [replace(row, image_kind=of.get(row.image)) for row in rows]
    index.write(site.folder, rows, [])
    assert index.read(site.folder)[0].image_kind == kinds[0]
    found = quality.gather(site)
    assert {group.name: group.images for group in found.kinds} == Counter(kinds) + Counter({quality.UNKNOWN: 5})
    points = [p for p in attention.points(found, None) if "by their headers" in p]
    assert [p.partition(":")[0] for p in points] == [
        "Localizers by their headers",
        "Secondary captures or screen saves by their headers",
    ]
    assert all(": 2 of 10 annotated images." in p for p in points)
    text = quality_page.render(site, found, None)
    assert "By SOP class and image type" in text and "Localizers: 2" in text
    for row in rows[:4]:
        assert f"<li>{row.source.path}</li>" in text
    index.write(site.folder, [replace(row, image_kind="Secondary Capture Image") for row in rows], [])
    assert not [
        p for p in attention.points(quality.gather(site), None) if "by their headers" in p
    ]  # nothing else is there
    bare = [replace(row, annotation=Annotation()) for row in rows]
    index.write(site.folder, bare, [])
    assert not [p for p in attention.points(quality.gather(site), None) if "by their headers" in p]


def test_labels_outlines_and_boxes_are_counted_apart(site: Site) -> None:
    rows = index.read(site.folder)
    mask = np.zeros((rows[0].height, rows[0].width), np.uint8)
    mask[0, :2] = 1, 2
    drawn = Annotation(label="sick", mask=mask, mask_names=("tumour", "sick"), boxes=())
    index.write(site.folder, [replace(rows[0], annotation=drawn), *rows[1:]], [])
    found = quality.gather(site)
    images = {group.name: (group.kind, group.images) for group in found.classes}
    marked = ("tumour (outline)", "sick (outline)")
    assert images.pop("nothing marked (box)") == ("box", 1)
    assert [images.pop(name) for name in marked] == [("mask", 1)] * 2
    assert set(images) == {"well", "sick"} and sum(number for _, number in images.values()) == 10
    assert set(found.cards[rows[0].image].classes) == {"sick", *marked, "nothing marked (box)"}


def test_frames_are_counted_from_one_on_the_page(site: Site) -> None:
    lost = [
        Dropped(path="many.dcm", reason=Drop.NO_ANNOTATION, item=0),
        Dropped(path="a.npz", reason=Drop.UNREADABLE, array="train_images", item=0),
    ]
    index.write(site.folder, index.read(site.folder), lost)
    text = quality_page.render(site, quality.gather(site), None)
    assert "many.dcm (1)" in text and "a.npz (train_images[0])" in text


def test_burned_in_text_is_flagged_and_dropped_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dicom_cases import saved, slice_

    flagged = slice_(0)
    flagged.BurnedInAnnotation = "YES"
    saved(flagged, tmp_path / "data" / "0.dcm")
    saved(slice_(1, patient="Q"), tmp_path / "data" / "1.dcm")
    (tmp_path / "data" / "labels.csv").write_text("key,label\nP,a\nQ,b\n")
    line = ("index", tmp_path / "data", "--out", tmp_path / "site", "--quiet")
    assert run(*line, monkeypatch=monkeypatch) == 0
    found = quality.gather(open_site(tmp_path / "site"))
    assert {group.name: group.images for group in found.burned_in} == {"yes": 1, quality.UNKNOWN: 1}
    assert any("burned into" in point for point in attention.points(found, None))
    assert run(*line, "--burned-in", "drop", monkeypatch=monkeypatch) == 0
    found = quality.gather(open_site(tmp_path / "site"))
    assert found.counts.dropped[Drop.BURNED_IN] == 1 and len(found.cards) == 1
    assert not any("burned into" in point for point in attention.points(found, None))


def test_the_policy_drops_burned_in_text_and_no_option_goes_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dicom_cases import saved, slice_

    flagged = slice_(0)
    flagged.BurnedInAnnotation = "YES"
    saved(flagged, tmp_path / "data" / "0.dcm")
    saved(slice_(1, patient="Q"), tmp_path / "data" / "1.dcm")
    (tmp_path / "data" / "labels.csv").write_text("key,label\nP,a\nQ,b\n")
    line, settings = ("index", tmp_path / "data", "--out", tmp_path / "site"), tmp_path / "site" / "site.toml"
    assert run(*line, "--quiet", monkeypatch=monkeypatch) == 0
    assert settings.read_text().count("# drop_burned_in = false") == 1
    settings.write_text(settings.read_text().replace("# drop_burned_in = false", "drop_burned_in = true"))
    points = attention.points(quality.gather(open_site(tmp_path / "site")), None)
    assert any("policy drops those, so that none is used" in point for point in points)
    capsys.readouterr()
    assert run(*line, "--json", monkeypatch=monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["files"], said["used"], said["dropped"]) == (3, 1, {"annotation_file": 1, "burned_in": 1})
    assert run(*line, "--burned-in", "keep", "--quiet", monkeypatch=monkeypatch) == 1
    assert "drop_burned_in = true" in capsys.readouterr().err
    assert len(quality.gather(open_site(tmp_path / "site")).cards) == 1


def test_every_reason_and_every_finding_is_explained() -> None:
    assert set(quality_page.WHY) == set(Drop) and set(quality_page._FOUND) == set(Finding)


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.0, "0 %"), (0.25, "25 %")]
)
def test_what_is_not_all_never_reads_as_all(share: float, said: str) -> None:
    assert percent(share) == said


def test_annotations_are_drawn_where_they_lie(tmp_path: Path) -> None:
    Image.new("L", (100, 50)).save(tmp_path / "a.png")
    mask = np.zeros((50, 100), np.uint8)
    mask[10:20, 30:60] = 2
    source = Source(root=tmp_path, path="a.png", kind="picture")
    card = quality.Card(image="a", patient="p", source=source, size=(50, 100), scanner="", pool="train", classes=())
    known = Annotation(mask=mask, boxes=(Box(x1=70, y1=5, x2=100, y2=50, name="x"),))
    address = marked(card, known)
    assert address is not None
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
    lit = drawn.any(axis=2)
    wanted = np.zeros_like(lit)
    wanted[10:20, 30:60] = True
    wanted[11:19, 31:59] = False
    wanted[5:50, 70:100] = True
    wanted[6:49, 71:99] = False
    assert (lit == wanted).all() and (drawn[10, 40] != drawn[5, 80]).any()


def test_quantiles_are_those_of_the_pixels() -> None:
    values = np.random.default_rng(0).beta(2, 5, 100_000).astype(np.float32).reshape(100, 1000)
    wanted = (0.05, 0.5, 0.95)
    found = _quantiles(looks.seen_in(values).brightness, wanted)
    np.testing.assert_allclose(found, np.quantile(values, wanted), atol=1 / looks.BINS)


def test_an_empty_index_and_hostile_names_make_a_page(site: Site) -> None:
    rows = [replace(row, scanner="<script>$x$</script>") for row in index.read(site.folder)]
    index.write(
        site.folder,
        rows,
        [Dropped(path="<b>.dcm", reason=Drop.UNREADABLE), Remark(finding=Finding.BOX_WITHOUT_AREA, place="<i>")],
    )
    found = quality.gather(site)
    text = quality_page.render(site, found, quality.see(site, found))
    assert "<script>" not in text and "<b>.dcm" not in text and "&lt;b&gt;.dcm" in text
    index.write(site.folder, [], [])
    empty = quality.gather(site)
    assert empty.share is None and "No image has an annotation" in quality_page.render(site, empty, None)


def test_the_command_writes_a_private_page_and_one_line_of_json(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quality", site.folder, "--json", monkeypatch=monkeypatch) == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert values["used"] + sum(values["dropped"].values()) == values["files"] == 13
    assert values["near_duplicates"] == {"within": 1, "across": 1}
    path = site.folder / "quality.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "This page shows patients" in text and "data:image/png;base64," in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    for identifier in ("p0", "p9"):
        assert not re.search(rf"\b{identifier}\b", re.sub(r"base64,[^\"]*", "", text))
    assert run("quality", site.folder, "--without-images", "--quiet", monkeypatch=monkeypatch) == 0
    bare = path.read_text()
    assert "data:image/png" not in bare and "were not looked at" in bare and "This page shows" not in bare


@pytest.mark.e2e
@pytest.mark.skipif(BROWSER is None, reason="no chromium: pages are opened in a real browser only where there is one")
def test_the_page_opens_offline_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulations.datasets.phantom import write_phantom

    data = tmp_path / "data"
    write_phantom(data, patients=12, seed=1, image_size=64)
    one = next(path for path in sorted(data.rglob("*.dcm")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = pydicom.dcmread(one)
        other.PatientID, other.SOPInstanceUID, other.file_meta.MediaStorageSOPInstanceUID = "X", "1.2.3", "1.2.3"
        other.save_as(data / "twin.dcm")
    with (data / "labels.csv").open("a") as table:
        table.write("1.2.3,lesion,a,b\n")
    assert run("index", data, "--out", tmp_path / "site", "--quiet", monkeypatch=monkeypatch) == 0
    assert run("quality", tmp_path / "site", "--quiet", monkeypatch=monkeypatch) == 0
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", f"file://{tmp_path / 'site' / 'quality.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    for text in ("Is all my data used?", "Nearly the same images", "Examples", "<svg", "data:image/png"):
        assert text in done.stdout
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", done.stdout)
    assert titles[:2] == ["Is all my data used?", "What needs attention"] and max(Counter(titles).values()) == 1
