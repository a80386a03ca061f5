"""OUT/report.html: what was run, how well it went, who took part, and what the numbers do not say."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from common import page
from common.errors import RunError
from common.page import Note, Numbers, Section, Table, Text
from server import participation, performance, protection
from server.checkpoint import write_atomically
from server.events import Event, anchors, effective, read
from server.events import summary as summary_of
from server.performance import HEADLINES, MEANING, NAMES

_PURPOSE = {"classification": "tell apart", "segmentation": "outline", "detection": "find and box"}
_MODELS = {
    "cnn": "small convolutional network (cnn)",
    "scatter": "linear model on fixed scattering features",
    "resnet18": "ResNet-18",
    "unet": "U-Net",
    "retinanet": "RetinaNet",
    "fasterrcnn": "Faster R-CNN",
}
_WEIGHTS = {
    "images": "its number of training images",
    "patients": "its number of training patients",
    "nominal": "the number of patients that it has declared",
    "equal": "one",
}
_SELECT = {
    "last": "the last round's",
    "best": "the round's that did best on validation patients",
    "average": "the mean of the weights after each round of the later half",
}
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
    after = next(position for position, section in enumerate(own) if section.title == participation.TITLE)
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
    logs = anchors(events)
    return [
        _result(summary, study, counted),
        _study(study, counted),
        *performance.classes(summary, study),
        *performance.curves(summary, study),
        *protection.sections(summary),
        participation.section(summary, counted, _sites(counted)),
        _traffic(summary, counted),
        *([_logs(logs)] if logs else []),
        _limits(counted[0]["backend"], private=study.get("privacy") is not None, secure=_secure(study)),
    ]


def _purpose(study: Mapping[str, Any]) -> str:
    model, task = _MODELS[study["model"]["name"]], study["study"]["task"]
    return f"a {model} learns to {_PURPOSE[task]} {page.listed(study['study']['classes'])}"


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
        blocks=(*state, Numbers(items=tuple(tiles)), Text(paragraphs=(MEANING[key],))),
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
    shares += "; where the data bring a test set, that one instead"
    if study.get("privacy") is not None:
        shares = "training, validation and test as each site's privacy ledger has fixed for good"
    quorum = page.counted(agreement["min_sites"], "site")
    start = datetime.fromtimestamp(counted[0]["time"], UTC)
    rows = (
        ("Task", f"{agreement['task']} of {page.listed(agreement['classes'], 24)}"),
        ("Model", f"{_MODELS[model['name']]} on {colours} images of {width} × {height} pixels"),
        ("Start", "a pre-trained file" if model["pretrained_sha256"] else "random weights"),
        ("Rounds", f"{agreement['rounds']}; in each a site makes {length}, {_drawn(study)}"),
        (
            "Local training",
            f"{training['optimizer']}, learning rate {training['learning_rate']:g} ({training['schedule']})",
        ),
        ("Class balance", _balance(training)),
        ("Augmentation", training["augmentation"]),
        ("Joined by", f"{aggregation['algorithm']}; a site counts by {_WEIGHTS[aggregation['weights']]}"),
        ("Encryption", _encryption(aggregation, counted)),
        ("Final model", _SELECT[agreement["select"]]),
        ("Quorum", f"{quorum}; each may take {page.duration(agreement['round_deadline'])} in a round"),
        ("Patients", f"{shares}; no patient is in two"),
        ("Sites", page.listed(_sites(counted), 40)),
        ("Backend", counted[0]["backend"]),
        ("Started", f"{start:%Y-%m-%d %H:%M} UTC"),
    )
    return Section(
        title="What was run",
        lead="What the sites agreed on before the first round. The study's hash, at the page's end, covers all of it.",
        blocks=(Table(caption="The study in words", columns=(), rows=rows, align="ll"),),
    )


def _balance(training: Mapping[str, Any]) -> str:
    released = training["class_prior"] == "released"
    return f"{training['class_balance']}{', by a released histogram of the classes' if released else ''}"


def _encryption(aggregation: Mapping[str, Any], counted: Sequence[Event]) -> str:
    """Whether the server saw updates, and what encoding them cut off."""
    if not aggregation.get("secure"):
        return "none: the server sees each site's update"
    cut = sum(event.get("saturated", 0) for event in counted if event["event"] == "round")
    text = f"updates are masked; changes of a weight up to {aggregation['range']:g}, in {aggregation['lanes']} lanes"
    return f"{text}; {cut} values were larger and cut off" if cut else f"{text}; no value was larger"


def _drawn(study: Mapping[str, Any]) -> str:
    """On what a step is made."""
    privacy = study.get("privacy")
    if privacy is None:
        return f"{study['training']['batch_size']} images at a time"
    return (
        f"each on patients drawn with probability {privacy['sample_rate']:g} and at most "
        f"{page.counted(privacy['images_per_patient'], 'image')} of each"
    )


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
        columns=("Site", "Rounds", "Received", "Sent", "Waited for it"),
        rows=tuple(rows),
        totals=(("All sites", "", page.amount(down), page.amount(up), ""),),
    )
    tiles = (
        ("Whole run", page.duration(_elapsed(counted)), ""),
        ("Slowest site in a round", page.duration(median(slowest) if slowest else None), "median over rounds"),
        ("Sent by all sites", page.amount(up), "to the server"),
        ("Received by all sites", page.amount(down), "from the server"),
    )
    return Section(
        title="Time and traffic",
        lead="What the run cost in hours and on the line. 1 MB is a million bytes; repeated attempts are not counted.",
        blocks=(Numbers(items=tiles), page.folded(table, summary=f"All {len(sites)} sites")),
    )


def _logs(logs: Mapping[str, str]) -> Section:
    """What the coordinator holds against each hospital's own account of the run."""
    table = Table(
        caption="Each site's last signed statement: the number of a line of its audit log, and the line's SHA-256",
        columns=("Site", "Line"),
        rows=tuple((site, logs[site]) for site in sorted(logs, key=page.natural)),
        align="ll",
    )
    return Section(
        title="What the sites wrote down",
        lead="A site whose log does not contain this line has cut or rewritten it: `client audit verify SITE --anchor "
        "LINE` tells.",
        blocks=(page.folded(table, summary=f"All {len(logs)} sites"),),
    )


