"""What one patient adds to a release: its length, its values, and what is read back from sums without noise."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import params
from common.tasks.batch import Detections, Objects
from common.tasks.detection import Detection
from common.tasks.release import LARGEST_GAP, OBJECTS_CAP, Release, release_of

BINARY = release_of("classification", ("no", "yes"), score_bins=8)
SEVERAL = release_of("classification", ("a", "b", "c"), score_bins=4)
MASKS = release_of("segmentation", ("a", "b"), score_bins=8)
BOXES = release_of("detection", ("a", "b"), score_bins=8)
ALL = pytest.mark.parametrize("release", [BINARY, SEVERAL, MASKS, BOXES])


def probabilities(rng: np.random.Generator, classes: int) -> Any:
    logits = rng.normal(size=classes) * 10.0 ** rng.uniform(-1, 1.5)
    shifted = np.exp(logits - logits.max())
    return (shifted / shifted.sum()).astype(np.float32)


def detections(rng: np.random.Generator, count: int, classes: int = 2, *, far: float = 100.0) -> Detections:
    corner = rng.uniform(-far, far, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(-5, 20, (count, 2))], axis=1)
    return Detections(
        boxes=boxes.astype(np.float32),
        classes=rng.integers(0, classes, count),
        scores=rng.random(count).astype(np.float32),
    )


def objects(rng: np.random.Generator, count: int) -> Objects:
    corner = rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)
    return Objects(boxes=boxes, classes=rng.integers(0, 2, count))


def image(release: Release, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random prediction and truth."""
    if release in (BINARY, SEVERAL):
        classes = len(release.classes)
        return probabilities(rng, classes), int(rng.integers(0, classes))
    if release is MASKS:
        kind = rng.integers(0, 4)
        truth = rng.integers(0, 3, (6, 5)).astype(np.uint8) * np.uint8(kind > 0)
        perfect = np.stack([truth == 1, truth == 2])
        return (perfect if kind == 1 else rng.random((2, 6, 5)) < rng.random() * (kind > 1)), truth
    return detections(rng, int(rng.integers(0, 200))), objects(rng, int(rng.integers(0, 60)))


def part(release: Release, images: list[tuple[Any, Any]]) -> Any:
    return release.part([prediction for prediction, _ in images], [truth for _, truth in images])


