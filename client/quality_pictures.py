"""The drawings of a quality report: bars, sizes, brightness by scanner, and patients' images themselves."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client import sources
from client.dicom_objects.views import View, view_of
from client.drops import Unusable
from client.looks import BINS, luminance, smaller
from client.quality import Card, Group, Seen
from client.quality import brightness as mean_brightness
from common import page
from common.annotation import Annotation

_MOST = 12  # bars of a drawing
_PIXELS = 224  # longer side of a picture on the page
_GAP = 6  # pixels between pictures that lie side by side


def bars(groups: Sequence[Group], *, what: str) -> str:
    """A bar for each group, the largest on top; beyond a dozen the rest together."""
    rest = groups[_MOST - 1 :] if len(groups) > _MOST else ()
    shown = [(group.name, group.images) for group in groups[: _MOST - 1 if rest else _MOST]]
    if rest:
        shown.append((f"{len(rest)} more", sum(group.images for group in rest)))
    drawing, axes = page.plot(5.2, 0.75 + 0.34 * max(len(shown), 2), xlabel=what)
    places = np.arange(len(shown))[::-1]
    axes.barh(places, [number for _, number in shown], height=0.62, color=page.colour("blue"))
    most = max((number for _, number in shown), default=1)
    for place, (_, number) in zip(places, shown, strict=True):
        axes.text(
            number + 0.015 * most, float(place), page.number(number), va="center", fontsize=9, color=page.colour("ink")
        )
    axes.set_yticks(places, [page.short(name, 28) for name, _ in shown], color=page.colour("ink"))
    axes.set_xlim(0, 1.16 * most)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=page.colour("rule"), linewidth=0.7)
    return page.svg(drawing)


def sizes(found: Mapping[tuple[int, int], int]) -> str:
    """A dot for each size (height, width), its area after the number of images."""
    drawing, axes = page.plot(5.2, 3.2, xlabel="width, pixels", ylabel="height, pixels")
    if found:
        heights, widths = zip(*found, strict=True)
        numbers = np.array(list(found.values()), float)
        axes.scatter(widths, heights, s=20 + 380 * numbers / numbers.max(), color=page.colour("teal"), alpha=0.55)
        axes.set_xlim(0, 1.12 * max(widths))
        axes.set_ylim(0, 1.12 * max(heights))
    return page.svg(drawing)


def brightness(scanners: Mapping[str, Sequence[str]], seen: Seen) -> str:
    """For each scanner how bright its images' pixels are."""
    shown = list(scanners.items())[:_MOST]
    drawing, axes = page.plot(10.5, 0.8 + 0.36 * max(len(shown), 2), xlabel="brightness")
    for place, (_, images) in zip(range(len(shown) - 1, -1, -1), shown, strict=True):
        shares = mean_brightness(seen, images)
        if not shares.sum():
            continue
        low, first, middle, third, high = _quantiles(shares, (0.05, 0.25, 0.5, 0.75, 0.95))
        axes.plot((low, high), (place, place), color=page.colour("blue"), linewidth=1.4)
        axes.plot((first, third), (place, place), color=page.colour("blue"), linewidth=6, solid_capstyle="butt")
        axes.plot((middle,), (place,), "o", color=page.colour("orange"), markersize=7)
    names = [f"{page.short(name, 36)} ({page.number(len(images))})" for name, images in shown]
    axes.set_yticks(np.arange(len(shown))[::-1], names, color=page.colour("ink"))
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=page.colour("rule"), linewidth=0.7)
    return page.svg(drawing)


def beside(cards: Sequence[Card]) -> str | None:
    """Images side by side at one height; None where none can be decoded any more."""
    shown = [picture for card in cards if (picture := _picture(card)) is not None]
    if not shown:
        return None
    height = max(picture.shape[0] for picture in shown)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, _GAP)), constant_values=1.0) for p in shown]
    return page.png(np.concatenate(padded, axis=1)[:, :-_GAP])


def marked(card: Card, annotation: Annotation) -> str | None:
    """An image with what is drawn on it: outlines of its mask, and its boxes. None where it can't be decoded."""
    grey = _picture(card)
    if grey is None:
        return None
    (height, width), (stored_height, stored_width) = grey.shape, card.size
    picture = np.repeat(grey[..., None], 3, axis=2)
    if annotation.mask is not None:
        rows = (np.arange(height) * stored_height) // height
        columns = (np.arange(width) * stored_width) // width
        mask = annotation.mask[np.ix_(rows, columns)]
        inner = np.pad(mask, 1, mode="edge")
        around = (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:])
        picture[(mask > 0) & np.logical_or.reduce([mask != other for other in around])] = _rgb("orange")
    for box in annotation.boxes or ():
        x1, x2 = (min(round(x * width / stored_width), width - 1) for x in (box.x1, box.x2))
        y1, y2 = (min(round(y * height / stored_height), height - 1) for y in (box.y1, box.y2))
        picture[[y1, y2], x1 : x2 + 1] = picture[y1 : y2 + 1, [x1, x2]] = _rgb("teal")
    return page.png(picture)


def edges(card: Card) -> str:
    """Which way the picture lies in the patient, in words; "" where its header does not say."""
    view = _view(card)
    return f"left edge {view.left}, top {view.top}" if view.left and view.top else ""


def _rgb(name: str) -> tuple[float, ...]:
    """The lighter of a colour's two values, which is seen on dark pictures."""
    text = page.COLOURS[name][1]
    return tuple(int(text[k : k + 2], 16) / 255 for k in (1, 3, 5))


def _picture(card: Card) -> NDArray[np.float32] | None:
    try:
        grey = luminance(sources.pixels(card.source, window="dicom"))
    except Unusable:
        return None
    rows, columns = grey.shape[0] * _view(card).aspect, grey.shape[1]
    scale = min(1.0, _PIXELS / max(rows, columns))
    return smaller(grey, (max(1, round(rows * scale)), max(1, round(columns * scale))))


def _view(card: Card) -> View:
    source = card.source
    return view_of(source.root / source.path, source.item) if source.kind == "dicom" else View()


def _quantiles(shares: NDArray[np.float32], wanted: Sequence[float]) -> list[float]:
    """Where the shares of steps [BINS] reach these parts of their sum; halfway into the step."""
    reached = np.cumsum(shares) / shares.sum()
    return [(float(np.searchsorted(reached, part)) + 0.5) / BINS for part in wanted]
