"""Segmentation: losses by hand, overlaps against torchmetrics, images that show nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from common.annotation import Annotation
from common.tasks import total_sums
from common.tasks.batch import Batch
from common.tasks.segmentation import Segmentation

ONE = Segmentation(classes=("nucleus",), focal=False)
TWO = Segmentation(classes=("lung", "lesion"), focal=False)


def drawn(count: int) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.uint8]]]:
    """Images of several sizes with two classes; some lack a class, one shows and predicts nothing."""
    rng = np.random.default_rng(0)
    predictions, truths = [], []
    for image in range(count):
        size = (rng.integers(5, 30), rng.integers(5, 30))
        truth = rng.integers(0, 3, size).astype(np.uint8)
        prediction = np.stack([truth == k for k in (1, 2)]) ^ (rng.random((2, *size)) < 0.2)
        if image % 3 == 0:
            truth[truth == 2] = 0
        if image % 6 == 0:
            prediction[1] = False
        if image == 0:
            truth[:], prediction[:] = 0, False
        predictions.append(prediction)
        truths.append(truth)
    return predictions, truths


def summed(task: Segmentation, predictions: list[Any], truths: list[Any]) -> dict[str, Any]:
    return task.summarise(total_sums(task, predictions, truths))


@pytest.mark.parametrize("focal", [False, True])
def test_the_loss_of_each_image_is_its_own_cross_entropy_and_dice(focal: bool) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 2, 4, 6)).astype(np.float32)
    masks = rng.integers(0, 3, (3, 4, 6)).astype(np.uint8)
    task = Segmentation(classes=TWO.classes, focal=focal)
    losses = task.losses(nn.Identity(), Batch(images=torch.from_numpy(logits), masks=torch.from_numpy(masks)))
    for image in range(3):
        entropy, dice = [], []
        for k in (1, 2):
            truth = (masks[image] == k).astype(float)
            p = 1 / (1 + np.exp(-logits[image, k - 1].astype(float)))
            right = p * truth + (1 - p) * (1 - truth)
            entropy.append((-np.log(right) * ((1 - right) ** 2 if focal else 1)).mean())
            dice.append((2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
        assert float(losses[image]) == pytest.approx(np.mean(entropy) + 1 - np.mean(dice), abs=1e-5)


@pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("value", [0, 1])
def test_losses_and_gradients_are_finite_for_empty_and_full_masks(logit: float, value: int) -> None:
    logits = torch.full((1, 1, 4, 4), logit, requires_grad=True)
    for focal in (False, True):
        task = Segmentation(classes=("nucleus",), focal=focal)
        loss = task.losses(nn.Identity(), Batch(images=logits, masks=torch.full((1, 4, 4), value, dtype=torch.uint8)))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_predictions_are_probability_maps() -> None:
    (prediction,) = ONE.predict(nn.Identity(), torch.full((1, 1, 2, 3), float(np.log(3))))
    np.testing.assert_allclose(prediction, np.full((1, 2, 3), 0.75), rtol=1e-6)
    assert prediction.dtype == np.float32


def test_pooled_and_summed_overlaps_equal_torchmetrics_over_images_that_show_the_class() -> None:
    predictions, truths = drawn(20)
    dice: dict[int, list[float]] = {1: [], 2: []}
    iou: dict[int, list[float]] = {1: [], 2: []}
    for prediction, truth in zip(predictions, truths, strict=True):
        for k in (1, 2):
            p, t = torch.from_numpy(prediction[k - 1].ravel()), torch.from_numpy((truth == k).ravel())
            if p.any() or t.any():
                dice[k].append(float(binary_f1_score(p.int(), t.int())))
                iou[k].append(float(binary_jaccard_index(p.int(), t.int())))
    together = []
    for k in (1, 2):
        p = torch.from_numpy(np.concatenate([prediction[k - 1].ravel() for prediction in predictions]))
        t = torch.from_numpy(np.concatenate([(truth == k).ravel() for truth in truths]))
        together.append(float(binary_f1_score(p.int(), t.int())))
    assert len(dice[1]) == 19 and len(dice[2]) == 16  # the test's own images do lack classes
    for got in (TWO.pooled(predictions, truths), summed(TWO, predictions, truths)):
        assert got["dice"] == pytest.approx(np.mean(dice[1] + dice[2]), abs=1e-6)
        assert got["iou"] == pytest.approx(np.mean(iou[1] + iou[2]), abs=1e-6)
        assert got["dice_pooled"] == pytest.approx(np.mean(together), abs=1e-6)
        for k, name in ((1, "lung"), (2, "lesion")):
            assert got["per_class"][name]["dice"] == pytest.approx(np.mean(dice[k]), abs=1e-6)
            assert got["per_class"][name]["iou"] == pytest.approx(np.mean(iou[k]), abs=1e-6)
            assert got["per_class"][name]["support"] == len(dice[k])


def test_a_false_alarm_on_an_empty_image_counts_as_no_overlap() -> None:
    got = ONE.pooled([np.ones((1, 2, 2), dtype=bool)], [np.zeros((2, 2), dtype=np.uint8)])
    assert (got["dice"], got["iou"], got["per_class"]["nucleus"]["support"]) == (0.0, 0.0, 1)


def test_where_nothing_is_shown_or_predicted_the_numbers_are_absent() -> None:
    for got in (ONE.pooled([], []), ONE.pooled([np.zeros((1, 2, 2), dtype=bool)], [np.zeros((2, 2), dtype=np.uint8)])):
        assert got["dice"] is got["iou"] is got["dice_pooled"] is None
        assert got["per_class"]["nucleus"] == {"dice": None, "iou": None, "support": 0}


def test_an_image_s_sums_have_the_layout_s_names_and_shapes() -> None:
    sums = TWO.image_sums(np.zeros((2, 3, 3), dtype=bool), np.zeros((3, 3), dtype=np.uint8))
    assert {name: value.shape for name, value in sums.items()} == TWO.sums_layout()


def test_present_are_the_classes_in_the_mask() -> None:
    assert TWO.present(np.array([[0, 2]], dtype=np.uint8)) == {1}
    assert TWO.present(np.zeros((2, 2), dtype=np.uint8)) == frozenset()


MASK = np.array([[0, 1, 2]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("task", "mask", "names", "truth"),
    [
        (TWO, None, None, None),
        (TWO, MASK, None, [[0, 1, 2]]),
        (TWO, MASK, ("lesion", "lung"), [[0, 2, 1]]),
        (TWO, MASK, ("lesion", "1"), [[0, 2, 2]]),
        (TWO, MASK, ("lung", "heart"), None),
        (TWO, MASK, ("lung",), None),
        (TWO, MASK * 0, ("heart",), [[0, 0, 0]]),
        (TWO, MASK + 1, None, None),
        (ONE, MASK * 100, None, [[0, 1, 1]]),
        (ONE, MASK, ("nucleus", "nucleus"), [[0, 1, 1]]),
    ],
    ids=["none", "plain", "named", "position", "unknown", "unnamed", "empty", "too many", "any value", "same name"],
)
def test_truth_holds_the_study_s_numbers(task: Segmentation, mask: Any, names: Any, truth: Any) -> None:
    got = task.truth(Annotation(mask=mask, mask_names=names))
    if truth is None:
        assert got is None
    else:
        assert got is not None and got.dtype == np.uint8
        np.testing.assert_array_equal(got, truth)
