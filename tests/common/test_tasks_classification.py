"""Classification: losses by hand, metrics against torchmetrics and against every pair, sums against pooled."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.functional import classification as oracle

from common.annotation import Annotation
from common.tasks import total_sums
from common.tasks.batch import Batch
from common.tasks.classification import Classification

TWO = Classification(classes=("normal", "ill"), focal=False)
FOUR = Classification(classes=("a", "b", "c", "d"), focal=False)


def summed(task: Classification, predictions: NDArray[np.float32], truths: list[int]) -> dict[str, Any]:
    return task.summarise(total_sums(task, predictions, truths))


def drawn(classes: int, *, spread: float, offset: float = 0.0, images: int = 1500) -> Any:
    """Softmax probabilities of a fair model: logits around `offset` in favour of the last class."""
    rng = np.random.default_rng(classes)
    truths = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) * spread + spread * np.eye(classes)[truths]
    logits[:, -1] += offset
    return torch.softmax(torch.from_numpy(logits.astype(np.float32)), dim=1).numpy(), truths.tolist()


def pairs(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """AUC as the share of pairs in the right order, ties half."""
    right = scores[positive][:, None].astype(float) - scores[~positive][None].astype(float)
    return float((np.sign(right) + 1).mean() / 2)


@pytest.mark.parametrize("focal", [False, True])
def test_the_loss_of_each_image_is_its_own_cross_entropy(focal: bool) -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0])
    task = Classification(classes=("a", "b", "c"), focal=focal)
    losses = task.losses(nn.Identity(), Batch(images=logits, labels=labels))
    for image, label, loss in zip(logits.numpy(), labels, losses, strict=True):
        probability = np.exp(image[label]) / np.exp(image).sum()
        expected = -np.log(probability) * ((1 - probability) ** 2 if focal else 1)
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_predictions_are_probabilities() -> None:
    predictions = TWO.predict(nn.Identity(), torch.tensor([[0.0, np.log(3.0)]]))
    np.testing.assert_allclose(predictions, [[0.25, 0.75]], rtol=1e-6)
    assert predictions[0].dtype == np.float32


@pytest.mark.parametrize(
    ("label", "truth"), [("ill", 1), ("0", 0), ("1", 1), ("2", None), ("sick", None), ("-1", None), (None, None)]
)
def test_truth_is_a_class_s_name_or_position(label: str | None, truth: int | None) -> None:
    assert TWO.truth(Annotation(label=label)) == truth


def test_a_name_goes_before_a_position() -> None:
    assert Classification(classes=("1", "0"), focal=False).truth(Annotation(label="1")) == 0


def test_present_is_the_label() -> None:
    assert FOUR.present(2) == {2}


@pytest.mark.parametrize("task", [TWO, FOUR], ids=["two classes", "four classes"])
def test_pooled_metrics_equal_torchmetrics(task: Classification) -> None:
    count = len(task.classes)
    predictions, truths = drawn(count, spread=1.0)
    got = task.pooled(list(predictions), truths)
    score, truth = torch.from_numpy(predictions), torch.tensor(truths)
    if count == 2:
        assert got["auc"] == pytest.approx(float(oracle.binary_auroc(score[:, 1], truth)), abs=1e-6)
        specificity, threshold = oracle.binary_specificity_at_sensitivity(score[:, 1], truth, min_sensitivity=0.95)
        assert got["operating_point"]["class"] == "ill"
        assert got["operating_point"]["specificity"] == pytest.approx(float(specificity), abs=1e-6)
        assert got["operating_point"]["threshold"] == pytest.approx(float(threshold), abs=1e-6)
    else:
        assert got["auc"] == pytest.approx(float(oracle.multiclass_auroc(score, truth, count)), abs=1e-6)
    assert got["accuracy"] == pytest.approx(float(oracle.multiclass_accuracy(score, truth, count, average="micro")))
    recall = oracle.multiclass_recall(score, truth, count, average=None)
    specificity = oracle.multiclass_specificity(score, truth, count, average=None)
    assert got["balanced_accuracy"] == pytest.approx(float(recall.mean()), abs=1e-6)
    for position, name in enumerate(task.classes):
        of_class = got["per_class"][name]
        assert of_class["sensitivity"] == pytest.approx(float(recall[position]), abs=1e-6)
        assert of_class["specificity"] == pytest.approx(float(specificity[position]), abs=1e-6)
        assert of_class["support"] == truths.count(position)
        expected = pairs(predictions[:, position], np.array(truths) == position)
        assert of_class["auc"] == pytest.approx(expected, abs=1e-6)


def test_the_operating_point_is_the_highest_threshold_with_a_sensitivity_of_95_percent() -> None:
    predictions, truths = drawn(2, spread=1.0, images=157)
    point = TWO.pooled(list(predictions), truths)["operating_point"]
    scores, ill = predictions[:, 1], np.array(truths) == 1
    highest = max(t for t in scores if (scores[ill] >= t).sum() / ill.sum() >= 0.95)
    assert point["threshold"] == float(highest)
    assert point["sensitivity"] == pytest.approx((scores[ill] >= highest).mean())
    assert point["specificity"] == pytest.approx((scores[~ill] < highest).mean())


@pytest.mark.parametrize("task", [TWO, FOUR], ids=["two classes", "four classes"])
@pytest.mark.parametrize(
    ("spread", "offset"), [(1.0, 0.0), (0.3, 0.0), (1.0, 6.0), (1.0, -8.0), (6.0, 0.0)],
    ids=["fair", "unsure", "near 1", "near 0", "very sure"],
)  # fmt: skip
def test_summed_metrics_are_within_0005_of_pooled_ones(task: Classification, spread: float, offset: float) -> None:
    predictions, truths = drawn(len(task.classes), spread=spread, offset=offset)
    got, exact = summed(task, predictions, truths), task.pooled(list(predictions), truths)
    assert got["auc"] == pytest.approx(exact["auc"], abs=0.005)
    assert got["accuracy"] == exact["accuracy"]
    assert got["balanced_accuracy"] == exact["balanced_accuracy"]
    points, exact_points = (
        [point] if isinstance(point, dict) else point for point in (got["operating_point"], exact["operating_point"])
    )
    for name, of_class in exact["per_class"].items():
        assert got["per_class"][name]["auc"] == pytest.approx(of_class["auc"], abs=0.005)
    assert [point["class"] for point in points] == [point["class"] for point in exact_points]
    for point, exact_point in zip(points, exact_points, strict=True):
        assert point["sensitivity"] >= 0.95
        assert point["threshold"] <= exact_point["threshold"] + 1e-7
        # The whole bin is taken in; where all scores are alike a bin holds more of them.
        tolerance = 0.02 if spread < 1 else 0.005
        assert -tolerance <= point["specificity"] - exact_point["specificity"] <= 1e-9


def test_a_summed_operating_point_holds_on_the_images_it_came_from() -> None:
    predictions, truths = drawn(2, spread=1.0)
    point = summed(TWO, predictions, truths)["operating_point"]
    scores, ill = predictions[:, 1], np.array(truths) == 1
    assert (scores[ill] >= point["threshold"]).mean() == pytest.approx(point["sensitivity"])
    assert (scores[~ill] < point["threshold"]).mean() == pytest.approx(point["specificity"])


def test_what_one_class_alone_can_not_tell_is_absent() -> None:
    predictions = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    for got in (TWO.pooled(list(predictions), [0, 0]), summed(TWO, predictions, [0, 0])):
        assert got["auc"] is None
        assert got["operating_point"] is None
        assert got["accuracy"] == 0.5
        assert got["balanced_accuracy"] == 0.5  # the mean over the one class that is present
        assert got["per_class"]["ill"] == {"sensitivity": None, "specificity": 0.5, "support": 0, "auc": None}
        assert got["per_class"]["normal"]["specificity"] is None


def test_an_absent_class_is_left_out_of_the_mean_auc() -> None:
    predictions, truths = drawn(4, spread=1.0)
    kept = [i for i, truth in enumerate(truths) if truth != 3]
    predictions, truths = predictions[kept], [truths[i] for i in kept]
    exact = np.mean([pairs(predictions[:, k], np.array(truths) == k) for k in range(3)])
    assert FOUR.pooled(list(predictions), truths)["auc"] == pytest.approx(exact, abs=1e-6)
    assert summed(FOUR, predictions, truths)["auc"] == pytest.approx(exact, abs=0.005)


def test_no_images_give_no_numbers() -> None:
    for got in (TWO.pooled([], []), summed(TWO, np.zeros((0, 2), dtype=np.float32), [])):
        assert got["auc"] is got["accuracy"] is got["balanced_accuracy"] is got["operating_point"] is None


def test_equal_scores_tell_nothing_apart() -> None:
    predictions = np.full((6, 2), 0.5, dtype=np.float32)
    assert summed(TWO, predictions, [0, 1, 0, 1, 1, 1])["auc"] == 0.5


def test_certain_probabilities_of_0_and_1_are_counted() -> None:
    predictions = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert summed(TWO, predictions, [0, 1, 1])["auc"] == 1.0


def test_an_image_s_sums_have_the_layout_s_names_and_shapes() -> None:
    sums = FOUR.image_sums(np.full(4, 0.25, dtype=np.float32), 2)
    assert {name: value.shape for name, value in sums.items()} == FOUR.sums_layout()


def test_sums_stay_small_for_many_classes() -> None:
    task = Classification(classes=tuple(str(k) for k in range(1000)), focal=False)
    assert sum(int(np.prod(shape)) for shape in task.sums_layout().values()) < 150_000
