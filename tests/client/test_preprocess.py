"""Geometry against arithmetic by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preprocess import Geometry, normalise, to_model, to_unit
from common.parts import Preprocessing
from common.study import Study, parse


def study(size: tuple[int, int], channels: int = 1, aspect: str = "pad") -> Study:
    return parse(
        {
            "study": {"schema": 1, "name": "s", "task": "classification", "classes": ("a", "b"), "rounds": 1},
            "model": {"name": "cnn", "image_size": size, "channels": channels},
            "preprocessing": {"aspect": aspect},
            "training": {"local_epochs": 1},
        },
        where="test",
    )


def test_padding_is_black_equal_and_keeps_proportions() -> None:
    found = to_model(np.ones((10, 20), np.float32), study((16, 16)))
    assert found.shape == (1, 16, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found[0].mean(axis=1), [0] * 4 + [1] * 8 + [0] * 4, atol=1e-6)


def test_stretching_fills_the_model_grid() -> None:
    assert to_model(np.ones((10, 20), np.float32), study((16, 16), aspect="stretch")).min() > 0.999


def test_an_image_of_the_models_size_is_unchanged() -> None:
    image = np.random.default_rng(0).random((16, 16), np.float32)
    np.testing.assert_array_equal(to_model(image, study((16, 16)))[0], image)


def test_shrinking_averages_what_a_pixel_covers() -> None:
    dots = np.zeros((64, 64), np.float32)
    dots[::4, ::4] = 1  # one pixel of 16, in the corner that sampling alone would never see
    found = to_model(dots, study((16, 16)))[0]
    assert found[2:-2, 2:-2].min() > 0.03 and found.mean() == pytest.approx(1 / 16, rel=0.1)


def test_grey_is_repeated_and_colour_becomes_luminance() -> None:
    grey = np.random.default_rng(0).random((8, 8), np.float32)
    colour = to_model(grey, study((8, 8), channels=3))
    assert colour.shape == (3, 8, 8) and (colour == grey).all()
    red = np.zeros((8, 8, 3), np.float32)
    red[..., 0] = 1
    np.testing.assert_allclose(to_model(red, study((8, 8))), 0.299, atol=1e-6)  # ITU-R BT.601
    assert to_model(red, study((8, 8), channels=3))[:, 0, 0].tolist() == [1, 0, 0]


def test_boxes_move_with_the_image() -> None:
    geometry = Geometry(stored=(100, 200), model=(50, 50), aspect="pad")  # scale 1/4, 12 rows above
    np.testing.assert_allclose(geometry.boxes_to_model(np.array([[0, 0, 200, 100], [40, 20, 80, 60]])), [
        [0, 12, 50, 37], [10, 17, 20, 27]
    ])  # fmt: skip
    assert geometry.boxes_to_model(np.zeros((0, 4))).shape == (0, 4)


def test_boxes_on_padding_have_no_area_on_the_stored_image() -> None:
    geometry = Geometry(stored=(100, 200), model=(50, 50), aspect="pad")
    x1, y1, x2, y2 = geometry.boxes_to_stored(np.array([[5, 1, 20, 9]]))[0]
    assert y1 == y2 == 0 and (x1, x2) == (20, 80)


sides = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["pad", "stretch"]), st.integers(0, 2**32 - 1))
def test_boxes_come_back_as_they_went(h: int, w: int, mh: int, mw: int, aspect: str, seed: int) -> None:
    geometry = Geometry(stored=(h, w), model=(mh, mw), aspect=aspect)  # type: ignore[arg-type]
    boxes = np.sort(np.random.default_rng(seed).random((5, 2, 2)), axis=1).reshape(5, 4) * [w, h, w, h]
    moved = geometry.boxes_to_model(boxes)
    assert moved.min() >= 0 and (moved <= np.array([mw, mh, mw, mh]) + 1e-3).all()
    np.testing.assert_allclose(geometry.boxes_to_stored(moved), boxes, atol=60 * 1e-4)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["pad", "stretch"]))
def test_a_whole_mask_covers_the_image_and_no_padding(h: int, w: int, mh: int, mw: int, aspect: str) -> None:
    geometry = Geometry(stored=(h, w), model=(mh, mw), aspect=aspect)  # type: ignore[arg-type]
    mask = geometry.mask_to_model(np.full((h, w), 7, np.uint8))
    image = geometry.image_to_model(np.ones((1, h, w), np.float32))[0]
    assert mask.shape == image.shape == (mh, mw) and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask == 7, image > 0.5)
    assert set(np.unique(mask)) <= {0, 7}
    assert geometry.maps_to_stored(np.ones((2, mh, mw), np.float32)).shape == (2, h, w)


def test_mask_pixels_are_those_under_the_models_pixel_centres() -> None:
    mask = np.arange(36, dtype=np.uint8).reshape(6, 6)
    found = Geometry(stored=(6, 6), model=(2, 2), aspect="pad").mask_to_model(mask)
    assert found.tolist() == [[7, 10], [25, 28]]


def test_maps_return_to_the_stored_grid_without_padding() -> None:
    geometry = Geometry(stored=(20, 40), model=(20, 20), aspect="pad")  # content rows 5 to 15
    maps = np.zeros((1, 20, 20), np.float32)
    maps[0, 5:15, 10:] = 1
    maps[0, :5] = maps[0, 15:] = 1  # nonsense on padding
    found = geometry.maps_to_stored(maps)[0]
    assert found.shape == (20, 40) and (found[:, :18] < 0.5).all() and (found[:, 22:] > 0.5).all()


def test_to_unit_stretches_cuts_and_survives_a_constant_image() -> None:
    values = np.array([-5, 0, 5, 10, 20])
    assert to_unit(values, "dicom", limits=(0, 10)).tolist() == [0, 0, 0.5, 1, 1]
    assert to_unit(values, (5.0, 10.0)).tolist() == [0, 0, 0.5, 1, 1]
    assert to_unit(values, "dicom").tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 1])
    assert to_unit(np.full((2, 2), 9), "dicom").tolist() == [[0, 0], [0, 0]]


def test_normalise_is_the_same_for_arrays_and_tensors() -> None:
    how = Preprocessing(mean=0.25, std=0.5)
    array = np.array([0.25, 0.75], np.float32)
    assert normalise(array, how).tolist() == normalise(torch.from_numpy(array), how).tolist() == [0, 1]
    assert normalise(array, how).dtype == np.float32
