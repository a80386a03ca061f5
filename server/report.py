"""OUT/report.html: what was run, how well it went, who took part, and what the numbers do not say."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from common import page
from common.errors import Reason, RunError
from common.page import Figure, Fold, Note, Numbers, Section, Table, Text
from server.checkpoint import write_atomically
from server.events import Event, effective, read
from server.events import summary as summary_of

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
_MEANING = {
    "auc": "AUC is the chance that an image with the finding gets a higher score than one without it: 0.5 is guessing, "
    "1 is perfect. With several classes it is the mean over classes, each against the rest.",
    "dice": "Dice measures how far the drawn outline covers the true one: 0 is no overlap, 1 is the same outline. "
    "It is the mean over images and classes.",
    "map50": "mAP@50 says how completely and cleanly objects are found, where a box counts from 50 % overlap (IoU): "
    "0 is none, 1 is every object and no false alarm. It is the mean over classes.",
}
_PURPOSE = {"classification": "tell apart", "segmentation": "outline", "detection": "find and box"}
_MODELS = {
    "cnn": "small convolutional network (cnn)",
    "resnet18": "ResNet-18",
    "unet": "U-Net",
    "retinanet": "RetinaNet",
    "fasterrcnn": "Faster R-CNN",
}
_REASONS: dict[str, str] = {
    Reason.OFFLINE: "offline",
    Reason.LATE: "too late with its answer",
    Reason.MALFORMED: "its answer broke the protocol",
    Reason.FAILED: "training failed there",
    Reason.NOT_APPROVED: "refused, the study is not approved there",
    Reason.POLICY: "refused, the study goes beyond the hospital's own limits",
    Reason.BUDGET: "refused, its privacy budget is spent",
    Reason.STUDY_CHANGED: "refused, the study had changed",
    Reason.WIRE_VERSION: "refused, its Fedward speaks another version",
    Reason.ROSTER: "refused, not on the roster",
}
_STATES = (("took part", "tint"), ("offline", "grey"), ("late", "orange"), ("failed", "purple"), ("refused", "blue"))
_COLUMNS = 100  # of the participation figure; more rounds share a column
_MANY = 12  # sites or lines beyond which a list is folded
_SIMULATIONS = ("inprocess", "ray")


def write(out: Path, extra: Sequence[Section] = ()) -> None:
    """OUT/report.html from OUT/events.jsonl and, where there is one, OUT/summary.json; `extra` goes after the curves.

    Guarantees: written whole or not at all. Raises: RunError when a file can't be read or written.
    """
    events = read(out / "events.jsonl")
    summary = summary_of(events)
    if (out / "summary.json").exists():
        try:
            summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{out / 'summary.json'}: can't be read: remove it to report from events alone") from error
    own = sections(summary, events)
    after = next(position for position, section in enumerate(own) if section.title == _PARTICIPATION)
    started = effective(events)[0]
    text = page.render(
        started["study"]["study"]["name"],
        f"Report of a federated run: {_purpose(started['study'])}.",
        [*own[:after], *extra, *own[after:]],
        footer=f"Written by Fedward from a run's events. Run {started['run']}, study SHA-256 {started['study_hash']}.",
    )
    write_atomically(out / "report.html", [text.encode()])


def sections(summary: Mapping[str, Any], events: Sequence[Event]) -> list[Section]:
    """What the coordinator may show: nothing that a site did not send. `events` as `read` gives them."""
    counted = effective(events)
    study = counted[0]["study"]
    return [
        _result(summary, study, counted),
        _study(study, counted),
        *_classes(summary, study),
        _curves(summary, study),
        _participation(summary, counted),
        _traffic(summary, counted),
        _limits(counted[0]["backend"]),
    ]


def _purpose(study: Mapping[str, Any]) -> str:
    model, task = _MODELS[study["model"]["name"]], study["study"]["task"]
    return f"a {model} learns to {_PURPOSE[task]} {listed(study['study']['classes'])}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a sentence: "a, b and c"; beyond `most` the rest is counted."""
    shown = list(names)
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else "none"


def _sites(counted: Sequence[Event]) -> list[str]:
    return sorted(counted[0]["sites"], key=page.natural)


