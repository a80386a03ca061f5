"""Sections of a quality report on what the images are: classes, readers, parts, scanners, duplicates, examples."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from client import index
from client import quality_pictures as pictures
from client.quality import FEW, RARE, UNKNOWN, Card, Group, Quality, Seen
from client.site import Site
from common import page
from common.page import Block, Figure, Fold, Note, Numbers, Section, Table, Text

LISTED = 500  # files or groups that are named one by one
_EXAMPLES, _PAIRS = 12, 12


def classes(quality: Quality) -> Section:
    """How often each class occurs."""
    groups, patients = quality.classes, quality.counts.patients
    if not groups:
        blocks: tuple[Block, ...] = (Note(text="No image has an annotation.", tone="warning"),)
        return Section(title="Classes", lead="What the annotations say.", blocks=blocks)
    rows = tuple(
        (group.name, group.images, group.patients, percent(group.patients / patients if patients else 0.0))
        for group in groups
    )
    table = Table(
        caption="By class, those of labels, outlines and boxes apart; an image with several counts for each",
        columns=("Class", "Images", "Patients", "Of all patients"),
        rows=rows,
    )
    ratio = max(g.images for g in groups) / min(g.images for g in groups)
    text = (
        f"The largest class has {ratio:.1f} times as many images as the smallest. Below {percent(RARE)} of the"
        f" patients, or {FEW} patients, a class is called rare."
        if len(groups) > 1
        else "There is only one class: nothing can be told apart with these images alone."
    )
    chart = pictures.bars(groups, what="images")
    return Section(
        title="Classes",
        lead="How often each class occurs: a model that is to tell classes apart needs enough of each.",
        blocks=(
            _figure(chart, "Images by class", groups),
            page.folded(table, summary="By class"),
            Text(paragraphs=(text,)),
        ),
    )


def readers(agreement: Mapping[str, Any]) -> list[Section]:
    """How far several readers agree; nothing where no image has several."""
    if not agreement["images"]:
        return []
    rows: list[tuple[page.Cell, ...]] = [
        (f"{what} of {name}", found["images"], found["mean"])
        for what, key in (("Dice", "dice"), ("IoU of boxes", "iou"))
        for name, found in agreement[key].items()
    ]
    if agreement["fleiss_kappa"] is not None:
        rows.append(("Fleiss' kappa of labels", "", agreement["fleiss_kappa"]))
    for pair in agreement["cohen_kappa"]:
        rows.append(
            (
                f"Cohen's kappa, {page.listed(name or 'unnamed' for name in pair['readers'])}",
                pair["images"],
                pair["kappa"],
            )
        )
    table = Table(
        caption="1 is full agreement; kappa 0 is what chance gives",
        columns=("Measure", "Images", "Value"),
        rows=tuple(rows),
    )
    return [
        Section(
            title="How far readers agree",
            lead=f"{page.counted(agreement['images'], 'image')} with more than one reader. No model can be expected to"
            " agree with them better than they do with each other.",
            blocks=(page.folded(table, summary="All readers"),),
        )
    ]


def split(quality: Quality) -> Section:
    """The parts of the patients."""
    by_pool = {name: Counter[str]() for name in ("train", "validation", "test")}
    for card in quality.cards.values():
        by_pool[card.pool].update(card.classes)
    pools = {group.name: group for group in quality.pools}
    names = [group.name for group in quality.classes][:6]
    rows: list[tuple[page.Cell, ...]] = [
        (name, pools[name].patients, pools[name].images, *(by_pool[name][c] for c in names))
        for name in by_pool
        if name in pools
    ]
    return Section(
        title="Training, validation and test",
        lead="A patient is in one part only and stays there. The parts follow from a keyed hash of the patient, or from"
        " a public set's official split. 70, 10 and 20 % are assumed unless this site's ledger has fixed other shares."
        " A person who was in another hospital too can be in another part there: the keys differ, and nobody can tell.",
        blocks=(
            Table(
                caption="Patients, images, and images by class",
                columns=("Part", "Patients", "Images", *(page.short(name) for name in names)),
                rows=tuple(rows),
                totals=(_together(rows),) if rows else (),
            ),
        ),
    )


def _together(rows: Sequence[tuple[page.Cell, ...]]) -> tuple[page.Cell, ...]:
    """The last line of a table whose lines exclude each other."""
    numbers = [sum(int(cell) for cell in column if isinstance(cell, int)) for column in zip(*rows, strict=True)]
    return ("all", *numbers[1:])


def machines(quality: Quality, seen: Seen | None) -> Section:
    """Scanners, modalities, sizes, brightness."""
    sizes = Counter(card.size for card in quality.cards.values())
    blocks: list[Block] = [
        _figure(pictures.bars(quality.scanners, what="images"), "Images by scanner", quality.scanners),
        _figure(pictures.sizes(sizes), "Width and height in pixels; a larger dot is more images", ()),
    ]
    if seen is not None and seen.looks:
        of = _by(quality, lambda card: card.scanner)
        drawn = pictures.brightness({group.name: of[group.name] for group in quality.scanners}, seen)
        text = (
            "Brightness of pixels by scanner, 0 black and 1 white, in the window that the file asks for: thin line 5 to"
            " 95 %, thick line 25 to 75 %, dot the median. A scanner far from the others may be inverted or windowed"
            " differently."
        )
        blocks.append(Figure(graphic=drawn, alt="Brightness of pixels by scanner", caption=text, size="wide"))
    tables = [
        Table(
            caption=f"By {what.lower()}",
            columns=(what, "Images", "Patients"),
            rows=tuple((group.name, group.images, group.patients) for group in groups),
        )
        for what, groups in (
            *(("Modality", quality.modalities), ("Scanner", quality.scanners)),
            ("SOP class and image type", quality.kinds),
        )
    ]
    common = tuple((f"{w} × {h}", number) for (h, w), number in sizes.most_common(20))
    tables.append(Table(caption="Most common, width × height in pixels", columns=("Size", "Images"), rows=common))
    for summary, table in zip(
        ("By modality", "By scanner", "By SOP class and image type", "By size"), tables, strict=True
    ):
        blocks.append(Fold(summary=summary, blocks=(table,)))
    burned = tuple((_burned(group.name), group.images, group.patients) for group in quality.burned_in)
    blocks.append(
        Table(
            caption="Text burned into the pixels, as the file's header says",
            columns=("Burned in", "Images", "Patients"),
            rows=burned,
        )
    )
    blocks.append(
        Table(
            caption="Where in the patient columns and rows count up to, as the header says. Studies may have images"
            " turned by it; those that say nothing are used as stored.",
            columns=("Columns, rows", "Images", "Patients"),
            rows=tuple((", ".join(_ways(group.name)), group.images, group.patients) for group in quality.directions),
        )
    )
    return Section(
        title="Scanners, sizes, brightness",
        lead="A model trained on one kind of scanner can do badly on another. Are they all there? Do they look alike?",
        blocks=tuple(blocks),
    )


def _ways(name: str) -> tuple[str, ...]:
    ways = {"L": "left", "R": "right", "A": "front", "P": "back", "H": "head", "F": "feet"}
    return (name,) if name == UNKNOWN else tuple(ways[letter] for letter in name)


def _burned(name: str) -> str:
    return "the header doesn't say" if name == UNKNOWN else name


def alike(quality: Quality, seen: Seen | None) -> list[Section]:
    """Near-duplicates; nothing where nobody looked at the images."""
    if seen is None:
        return []
    blocks: list[Block] = [
        Numbers(
            items=(
                ("Across patients", page.number(len(seen.across)), "groups: whose image is it?"),
                ("Within one patient", page.number(len(seen.within)), "groups: repeated exposures or exports"),
                ("Blank", page.number(len(seen.blank)), "images that show nothing"),
            )
        )
    ]
    shown = [group[:4] for group in (*seen.across, *seen.within)][:_PAIRS]
    for group in shown:
        graphic = pictures.beside([quality.cards[image] for image in group])
        if graphic is not None:
            whose = page.counted(len({quality.cards[image].patient for image in group}), "patient")
            caption = f"{page.listed(image[:8] for image in group)}: {whose}"
            blocks.append(Figure(graphic=graphic, alt="Nearly the same images", caption=caption, size="half"))
    for what, groups in (("across patients", seen.across), ("within one patient", seen.within)):
        rows = tuple(
            (
                number,
                quality.cards[image].patient[:8],
                image[:8],
                quality.cards[image].pool,
                quality.cards[image].source.path,
            )
            for number, group in enumerate(groups[:LISTED], 1)
            for image in group
        )
        if rows:
            table = Table(
                caption=f"Groups {what}",
                columns=("Group", "Patient", "Image", "Part", "File"),
                rows=rows,
                align="rllll",
            )
            blocks.append(Fold(summary=f"All groups {what}", blocks=(table, *more(len(groups)))))
    return [
        Section(
            title="Nearly the same images",
            lead="Exported twice, in another window, size or compression, or as a negative. None is dropped: similar"
            " people on one scanner can be as alike as two exports of one image.",
            blocks=tuple(blocks),
        )
    ]


def examples(site: Site, quality: Quality, seen: Seen | None) -> list[Section]:
    """Some images of each class; nothing where nobody looked at the images."""
    if seen is None:
        return []
    of = _by(quality, lambda card: card.classes[0] if card.classes else UNKNOWN)
    turns = [[i for i in images if i in seen.looks] for images in of.values()]
    chosen = [images[turn] for turn in range(_EXAMPLES) for images in turns if turn < len(images)][:_EXAMPLES]
    figures: list[Block] = []
    annotations = {row.image: row.annotation for row in index.each(site.folder) if row.image in chosen}
    for image in chosen:
        card = quality.cards[image]
        graphic = pictures.marked(card, annotations[image])
        if graphic is not None:
            said = page.listed(card.classes) if card.classes else UNKNOWN
            size = f"{card.size[1]} × {card.size[0]} pixels"
            caption = "; ".join(filter(None, (f"{image[:8]}: {said}", card.scanner, size, pictures.edges(card))))
            figures.append(Figure(graphic=graphic, alt=f"Image of class {said}", caption=caption, size="tile"))
    lead = (
        "The first images of each class by keyed hash, so nobody chose them, made smaller, with the outlines (orange)"
        " and boxes (green) that they are annotated with. Do these lie where they should? Do the edges (patient's right"
        " R, left L, head H, feet F, front A, back P, as the header says) fit what is seen?"
    )
    return [Section(title="Examples", lead=lead, blocks=tuple(figures))] if figures else []


def _by(quality: Quality, key: Callable[[Card], str]) -> dict[str, list[str]]:
    """Images by a property, in the order of their keyed hashes."""
    found: dict[str, list[str]] = {}
    for image, card in sorted(quality.cards.items()):
        found.setdefault(key(card), []).append(image)
    return found


def _figure(graphic: str, what: str, groups: Sequence[Group]) -> Figure:
    said = "; ".join(f"{group.name}: {group.images}" for group in groups[:8])
    return Figure(graphic=graphic, alt=f"{what}. {said}", caption=what, size="half")


def more(number: int) -> tuple[Block, ...]:
    """How many more there are than LISTED."""
    return (Text(paragraphs=(f"… and {number - LISTED} more.",)),) if number > LISTED else ()


def percent(share: float) -> str:
    """A share that is not all never reads as 100 %, and one that is not nothing never as 0 %."""
    if not np.isfinite(share):
        return page.DASH
    shown = min(max(round(100 * share, 1), 0.1 if share > 0 else 0.0), 99.9 if share < 1 else 100.0)
    return f"{shown:g} %"
