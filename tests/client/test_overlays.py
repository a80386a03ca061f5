"""Pictures of predictions: what is drawn lies where it was found, in the patient's proportions, and says what it is."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from client.dicom_objects import View
from client.ensemble import Outcome
from client.overlays import DISCLAIMER, OUTLINES, overlay
from common.tasks.batch import Detections

GREY = np.full((40, 80), 0.5, np.float32)


def drawn(prediction: Any, *, view: View | None = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    outcome = Outcome(prediction=prediction, disagreement=None)
    data = overlay(GREY, outcome, classes=("lesion", "other"), min_score=0.3, notes={"model": "m"}, view=view or View())
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")), dict(image.text)  # type: ignore[attr-defined]


def coloured(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    values = pixels.astype(int)
    return np.asarray(np.ptp(values, axis=2) > 60)


@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.5])
def test_masks_and_boxes_lie_where_they_were_found_in_the_patients_proportions(aspect: float) -> None:
    mask = np.zeros((2, 40, 80), np.bool_)
    mask[0, 10:20, 60:70] = True
    boxes = Detections(
        boxes=np.array([[60, 10, 70, 20]], np.float32), classes=np.array([0]), scores=np.array([0.9], np.float32)
    )
    wide, high = (320, round(160 * aspect)) if aspect <= 2 else (0, 0)
    for prediction in (mask, boxes):
        picture, _ = drawn(prediction, view=View(aspect=aspect))
        plain, marked = picture[:high, :wide], picture[:high, wide + 4 : 2 * wide + 4]
        assert not coloured(plain).any() and (plain[high // 2, wide // 2] == 128).all()
        rows, columns = np.nonzero(coloured(marked))
        inside = (columns >= 240) & (columns < 280) & (rows >= high // 4) & (rows < high // 2)
        assert (rows[inside].min(), rows[inside].max()) == (high // 4, high // 2 - 1)
        assert (columns[inside].min(), columns[inside].max()) == (240, 279)
        if prediction is mask:
            assert inside.all()


def test_texts_of_boxes_side_by_side_hide_none_of_each_other() -> None:
    """Three boxes of the second class, a pixel apart: as many letters are to be seen as of three far apart."""

    def texts(corners: list[tuple[float, float]]) -> int:
        boxes = np.array([[x, y, x + 4, y + 4] for x, y in corners], np.float32)
        found = Detections(boxes=boxes, classes=np.ones(3, np.int64), scores=np.full(3, 0.5, np.float32))
        picture, _ = drawn(found)
        marked, lit = picture[:160, 324:644], np.zeros((160, 320), np.bool_)
        for x, y in corners:  # the boxes themselves aside
            lit[round(4 * y) : round(4 * y) + 16, round(4 * x) : round(4 * x) + 16] = True
        return int((coloured(marked) & ~lit).sum())

    apart, close = texts([(2, 10), (30, 10), (50, 10)]), texts([(30, 20), (30.25, 20.25), (30.5, 20.5)])
    assert apart > 100 and close > 0.9 * apart
    edge, _ = drawn(
        Detections(
            boxes=np.array([[78, 20, 80, 22]], np.float32), classes=np.zeros(1, np.int64), scores=np.ones(1, np.float32)
        )
    )
    assert coloured(edge[:78, 560:644]).sum() > 50  # at the right edge the text moves inwards


def test_the_edges_carry_the_patients_directions_where_they_are_known() -> None:
    nothing = np.zeros((2, 40, 80), np.bool_)
    plain, _ = drawn(nothing)
    for name in ("left", "right", "top", "bottom"):
        letter: dict[str, Any] = {name: "L"}
        lettered, _ = drawn(nothing, view=View(**letter))
        rows, columns = np.nonzero((lettered != plain).any(axis=2)[:160, :320])
        place = {"left": columns.max() < 30, "right": columns.min() > 290, "top": rows.max() < 30}
        assert place.get(name, len(rows) > 0 and rows.min() > 130), name


def test_votes_are_shown_as_votes_and_a_tie_as_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, words, **k: (said.append(words), text(self, xy, words, **k))
    )
    for votes in (np.array([1, 1]), np.array([0, 2])):
        outcome = Outcome(prediction=np.array([0.75, 0.25], np.float32), disagreement=0.5, votes=votes, models=2)
        overlay(GREY, outcome, classes=("lesion", "other"), min_score=0.3, notes={}, view=View())
    first, second = said[: len(said) // 2 + 1], said[len(said) // 2 + 1 :]
    assert "undecided: no class is ahead of all others" in first
    assert second[-5] == "votes for other: 2 of 2; mean score: 0.25" and not any("undecided" in one for one in second)


def test_every_picture_says_what_it_is() -> None:
    _, text = drawn(np.array([0.25, 0.75], np.float32))
    assert text["Disclaimer"] == DISCLAIMER and text["model"] == "m"
    assert "not for diagnosis" in DISCLAIMER and "not a reader's" in OUTLINES
