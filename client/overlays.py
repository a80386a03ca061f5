"""Pictures for a person to look at: an image with what was found drawn on it, and masks; Pillow writes here.

Each picture says on its face that it is research, and in its text chunks which models made it from which study, when.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from client.dicom_objects.views import View
from client.ensemble import Outcome
from common.tasks.batch import Detections

DISCLAIMER = "Research only. Not a medical device, not for diagnosis."
SCORES = "Scores of a model, 0 to 1: not the probability of a disease."
OUTLINES = "Outlines of a model, not a reader's; pixels of the stored image."
_GAP = 4  # pixels between the image and itself with what was found
_LEAST, _MOST = 320, 1024  # pixels of the drawn image's longer side
_LINE = 16  # pixels of a line of text
_LABEL = 13  # of a line beside a box
# Told apart with red-green blindness. Source: Okabe, Ito 2008, without black, yellow first for dark images.
_COLOURS = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))

_Place = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture


def overlay(
    pixels: NDArray[np.float32],
    outcome: Outcome,
    *,
    classes: Sequence[str],
    min_score: float,
    notes: Mapping[str, str],
    view: View,
) -> bytes:
    """PNG of a stored image, [H, W] or [H, W, 3] in [0, 1], with its masks, boxes or classes. `notes` are its text.

    With masks or boxes the image stands twice, as it is and with them: they hide what they lie on. Proportions are
    those in the patient, and the letters at the edges its directions, where `view` knows them.
    """
    height, width = pixels.shape[:2]
    scale = min(max(1.0, _LEAST / max(height * view.aspect, width)), _MOST / max(height * view.aspect, width))
    size = max(1, round(width * scale)), max(1, round(height * scale * view.aspect))
    plain = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BOX)
    lines: list[tuple[str, int | None]] = []
    shown = [plain]
    if isinstance(outcome.prediction, Detections):
        drawn = plain.copy()
        lines = _boxes(drawn, outcome.prediction, classes, min_score, (size[0] / width, size[1] / height))
        shown.append(drawn)
    elif outcome.prediction.ndim == 3:
        drawn, lines = _masks(plain, outcome.prediction, classes)
        shown.append(drawn)
    else:
        lines = _classified(outcome, classes)
    if outcome.disagreement is not None:
        lines.append((f"disagreement of the models: {outcome.disagreement:.2f}", None))
    lines.append((SCORES if _has_scores(outcome) else OUTLINES, None))
    lines.append((DISCLAIMER, None))
    wide = len(shown) * size[0] + (len(shown) - 1) * _GAP
    page = Image.new("RGB", (max(wide, _LEAST + 40), size[1] + _LINE * len(lines) + 6))
    for number, one in enumerate(shown):
        _letters(one, view)
        page.paste(one, (number * (size[0] + _GAP), 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (text, colour) in enumerate(lines):
        fill = (255, 255, 255) if colour is None else _COLOURS[colour % len(_COLOURS)]
        draw.text((4, size[1] + 2 + _LINE * number), text[:90], fill=fill, font=font)
    return _png(page, notes)


def grey(values: NDArray[np.float32] | NDArray[np.bool_], notes: Mapping[str, str]) -> bytes:
    """PNG of values [H, W] in [0, 1], 255 for 1, on the stored image's grid."""
    return _png(Image.fromarray(np.rint(values.astype(np.float32) * 255).astype(np.uint8)), notes)


