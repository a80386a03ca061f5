"""Detection: losses against torchvision's own, metrics against a slow COCO of our own, sums against pooled."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common import study as studies
from common.annotation import Annotation, Box
from common.models import build_model
from common.randomness import seeded
from common.tasks import task_of, total_sums
from common.tasks.batch import Batch, Detections, Objects
from common.tasks.detection import Detection

TASK = Detection(classes=("red", "white", "platelet"), focal=False)
OVERLAPS = [0.5 + 0.05 * k for k in range(10)]


def objects(*boxes: tuple[float, float, float, float], classes: list[int] | None = None) -> Objects:
    return Objects(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=np.array([0] * len(boxes) if classes is None else classes, dtype=np.int64),
    )


def detections(*boxes: tuple[float, float, float, float], scores: list[float]) -> Detections:
    plain = objects(*boxes)
    return Detections(boxes=plain.boxes, classes=plain.classes, scores=np.array(scores, dtype=np.float32))


def drawn(*, images: int, offset: float = 0.0, spread: float = 1.5, most: int = 12) -> Any:
    """Crowded images of 100 pixels: found objects a little off, missed, doubled, false alarms with lower scores."""
    rng = np.random.default_rng(7)
    predictions, truths = [], []
    for _ in range(images):
        number = int(rng.integers(0, most))
        corner = rng.uniform(0, 80, (number, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (number, 2))], axis=1)
        classes = rng.integers(0, 2, number)  # no platelets at all
        seen = rng.random(number) < 0.8
        near = np.concatenate([boxes[seen], boxes[seen][: number // 4]])
        near = near + rng.normal(size=near.shape) * rng.uniform(0.1, 1.5, (len(near), 1))
        false_corner = rng.uniform(0, 80, (int(rng.integers(0, 8)), 2))
        false = np.concatenate([false_corner, false_corner + rng.uniform(5, 20, false_corner.shape)], axis=1)
        logits = np.concatenate([rng.normal(1, 1, len(near)), rng.normal(-1, 1, len(false))]) * spread + offset
        order = np.argsort(-logits, kind="stable")
        labels = np.concatenate([classes[seen], classes[seen][: number // 4], rng.integers(0, 3, len(false))])
        predictions.append(
            Detections(
                boxes=np.concatenate([near, false])[order].astype(np.float32),
                classes=labels[order].astype(np.int64),
                scores=(1 / (1 + np.exp(-logits[order]))).astype(np.float32),
            )
        )
        truths.append(Objects(boxes=boxes.astype(np.float32), classes=classes.astype(np.int64)))
    return predictions, truths


def iou(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return float(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common))


def naive_average_precision(predictions: Any, truths: Any, position: int, overlap: float) -> float | None:
    """COCO's definition, step by step."""
    hits: list[tuple[float, bool]] = []
    number = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        real = [box.astype(float) for box, k in zip(truth.boxes, truth.classes, strict=True) if k == position]
        number += len(real)
        free = list(range(len(real)))
        own = [
            (float(score), box.astype(float))
            for box, k, score in zip(prediction.boxes, prediction.classes, prediction.scores, strict=True)
            if k == position
        ]
        for score, box in sorted(own, key=lambda one: -one[0])[:100]:
            best = max(free, key=lambda j: iou(box, real[j]), default=None)
            hit = best is not None and iou(box, real[best]) >= overlap
            if hit and best is not None:
                free.remove(best)
            hits.append((score, hit))
    if not number:
        return None
    hits.sort(key=lambda one: -one[0])
    points, true = [], 0
    for rank, (_, hit) in enumerate(hits, start=1):
        true += hit
        points.append((true / number, true / rank))
    return float(
        np.mean([max((p for r, p in points if r >= level - 1e-12), default=0.0) for level in np.linspace(0, 1, 101)])
    )


def summed(predictions: Any, truths: Any, task: Detection = TASK) -> dict[str, Any]:
    return task.summarise(total_sums(task, predictions, truths))


