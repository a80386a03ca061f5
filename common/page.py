"""One self-contained HTML file from plain values: sections of text, tables, numbers and figures that open offline.

Everything that comes from a study file or a site is text and stays text: the template escapes it, figures write it as
SVG text, and the page's own policy forbids scripts and any request. Figures follow the reader's light or dark mode.
"""

import base64
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# name: (light, dark). Draw with `colour(name)`; `svg` turns the light value into the page's variable of that name.
# Text colours have a contrast of 4.5 : 1 or more on the surface; hues are told apart with red-green blindness.
COLOURS = {
    "surface": ("#ffffff", "#12181f"),
    "ground": ("#f4f6f8", "#0b1015"),
    "ink": ("#17202b", "#e5eaf1"),
    "muted": ("#566372", "#9ba8b8"),
    "rule": ("#d6dce3", "#2d3743"),
    "blue": ("#0a5c9e", "#6fb4ee"),
    "orange": ("#b45309", "#f2a65a"),
    "teal": ("#0f766a", "#55c7b4"),
    "purple": ("#8d3a7f", "#dd97cf"),
    "grey": ("#6c7885", "#8d99a7"),
    "tint": ("#c5daec", "#23415c"),
}
DASH = "–"
_MANY = 12  # lines beyond which a table or list is folded


@dataclass(frozen=True, kw_only=True)
class Text:
    """Paragraphs, or with `listed` the points of a list."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that the reader must not miss."""

    kind: ClassVar[str] = "note"
    text: str
    tone: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A few figures that matter most: (what, value, remark) each, the value printed large."""

    kind: ClassVar[str] = "numbers"
    items: tuple[tuple[str, str, str], ...]


Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and numbers; None is printed as a dash. `totals` are rows set apart below the others.

    `align` has "l" or "r" for each column; empty: the first left, all others right.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    totals: tuple[tuple[Cell, ...], ...] = ()
    align: str = ""

    @property
    def sides(self) -> str:
        return self.align or "l" + "r" * (len(self.columns) - 1)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture and the words that stand for it. `graphic` comes from `svg` or `png`; other text is printed as text."""

    kind: ClassVar[str] = "figure"
    graphic: str
    alt: str
    caption: str
    size: Literal["wide", "half", "tile"] = "half"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that the reader opens when wanted: long tables and lists. Print shows them."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: "tuple[Block, ...]"


Block = Text | Note | Numbers | Table | Figure | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and its answer. `lead` is a sentence that says what is shown and how to read it."""

    title: str
    lead: str
    blocks: tuple[Block, ...]


def render(title: str, subtitle: str, sections: Sequence[Section], *, footer: str) -> str:
    """The whole page.

    Guarantees: no reference to anything outside the file; no text of the arguments becomes markup, except what `svg`
    made; equal arguments give an equal page.
    """
    return _template().render(title=title, subtitle=subtitle, sections=list(sections), footer=footer, colours=COLOURS)


def folded(block: Text | Table, *, summary: str) -> Block:
    """The block itself or, where it has more than a dozen lines, folded under this summary."""
    lines = block.rows if isinstance(block, Table) else block.paragraphs
    return block if len(lines) <= _MANY else Fold(summary=summary, blocks=(block,))


def colour(name: str) -> str:
    """A colour of the page, for drawing: hex, and in the page's light or dark mode the right one of the two."""
    return COLOURS[name][0]