def slug(name: str) -> str:
    """A class's name as part of a file's."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:24] or "class"


def _has_scores(outcome: Outcome) -> bool:
    return isinstance(outcome.prediction, Detections) or outcome.prediction.ndim == 1


def _classified(outcome: Outcome, classes: Sequence[str]) -> list[tuple[str, int | None]]:
    """The three first classes with their scores, and their votes where these decide."""
    votes = np.zeros(len(classes)) if outcome.votes is None else outcome.votes
    first = np.lexsort((-outcome.prediction, -votes))[:3]
    lines = [
        f"score of {classes[k]}: {outcome.prediction[k]:.2f}"
        if outcome.votes is None
        else f"votes for {classes[k]}: {outcome.votes[k]} of {outcome.models}; mean score: {outcome.prediction[k]:.2f}"
        for k in first
    ]
    if outcome.best is None:
        lines.insert(0, "undecided: no class is ahead of all others")
    return [(line, None) for line in lines]


def _letters(shown: Image.Image, view: View) -> None:
    """The patient's directions at the middle of each edge, readable on any grey."""
    draw, font, (width, height) = ImageDraw.Draw(shown), ImageFont.load_default(14), shown.size
    for text, x, y, anchor in (
        (view.left, 3.0, height / 2, "lm"),
        (view.right, width - 4.0, height / 2, "rm"),
        (view.top, width / 2, 3.0, "mt"),
        (view.bottom, width / 2, height - 4.0, "mb"),
    ):
        draw.text((x, y), text, font=font, anchor=anchor, fill=(255, 255, 255), stroke_fill=(0, 0, 0), stroke_width=2)


def _boxes(
    shown: Image.Image, found: Detections, classes: Sequence[str], min_score: float, scale: tuple[float, float]
) -> list[tuple[str, int | None]]:
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(12)
    texts, taken = list[tuple[float, float, str, tuple[int, int, int]]](), list[_Place]()
    for box, kind, score in zip(found.boxes, found.classes.tolist(), found.scores.tolist(), strict=True):
        if score < min_score:
            continue
        x1, y1, x2, y2 = (float(v) * scale[k % 2] for k, v in enumerate(box))
        colour = _COLOURS[kind % len(_COLOURS)]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
        texts.append((x1 + 3, max(0.0, y1 - 14), f"{classes[kind]} {score:.2f}"[:40], colour))
    for x, y, text, colour in texts:  # above all boxes
        x = max(0.0, min(x, shown.width - font.getlength(text) - 1))
        taken.append(_free(draw.textbbox((x, y), text, font=font, anchor="lt"), shown.height, taken))
        place = (x, taken[-1][1])
        draw.text(place, text, fill=colour, font=font, anchor="lt", stroke_fill=(0, 0, 0), stroke_width=1)
    return [(f"{len(texts)} {'box' if len(texts) == 1 else 'boxes'} with a score of {min_score:g} or more", None)]


def _free(wanted: _Place, height: int, taken: Sequence[_Place]) -> _Place:
    """Where a box's text hides no other: where it is wanted, or as little above or below as may be; there too if all
    is full.
    """
    left, top, right, bottom = wanted
    for step in (0, *(way * lines for lines in range(1, height // _LABEL) for way in (-_LABEL, _LABEL))):
        up, low = top + step, bottom + step
        if (
            up >= 0
            and low <= height
            and not any(left < other[2] and other[0] < right and up < other[3] and other[1] < low for other in taken)
        ):
            return left, up, right, low
    return wanted


def _masks(
    shown: Image.Image, masks: NDArray[np.bool_], classes: Sequence[str]
) -> tuple[Image.Image, list[tuple[str, int | None]]]:
    """Each class tinted, its border in full colour."""
    values = np.asarray(shown, np.float32).copy()
    lines: list[tuple[str, int | None]] = []
    for k, mask in enumerate(masks):
        inside = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST), bool)
        if not inside.any():
            continue
        lines.append((f"{classes[k]}: {int(mask.sum())} pixels", k))
        padded = np.pad(inside, 1)
        border = inside & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
        colour = np.array(_COLOURS[k % len(_COLOURS)], np.float32)
        values[inside] = 0.75 * values[inside] + 0.25 * colour
        values[border] = colour
    return Image.fromarray(values.astype(np.uint8)), lines or [("the model marked nothing", None)]


def _png(image: Image.Image, notes: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for name, text in {"Software": "Fedward", "Disclaimer": DISCLAIMER, **notes}.items():
        info.add_itxt(name, text)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