def test_pooled_metrics_equal_coco_step_by_step() -> None:
    predictions, truths = drawn(images=25)
    got = TASK.pooled(predictions, truths)
    table = np.array([[naive_average_precision(predictions, truths, k, t) for t in OVERLAPS] for k in (0, 1)])
    assert got["map50"] == pytest.approx(table[:, 0].mean(), abs=1e-6)
    assert got["map"] == pytest.approx(table.mean(), abs=1e-6)
    for k, name in enumerate(("red", "white")):
        support = sum(int((truth.classes == k).sum()) for truth in truths)
        assert got["per_class"][name]["ap50"] == pytest.approx(table[k, 0], abs=1e-6)
        assert got["per_class"][name]["ap"] == pytest.approx(table[k].mean(), abs=1e-6)
        assert got["per_class"][name]["support"] == support


@pytest.mark.parametrize(
    ("offset", "spread"), [(0.0, 1.5), (-6.0, 1.0), (7.0, 1.0), (0.0, 0.3), (0.0, 4.0)],
    ids=["fair", "near 0", "near 1", "unsure", "very sure"],
)  # fmt: skip
@pytest.mark.parametrize("images", [40, 300])
def test_summed_metrics_are_within_0005_of_pooled_ones(images: int, offset: float, spread: float) -> None:
    predictions, truths = drawn(images=images, offset=offset, spread=spread)
    got, exact = summed(predictions, truths), TASK.pooled(predictions, truths)
    assert 0.2 < exact["map"] < exact["map50"] < 0.9  # neither end would show a difference
    assert got["map50"] == pytest.approx(exact["map50"], abs=0.005)
    assert got["map"] == pytest.approx(exact["map"], abs=0.005)
    for name, of_class in exact["per_class"].items():
        assert got["per_class"][name]["support"] == of_class["support"]
        if of_class["support"]:
            assert got["per_class"][name]["ap50"] == pytest.approx(of_class["ap50"], abs=0.005)
            assert got["per_class"][name]["ap"] == pytest.approx(of_class["ap"], abs=0.005)


def test_a_class_without_objects_is_absent_and_left_out_of_the_means() -> None:
    predictions, truths = drawn(images=20)
    for got in (TASK.pooled(predictions, truths), summed(predictions, truths)):
        assert got["per_class"]["platelet"] == {"ap50": None, "ap": None, "support": 0}
        assert got["map50"] == pytest.approx(np.mean([got["per_class"][name]["ap50"] for name in ("red", "white")]))


def test_without_objects_there_are_no_numbers_and_without_proposals_they_are_0() -> None:
    false_alarm, nothing = detections((0, 0, 9, 9), scores=[0.9]), detections(scores=[])
    for got in (TASK.pooled([false_alarm], [objects()]), summed([false_alarm], [objects()]), TASK.pooled([], [])):
        assert got["map50"] is got["map"] is got["per_class"]["red"]["ap50"] is None
    for got in (TASK.pooled([nothing], [objects((0, 0, 9, 9))]), summed([nothing], [objects((0, 0, 9, 9))])):
        assert got["map50"] == got["map"] == 0.0


def test_perfect_proposals_have_a_precision_of_1() -> None:
    _, truths = drawn(images=10)
    perfect = [
        Detections(boxes=t.boxes, classes=t.classes, scores=np.full(len(t.boxes), 0.9, np.float32)) for t in truths
    ]
    for got in (TASK.pooled(perfect, truths), summed(perfect, truths)):
        assert got["map"] == pytest.approx(1.0)


def test_the_second_proposal_for_an_object_is_false() -> None:
    box = (10.0, 10.0, 30.0, 30.0)
    # Ranks: true, false (double), true: precision 1 up to recall 1/2, then 2/3. COCO has 51 levels up to 1/2.
    proposed = [detections(box, box, (50, 50, 70, 70), scores=[0.9, 0.8, 0.7])]
    real = [objects(box, (50, 50, 70, 70))]
    expected = (51 + 50 * 2 / 3) / 101
    assert TASK.pooled(proposed, real)["map50"] == pytest.approx(expected, abs=1e-6)
    assert summed(proposed, real)["map50"] == pytest.approx(expected, abs=1e-6)


