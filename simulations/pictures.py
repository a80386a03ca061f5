"""Example images with truth and prediction drawn on them. Simulation only: pictures of patients never leave a site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common import page
from common.tasks.batch import Detections, Objects

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SCORE = 0.5  # proposed objects below this score are not drawn
# On the image itself, the same in light and dark mode: told apart with any colour vision, and by their dashes.
TRUTH, PREDICTION, SHADOW = "#56b4e9", "#ffb000", "#010101"
_SIDE = 384  # pixels: larger images are averaged down for the page
_BARS = 4  # classes shown beside an image


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One image, what is known of it and what the model says, all on the image's own pixel grid.

    truth and prediction are, by task: class name and probabilities [K]; masks bool [K, h, w] twice; Objects and
    Detections with boxes in pixels of the image.
    """

    image: NDArray[np.float32]  # [h, w] or [h, w, 3] in [0, 1]
    caption: str
    truth: str | NDArray[np.bool_] | Objects
    prediction: NDArray[np.float32] | NDArray[np.bool_] | Detections


def draw(pictures: Sequence[Picture], classes: Sequence[str]) -> "Drawing":
    """Pictures side by side, four in a row, captions above. Truth is dashed and light blue, the prediction orange."""
    from matplotlib.figure import Figure as Drawing

    columns = min(4, len(pictures)) or 1
    rows = -(-len(pictures) // columns) or 1
    tallest = max((picture.image.shape[0] / picture.image.shape[1] for picture in pictures), default=1.0)
    bars = min(_BARS, len(classes)) if any(isinstance(picture.truth, str) for picture in pictures) else 0
    title = 0.3 if any(picture.caption for picture in pictures) else 0.0
    width, gap, image, below = 2.5, 0.1, 2.5 * tallest, 0.36 * bars  # inches
    step = title + image + below + gap
    wide, tall = columns * (width + gap) - gap, rows * step - gap
    drawing = Drawing(figsize=(wide, tall))
    for position, picture in enumerate(pictures):
        row, column = divmod(position, columns)
        left, top = column * (width + gap) / wide, tall - row * step - title
        axes = drawing.add_axes((left, (top - image) / tall, width / wide, image / tall))
        _image(axes, picture)
        if picture.caption:
            axes.set_title(picture.caption, fontsize=9, color=page.colour("ink"), loc="left")
        if isinstance(picture.truth, str):
            under = drawing.add_axes((left, (top - image - below) / tall, width / wide, below / tall))
            _bars(under, picture.truth, np.asarray(picture.prediction), classes, bars)
        elif isinstance(picture.truth, Objects) and isinstance(picture.prediction, Detections):
            _boxes(axes, picture.truth, picture.prediction, classes)
        else:
            _outlines(axes, np.asarray(picture.prediction), PREDICTION, "solid")
            _outlines(axes, np.asarray(picture.truth), TRUTH, (0, (3, 2)))
    return drawing


def words(picture: Picture, classes: Sequence[str]) -> str:
    """What the picture shows, for a reader who can't see it."""
    if isinstance(picture.truth, str):
        scores = np.asarray(picture.prediction)
        best = int(scores.argmax())
        return f"true class {picture.truth}; the model says {classes[best]} with probability {scores[best]:.2f}"
    if isinstance(picture.prediction, Detections) and isinstance(picture.truth, Objects):
        found = int((picture.prediction.scores >= SCORE).sum())
        return f"{len(picture.truth.boxes)} true objects; the model proposes {found} with a score of {SCORE} or more"
    true, said = (np.asarray(mask, dtype=bool) for mask in (picture.truth, picture.prediction))
    return f"{true.any(axis=0).mean():.1%} of the pixels are marked; the model marks {said.any(axis=0).mean():.1%}"


def _image(axes: "Axes", picture: Picture) -> None:
    height, width = picture.image.shape[:2]
    factor = -(-max(height, width) // _SIDE)
    pixels = np.clip(np.nan_to_num(picture.image), 0.0, 1.0)
    if factor > 1:
        pixels = pixels[: height // factor * factor, : width // factor * factor]
        blocks = (height // factor, factor, width // factor, factor, *pixels.shape[2:])
        pixels = pixels.reshape(blocks).mean(axis=(1, 3))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none", extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()


def _bars(axes: "Axes", truth: str, scores: NDArray[np.float32], classes: Sequence[str], shown: int) -> None:
    """The most probable classes, best first; the true one is among them and blue, a wrong favourite orange."""
    order = [int(k) for k in np.argsort(-scores, kind="stable")]
    top = order[:shown]
    true = classes.index(truth) if truth in classes else None
    if true is not None and true not in top:
        top[-1] = true
    for row, k in enumerate(top):
        wrong = "orange" if k == order[0] else "grey"
        tint = page.colour("blue" if k == true else wrong)
        axes.barh([row + 0.78], [1.0], height=0.16, color=page.colour("rule"))
        axes.barh([row + 0.78], [float(scores[k])], height=0.16, color=tint)
        name = page.short(classes[k]) + (" (true)" if k == true else "")
        axes.text(0, row + 0.6, name, fontsize=9, color=page.colour("ink"), va="bottom")
        axes.text(1, row + 0.6, f"{scores[k]:.2f}", fontsize=9, color=page.colour("ink"), va="bottom", ha="right")
    axes.set(xlim=(0, 1), ylim=(shown, 0))
    axes.set_axis_off()


def _outlines(axes: "Axes", masks: NDArray[np.bool_], colour: str, dashes: "str | tuple[int, tuple[int, int]]") -> None:
    factor = -(-max(masks.shape[1:]) // _SIDE)
    for mask in masks[:, ::factor, ::factor]:
        if mask.any():
            framed = np.pad(mask, 1).astype(np.float32)  # so that an outline closes at the image's edge
            y, x = ((np.arange(side) - 0.5) * factor for side in framed.shape)
            axes.contour(x, y, framed, levels=[0.5], colors=SHADOW, linewidths=2.2, alpha=0.5)
            axes.contour(x, y, framed, levels=[0.5], colors=colour, linewidths=1.3, linestyles=[dashes])


def _boxes(axes: "Axes", truth: Objects, found: Detections, classes: Sequence[str]) -> None:
    for x1, y1, x2, y2 in truth.boxes.tolist():
        _box(axes, (x1, y1, x2, y2), TRUTH, (0, (3, 2)))
    for box, k, score in zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True):
        if score >= SCORE:
            _box(axes, box, PREDICTION, "solid")
            back = {"facecolor": SHADOW, "alpha": 0.65, "edgecolor": "none", "pad": 0.8}
            label = f"{page.short(classes[k], 16)} {score:.2f}"
            axes.text(box[0], box[1], label, fontsize=6, color=PREDICTION, va="bottom", bbox=back, clip_on=True)


def _box(axes: "Axes", box: Sequence[float], colour: str, dashes: "str | tuple[int, tuple[int, int]]") -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    size = (x2 - x1, y2 - y1)
    axes.add_patch(Rectangle((x1, y1), *size, fill=False, edgecolor=SHADOW, linewidth=2.2, alpha=0.5))
    axes.add_patch(Rectangle((x1, y1), *size, fill=False, edgecolor=colour, linewidth=1.3, linestyle=dashes))
