"""Augmentation: boxes and masks go where the pixels go, and the generator alone decides."""

import numpy as np
import pytest
import torch

from client.augment import BRIGHTNESS, CONTRAST, SCALE, SHIFT, augment
from common.tasks.batch import Batch, Objects

HEIGHT, WIDTH = 96, 128
BOXES = ((20.0, 30.0, 60.0, 44.0), (70.0, 10.0, 90.0, 80.0))


def rectangles(count: int) -> Batch:
    """Black images, each with one bright rectangle, its mask (class 3) and its box."""
    images = torch.zeros(count, 1, HEIGHT, WIDTH)
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.uint8)
    objects = []
    for i in range(count):
        x1, y1, x2, y2 = (int(value) for value in BOXES[i % 2])
        images[i, :, y1:y2, x1:x2] = 1000.0  # so bright that contrast and brightness don't matter
        masks[i, y1:y2, x1:x2] = 3
        objects.append(Objects(boxes=np.array([BOXES[i % 2]], dtype=np.float32), classes=np.array([1])))
    return Batch(images=images, labels=torch.arange(count), masks=masks, objects=tuple(objects))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def extent(shown: torch.Tensor) -> list[float]:
    """Corners of what is True in [H, W]."""
    rows, columns = torch.nonzero(shown.any(1))[:, 0], torch.nonzero(shown.any(0))[:, 0]
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


def test_boxes_and_masks_move_with_the_pixels() -> None:
    before = rectangles(40)
    after = augment(before, rng=rng())
    assert after.masks is not None and after.objects is not None
    moved = 0
    for i in range(40):
        seen = extent(after.images[i, 0] > 500)
        np.testing.assert_allclose(after.objects[i].boxes[0], seen, atol=1)
        np.testing.assert_allclose(extent(after.masks[i] == 3), seen, atol=1)
        assert after.objects[i].classes.tolist() == [1]
        moved += not np.allclose(after.objects[i].boxes[0], BOXES[i % 2], atol=3)
    assert moved > 20


def test_masks_turn_with_the_pixels_where_there_are_no_boxes() -> None:
    whole = rectangles(20)
    after = augment(Batch(images=whole.images, masks=whole.masks), rng=rng())
    assert after.masks is not None and after.objects is None
    turned = 0
    for i in range(20):
        shown, mask = after.images[i, 0] > 500, after.masks[i] == 3
        assert (shown != mask).sum() <= 0.03 * mask.sum()
        x1, y1, x2, y2 = extent(mask)
        turned += bool(mask.sum() < 0.95 * (x2 - x1) * (y2 - y1))
    assert turned > 10


def test_masks_keep_their_values() -> None:
    whole = rectangles(10)
    after = augment(Batch(images=whole.images, masks=whole.masks), rng=rng())
    assert after.masks is not None and after.masks.dtype == torch.uint8
    assert set(np.unique(after.masks.numpy()).tolist()) == {0, 3}


def test_boxes_stay_upright_and_tight_because_images_with_boxes_are_not_turned() -> None:
    after = augment(rectangles(20), rng=rng())
    for i in range(20):
        shown = after.images[i, 0] > 500
        x1, y1, x2, y2 = extent(shown)
        assert shown.sum() >= 0.99 * (x2 - x1) * (y2 - y1)


def test_half_of_the_images_are_mirrored_and_changes_stay_within_their_limits() -> None:
    count = 400
    half = torch.linspace(-100, 100, WIDTH).expand(count, 1, HEIGHT, WIDTH)
    truth = Objects(boxes=np.array([[54, 38, 74, 58]], dtype=np.float32), classes=np.array([0]))
    after = augment(Batch(images=half, objects=(truth,) * count), rng=rng())
    assert after.objects is not None
    mirrored = (after.images[:, 0, 0, 0] > after.images[:, 0, 0, -1]).float().mean()
    assert 0.4 < mirrored < 0.6
    boxes = np.concatenate([one.boxes for one in after.objects])
    middle = np.stack([boxes[:, [0, 2]].mean(1) - WIDTH / 2, boxes[:, [1, 3]].mean(1) - HEIGHT / 2])
    assert 0.055 < np.abs(middle[0]).max() / WIDTH <= SHIFT + 1e-6
    assert 0.055 < np.abs(middle[1]).max() / HEIGHT <= SHIFT + 1e-6
    scale = (boxes[:, 2] - boxes[:, 0]) / 20
    assert 1 - SCALE - 1e-5 <= scale.min() < 0.92 and 1.08 < scale.max() <= 1 + SCALE + 1e-5
    np.testing.assert_allclose((boxes[:, 3] - boxes[:, 1]) / 20, scale, rtol=1e-4)