def _result(summary: Mapping[str, Any], study: Mapping[str, Any], counted: Sequence[Event]) -> Section:
    agreement, rounds, final = study["study"], summary["rounds"], summary["final"]
    key = HEADLINES[agreement["task"]]
    sites = _sites(counted)
    tiles = [
        (f"{NAMES[key]} on {pool}", page.number(final[name].get(key)), _images(final[name]))
        for name, pool in (("test", "test patients"), ("val", "validation patients"))
        if name in final
    ]
    present = [len(r["participants"]) for r in rounds]
    tiles.append(("Rounds", f"{len(rounds)} of {agreement['rounds']}", f"in {page.duration(_elapsed(counted))}"))
    remark = f"{min(present)} to {max(present)} in a round" if present else ""
    if present and min(present) == len(sites):
        remark = "all of them in every round"
    tiles.append(("Sites", page.number(len(sites)), remark))
    state: list[page.Block] = []
    if counted[-1]["event"] == "stopped":
        state = [Note(text=f"The run stopped early: {counted[-1]['reason']}", tone="warning")]
    elif counted[-1]["event"] != "finished":
        state = [Note(text="The run has not finished: these are its results so far.", tone="warning")]
    return Section(
        title="At a glance",
        lead="The final model on patients it was not trained on, and how much of the plan was carried out.",
        blocks=(*state, Numbers(items=tuple(tiles)), Text(paragraphs=(_MEANING[key],))),
    )


def _images(metrics: Mapping[str, Any]) -> str:
    return f"{page.number(metrics['images'])} images" if "images" in metrics else ""


def _elapsed(counted: Sequence[Event]) -> float:
    """Seconds of work: from event to event, without the time that a stopped run lay still."""
    return sum(float(b["time"] - a["time"]) for a, b in pairwise(counted) if b["event"] != "resumed")


def _study(study: Mapping[str, Any], counted: Sequence[Event]) -> Section:
    agreement, model, training, aggregation = (study[k] for k in ("study", "model", "training", "aggregation"))
    height, width = model["image_size"]
    length = page.counted(training["local_steps"] or 0, "step")
    if training["local_epochs"]:
        length = f"{page.counted(training['local_epochs'], 'pass', 'passes')} over its images"
    colours = "grey" if model["channels"] == 1 else "colour"
    shares = "{:.0%} training, {:.0%} validation, {:.0%} test".format(*agreement["split"])
    quorum = page.counted(agreement["min_sites"], "site")
    start = datetime.fromtimestamp(counted[0]["time"], UTC)
    rows = (
        ("Task", f"{agreement['task']} of {listed(agreement['classes'], 24)}"),
        ("Model", f"{_MODELS[model['name']]} on {colours} images of {width} × {height} pixels"),
        ("Start", "a pre-trained file" if model["pretrained_sha256"] else "random weights"),
        ("Rounds", f"{agreement['rounds']}; in each a site makes {length}, {training['batch_size']} images at a time"),
        (
            "Local training",
            f"{training['optimizer']}, learning rate {training['learning_rate']:g} ({training['schedule']})",
        ),
        ("Class balance", training["class_balance"]),
        ("Augmentation", training["augmentation"]),
        ("Joined by", f"{aggregation['algorithm']}; a site counts by {_WEIGHTS[aggregation['weights']]}"),
        ("Final model", _SELECT[agreement["select"]]),
        ("Quorum", f"{quorum}; each may take {page.duration(agreement['round_deadline'])} in a round"),
        ("Patients", f"{shares}; where the data bring a test set, that one instead; no patient is in two"),
        ("Sites", listed(_sites(counted), 40)),
        ("Backend", counted[0]["backend"]),
        ("Started", f"{start:%Y-%m-%d %H:%M} UTC"),
    )
    return Section(
        title="What was run",
        lead="What the sites agreed on before the first round. The study's hash, at the page's end, covers all of it.",
        blocks=(Table(caption="The study in words", columns=(), rows=rows, align="ll"),),
    )


_WEIGHTS = {"images": "its number of training images", "patients": "its number of training patients", "equal": "one"}
_SELECT = {"last": "the last round's", "best": "the round's that did best on validation patients"}


_CLASS_COLUMNS = {
    "classification": {"support": "Images", "auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity"},
    "segmentation": {"support": "Images with it", "dice": "Dice", "iou": "IoU"},
    "detection": {"support": "Objects", "ap50": "AP@50", "ap": "AP@[50:95]"},
}