@ALL
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 2, 7]))
def test_a_part_has_the_layouts_length_and_but_for_boxes_at_most_the_bound(
    release: Release, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    vector = part(release, [image(release, rng) for _ in range(count)])
    assert vector.shape == (params.length(release.layout),) and vector.dtype == np.float64
    if release is not BOXES:  # whose parts are clipped where they are added up
        assert np.linalg.norm(vector) <= release.bound * (1 + 1e-12)


@ALL
def test_bounds_are_the_designs(release: Release) -> None:
    expected = {id(BINARY): 1.0, id(SEVERAL): math.sqrt(3), id(MASKS): 1.5, id(BOXES): 1.0}
    assert release.bound == pytest.approx(expected[id(release)])


@ALL
def test_many_images_of_a_patient_weigh_as_much_as_one(release: Release) -> None:
    rng = np.random.default_rng(1)
    one = image(release, rng)
    np.testing.assert_allclose(part(release, [one] * 300), part(release, [one]), atol=1e-12)


@ALL
def test_no_images_give_zeros(release: Release) -> None:
    assert not release.part([], []).any()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_is_not_finite_makes_the_whole_part_nan(broken: float) -> None:
    good, bad = np.array([0.2, 0.8], np.float32), np.array([0.2, broken], np.float32)
    assert np.isnan(BINARY.part([good, bad], [0, 1])).all()
    rng = np.random.default_rng(0)
    for field in ("boxes", "scores"):
        found = detections(rng, 5)
        getattr(found, field)[2] = broken
        assert np.isnan(BOXES.part([found], [objects(rng, 3)])).all()


def test_histograms_count_by_class_and_bin() -> None:
    scores = [np.array([0.9, 0.1], np.float32), np.array([0.3, 0.7], np.float32)]
    sums = params.split(BINARY.part(scores, [0, 1]), BINARY.layout)["scores"]
    expected = np.zeros((1, 2, 8))
    expected[0, 0, 2] = expected[0, 1, 4] = 0.5  # logits -2.2 and 0.85 in bins of 1.5
    np.testing.assert_array_equal(sums, expected)


def test_several_classes_have_a_histogram_each_against_the_rest() -> None:
    sums = params.split(SEVERAL.part([np.array([0.999, 0.0005, 0.0005], np.float32)], [1]), SEVERAL.layout)["scores"]
    expected = np.zeros((3, 2, 4))
    expected[0, 0, 3] = expected[1, 1, 0] = expected[2, 0, 0] = 1
    np.testing.assert_array_equal(sums, expected)


def test_overlaps_are_read_back() -> None:
    """Two patients. First: of class a 2 of 4 pixels right and 4 drawn, class b is absent. Second: perfect."""
    truth = np.array([[1, 1, 1, 1, 0, 0]], np.uint8)
    drawn = np.array([[[0, 0, 1, 1, 1, 1]], [[0] * 6]], bool)
    perfect = np.stack([truth == 1, truth == 2])
    total = MASKS.part([drawn], [truth]) + MASKS.part([perfect], [truth])
    np.testing.assert_allclose(MASKS.part([drawn], [truth]), [0, (1 / 2 - 1 / 3) / LARGEST_GAP - 0.5, 1], atol=1e-12)
    figures = MASKS.figures(params.split(total, MASKS.layout), ("",))
    assert figures == {("dice", ""): pytest.approx(0.75), ("iou", ""): pytest.approx((1 / 3 + 1) / 2)}


def test_a_patient_who_shows_nothing_and_has_nothing_drawn_counts_for_nothing() -> None:
    assert not MASKS.part([np.zeros((2, 3, 3), bool)], [np.zeros((3, 3), np.uint8)]).any()


def test_the_gap_between_dice_and_iou_is_at_most_the_constant() -> None:
    dice = np.linspace(0, 1, 100_001)
    assert (dice - dice / (2 - dice)).max() == pytest.approx(LARGEST_GAP, abs=1e-9)


def test_hits_false_alarms_and_objects_are_counted_in_the_caps_units() -> None:
    truth = Objects(boxes=np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32), classes=np.array([0, 1]))
    found = Detections(
        boxes=np.array([[0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32),
        classes=np.array([0, 0, 0]),
        scores=np.array([0.99, 0.5, 0.01], np.float32),
    )
    sums = params.split(BOXES.part([found], [truth]), BOXES.layout)
    true, false = np.zeros((2, 8)), np.zeros((2, 8))
    true[0, 7] = 1  # logit 4.6; the second box finds the same object again
    false[0, 4] = false[0, 0] = 0.5
    np.testing.assert_allclose(sums["objects"], np.array([1, 1]) / OBJECTS_CAP)
    np.testing.assert_allclose(sums["true"], true / OBJECTS_CAP)
    np.testing.assert_allclose(sums["false"], false / OBJECTS_CAP)


def test_ten_thousand_detections_and_absurd_boxes_are_only_long() -> None:
    rng = np.random.default_rng(0)
    many, far = detections(rng, 10_000), detections(rng, 50, far=1e37)
    inverted = Detections(boxes=far.boxes[:, ::-1].copy(), classes=np.full(50, 7), scores=far.scores)
    vector = BOXES.part([many, far, inverted], [objects(rng, 5)] * 3)
    assert np.isfinite(vector).all()
    sums = params.split(vector * 3 * OBJECTS_CAP, BOXES.layout)
    proposed = sums["true"].sum() + 2 * sums["false"].sum()
    assert proposed == pytest.approx(2 * 100 + 50)  # of each class 100 in an image; the unknown class is none


def test_average_precision_is_close_to_the_exact_one_without_noise_and_clip() -> None:
    rng = np.random.default_rng(5)
    patients = []
    for _ in range(400):
        truth = objects(rng, 1)
        hit = rng.random() < 0.8
        boxes = np.concatenate([truth.boxes[:hit], np.array([[200, 200, 210, 210]], np.float32)])
        logits = np.concatenate([rng.normal(1.5, 1.5, int(hit)), rng.normal(-1, 1.5, 1)])
        kinds = np.concatenate([truth.classes[:hit], rng.integers(0, 2, 1)])
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        patients.append((Detections(boxes=boxes, classes=kinds, scores=scores), truth))
    exact = Detection(classes=("a", "b"), focal=False).pooled([p for p, _ in patients], [t for _, t in patients])
    total = sum(part(BOXES, [one]) for one in patients)
    figures = BOXES.figures(params.split(total, BOXES.layout), ("a", "b"))
    assert figures["map50", ""] == pytest.approx(exact["map50"], abs=0.01)
    assert figures["ap50", "b"] == pytest.approx(exact["per_class"]["b"]["ap50"], abs=0.02)


def test_rates_at_one_half_are_read_from_an_even_number_of_bins_only() -> None:
    scores = np.zeros((1, 2, 8))
    scores[0, 1, 5:], scores[0, 1, 1], scores[0, 0, :3], scores[0, 0, 4] = 3, 1, 10, 2
    figures = BINARY.figures({"scores": scores}, ("yes",))
    assert figures["sensitivity", ""] == pytest.approx(9 / 10) and figures["specificity", ""] == pytest.approx(30 / 32)
    assert figures["accuracy", ""] == pytest.approx(39 / 42)
    assert figures["balanced_accuracy", ""] == pytest.approx((9 / 10 + 30 / 32) / 2)
    odd = release_of("classification", ("no", "yes"), score_bins=7)
    assert set(odd.figures({"scores": np.ones((1, 2, 7))}, ("yes",))) == {("auc", "")}


def test_scores_that_share_a_bin_are_doubted() -> None:
    crowded, spread = np.zeros((3, 2, 4)), np.ones((3, 2, 4))
    crowded[:, :, 1] = 9
    assert set(SEVERAL.doubts({"scores": crowded}, ("a", "c"))) == {("auc", ""), ("auc", "a"), ("auc", "c")}
    assert "100%" in SEVERAL.doubts({"scores": crowded}, ("a",))["auc", ""]
    assert SEVERAL.doubts({"scores": spread}, ("a", "c")) == {}


@ALL
def test_the_expected_sum_is_one_that_patients_can_give(release: Release) -> None:
    prior = [1 / len(release.classes)] * len(release.classes)
    total = release.expected(100.0, prior)
    assert total.shape == (params.length(release.layout),)
    assert np.linalg.norm(total) <= 100 * release.bound * (1 + 1e-12)  # the last bit is the processor's
    known = list(release.support(params.split(total, release.layout)))
    figures = release.figures(params.split(total, release.layout), known)
    assert all(0.2 < value < 0.95 for value in figures.values())


@pytest.mark.parametrize("score_bins", [1, 0, -3])
def test_fewer_than_two_bins_are_refused(score_bins: int) -> None:
    with pytest.raises(ValueError, match="score_bins"):
        release_of("detection", ("a",), score_bins=score_bins)