def test_contrast_and_brightness_stay_within_their_limits() -> None:
    for value in (0.0, 1.0):
        after = augment(Batch(images=torch.full((300, 1, 8, 8), value)), rng=rng()).images[:, 0, 4, 4]
        reach = CONTRAST * value + BRIGHTNESS
        assert 0.8 * reach < (after - value).abs().max() <= reach + 1e-6


def test_a_box_is_clipped_and_stays_while_its_centre_does() -> None:
    at_the_edge = np.array([[0, 40, 12, 60], [0, 0, WIDTH, HEIGHT]], dtype=np.float32)
    count = 200
    batch = Batch(
        images=torch.zeros(count, 1, HEIGHT, WIDTH),
        objects=(Objects(boxes=at_the_edge, classes=np.array([0, 1])),) * count,
    )
    after = augment(batch, rng=rng())
    assert after.objects is not None
    kept = [set(one.classes.tolist()) for one in after.objects]
    assert all(1 in one for one in kept)
    assert 0 < sum(0 not in one for one in kept) < count / 2
    for one in after.objects:
        assert (one.boxes >= 0).all() and (one.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
        small = one.boxes[one.classes == 0]
        assert ((small[:, 2] - small[:, 0]) >= 0.9 * 6 - 1e-3).all()  # at least half of its width
        assert len(one.boxes) == len(one.classes) and one.boxes.dtype == np.float32


def test_an_image_without_objects_stays_one() -> None:
    empty = Objects(boxes=np.zeros((0, 4), dtype=np.float32), classes=np.zeros(0, dtype=np.int64))
    after = augment(Batch(images=torch.zeros(1, 3, 32, 32), objects=(empty,)), rng=rng())
    assert after.objects is not None and after.objects[0].boxes.shape == (0, 4)


def equal(first: Batch, second: Batch) -> bool:
    assert first.masks is not None and second.masks is not None
    assert first.objects is not None and second.objects is not None
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.masks, second.masks)
        and all(np.array_equal(a.boxes, b.boxes) for a, b in zip(first.objects, second.objects, strict=True))
    )


def test_equal_generators_give_equal_bits_and_others_do_not() -> None:
    batch = rectangles(6)
    assert equal(augment(batch, rng=rng(1)), augment(batch, rng=rng(1)))
    assert not equal(augment(batch, rng=rng(1)), augment(batch, rng=rng(2)))


@pytest.mark.parametrize("annotated", [True, False], ids=["with boxes", "with masks only"])
def test_an_image_alone_changes_as_it_does_in_a_batch(annotated: bool) -> None:
    batch = rectangles(5)
    assert batch.masks is not None and batch.objects is not None
    objects = batch.objects if annotated else None
    whole = augment(Batch(images=batch.images, masks=batch.masks, objects=objects), rng=rng())
    alone = augment(
        Batch(images=batch.images[:1], masks=batch.masks[:1], objects=objects[:1] if objects else None), rng=rng()
    )
    assert whole.masks is not None and alone.masks is not None
    assert torch.equal(whole.images[:1], alone.images)
    assert torch.equal(whole.masks[:1], alone.masks)


def test_what_is_in_an_image_moves_no_other() -> None:
    batch, other = rectangles(3), rectangles(3)
    assert other.objects is not None
    other.images[1] = 7.0
    changed = Batch(
        images=other.images, masks=other.masks, objects=(other.objects[0], other.objects[0], other.objects[2])
    )
    first, second = augment(batch, rng=rng()), augment(changed, rng=rng())
    for i in (0, 2):
        assert torch.equal(first.images[i], second.images[i])


def test_the_given_batch_is_left_as_it_was() -> None:
    batch, same = rectangles(4), rectangles(4)
    augment(batch, rng=rng())
    assert equal(batch, same)


def test_labels_pass_through_and_shapes_stay() -> None:
    batch = rectangles(4)
    after = augment(batch, rng=rng())
    assert after.labels is batch.labels
    assert after.images.shape == batch.images.shape and after.images.dtype == torch.float32