def test_of_equally_overlapped_objects_the_last_is_taken_as_coco_does() -> None:
    # The first proposal overlaps both objects by 9/11; the second only the first object by more than 0.6.
    real = [objects((0, 0, 10, 10), (2, 0, 12, 10))]
    proposed = [detections((1, 0, 11, 10), (0, 0, 9, 10), scores=[0.9, 0.8])]
    exact = TASK.pooled(proposed, real)
    assert exact["map"] > 0.6
    assert summed(proposed, real)["map"] == pytest.approx(exact["map"], abs=1e-6)


def test_only_100_proposals_of_a_class_in_an_image_count() -> None:
    far = [(float(k), 0.0, k + 5.0, 5.0) for k in range(100)]
    proposed = [detections(*far, (10, 50, 30, 70), scores=[0.9] * 100 + [0.5])]
    for got in (TASK.pooled(proposed, [objects((10, 50, 30, 70))]), summed(proposed, [objects((10, 50, 30, 70))])):
        assert got["map50"] == 0.0


def test_pooled_metrics_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    TASK.pooled(*drawn(images=3))
    assert capsys.readouterr().out == ""


def test_an_image_s_sums_have_the_layout_s_names_and_shapes() -> None:
    predictions, truths = drawn(images=1)
    sums = TASK.image_sums(predictions[0], truths[0])
    assert {name: value.shape for name, value in sums.items()} == TASK.sums_layout()


@pytest.mark.parametrize(
    ("names", "classes"), [(("white", "red"), [1, 0]), (("2",), [2]), ((), []), (("white", "blue"), None)]
)
def test_truth_holds_the_study_s_classes(names: tuple[str, ...], classes: list[int] | None) -> None:
    boxes = tuple(Box(x1=1, y1=2, x2=3, y2=5, name=name) for name in names)
    truth = TASK.truth(Annotation(boxes=boxes))
    if classes is None:
        assert truth is None
    else:
        assert truth is not None
        assert truth.classes.tolist() == classes and truth.classes.dtype == np.int64
        assert truth.boxes.tolist() == [[1, 2, 3, 5]] * len(classes) and truth.boxes.dtype == np.float32


def test_an_image_without_boxes_is_not_one_that_is_not_annotated() -> None:
    assert TASK.truth(Annotation()) is None
    empty = TASK.truth(Annotation(boxes=()))
    assert empty is not None and empty.boxes.shape == (0, 4)


def test_present_are_the_classes_of_the_objects() -> None:
    assert TASK.present(objects((0, 0, 1, 1), (0, 0, 2, 2), classes=[2, 2])) == {2}


def model_and_batch(name: str, **training: Any) -> tuple[Any, nn.Module, Batch]:
    study = studies.parse(
        {
            "study": {"schema": 1, "name": "t", "task": "detection", "classes": ["a", "b"], "rounds": 1},
            "model": {"name": name, "image_size": [64, 96], "channels": 3},
            "training": {"local_steps": 1, **training},
        },
        where="test",
    )
    with seeded(1, "test"):
        model = build_model(study).train()
        images = torch.randn(3, 3, 64, 96)
    truths = (objects((5, 5, 25, 30), (40, 10, 90, 60), classes=[1, 0]), objects(), objects((50, 2, 60, 20)))
    return task_of(study), model, Batch(images=images, objects=truths)


def torchvision_losses(model: nn.Module, batch: Batch, *, first: int) -> list[dict[str, Tensor]]:
    """What torchvision computes for each image by itself; for Faster R-CNN with the sample that the image gets here."""
    assert batch.objects is not None
    seed = int(torch.randint(2**62, ()))
    answers = []
    for position, (image, truth) in enumerate(zip(batch.images, batch.objects, strict=True)):
        target = {"boxes": torch.from_numpy(truth.boxes), "labels": torch.from_numpy(truth.classes) + first}
        with seeded(seed, "proposal sample", round=position):
            answers.append(model([image], [target]))
    return answers


@pytest.mark.parametrize(("name", "first", "terms"), [("retinanet", 0, 2), ("fasterrcnn", 1, 4)])
def test_each_image_s_loss_equals_torchvision_s_of_that_image_alone(name: str, first: int, terms: int) -> None:
    task, model, batch = model_and_batch(name)
    with seeded(0, "draw"):
        losses = task.losses(model, batch)
    with seeded(0, "draw"):
        expected = torchvision_losses(model, batch, first=first)
    assert all(len(answer) == terms for answer in expected)
    torch.testing.assert_close(
        losses, torch.stack([torch.stack([*answer.values()]).sum() for answer in expected]), rtol=1e-5, atol=1e-6
    )