def _classes(summary: Mapping[str, Any], study: Mapping[str, Any]) -> list[Section]:
    """Nothing before there are final metrics."""
    final, task = summary["final"], study["study"]["task"]
    pool = "test" if final.get("test", {}).get("per_class") else "val"
    metrics = final.get(pool, {})
    if not metrics.get("per_class"):
        return []
    where = {"test": "test patients", "val": "validation patients"}
    columns = _CLASS_COLUMNS[task]
    classes = [name for name in study["study"]["classes"] if name in metrics["per_class"]]
    per_class = Table(
        caption=f"The final model on {where[pool]}, class by class",
        columns=("Class", *columns.values()),
        rows=tuple((name, *(metrics["per_class"][name].get(key) for key in columns)) for name in classes),
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


def _curves(summary: Mapping[str, Any], study: Mapping[str, Any]) -> Section:
    key = HEADLINES[study["study"]["task"]]
    best = study["study"]["select"] == "best"
    figures = tuple(
        Figure(
            graphic=page.svg(_curve(summary, name, joined=not best)),
            alt=_spoken(summary, name),
            caption=f"{NAMES[name]} on validation patients after each round: {better}.",
        )
        for name, better in ((key, "higher is better"), ("loss", "lower is better"))
    )
    return Section(
        title="Round by round",
        lead="How the shared model improved. Round 0 is the model before any training; a gap is a round without any.",
        blocks=figures,
    )


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


_PARTICIPATION = "Who took part"


def _participation(summary: Mapping[str, Any], counted: Sequence[Event]) -> Section:
    rounds, sites = summary["rounds"], _sites(counted)
    missed = {site: {r["round"]: r["absent"][site] for r in rounds if site in r["absent"]} for site in sites}
    sentences = [_absences(site, reasons, len(rounds)) for site, reasons in missed.items() if reasons]
    sentences += [_attempt(event) for event in counted if event["event"] == "retry"]
    steady = sum(not reasons for reasons in missed.values())
    full = f"{steady} of {len(sites)} sites took part in all {len(rounds)} rounds."
    blocks: list[page.Block] = [Text(paragraphs=(full,))]
    if rounds:
        share = -(-len(rounds) // _COLUMNS)
        caption = "One row per site, one column per round."
        if share > 1:
            caption = f"One row per site, one column per {share} rounds, absent where it missed half of them or more."
        blocks.append(Figure(graphic=page.svg(_grid(sites, rounds, share)), alt=full, caption=caption, size="wide"))
    if sentences:
        words = Text(paragraphs=tuple(sentences), listed=True)
        folded = Fold(summary=f"All absences in words ({len(sentences)})", blocks=(words,))
        blocks.append(words if len(sentences) <= _MANY else folded)
    return Section(
        title=_PARTICIPATION,
        lead="Which sites contributed to each round, and why the others did not. The server learns only a reason code.",
        blocks=tuple(blocks),
    )


def _absences(site: str, reasons: Mapping[int, str], rounds: int) -> str:
    by_reason: dict[str, list[int]] = defaultdict(list)
    for number, reason in reasons.items():
        by_reason[reason].append(number)
    parts = [f"{_REASONS.get(reason, reason)} in {_spans(numbers)}" for reason, numbers in by_reason.items()]
    return f"{site} took part in {rounds - len(reasons)} of {rounds} rounds: {'; '.join(parts)}."


def _attempt(event: Event) -> str:
    causes = Counter(event["absent"].values())
    parts = [f"{count} {_REASONS.get(reason, reason)}" for reason, count in causes.items()]
    return f"Round {event['round']}, attempt {event['attempt']} missed the quorum and was repeated: {', '.join(parts)}."


def _spans(numbers: Sequence[int]) -> str:
    """Rounds in words: "rounds 3, 5–7 and 12"; beyond six spans the rest is counted."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(a) if a == b else f"{a}–{b}" for a, b in spans]
    return f"{'round' if len(numbers) == 1 else 'rounds'} {listed(words, 7)}"


def _state(reason: str) -> str:
    if reason.startswith("refused"):
        return "refused"
    return reason if reason in ("offline", "late") else "failed"


def _grid(sites: Sequence[str], rounds: Sequence[Mapping[str, Any]], share: int) -> Any:
    """Rows of sites, columns of `share` rounds: one shape per state, runs of equal columns joined."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    columns = [rounds[start : start + share] for start in range(0, len(rounds), share)]
    runs: dict[str, list[list[int]]] = defaultdict(list)  # state: [row, first column, column after the last]
    for row, site in enumerate(sites):
        before = ""
        for column, group in enumerate(columns):
            absent = Counter(_state(r["absent"][site]) for r in group if site in r["absent"])
            state = absent.most_common(1)[0][0] if 2 * absent.total() >= len(group) else "took part"
            if state == before:
                runs[state][-1][2] = column + 1
            else:
                runs[state].append([row, column, column + 1])
            before = state
    pitch = max(0.05, min(0.24, 9.0 / len(sites)))
    drawing, axes = page.plot(10.6, 0.9 + pitch * len(sites), xlabel="round")
    for state, name in _STATES:
        shapes = [
            Outline([(x0, y), (x1, y), (x1, y + 0.8), (x0, y + 0.8), (x0, y)], closed=True) for y, x0, x1 in runs[state]
        ]
        if shapes:
            whole = Outline.make_compound_path(*shapes)
            axes.add_patch(PathPatch(whole, facecolor=page.colour(name), linewidth=0, label=state))
    every = -(-len(sites) // 60)
    axes.set_yticks(
        [row + 0.4 for row in range(0, len(sites), every)],
        [page.short(site) for site in sites[::every]],
        fontsize=8.5 if pitch > 0.16 else 6.5,
    )
    steps = max(1, -(-len(columns) // 20))
    axes.set_xticks([c + 0.5 for c in range(0, len(columns), steps)], [str(g[0]["round"]) for g in columns[::steps]])
    axes.set(xlim=(0, len(columns)), ylim=(len(sites), -0.2))
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=9, handlelength=1, handleheight=1,
        borderpad=0, borderaxespad=0.4, labelcolor=page.colour("ink"),
    )  # fmt: skip
    return drawing


def _traffic(summary: Mapping[str, Any], counted: Sequence[Event]) -> Section:
    rounds, sites = summary["rounds"], _sites(counted)

    def total(key: str, site: str) -> int:
        return sum(r[key].get(site, 0) for r in rounds)

    rows: list[tuple[page.Cell, ...]] = []
    for site in sites:
        seconds = [r["seconds"]["sites"][site] for r in rounds if site in r["seconds"].get("sites", {})]
        took = sum(site in r["participants"] for r in rounds)
        sizes = (page.amount(total(key, site)) for key in ("bytes_down", "bytes_up"))
        rows.append((site, took, *sizes, page.duration(sum(seconds) if seconds else None)))
    down, up = (sum(total(key, site) for site in sites) for key in ("bytes_down", "bytes_up"))
    slowest = [r["seconds"]["train"] for r in rounds if r["seconds"].get("train") is not None]
    table = Table(
        caption="By site, over all rounds that count",
        columns=("Site", "Rounds", "Received", "Sent", "Time it worked"),
        rows=tuple(rows),
        totals=(("All sites", "", page.amount(down), page.amount(up), ""),),
    )
    tiles = (
        ("Whole run", page.duration(_elapsed(counted)), ""),
        ("Slowest site in a round", page.duration(median(slowest) if slowest else None), "median over rounds"),
        ("Sent by all sites", page.amount(up), "to the server"),
        ("Received by all sites", page.amount(down), "from the server"),
    )
    blocks = table if len(sites) <= _MANY else Fold(summary=f"All {len(sites)} sites", blocks=(table,))
    return Section(
        title="Time and traffic",
        lead="What the run cost in hours and on the line. 1 MB is a million bytes; repeated attempts are not counted.",
        blocks=(Numbers(items=tiles), blocks),
    )


def _limits(backend: str) -> Section:
    points = [
        "No differential privacy was used. The model, and figures that rest on few images, can carry traces of single "
        "patients: keep the model as confidential as the images that it was trained on.",
        "No secure aggregation was used. The server saw each site's update in the clear, and from such an update a "
        "determined operator can learn something about the images behind it. Sites that took part trusted the server.",
        "The figures hold for patients like those of these sites. Another hospital, scanner or referral pattern can be "
        "different, and no figure here says how it would go.",
        "There is no interval beside the figures in this part. With few test images a difference in the second decimal "
        "place is chance; the counts beside the figures tell how much they rest on.",
        "Sites report counts in score bins, never single scores, so the figures by round are exact to about 0.005.",
        "This is a research result. It is no medical device and no ground for the care of a patient.",
    ]
    if backend in _SIMULATIONS:
        points.insert(0, "This was a simulation: one computer played all sites, and no hospital took part.")
    else:
        points.insert(
            0, "No image, label or patient identifier left a site; model updates and sums for the figures did."
        )
    return Section(
        title="What this report does not say",
        lead="Read this before the result is used or passed on.",
        blocks=(Text(paragraphs=tuple(points), listed=True),),
    )