def _secure(study: Mapping[str, Any]) -> bool:
    return bool(study["aggregation"].get("secure"))


def _limits(backend: str, *, private: bool, secure: bool) -> Section:
    points = [
        "Differential privacy limits what the model and the figures tell about one patient; it does not make them "
        "anonymous in every sense of the law. Ask the hospitals' privacy officers before either is passed on."
        if private
        else "No differential privacy was used. The model, and figures that rest on few images, can carry traces of "
        "single patients: keep the model as confidential as the images that it was trained on.",
        "Updates were encrypted: the server read sums over sites, and of no site anything. Not hidden are who took "
        "part, when, how many bytes and which reasons were given, and what the sum itself tells; a site can also send "
        "any numbers it likes, and the masks hide who did."
        if secure
        else "No secure aggregation was used. The server saw each site's update in the clear, and from such an update "
        "a determined operator can learn something about the images behind it. Sites that took part trusted the "
        "server.",
        "The figures hold for patients like those of these sites. Another hospital, scanner or referral pattern can be "
        "different, and no figure here says how it would go.",
        "There is no interval beside the figures in this part. With few test images a difference in the second decimal "
        "place is chance; the counts beside the figures tell how much they rest on.",
        "Sites report counts in score bins, never single scores, so the figures by round are exact to about 0.005.",
        "This is a research result. It is no medical device and no ground for the care of a patient.",
    ]
    if backend in _SIMULATIONS:
        points.insert(0, "This was a simulation: one computer played all sites, and no hospital took part.")
        if private:
            points.insert(
                1,
                "The exact figures and curves were taken beside the federation, on patients that no deployment could "
                "look at; there, only what the study releases would be seen. The sites' declared numbers of patients "
                "are the true ones, rounded to one digit.",
            )
    else:
        points.insert(
            0, "No image, label or patient identifier left a site; model updates and sums for the figures did."
        )
    return Section(
        title="What this report does not say",
        lead="Read this before the result is used or passed on.",
        blocks=(Text(paragraphs=tuple(points), listed=True),),
    )
