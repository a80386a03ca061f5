"""The report's account of how well the model does: names of the figures, class by class, and round by round."""

from collections.abc import Mapping
from typing import Any

from common import page
from common.page import Figure, Note, Section, Table, Text

HEADLINES = {"classification": "auc", "segmentation": "dice", "detection": "map50"}
NAMES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "dice": "Dice",
    "iou": "IoU",
    "dice_pooled": "Dice over all pixels together",
    "map50": "mAP@50",
    "map": "mAP@[50:95]",
    "loss": "Loss",
    "images": "Images",
}
MEANING = {
    "auc": "AUC is the chance that an image with the finding gets a higher score than one without it: 0.5 is guessing, "
    "1 is perfect. With several classes it is the mean over classes, each against the rest.",
    "dice": "Dice measures how far the drawn outline covers the true one: 0 is no overlap, 1 is the same outline. "
    "It is the mean over images and classes.",
    "map50": "mAP@50 says how completely and cleanly objects are found, where a box counts from 50 % overlap (IoU): "
    "0 is none, 1 is every object and no false alarm. It is the mean over classes.",
}
_CLASS_COLUMNS = {
    "classification": {"support": "Images", "auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity"},
    "segmentation": {"support": "Images with it", "dice": "Dice", "iou": "IoU"},
    "detection": {"support": "Objects", "ap50": "AP@50", "ap": "AP@[50:95]"},
}


def classes(summary: Mapping[str, Any], study: Mapping[str, Any]) -> list[Section]:
    """The final model, class by class; nothing before there are final metrics."""
    final, task = summary["final"], study["study"]["task"]
    pool = "test" if final.get("test", {}).get("per_class") else "val"
    metrics = final.get(pool, {})
    if not metrics.get("per_class"):
        return []
    where = {"test": "test patients", "val": "validation patients"}
    columns = _CLASS_COLUMNS[task]
    known = [name for name in study["study"]["classes"] if name in metrics["per_class"]]
    per_class = Table(
        caption=f"The final model on {where[pool]}, class by class",
        columns=("Class", *columns.values()),
        rows=tuple((name, *(metrics["per_class"][name].get(key) for key in columns)) for name in known),
    )
    names = [key for key in NAMES if any(key in final.get(p, {}) for p in where)]
    everything = Table(
        caption="All figures of the final model",
        columns=("", *(where[p].capitalize() for p in where if p in final)),
        rows=tuple((NAMES[key], *(final[p].get(key) for p in where if p in final)) for key in names),
    )
    blocks: list[page.Block] = [per_class]
    sentences = [text for point in _points(metrics) if (text := _clinical(point, metrics["per_class"]))]
    if sentences:
        blocks.append(Text(paragraphs=tuple(sentences), listed=len(sentences) > 1))
        blocks.append(Note(text="Thresholds were read off these same images: on new ones expect somewhat less."))
    return [
        Section(
            title="Class by class",
            lead="How well each class is recognised. With few images a figure means little.",
            blocks=(*blocks, everything),
        )
    ]


def _points(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Operating points: at most one for two classes, else a list."""
    found: Any = metrics.get("operating_point") or []
    return [found] if isinstance(found, Mapping) else list(found)


def _clinical(point: Mapping[str, Any], per_class: Mapping[str, Any]) -> str:
    """An operating point in natural frequencies; empty where a number is absent."""
    name = point["class"]
    threshold, sensitivity, specificity = (point.get(key) for key in ("threshold", "sensitivity", "specificity"))
    if threshold is None or sensitivity is None or specificity is None:
        return ""
    text = (
        f"At a threshold of {threshold:.2f} the model finds {100 * sensitivity:.0f} of 100 images that show “{name}” "
        f"and wrongly flags {100 * (1 - specificity):.0f} of 100 that do not."
    )
    counts = {key: (values.get("support") or 0) for key, values in per_class.items()}
    true, false = sensitivity * counts.get(name, 0), (1 - specificity) * (sum(counts.values()) - counts.get(name, 0))
    if true + false > 0:
        share = counts[name] / sum(counts.values())
        text += (
            f" Of 100 images that it flags, {100 * true / (true + false):.0f} really show it where, as here, "
            f"{100 * share:.0f} of 100 images do; where it is rarer, more of the flags are wrong."
        )
    return text


def curves(summary: Mapping[str, Any], study: Mapping[str, Any]) -> list[Section]:
    """The headline metric and the loss on validation patients, round by round; nothing before the first round, or where
    none were seen, as in a deployment under `[privacy]`.
    """
    if not summary["rounds"]:
        return []
    key = HEADLINES[study["study"]["task"]]
    best = study["study"]["select"] == "best"
    figures = tuple(
        Figure(
            graphic=page.svg(_curve(summary, name, joined=not best)),
            alt=_spoken(summary, name),
            caption=f"{NAMES[name]} on validation patients after each round: {better}.",
        )
        for name, better in ((key, "higher is better"), ("loss", "lower is better"))
        if study.get("privacy") is None or any(value == value for value in _values(summary, name)[1])
    )
    if not figures:
        return []
    lead = "How the shared model improved. Round 0 is the model before any training; a gap is a round without any."
    if any(r["metrics"].get("source") == "simulation" for r in summary["rounds"]):
        lead += " Visible in a simulation only: under differential privacy no site says how well it goes."
    return [Section(title="Round by round", lead=lead, blocks=figures)]


def _values(summary: Mapping[str, Any], name: str) -> tuple[list[int], list[float]]:
    """Rounds after which, and the values, NaN where absent: a round's metrics are of the weights that entered it."""
    after = [r["round"] - 1 for r in summary["rounds"]]
    values = [r["metrics"].get("val", {}).get(name) for r in summary["rounds"]]
    return after, [float("nan") if value is None else value for value in values]


def _curve(summary: Mapping[str, Any], name: str, *, joined: bool) -> Any:
    from matplotlib.ticker import MaxNLocator

    after, values = _values(summary, name)
    final = summary["final"].get("val", {}).get(name)
    last = after[-1] + 1 if after else 0
    if final is not None and joined:
        after, values = [*after, last], [*values, final]
    drawing, axes = page.plot(5.0, 3.0, xlabel="after round", ylabel=NAMES[name])
    marker = "o" if len(after) <= 30 else None
    axes.plot(
        after, values, color=page.colour("blue"), linewidth=1.8, marker=marker, markersize=3.5, label="validation"
    )
    test = summary["final"].get("test", {}).get(name)
    if test is not None:
        axes.plot(
            [last], [test], "D", color=page.colour("orange"), markersize=6, label="test, final model", clip_on=False
        )
    if final is not None and not joined:
        axes.plot(
            [last],
            [final],
            "s",
            color=page.colour("blue"),
            markersize=6,
            label="validation, final model",
            clip_on=False,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.03, y=0.12)
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=page.colour("ink"))
    return drawing


def _spoken(summary: Mapping[str, Any], name: str) -> str:
    known = [(x, y) for x, y in zip(*_values(summary, name), strict=True) if y == y]
    if not known:
        return f"{NAMES[name]}: no values."
    (x0, y0), (x1, y1) = known[0], known[-1]
    return f"{NAMES[name]} on validation patients: {y0:.3f} after round {x0}, {y1:.3f} after round {x1}."
