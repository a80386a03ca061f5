"""Sections of the report that only a simulation can show: it alone sees every site's data."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common import page
from common.page import Figure, Section, Table, Text
from server.performance import HEADLINES, NAMES
from simulations.pictures import SCORE, Picture, draw, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_ONLY = "Visible in a simulation only."
_LINES = 6  # sites that a reader can tell apart by colour


def sections(summary: Mapping[str, Any], *, partition_figure: "Drawing", pictures: Sequence[Picture]) -> list[Section]:
    """What a summary with `sites`, and as far as they are there `comparison`, `seeds` and `per_site` in rounds, shows.

    Class names in the study's order are those of the sites' `per_class`. Without pictures there is no section of them.
    """
    classes = list(next(iter(summary["sites"].values()))["per_class"])
    found = [_data(summary["sites"], classes, partition_figure)]
    test = summary["final"].get("test", {})
    key = next((key for key in HEADLINES.values() if key in test), "loss")
    if "comparison" in summary:
        found.append(_gain(summary["comparison"], test, key))
    if any(r.get("per_site") for r in summary["rounds"]):
        found.append(_curves(summary["rounds"], key))
    if len(summary.get("seeds", ())) > 1:
        found.append(_seeds(summary["seeds"], summary.get("over_seeds", {}), key))
    if pictures:
        found.append(_examples(pictures, classes))
    return found


def _folded(table: Table) -> page.Block:
    return page.folded(table, summary=f"All {len(table.rows)} sites")


def _data(sites: Mapping[str, Any], classes: Sequence[str], drawing: "Drawing") -> Section:
    names = sorted(sites, key=page.natural)
    shown = list(classes) if len(classes) <= 10 else []

    def row(title: str, members: Sequence[str]) -> tuple[str | int, ...]:
        counts = [sum(sites[site][key] for site in members) for key in ("patients", "images")]
        return title, *counts, *(sum(sites[site]["per_class"].get(name, 0) for site in members) for name in shown)

    table = Table(
        caption="Patients, images, and images that show each class",
        columns=("Site", "Patients", "Images", *shown),
        rows=tuple(row(site, [site]) for site in names),
        totals=(row("All sites", names),),
    )
    alt = "; ".join(f"{site}: {sites[site]['images']} images" for site in names[:20])
    caption = "Images by site and class"
    figure = Figure(graphic=page.svg(drawing), alt=f"{caption}. {alt}.", caption=caption, size="wide")
    return Section(
        title="Who holds which data",
        lead=f"How unequal the sites are: how much each has, and of what. {_ONLY}",
        blocks=(figure, _folded(table)),
    )


def _gain(comparison: Mapping[str, Any], test: Mapping[str, Any], key: str) -> Section:
    pooled, alone = (comparison.get(name, {}).get("test", {}).get(key) for name in ("pooled", "alone_mean"))
    federated = test.get(key)
    rows = (("Each site alone, mean", alone), ("Federated", federated), ("All data in one place", pooled))
    common = Table(
        caption=f"{NAMES[key]} on the common test patients, after the same number of local steps",
        columns=("Training", NAMES[key], "Share of pooled"),
        rows=tuple((name, x, f"{x / pooled:.1%}" if x is not None and pooled else None) for name, x in rows),
    )
    blocks: list[page.Block] = [common]
    gain = comparison.get("gain", {})
    if gain.get("sites"):
        blocks += _by_site(gain)
    return Section(
        title="Was federating worth it?",
        lead=f"The shared model beside what each site reaches alone, and beside training on all data together. {_ONLY}",
        blocks=tuple(blocks),
    )


def _by_site(gain: Mapping[str, Any]) -> list[page.Block]:
    name = NAMES[gain["headline"]]
    sites = {site: gain["sites"][site] for site in sorted(gain["sites"], key=page.natural)}
    verdicts = [_verdict(site) for site in sites.values()]
    means = [
        statistics.fmean(known) if (known := [s[k] for s in sites.values() if s[k] is not None]) else None
        for k in ("alone", "federated", "difference")
    ]
    table = Table(
        caption=f"{name} on each site's own {gain['on']} patients, of the model trained there and the federated one",
        columns=("Site", "Patients", "Alone", "Federated", "Difference", "95 % interval", "Verdict"),
        rows=tuple(
            (site, s["patients"], s["alone"], s["federated"], page.signed(s["difference"]), _between(s), verdict)
            for (site, s), verdict in zip(sites.items(), verdicts, strict=True)
        ),
        totals=(
            (
                "Mean of sites",
                sum(s["patients"] for s in sites.values()),
                means[0],
                means[1],
                page.signed(means[2]),
                "",
                "",
            ),
        ),
        align="lrrrrrl",
    )
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in _VERDICTS if verdict in verdicts)
    forest = Figure(
        graphic=page.svg(_forest(sites, name)),
        alt=f"Difference federated minus alone by site: {counted}.",
        caption="Difference by site with its 95 % interval. Right of the line the federated model is better; where an "
        "interval crosses the line, the difference may be chance.",
        size="wide",
    )
    return [Text(paragraphs=(f"Of {len(sites)} sites on their own patients: {counted}.",)), _folded(table), forest]


_VERDICTS = {"better": "blue", "worse": "orange", "no clear difference": "grey", "not measurable": "grey"}


def _verdict(site: Mapping[str, Any]) -> str:
    low, high = site["low"], site["high"]
    if low is None or high is None:
        return "not measurable"
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


def _between(site: Mapping[str, Any]) -> str | None:
    if site["low"] is None or site["high"] is None:
        return None
    return f"{page.signed(site['low'])} to {page.signed(site['high'])}"


def _forest(sites: Mapping[str, Mapping[str, Any]], name: str) -> "Drawing":
    pitch = max(0.06, min(0.3, 10.0 / len(sites)))
    drawing, axes = page.plot(8.4, 0.7 + pitch * len(sites), xlabel=f"difference in {name}: federated − alone")
    axes.axvline(0, color=page.colour("ink"), linewidth=1)
    for row, site in enumerate(sites.values()):
        tint = page.colour(_VERDICTS[_verdict(site)])
        if site["low"] is not None and site["high"] is not None:
            axes.plot([site["low"], site["high"]], [row, row], color=tint, linewidth=1.6, solid_capstyle="butt")
        if site["difference"] is not None:
            axes.plot([site["difference"]], [row], "s", color=tint, markersize=6 if pitch > 0.15 else 3)
        else:
            axes.text(
                0,
                row,
                "  not measurable",
                color=page.colour("muted"),
                fontsize=8.5 if pitch > 0.16 else 6.5,
                va="center",
            )
    every = -(-len(sites) // 60)
    axes.set_yticks(
        range(0, len(sites), every),
        [page.short(site) for site in list(sites)[::every]],
        fontsize=9 if pitch > 0.16 else 6.5,
    )
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=page.colour("rule"), linewidth=0.7)
    return drawing


def _curves(rounds: Sequence[Mapping[str, Any]], key: str) -> Section:
    from matplotlib.ticker import MaxNLocator

    names = sorted({site for r in rounds for site in r.get("per_site", {})}, key=page.natural)
    after = [r["round"] - 1 for r in rounds]
    lines = {
        site: [math.nan if (x := r.get("per_site", {}).get(site, {}).get(key)) is None else float(x) for r in rounds]
        for site in names
    }
    drawing, axes = page.plot(10.6, 3.8, xlabel="after round", ylabel=NAMES[key])
    tints = ("blue", "orange", "teal", "purple", "grey", "ink")
    for position, (site, values) in enumerate(lines.items()):
        if len(names) <= _LINES:
            style = ("-", "--", "-.", ":")[position % 4]
            axes.plot(after, values, style, color=page.colour(tints[position]), linewidth=1.6, label=page.short(site))
        else:
            axes.plot(after, values, color=page.colour("grey"), linewidth=0.7, alpha=0.5)
    if len(names) > _LINES:
        columns = [[x for x in column if not math.isnan(x)] for column in zip(*lines.values(), strict=True)]
        medians = [statistics.median(column) if column else math.nan for column in columns]
        axes.plot(after, medians, color=page.colour("blue"), linewidth=2.2, label="median of sites")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, labelcolor=page.colour("ink"), ncols=3)
    figure = Figure(
        graphic=page.svg(drawing),
        alt=f"{NAMES[key]} of the shared model at {len(names)} sites by round.",
        caption=f"{NAMES[key]} of the shared model on each site's own validation patients",
        size="wide",
    )
    return Section(
        title="Site by site over the rounds",
        lead=f"Whether the shared model improves everywhere, or for some at the cost of others. {_ONLY}",
        blocks=(figure,),
    )


def _seeds(seeds: Sequence[Mapping[str, Any]], over: Mapping[str, Any], key: str) -> Section:
    parts = {"federated": "Federated", "pooled": "All data in one place", "alone_mean": "Each site alone, mean"}
    rows = [[_trained(entry, part).get("test", {}).get(key) for part in parts] for entry in seeds]
    if "federated_over_pooled" in over:
        parts["federated_over_pooled"] = "Federated over pooled"
        rows = [[*row, row[0] / row[1] if row[0] is not None and row[1] else None] for row in rows]
    known = [over.get(part, {}) for part in parts]
    ends = [f"{page.number(x['low'])} to {page.number(x['high'])}" if x.get("low") is not None else None for x in known]
    table = Table(
        caption=f"{NAMES[key]} on the common test patients",
        columns=("Seed", *parts.values()),
        rows=tuple((str(entry["seed"]), *row) for entry, row in zip(seeds, rows, strict=True)),
        totals=(("Mean", *(x.get("mean") for x in known)), ("95 % interval", *ends)),
    )
    return Section(
        title="How much is chance",
        lead=f"The whole simulation {len(seeds)} times, with other initial weights, partition and order of images. The "
        "interval is that of the mean over these repetitions (Student's t), not over patients.",
        blocks=(table,),
    )


def _trained(entry: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry["final"] if part == "federated" else entry.get("comparison", {}).get(part, {})
    return found


def _examples(pictures: Sequence[Picture], classes: Sequence[str]) -> Section:
    how = "Light blue, dashed: the truth. Orange: the model."
    if isinstance(pictures[0].truth, str):
        how = "Bars: the model's probabilities; the true class is blue, a wrong favourite orange."
    elif not hasattr(pictures[0].truth, "shape"):
        how += f" The number is the model's score; objects below {SCORE} are not drawn."
    tiles = tuple(
        Figure(
            graphic=page.svg(draw([replace(picture, caption="")], classes)),
            alt=f"{picture.caption}: {words(picture, classes)}",
            caption=picture.caption,
            size="tile",
        )
        for picture in pictures
    )
    return Section(
        title="Example images",
        lead=f"Test images with what the model makes of them. {how} {_ONLY}",
        blocks=tiles,
    )