def plot(width: float, height: float, *, xlabel: str = "", ylabel: str = "") -> "tuple[Drawing, Axes]":
    """An empty drawing in the page's manner, one pair of axes; width and height in inches, 96 pixels on the page."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(width, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colour("rule"))
    axes.tick_params(colors=colour("muted"), labelsize=9, length=3)
    axes.set_xlabel(xlabel, color=colour("muted"), fontsize=9.5)
    axes.set_ylabel(ylabel, color=colour("muted"), fontsize=9.5)
    axes.grid(axis="y", color=colour("rule"), linewidth=0.7)
    axes.set_axisbelow(True)
    return drawing, axes


def svg(drawing: "Drawing") -> Markup:
    """An inline SVG element; black, white and the page's colours follow light and dark mode.

    Guarantees: equal drawings give equal text; no date, no address, no identifier that another figure also has.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text as Lettering

    stream = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text (searchable, read aloud, in the page's font), and a class named "$x$" is a name, not a formula.
    theme = rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedward", "text.parse_math": False})
    with theme, warnings.catch_warnings():
        # Missing glyphs are in the reader's browser; and a cramped figure is better than no report.
        warnings.simplefilter("ignore", UserWarning)
        for lettering in drawing.findobj(Lettering):
            if isinstance(lettering, Lettering):
                lettering.set_parse_math(False)
        drawing.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return Markup(_inline(stream.getvalue()))  # noqa: S704 - the only place where text becomes markup


def png(picture: "Drawing | NDArray[Any]") -> str:
    """A data address of a PNG: of a drawing, or of pixels [h, w] or [h, w, 3], float in [0, 1] or uint8."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    nothing: dict[str, Any] = {"Software": None}
    if isinstance(picture, np.ndarray):
        top = 255 if picture.dtype == np.uint8 else 1.0
        pixels = picture if picture.dtype == np.uint8 else np.clip(np.nan_to_num(picture), 0.0, 1.0)
        imsave(stream, pixels, format="png", cmap="gray", vmin=0, vmax=top, metadata=nothing)
    else:
        picture.savefig(stream, format="png", dpi=192, metadata=nothing)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def number(value: Cell, digits: int = 3) -> str:
    """A number as printed everywhere: a dash for what is absent or not finite, never 0; text as it is."""
    if value is None or isinstance(value, str):
        return DASH if value is None else value
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else DASH


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text[0] in "−–" else "+" + text


def counted(count: int, thing: str, things: str = "") -> str:
    """A number of things in words: "1 site", "4 sites"."""
    return f"{number(count)} {thing if count == 1 else things or thing + 's'}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a sentence: "a, b and c"; beyond `most` the rest is counted."""
    shown = list(names)
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else "none"


def short(name: str, most: int = 24) -> str:
    """A name for a place in a drawing that has no more room."""
    return name if len(name) <= most else name[: most - 1] + "…"


def natural(name: str) -> tuple[str | int, ...]:
    """A sorting key for names: site-2 before site-10."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


def amount(size: float | None) -> str:
    """Bytes in words: "12.4 MB" (1 MB = 10^6 bytes)."""
    if size is None:
        return DASH
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'bytes' else 1}f}\u202f{unit}"
        size /= 1000
    return f"{size:.1f}\u202fTB"


def duration(seconds: float | None) -> str:
    """Seconds in words: "0.4 s", "3 min 20 s", "5 h 12 min"."""
    if seconds is None:
        return DASH
    if seconds < 59.5:
        return f"{seconds:.{1 if seconds < 10 else 0}f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u202fmin {rest}\u202fs"
    return f"{minutes // 60:,}\u202fh {minutes % 60}\u202fmin"


def _inline(text: str) -> str:
    """A drawing library's SVG document as an element of this page: tags changed, the text between them left alone."""
    text = text[text.index("<svg") :]
    mark = "f" + hashlib.sha256(text.encode()).hexdigest()[:10] + "-"
    wanted = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    themed = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}
    themed |= {"#000000": "var(--ink)"}  # other people's drawings are black on white

    def tag(found: re.Match[str]) -> str:
        whole = found[0]
        if whole.startswith("<svg"):
            width, height = (float(side) for side in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', whole)[0])
            return f'<svg viewBox="0 0 {width:g} {height:g}" style="--width: {width * 4 / 3:.0f}px" aria-hidden="true">'
        whole = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{mark}{m[1]}"' if m[1] in wanted else "", whole)
        whole = re.sub(r'(url\(|xlink:href=")#', rf"\1#{mark}", whole)
        whole = re.sub(r"font-family: [^;\"]*", "font-family: inherit", whole)
        whole = re.sub(r' style="image-rendering[^"]*"', "", whole)  # the browser smooths
        whole = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), whole)
        return re.sub(r"(?<=[ :])#[0-9a-f]{6}\b", lambda m: themed.get(m[0], m[0]), whole)

    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"<[^!/][^>]*>", tag, text).replace("\n   ", "\n")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("common", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html")