def test_focal_loss_weighs_what_faster_rcnn_gets_right_less() -> None:
    plain, model, batch = model_and_batch("fasterrcnn")
    focal, _, _ = model_and_batch("fasterrcnn", class_balance="focal")
    with seeded(0, "draw"):
        loss = plain.losses(model, batch)
    with seeded(0, "draw"):
        assert (focal.losses(model, batch) < loss).all()


@pytest.mark.parametrize("name", ["retinanet", "fasterrcnn"])
def test_predictions_are_at_most_100_boxes_within_the_image_best_first(name: str) -> None:
    task, model, batch = model_and_batch(name)
    if name == "retinanet":  # a new one proposes nothing: its prior is 0.01
        nn.init.zeros_(model.get_parameter("head.classification_head.cls_logits.bias"))
    for one in task.predict(model.eval(), batch.images):
        assert 0 < len(one.boxes) == len(one.classes) == len(one.scores) <= 100
        assert (np.diff(one.scores) <= 0).all() and 0 <= one.scores.min() <= one.scores.max() <= 1
        assert set(one.classes.tolist()) <= {0, 1}
        assert (one.boxes >= 0).all() and (one.boxes[:, [0, 2]] <= 96).all() and (one.boxes[:, [1, 3]] <= 64).all()


def test_a_retinanet_learns_to_find_a_rectangle() -> None:
    """Guards orientation and scale of everything between boxes in and boxes out, not quality."""
    task, model, _ = model_and_batch("retinanet")
    truth = objects((16, 8, 56, 40), classes=[1])
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 8:40, 16:56] = 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.losses(model, Batch(images=image, objects=(truth,))).sum().backward()
        optimizer.step()
    (found,) = task.predict(model.eval(), image)
    assert found.classes[0] == 1
    np.testing.assert_allclose(found.boxes[0], truth.boxes[0], atol=4)


MASK = np.zeros((6, 8), np.uint8)
MASK[0:2, 1:3] = 1  # touches the next at a corner
MASK[2, 3] = 1
MASK[4:6, 0:2] = 2
MASK[4:6, 2:5] = 3  # beside it
MASK[0, 7] = 3


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (("cell",), None, {(1, 0, 4, 3, 0), (0, 4, 2, 6, 0), (2, 4, 5, 6, 0), (7, 0, 8, 1, 0)}),
        (("a", "b", "c"), None, {(1, 0, 4, 3, 0), (0, 4, 2, 6, 1), (2, 4, 5, 6, 2), (7, 0, 8, 1, 2)}),
        (("c", "a"), ("a", "c", "c"), {(1, 0, 4, 3, 1), (0, 4, 5, 6, 0), (7, 0, 8, 1, 0)}),
        (("cell",), ("cell", "cell", "cell"), {(1, 0, 4, 3, 0), (0, 4, 5, 6, 0), (7, 0, 8, 1, 0)}),
    ],
    ids=["numbered objects", "numbered classes", "named classes", "one named class"],
)
def test_a_mask_is_boxes_around_its_connected_parts(classes: Any, names: Any, expected: set[Any]) -> None:
    found = Detection(classes=classes, focal=False).truth(Annotation(mask=MASK, mask_names=names))
    assert found is not None
    assert {(*box, kind) for box, kind in zip(found.boxes.tolist(), found.classes, strict=True)} == expected


def test_boxes_come_before_masks_and_an_empty_mask_has_none() -> None:
    task = Detection(classes=("cell",), focal=False)
    box = Box(x1=1, y1=1, x2=2, y2=2, name="cell")
    both, empty = task.truth(Annotation(mask=MASK, boxes=(box,))), task.truth(Annotation(mask=MASK * 0))
    assert both is not None and both.boxes.tolist() == [[1, 1, 2, 2]]
    assert empty is not None and empty.boxes.shape == (0, 4) and empty.classes.shape == (0,)
    assert TASK.truth(Annotation(mask=MASK + 1, mask_names=("red",))) is None
    assert task.truth(Annotation(label="cell")) is None
