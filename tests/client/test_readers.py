"""Fusion and agreement of readers against published examples, slow copies of the formulas and hand-made cases."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.agreement import Agreement, cohen, dice, fleiss, matched, overlap, summary
from client.drops import Drop, Unusable
from client.readers import READERS_LIMIT, Fusion, Reading, fused, not_comparable, outvoted, staple
from common.annotation import Annotation, Box


def readings(*known: Annotation) -> list[Reading]:
    return [Reading(reader=f"r{k}", annotation=one) for k, one in enumerate(known)]


def box(*corners: float, name: str = "lesion") -> Box:
    return Box(x1=corners[0], y1=corners[1], x2=corners[2], y2=corners[3], name=name)


def mask(*values: int, names: tuple[str, ...] | None = None) -> Annotation:
    return Annotation(mask=np.array([values], np.uint8), mask_names=names)


# --- fusion


def test_one_readers_annotation_is_returned_as_it_is() -> None:
    one = Annotation(label="x", mask=np.eye(3, dtype=np.uint8), mask_names=("a", "b"), boxes=(box(0, 0, 1, 1),))
    found, agreement = fused(readings(one, Annotation()), "majority")
    assert found.label == "x" and found.mask is one.mask and found.mask_names == ("a", "b") and found.boxes == one.boxes
    assert agreement is None
    nothing = fused([], "staple")[0]
    assert nothing.label is None and nothing.mask is None and nothing.boxes is None


def test_a_label_is_the_one_that_most_readers_give_and_a_tie_is_refused() -> None:
    labels = [Annotation(label=label) for label in "xyxz"]
    found, agreement = fused(readings(*labels), "majority", path="a.dcm", item=2)
    assert found.label == "x" and agreement is not None
    assert (agreement.path, agreement.item) == ("a.dcm", 2)
    assert agreement.labels == {"r0": "x", "r1": "y", "r2": "x", "r3": "z"}
    with pytest.raises(Unusable) as caught:
        fused(readings(*labels[:2]), "majority")
    assert caught.value.reason is Drop.BAD_ANNOTATION


def test_a_pixel_belongs_to_a_class_that_more_than_half_of_its_readers_cover() -> None:
    three = readings(mask(1, 1, 1, 0, 2), mask(1, 1, 0, 0, 2), mask(1, 0, 0, 1, 1))
    found, agreement = fused(three, "majority")
    assert found.mask is not None and found.mask.tolist() == [[1, 1, 0, 0, 2]] and found.mask_names is None
    assert agreement is not None and set(agreement.dice) == {"1", "2"}
    assert agreement.dice["1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 6 + 2 * 1 / 5) / 3)
    two, _ = fused(three[:2], "majority")  # of two, both
    assert two.mask is not None and two.mask.tolist() == [[1, 1, 0, 0, 2]]


def test_a_reader_counts_for_the_classes_that_he_looks_for() -> None:
    lungs = mask(1, 1, 0, 0, 0, names=("lung",))
    first = mask(0, 2, 2, 0, 1, names=("node", "lesion"))
    second = mask(0, 1, 0, 0, 0, names=("lesion",))
    found, agreement = fused(readings(lungs, first, second), "majority")
    assert found.mask_names == ("lung", "node", "lesion")
    assert found.mask is not None and found.mask.tolist() == [[1, 3, 0, 0, 2]]  # of equals, the later class
    assert agreement is not None and agreement.dice == {"lesion": pytest.approx(2 / 3)}


def test_masks_without_names_are_not_compared_with_those_that_have_them() -> None:
    known = readings(mask(0, 1), mask(1, 0, names=("lesion",)), mask(0, 1), mask(0, 1, names=()))
    assert not_comparable(known) == [known[1], known[3]] and not not_comparable(known[:1])
    found, agreement = fused(known[:2], "majority")
    assert found.mask is not None and found.mask.tolist() == [[0, 1]] and agreement is None
    assert not outvoted(known[:2], found)
    one_persons = [Reading(reader="", annotation=one.annotation) for one in known[:2]]
    assert np.array_equal(fused(one_persons, "majority")[0].mask, found.mask)


def test_boxes_of_more_than_half_of_the_readers_are_kept_as_their_mean() -> None:
    first = Annotation(boxes=(box(0, 0, 10, 10), box(30, 30, 40, 40)), box_names=("lesion", "node"))
    second = Annotation(boxes=(box(1, 0, 11, 10), box(0, 0, 10, 10, name="node")))
    third = Annotation(boxes=(box(2, 0, 12, 10),), box_names=("node",))
    found, agreement = fused(readings(first, second, third), "staple")
    assert found.boxes == (box(1, 0, 11, 10),)
    near, far = 9 / 11, 8 / 12
    assert agreement is not None and agreement.iou["lesion"] == pytest.approx((near / 2 + far / 2 + near) / 3)
    assert agreement.iou["node"] == 0
    nobody, _ = fused(readings(first, Annotation(boxes=()), Annotation(boxes=())), "majority")
    assert nobody.boxes == ()


def test_readers_who_look_for_other_classes_do_not_outvote_each_other() -> None:
    first, second = (Annotation(boxes=(box(0, 0, 10, 10, name=name),)) for name in ("fracture", "cyst"))
    found, agreement = fused(readings(first, second), "majority")
    assert found.boxes == (*(first.boxes or ()), *(second.boxes or ())) and agreement is None
    silent = Annotation(boxes=(), box_names=("fracture",))
    assert fused(readings(silent, second), "majority")[0].boxes == second.boxes
    both = Annotation(boxes=second.boxes, box_names=("fracture", "cyst"))
    found, agreement = fused(readings(both, silent, silent), "majority")
    assert found.boxes == second.boxes and agreement is None


def test_boxes_that_no_majority_drew_alike_are_no_image_without_objects() -> None:
    first, nothing = Annotation(boxes=(box(0, 0, 20, 20),)), Annotation(boxes=())
    apart = Annotation(boxes=(box(5, 5, 25, 25),))  # IoU 0.39
    for known in ((first, apart), (first, nothing), (first, apart, nothing)):
        with pytest.raises(Unusable, match="no majority") as caught:
            fused(readings(*known), "majority")
        assert caught.value.reason is Drop.BAD_ANNOTATION
    found, _ = fused(readings(first, nothing, nothing), "majority")
    assert found.boxes == () and outvoted(readings(first, nothing, nothing), found)


def test_a_class_that_the_votes_left_nothing_of_is_seen() -> None:
    known = readings(mask(0, 1, 2), mask(0, 1, 0), mask(1, 1, 0))
    assert outvoted(known, fused(known, "majority")[0])
    assert not outvoted(known[1:], fused(known[1:], "majority")[0]) and not outvoted(known[:1], known[1].annotation)


def test_too_many_readers_or_boxes_are_refused() -> None:
    with pytest.raises(Unusable, match="readers"):
        fused(readings(*[Annotation(label="x")] * (READERS_LIMIT + 1)), "majority")
    many = Annotation(boxes=tuple(box(k, 0, k + 1, 1) for k in range(1001)))
    with pytest.raises(Unusable, match="1000 boxes"):
        fused(readings(many, many), "majority")


# --- STAPLE


def slow_staple(decisions: NDArray[np.bool_]) -> tuple[NDArray[np.float64], list[float], list[float]]:
    """Pixel by pixel, reader by reader, as the paper writes it."""
    readers, pixels = decisions.shape
    p, q = [0.99999] * readers, [0.99999] * readers
    prior = decisions.sum() / decisions.size
    weights = np.zeros(pixels)
    for _ in range(200):
        for i in range(pixels):
            a, b = prior, 1 - prior
            for j in range(readers):
                a *= p[j] if decisions[j, i] else 1 - p[j]
                b *= 1 - q[j] if decisions[j, i] else q[j]
            weights[i] = a / (a + b)
        for j in range(readers):
            p[j] = min(max(weights[decisions[j]].sum() / weights.sum(), 1e-9), 1 - 1e-9)
            q[j] = min(max((1 - weights)[~decisions[j]].sum() / (1 - weights).sum(), 1e-9), 1 - 1e-9)
    return weights, p, q


@pytest.mark.parametrize("readers", [2, 3, 5, 9])
def test_staple_is_the_papers_iteration(readers: int) -> None:
    rng = np.random.default_rng(readers)
    truth = np.arange(60) % 5 == 0
    decisions = truth ^ (rng.random((readers, 60)) < np.linspace(0.05, 0.3, readers)[:, None])
    found = staple(decisions.reshape(readers, 6, 10))
    weights, p, q = slow_staple(decisions)
    assert found.probability.shape == (6, 10)
    np.testing.assert_allclose(found.probability.ravel(), weights, atol=1e-6)
    np.testing.assert_allclose(found.sensitivity, p, atol=1e-6)
    np.testing.assert_allclose(found.specificity, q, atol=1e-6)


def test_staple_finds_good_and_bad_readers_where_the_majority_does_not() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((100, 100)) < 0.3
    errors = (0.02, 0.02, 0.4, 0.4, 0.4)
    said = np.stack([truth ^ (rng.random(truth.shape) < error) for error in errors])
    found = staple(said)
    np.testing.assert_allclose(found.sensitivity, 1 - np.array(errors), atol=0.06)
    np.testing.assert_allclose(found.specificity, 1 - np.array(errors), atol=0.06)
    by_staple, by_majority = ((answer != truth).mean() for answer in (found.probability > 0.5, said.mean(axis=0) > 0.5))
    assert by_staple < 0.03 < 0.07 < by_majority


def test_staple_of_nothing_and_of_everything() -> None:
    assert staple(np.zeros((3, 4, 5), bool)).probability.max() == 0
    assert staple(np.ones((3, 4, 5), bool)).probability.min() == 1
    agreed = np.stack([np.eye(6, dtype=bool)] * 2)
    assert np.array_equal(staple(agreed).probability > 0.5, agreed[0])


@pytest.mark.parametrize("how", ["majority", "staple"])
def test_an_image_is_fused_without_looking_at_another(how: Fusion) -> None:
    """The same readings, before and after another image whose readers are very different."""
    rng = np.random.default_rng(0)
    noisy = [Annotation(mask=rng.integers(0, 2, (8, 8)).astype(np.uint8)) for _ in range(3)]
    before, _ = fused(readings(*noisy), how)
    fused(readings(*[Annotation(mask=np.ones((8, 8), np.uint8))] * 3), how)
    after, _ = fused(readings(*noisy), how)
    assert np.array_equal(before.mask, after.mask)


# --- agreement


def test_fleiss_kappa_of_the_published_example() -> None:
    """Ten subjects, fourteen raters, five categories: 0.210 (Wikipedia, Fleiss' kappa, worked example)."""
    table = """0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"""
    images = [[str(k) for k, n in enumerate(row.split()) for _ in range(int(n))] for row in table.split("/")]
    assert fleiss(images) == pytest.approx(0.210, abs=5e-4)


def test_cohens_kappa_of_the_published_example() -> None:
    """Fifty proposals, two readers: 20 both yes, 15 both no, 5 and 10 apart: 0.4 (Wikipedia, Cohen's kappa)."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen(pairs) == pytest.approx(0.4)


def test_kappa_is_absent_where_there_is_nothing_to_agree_on() -> None:
    assert cohen([]) is None and cohen([("x", "x")] * 3) is None
    assert fleiss([]) is None and fleiss([["x", "x"]]) is None
    assert fleiss([["x", "x"], ["y", "y", "y"]]) == 1
    assert cohen([("x", "y"), ("y", "x")]) == pytest.approx(-1)


def test_dice_and_overlap_are_absent_where_nobody_saw_anything() -> None:
    none, one = np.zeros((2, 2), bool), np.eye(2, dtype=bool)
    assert dice(none, none) is None and dice(none, one) == 0 and dice(one, one) == 1
    assert overlap([], []) is None and overlap([], [box(0, 0, 1, 1)]) == 0


corner = st.integers(0, 6)
some_boxes = st.lists(
    st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(
        lambda b: box(b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=4,
)


@given(some_boxes, some_boxes)
@settings(max_examples=80, deadline=None)
def test_boxes_are_paired_for_the_largest_sum_of_overlaps(first: list[Box], second: list[Box]) -> None:
    def iou(a: Box, b: Box) -> float:
        common = max(0, min(a.x2, b.x2) - max(a.x1, b.x1)) * max(0, min(a.y2, b.y2) - max(a.y1, b.y1))
        return common / ((a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - common)

    def worth(value: float) -> float:
        return value if value >= 0.5 else 0

    pairs = matched(first, second)
    assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
    assert all(value == pytest.approx(iou(first[i], second[j])) and value >= 0.5 for i, j, value in pairs)
    few, many = sorted((first, second), key=len)
    best = max(
        sum(worth(iou(a, many[j])) for a, j in zip(few, order, strict=False))
        for order in permutations(range(len(many)))
    )
    assert sum(value for _, _, value in pairs) == pytest.approx(best)


def test_the_summary_counts_each_image_once() -> None:
    known: list[dict[str, Any]] = [
        {"labels": {"anna": "x", "ben": "x"}, "dice": {"lesion": 0.5}},
        {"labels": {"anna": "y", "ben": "x"}, "dice": {"lesion": 1.0}, "iou": {"node": 0.25}},
        {"labels": {"ben": "y", "cara": "y"}},
    ]
    found = summary([Agreement(path="a", item=k, **one) for k, one in enumerate(known)])
    assert found["images"] == 3
    assert found["dice"] == {"lesion": {"mean": 0.75, "images": 2}} and found["iou"] == {
        "node": {"mean": 0.25, "images": 1}
    }
    assert found["cohen_kappa"] == [
        {"readers": ["anna", "ben"], "images": 2, "kappa": 0.0},
        {"readers": ["ben", "cara"], "images": 1, "kappa": None},
    ]
    assert isinstance(found["fleiss_kappa"], float) and math.isclose(found["fleiss_kappa"], (2 / 3 - 0.5) / 0.5)
