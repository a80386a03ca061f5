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

from client.ensemble import Outcome
from common.tasks.batch import Detections

DISCLAIMER = "Research only. Not a medical device, not for diagnosis."
_LEAST, _MOST = 320, 1024  # pixels of the drawn image's longer side
_LINE = 16  # pixels of a line of text
# Told apart with red-green blindness. Source: Okabe, Ito 2008, without black, yellow first for dark images.
_COLOURS = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))


def overlay(
    pixels: NDArray[np.float32], outcome: Outcome, *, classes: Sequence[str], min_score: float, notes: Mapping[str, str]
) -> bytes:
    """PNG of a stored image, [H, W] or [H, W, 3] in [0, 1], with its masks, boxes or classes. `notes` are its text."""
    height, width = pixels.shape[:2]
    scale = min(max(1.0, _LEAST / max(height, width)), _MOST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BOX)
    lines: list[tuple[str, int | None]] = []
    if isinstance(outcome.prediction, Detections):
        lines = _boxes(shown, outcome.prediction, classes, min_score, scale)
    elif outcome.prediction.ndim == 3:
        shown, lines = _masks(shown, outcome.prediction, classes)
    else:
        best = np.argsort(-outcome.prediction, kind="stable")[:3]
        lines = [(f"{classes[k]}: {outcome.prediction[k]:.2f}", None) for k in best]
    if outcome.disagreement is not None:
        lines.append((f"disagreement of the models: {outcome.disagreement:.2f}", None))
    lines.append((DISCLAIMER, None))
    page = Image.new("RGB", (max(size[0], _LEAST + 40), size[1] + _LINE * len(lines) + 6))
    page.paste(shown)
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


def _boxes(
    shown: Image.Image, found: Detections, classes: Sequence[str], min_score: float, scale: float
) -> list[tuple[str, int | None]]:
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(12)
    count = 0
    for box, kind, score in zip(found.boxes, found.classes.tolist(), found.scores.tolist(), strict=True):
        if score < min_score:
            continue
        count += 1
        x1, y1, x2, y2 = (float(v) * scale for v in box)
        colour = _COLOURS[kind % len(_COLOURS)]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
        draw.text((x1 + 3, max(0, y1 - 14)), f"{classes[kind]} {score:.2f}"[:40], fill=colour, font=font)
    return [(f"{count} boxes with a score of {min_score:g} or more", None)]


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
    return Image.fromarray(values.astype(np.uint8)), lines or [("nothing found", None)]


def _png(image: Image.Image, notes: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for name, text in {"Software": "Fedward", "Disclaimer": DISCLAIMER, **notes}.items():
        info.add_itxt(name, text)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
