"""Filled outlines against a slow count of crossings, and slices against distances worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from client import outlines
from client.drops import Drop, Unusable
from client.outlines import filled
from client.planes import nearest, plane, step_between

CORNERS = arrays(
    np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=st.integers(-8, 32).map(lambda v: v / 2)
)


def inside(corners: NDArray[np.float64], column: int, row: int) -> bool:
    """By a ray to the left, edge by edge; an edge has its upper end and not its lower one."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if min(y0, y1) <= row - 0 < max(y0, y1):
            crossings += x0 + (row - y0) * (x1 - x0) / (y1 - y0) <= column
    return crossings % 2 == 1


@given(st.lists(CORNERS, max_size=3))
@settings(max_examples=60, deadline=None)
def test_pixels_inside_an_odd_number_of_outlines_are_filled(shapes: list[NDArray[np.float64]]) -> None:
    expected = np.zeros((9, 12), bool)
    for row in range(9):
        for column in range(12):
            expected[row, column] = sum(inside(corners, column, row) for corners in shapes) % 2 == 1
    assert np.array_equal(filled(shapes, (9, 12)), expected)


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    left, right = ([(0.0, 0.0), (4, 0), (4, 5), (0, 5)], [(4.0, 0.0), (9, 0), (9, 5), (4, 5)])
    both = [filled([np.array(corners)], (5, 9)) for corners in (left, right)]
    assert both[0].sum() == 20 and both[1].sum() == 25 and not (both[0] & both[1]).any()


def test_long_outlines_are_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    circle = np.stack((20 + 15.3 * np.cos(turn), 20 + 15.3 * np.sin(turn)), axis=1)
    whole = filled([circle], (40, 40))
    monkeypatch.setattr(outlines, "_CHUNK", 7)
    assert np.array_equal(filled([circle], (40, 40)), whole) and abs(whole.sum() - np.pi * 15.3**2) < 25


def test_outlines_that_would_take_minutes_are_refused() -> None:
    zigzag = np.stack((np.arange(200_000) % 50, np.arange(200_000) % 2 * 1000), axis=1).astype(float)
    with pytest.raises(Unusable) as caught:
        filled([zigzag], (1000, 50))
    assert caught.value.reason is Drop.TOO_LARGE


def test_the_nearest_slice_within_half_a_step_is_taken() -> None:
    offsets = np.array([0.0, 3.0, 6.0, 12.0])
    assert step_between(offsets) == 3 and step_between(np.array([1.0, 1.01])) == np.inf
    wanted = np.array([-1.6, -1.5, 1.4, 1.6, 7.5, 7.6, 10.4, 10.6, 99])
    assert nearest(offsets, wanted, 3).tolist() == [-1, 0, 0, 1, 2, -1, -1, 3, -1]
    assert nearest(offsets[:1], wanted, 3).tolist() == [-1, 0, 0, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("position", [np.nan, 0, 0]), ("position", [1e9, 0, 0]), ("position", [0, 0]),
        ("orientation", [1, 0, 0, 1, 0, 0]),
        ("orientation", [2, 0, 0, 0, 1, 0]), ("spacing", [0, 1]), ("spacing", [1, -1]), ("spacing", [1, np.inf]),
    ],
)  # fmt: skip
def test_a_plane_is_refused_unless_its_numbers_make_one(place: str, value: list[float]) -> None:
    good = {"position": [0.0, 0, 0], "orientation": [1.0, 0, 0, 0, 1, 0], "spacing": [1.0, 2.0]}
    assert plane(*(np.array(v) for v in good.values()), (3, 4)).pixels(np.array([4.0, 3, 9])).tolist() == [2, 3]
    with pytest.raises(Unusable):
        plane(*(np.array(v) for v in (good | {place: value}).values()), (3, 4))
