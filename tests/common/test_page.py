"""The page: self-contained, honest about what is absent, and deaf to what a study file may call its classes."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure as Drawing
from matplotlib.image import imread

from common import page
from common.page import Figure, Fold, Note, Numbers, Section, Table, Text

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & $\\frac{1}{$"


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them, as a browser's parser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def drawn(name: str = "curve", values: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Drawing:
    drawing, axes = page.plot(4, 3, xlabel=name, ylabel=name)
    axes.plot(values, color=page.colour("blue"), label=name)
    axes.set_xticks([0, 1], [name, "b"])
    axes.legend()
    return drawing


def everything(name: str) -> str:
    blocks = (
        Text(paragraphs=(name, name)),
        Text(paragraphs=(name,), listed=True),
        Note(text=name, tone="warning"),
        Numbers(items=((name, name, name),)),
        Table(caption=name, columns=(name, "b"), rows=((name, 1),), totals=((name, None),)),
        Figure(graphic=page.svg(drawn(name)), alt=name, caption=name),
        Figure(graphic=page.png(np.eye(4)), alt=name, caption=name, size="tile"),
        Fold(summary=name, blocks=(Text(paragraphs=(name,)),)),
    )
    return page.render(name, name, [Section(title=name, lead=name, blocks=blocks)], footer=name)


def test_hostile_names_stay_text_in_every_place_of_the_page() -> None:
    hostile, calm = Elements(everything(HOSTILE)), Elements(everything("calm"))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in calm.found]
    assert all(set(a) <= set(b) for (_, a), (_, b) in zip(hostile.found, calm.found, strict=True))
    assert hostile.text.count(HOSTILE) == calm.text.count("calm") > 15


def test_a_figure_s_plain_text_is_not_markup() -> None:
    text = page.render(
        "t",
        "s",
        [Section(title="a", lead="b", blocks=(Figure(graphic="<svg onload=x>", alt="", caption=""),))],
        footer="",
    )
    assert not Elements(text).of("svg")


def test_the_page_refers_to_nothing_outside_itself() -> None:
    text = everything("calm")
    elements = Elements(text)
    assert not re.search(r"https?:|//[a-z]|@import", text)
    assert {tag for tag, _ in elements.found}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form"}
    )
    for _, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,"))
            assert not re.search(r"url\((?!#)", value or "")


def test_the_page_s_policy_forbids_all_but_inline_style_and_data_images() -> None:
    policies = [m["content"] for m in Elements(everything("calm")).of("meta") if m.get("http-equiv")]
    assert len(policies) == 1
    rules = dict((part.strip() + " ").split(" ", 1) for part in str(policies[0]).split(";"))
    assert rules.pop("default-src").strip() == "'none'"
    assert rules.pop("style-src").strip() == "'unsafe-inline'"
    assert rules.pop("img-src").strip() == "data:"
    assert {value.strip() for value in rules.values()} == {"'none'"}


def test_every_reference_inside_the_page_has_exactly_one_target() -> None:
    sections = [
        Section(title=t, lead="", blocks=(Figure(graphic=page.svg(drawn(t)), alt=t, caption=t),)) for t in ("a", "b")
    ]
    text = page.render("t", "s", sections, footer="")
    targets = [str(a["id"]) for _, a in Elements(text).found if "id" in a]
    assert len(targets) == len(set(targets))
    references = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    assert references <= set(targets)
    assert {"section-1", "section-2"} <= references


def test_every_figure_has_words_and_every_table_a_caption() -> None:
    elements = Elements(everything("calm"))
    graphics = [a for _, a in elements.found if a.get("role") == "img"]
    assert [a["aria-label"] for a in graphics] == ["calm", "calm"]
    assert len(elements.of("caption")) == len(elements.of("table")) == 1


@pytest.mark.parametrize("absent", [None, float("nan"), float("inf")])
def test_an_absent_number_is_a_dash_and_never_zero(absent: float | None) -> None:
    assert page.number(absent) == "–"
    assert page.signed(absent) == "–"
    table = Table(caption="c", columns=("a", "b"), rows=(("x", absent),))
    text = Elements(page.render("t", "s", [Section(title="a", lead="b", blocks=(table,))], footer="")).text
    assert re.search(r"x\s*–", text)


def test_numbers_are_printed_with_true_minus_and_thin_spaces() -> None:
    assert [page.number(x) for x in (0.0, 0.98765, -0.5, 1234567, "text")] == [
        "0.000", "0.988", "−0.500", "1\u202f234\u202f567", "text",
    ]  # fmt: skip
    assert [page.signed(x) for x in (0.25, -0.25)] == ["+0.250", "−0.250"]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (12_400_000, "12.4 MB"), (3e12, "3.0 TB")]
)
def test_bytes_are_in_decimal_units(size: float, text: str) -> None:
    assert page.amount(size).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59, "59 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min")],
)
def test_seconds_are_in_words(seconds: float, text: str) -> None:
    assert page.duration(seconds).replace("\u202f", " ") == text


def test_names_with_numbers_are_in_natural_order() -> None:
    assert sorted(["site-10", "site-2", "a", "10", "9"], key=page.natural) == ["9", "10", "a", "site-2", "site-10"]


def test_equal_drawings_give_equal_svg_and_others_another() -> None:
    first, again, other = page.svg(drawn()), page.svg(drawn()), page.svg(drawn(values=(1.0, 2.0, 2.5)))
    assert first == again != other
    assert not re.search(r"<metadata|20\d\d-\d\d|xmlns", first)


def test_page_colours_and_black_follow_light_and_dark_mode_but_text_does_not_change() -> None:
    drawing = drawn()
    drawing.axes[0].set_title("#000000")
    drawing.axes[0].plot([1, 2], color="#000000")
    text = str(page.svg(drawing))
    assert "stroke: var(--blue)" in text
    assert "stroke: var(--ink)" in text
    assert page.COLOURS["blue"][0] not in text
    assert ">#000000<" in text


@pytest.mark.parametrize("mode", [0, 1])
def test_text_has_a_contrast_of_at_least_4_5_in_both_modes(mode: int) -> None:
    def luminance(name: str) -> float:  # WCAG 2.2, relative luminance
        parts = [int(page.COLOURS[name][mode][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for text in ("ink", "muted", "blue"):
        for ground in ("surface", "ground"):
            high, low = sorted((luminance(text), luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_a_name_that_the_drawing_library_has_no_glyph_for_is_kept() -> None:
    assert "肺炎" in page.svg(drawn("肺炎"))


@pytest.mark.parametrize(
    "pixels", [np.array([[0.0, 1.0], [2.0, np.nan]]), np.array([[0, 255], [255, 0]], np.uint8)], ids=["float", "uint8"]
)
def test_png_keeps_pixels(pixels: np.ndarray) -> None:
    address = page.png(pixels)
    head = "data:image/png;base64,"
    assert address.startswith(head)
    back = imread(io.BytesIO(base64.b64decode(address[len(head) :])))
    assert back[..., 0].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_the_template_refuses_a_name_that_it_was_not_given() -> None:
    with pytest.raises(UndefinedError, match="footer"):
        page._template().render(title="t", subtitle="s", sections=[], colours={})
