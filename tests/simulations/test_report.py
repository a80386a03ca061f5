"""What only a simulation can show: who has what, what federating gained, and predictions drawn on images."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from common import page
from common.page import Block, Figure, Fold, Section, Table, Text
from common.tasks.batch import Detections, Objects
from simulations.pictures import PREDICTION, TRUTH, Picture, draw, words
from simulations.report import sections

CLASSES = ["normal", "<b>pneumonia</b>"]


def a_summary(sites: int = 3, **more: Any) -> dict[str, Any]:
    names = [f"site-{i}" for i in range(sites)]
    return {
        "sites": {
            name: {"patients": 10 + i, "images": 20, "per_class": dict.fromkeys(CLASSES, 10)}
            for i, name in enumerate(names)
        },
        "rounds": [{"round": 1}, {"round": 2}],
        "final": {"test": {"auc": 0.9}},
        **more,
    }  # fmt: skip


def a_site(low: float | None, high: float | None, difference: float | None = 0.1) -> dict[str, Any]:
    return {"patients": 5, "alone": 0.8, "federated": 0.9, "difference": difference, "low": low, "high": high}


def a_comparison() -> dict[str, Any]:
    sites = {
        "site-10": a_site(0.05, 0.15),
        "site-2": a_site(-0.2, -0.1, -0.15),
        "site-1": a_site(-0.1, 0.3),
        "site-0": {**a_site(None, None, None), "alone": None, "federated": None, "patients": 1},
    }
    return {
        "pooled": {"test": {"auc": 1.0}},
        "alone": {},
        "alone_mean": {"test": {"auc": 0.5}},
        "gain": {"headline": "auc", "on": "test", "sites": sites},
    }


def made(summary: dict[str, Any], pictures: tuple[Picture, ...] = ()) -> dict[str, Section]:
    found = sections(summary, partition_figure=Drawing(figsize=(2, 1)), pictures=pictures)
    return {section.title: section for section in found}


def flat(blocks: tuple[Block, ...]) -> list[Block]:
    return [inner for b in blocks for inner in (flat(b.blocks) if isinstance(b, Fold) else [b])]


def tables(section: Section) -> list[Table]:
    return [block for block in flat(section.blocks) if isinstance(block, Table)]


def test_who_holds_what_adds_up() -> None:
    table = tables(made(a_summary())["Who holds which data"])[0]
    assert table.columns == ("Site", "Patients", "Images", *CLASSES)
    assert table.rows[1] == ("site-1", 11, 20, 10, 10)
    assert table.totals == (("All sites", 33, 60, 30, 30),)


def test_sites_are_in_natural_order_and_many_are_folded() -> None:
    section = made(a_summary(sites=20))["Who holds which data"]
    assert any(isinstance(block, Fold) for block in section.blocks)
    assert [row[0] for row in tables(section)[0].rows] == [f"site-{i}" for i in range(20)]


def test_only_what_is_there_has_a_section() -> None:
    assert list(made(a_summary())) == ["Who holds which data"]
    full = a_summary(
        comparison=a_comparison(),
        seeds=[{"seed": s, "final": {"test": {"auc": 0.9}}} for s in (7, 8)],
        over_seeds={"headline": "auc", "federated": {"mean": 0.9, "sd": 0.0, "low": 0.9, "high": 0.9}},
        rounds=[{"round": 1, "per_site": {"site-0": {"auc": 0.5}, "site-1": {"auc": None}}}],
    )
    assert list(made(full, (classified(),))) == [
        "Who holds which data", "Was federating worth it?", "Site by site over the rounds", "How much is chance",
        "Example images",
    ]  # fmt: skip


def test_the_gain_is_told_site_by_site_with_a_verdict_that_its_interval_bears() -> None:
    section = made(a_summary(comparison=a_comparison()))["Was federating worth it?"]
    common, by_site = tables(section)
    assert common.rows == (
        ("Each site alone, mean", 0.5, "50.0%"), ("Federated", 0.9, "90.0%"), ("All data in one place", 1.0, "100.0%"),
    )  # fmt: skip
    assert by_site.rows == (
        ("site-0", 1, None, None, "–", None, "not measurable"),
        ("site-1", 5, 0.8, 0.9, "+0.100", "−0.100 to +0.300", "no clear difference"),
        ("site-2", 5, 0.8, 0.9, "−0.150", "−0.200 to −0.100", "worse"),
        ("site-10", 5, 0.8, 0.9, "+0.100", "+0.050 to +0.150", "better"),
    )
    name, patients, alone, federated, difference, *_ = by_site.totals[0]
    assert (name, patients, difference) == ("Mean of sites", 16, "+0.017")  # (0.1 - 0.15 + 0.1) / 3
    assert (alone, federated) == (pytest.approx(0.8), pytest.approx(0.9))
    said = next(block for block in section.blocks if isinstance(block, Text))
    assert said.paragraphs[0].endswith("1 better, 1 worse, 1 no clear difference, 1 not measurable.")


def test_without_pooled_training_its_share_is_absent() -> None:
    comparison = {**a_comparison(), "pooled": {"test": {"auc": None}}}
    common, _ = tables(made(a_summary(comparison=comparison))["Was federating worth it?"])
    assert common.rows[1] == ("Federated", 0.9, None)


def test_seeds_are_shown_one_by_one_with_the_summary_s_own_interval() -> None:
    seeds = [{"seed": s, "final": {"test": {"auc": x}}} for s, x in ((7, 0.9), (8, 0.8))]
    seeds[0]["comparison"] = a_comparison()
    over = {"headline": "auc", "federated": {"mean": 0.85, "sd": 0.07, "low": 0.215, "high": 1.485}}
    table = tables(made(a_summary(seeds=seeds, over_seeds=over))["How much is chance"])[0]
    assert table.rows == (("7", 0.9, 1.0, 0.5), ("8", 0.8, None, None))
    assert table.totals == (("Mean", 0.85, None, None), ("95 % interval", "0.215 to 1.485", None, None))
    over["federated_over_pooled"] = {"mean": 0.9, "sd": None, "low": None, "high": None}
    table = tables(made(a_summary(seeds=seeds, over_seeds=over))["How much is chance"])[0]
    assert [row[4] for row in table.rows] == [0.9, None]
    assert [row[4] for row in table.totals] == [0.9, None]


def classified(name: str = CLASSES[1]) -> Picture:
    image = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    return Picture(image=image, caption="Image 1", truth=name, prediction=np.array([0.25, 0.75], np.float32))


def outlined() -> Picture:
    mask = np.zeros((2, 6, 8), bool)
    mask[0, :3, :4] = True  # class 1 is nowhere
    return Picture(image=np.ones((6, 8, 3), np.float32), caption="m", truth=mask, prediction=~mask)


def boxed() -> Picture:
    corners = np.array([[1, 1, 4, 4], [2, 2, 6, 5]], np.float32)
    found = Detections(boxes=corners, classes=np.array([1, 0]), scores=np.array([0.9, 0.2], np.float32))
    truth = Objects(boxes=corners, classes=np.array([1, 0]))
    return Picture(image=np.zeros((6, 8), np.float32), caption="b", truth=truth, prediction=found)


def test_a_classified_image_shows_its_true_class_and_all_probabilities() -> None:
    text = page.svg(draw([classified()], CLASSES))
    assert "&lt;b&gt;pneumonia&lt;/b&gt; (true)" in text
    assert ">0.75<" in text
    assert ">0.25<" in text


def test_a_true_class_is_shown_even_when_the_model_finds_it_least_likely() -> None:
    names = [f"class {k}" for k in range(9)]
    scores = np.arange(9, 0, -1, dtype=np.float32) / 45
    picture = Picture(image=np.zeros((4, 4), np.float32), caption="", truth="class 8", prediction=scores)
    text = page.svg(draw([picture], names))
    assert "class 8 (true)" in text
    assert "class 0" in text
    assert "class 5" not in text


def test_outlines_and_boxes_have_a_colour_each_and_the_truth_is_dashed() -> None:
    for picture in (outlined(), boxed()):
        text = page.svg(draw([picture], CLASSES))
        strokes = [part for part in text.split('style="') if f"stroke: {TRUTH}" in part.split('"')[0]]
        assert strokes
        assert all("stroke-dasharray" in part.split('"')[0] for part in strokes)
        strokes = [part for part in text.split('style="') if f"stroke: {PREDICTION}" in part.split('"')[0]]
        assert strokes
        assert not any("stroke-dasharray" in part.split('"')[0] for part in strokes)


def test_objects_of_low_score_are_not_drawn() -> None:
    text = page.svg(draw([boxed()], CLASSES))
    assert "0.90" in text
    assert "0.20" not in text


def test_empty_and_full_masks_large_images_and_no_objects_can_be_drawn() -> None:
    full = np.ones((1, 900, 500), bool)
    image = np.full((900, 500), np.nan, np.float32)
    nothing = np.zeros((0, 4), np.float32)
    none = np.zeros(0, np.int64)
    pictures = [
        Picture(image=image, caption="", truth=full, prediction=~full),
        Picture(
            image=image, caption="", truth=Objects(boxes=nothing, classes=none),
            prediction=Detections(boxes=nothing, classes=none, scores=np.zeros(0, np.float32)),
        ),
    ]  # fmt: skip
    assert len(page.svg(draw(pictures, ["a"]))) < 100_000


def test_pictures_stand_four_in_a_row_and_none_give_an_empty_drawing() -> None:
    assert len(draw([outlined()] * 5, CLASSES).axes) == 5
    assert draw([outlined()] * 5, CLASSES).get_figwidth() == pytest.approx(4 * 2.5 + 3 * 0.1)
    assert not draw([], CLASSES).axes


def test_every_example_has_words_for_who_can_not_see_it() -> None:
    assert (
        words(classified(), CLASSES)
        == "true class <b>pneumonia</b>; the model says <b>pneumonia</b> with probability 0.75"
    )
    assert words(outlined(), CLASSES) == "25.0% of the pixels are marked; the model marks 100.0%"
    assert words(boxed(), CLASSES) == "2 true objects; the model proposes 1 with a score of 0.5 or more"
    section = made(a_summary(), (outlined(),))["Example images"]
    assert [b.alt for b in section.blocks if isinstance(b, Figure)] == [f"m: {words(outlined(), CLASSES)}"]


def test_all_sections_render_and_hostile_names_stay_text() -> None:
    found = sections(
        a_summary(comparison=a_comparison()), partition_figure=Drawing(figsize=(2, 1)), pictures=[classified()]
    )
    text = page.render("t", "s", found, footer="f")
    assert "<b>" not in text
    assert "&lt;b&gt;pneumonia" in text
