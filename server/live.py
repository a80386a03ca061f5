"""What the live page shows of a run: where it is now, each site, each round, curves, traffic, privacy spent."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from common import page
from common.page import Figure, Note, Numbers, Section, Table, Text
from server import participation, performance, protection
from server.events import Event, anchors, effective, name_of, summary
from server.performance import HEADLINES, NAMES

SHOWN = 12  # rounds of the table, the newest first
_DONE = {"finished": "finished", "stopped": "stopped"}


def state(events: Sequence[Event]) -> tuple[str, float]:
    """What the run is doing, in words, and since when (seconds since 1970)."""
    counted = effective(events)
    last, rounds = counted[-1], _rounds(counted)
    if last["event"] in _DONE:
        return _DONE[last["event"]], last["time"]
    total = counted[0]["study"]["study"]["rounds"]
    if last["event"] == "final":
        return "writing the model", last["time"]
    if len(rounds) >= total:
        return "evaluating the final model", last["time"]
    released = counted[0]["study"]["training"]["class_prior"] == "released"
    if released and all(event["event"] != "counted" for event in counted):
        return "counting the classes, with noise", last["time"]
    attempt = f", attempt {last['attempt'] + 1}" if last["event"] == "retry" else ""
    return f"round {len(rounds) + 1} of {total} is open{attempt}", last["time"]


def sections(events: Sequence[Event]) -> list[Section]:
    """The page's sections, what changes most first. Raises RunError without a `started` event."""
    counted, found = effective(events), summary(events)
    study = counted[0]["study"]
    sites = sorted(counted[0]["sites"], key=page.natural)
    shown: list[Section] = [_now(found, study, counted, sites), *performance.curves(found, study)]
    if found["rounds"]:
        shown += [_closed(found, study), participation.section(found, counted, sites), _traffic(found)]
    return [*shown, *protection.sections(found)]


def _rounds(counted: Sequence[Event]) -> list[Event]:
    return [event for event in counted if event["event"] == "round"]


def _now(found: Mapping[str, Any], study: Mapping[str, Any], counted: Sequence[Event], sites: Sequence[str]) -> Section:
    rounds, total = found["rounds"], study["study"]["rounds"]
    tiles = [("Rounds closed", f"{len(rounds)} of {total}", _left(rounds, total))]
    tiles += _headline(found, study)
    if rounds:
        present = rounds[-1]["participants"]
        tiles.append(("Sites in the last round", f"{len(present)} of {len(sites)}", ""))
        tiles.append(("Moved in the last round", page.amount(sum(_moved(rounds[-1]))), "down and up, all sites"))
    if privacy := found.get("privacy"):
        spent = max(site["epsilon_charged"] for site in privacy.values())
        promised = next(iter(privacy.values()))["epsilon"]
        tiles.append(("Epsilon spent", f"{spent:.2f} of {promised:g}", "at least, at the site that spent most"))
    blocks: list[page.Block] = []
    last = counted[-1]
    if last["event"] == "stopped":
        blocks.append(Note(text=f"The run stopped: {last['reason']}", tone="warning"))
    elif last["event"] == "retry":
        absent = "; ".join(f"{site}: {participation.in_words(why)}" for site, why in sorted(last["absent"].items()))
        name = name_of(last["round"])
        text = f"{name[:1].upper()}{name[1:]}, attempt {last['attempt']} had too few sites and is repeated. {absent}"
        blocks.append(Note(text=text, tone="warning"))
    return Section(
        title="Now",
        lead="Rounds appear as they close. A site's absence has one of a few reasons; more the server never learns.",
        blocks=(*blocks, Numbers(items=tuple(tiles)), _sites(found, counted, sites)),
    )


def _headline(found: Mapping[str, Any], study: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The study's figure of merit as it stands; nothing where none may be seen."""
    key = HEADLINES[study["study"]["task"]]
    final = found["final"].get("test", {}).get(key)
    if final is not None:
        return [(f"{NAMES[key]}, final model", page.number(final), "on test patients")]
    values = [value for r in found["rounds"] if (value := r["metrics"].get("val", {}).get(key)) is not None]
    if not values:
        return []
    change = f"{page.signed(values[-1] - values[-2])} since the round before; " if len(values) > 1 else ""
    return [(NAMES[key], page.number(values[-1]), f"{change}validation patients")]


def _left(rounds: Sequence[Mapping[str, Any]], total: int) -> str:
    """How long the rest will take if it goes on as before."""
    seconds = [r["seconds"]["train"] for r in rounds if r["seconds"].get("train")]
    if not seconds or len(rounds) >= total:
        return ""
    return f"about {page.duration(median(seconds) * (total - len(rounds)))} left"


def _sites(found: Mapping[str, Any], counted: Sequence[Event], sites: Sequence[str]) -> page.Block:
    """One line a site: how it stood when it was last heard of or missed."""
    outcomes = [event for event in counted if event["event"] in ("round", "retry")]
    rounds, privacy, logs = found["rounds"], found.get("privacy") or {}, anchors(counted)
    rows: list[tuple[page.Cell, ...]] = []
    for site in sites:
        why = outcomes[-1]["absent"].get(site) if outcomes else None
        state = "not asked yet" if not outcomes else participation.in_words(why) if why else "took part"
        seconds = rounds[-1]["seconds"].get("sites", {}).get(site) if rounds else None
        down, up = (rounds[-1][key].get(site) if rounds else None for key in ("bytes_down", "bytes_up"))
        row: list[page.Cell] = [site, state, sum(site in r["participants"] for r in rounds)]
        row += [page.duration(seconds), page.amount(down), page.amount(up)]
        if privacy:
            row.append(f"{privacy[site]['epsilon_charged']:.2f}" if site in privacy else None)
        if logs:
            row.append(page.short(logs[site], 14) if site in logs else None)
        rows.append(tuple(row))
    columns: tuple[str, ...] = ("Site", "Last time", "Rounds", "Waited for it", "Received", "Sent")
    columns += (("Epsilon spent",) if privacy else ()) + (("Audit log at",) if logs else ())
    table = Table(
        caption="Time and bytes are of the last closed round",
        columns=columns,
        rows=tuple(rows),
        align="ll" + "r" * (len(columns) - 2),
    )
    return page.folded(table, summary=f"All {len(sites)} sites")


def _closed(found: Mapping[str, Any], study: Mapping[str, Any]) -> Section:
    key, rounds = HEADLINES[study["study"]["task"]], found["rounds"]
    rows: list[tuple[page.Cell, ...]] = []
    for r in reversed(rounds):
        metrics, (down, up) = r["metrics"].get("val", {}), _moved(r)
        absent = "; ".join(f"{site} {participation.in_words(why)}" for site, why in sorted(r["absent"].items()))
        rows.append(
            (
                str(r["round"]),
                len(r["participants"]),
                absent or page.DASH,
                metrics.get(key),
                metrics.get("loss"),
                page.duration(r["seconds"].get("train")),
                page.amount(down),
                page.amount(up),
            )
        )
    columns = ("Round", "Sites", "Absent", NAMES[key], "Loss", "Time", "Down", "Up")
    newest = Table(caption="The newest first", columns=columns, rows=tuple(rows[:SHOWN]), align="lrlrrrrr")
    older = Table(caption="Rounds before", columns=columns, rows=tuple(rows[SHOWN:]), align="lrlrrrrr")
    return Section(
        title="Rounds",
        lead="A round's figures are of the weights that it began with, on validation patients of the sites that took "
        "part.",
        blocks=(newest, page.Fold(summary=f"{len(older.rows)} earlier", blocks=(older,))) if older.rows else (newest,),
    )


def _moved(round: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes down and up, of all sites."""
    return sum(round["bytes_down"].values()), sum(round["bytes_up"].values())


def _traffic(found: Mapping[str, Any]) -> Section:
    rounds = found["rounds"]
    down, up = (sum(_moved(r)[way] for r in rounds) for way in (0, 1))
    seconds = sum(r["seconds"].get("train") or 0.0 for r in rounds)
    worst = max((r["bytes_down"].get(s, 0) + r["bytes_up"].get(s, 0) for r in rounds for s in r["bytes_up"]), default=0)
    tiles = (
        ("To the sites", page.amount(down), ""),
        ("From the sites", page.amount(up), ""),
        ("Line in use", f"{page.amount((down + up) / seconds if seconds else None)}/s", "mean over closed rounds"),
        ("Most of one site in a round", page.amount(worst), "a hospital may bound it: policy.round_bytes"),
    )
    figure = Figure(
        graphic=page.svg(_bars(rounds)),
        alt=f"Bytes by round, {len(rounds)} rounds: {page.amount(down)} down and {page.amount(up)} up in all.",
        caption="Bytes by round, all sites together",
        size="wide",
    )
    return Section(
        title="Traffic",
        lead="What went over the line. 1 MB is a million bytes; attempts that were repeated are not counted.",
        blocks=(Numbers(items=tiles), figure) if len(rounds) > 1 else (Numbers(items=tiles),),
    )


def _bars(rounds: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    drawing, axes = page.plot(10.6, 2.2, xlabel="round", ylabel="MB")
    numbers = [r["round"] for r in rounds]
    down, up = ([_moved(r)[way] / 1e6 for r in rounds] for way in (0, 1))
    axes.bar(numbers, down, width=0.7, color=page.colour("tint"), label="to the sites")
    axes.bar(numbers, up, width=0.7, bottom=down, color=page.colour("blue"), label="from the sites")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(
        frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), labelcolor=page.colour("ink")
    )
    return drawing


def waiting(text: str) -> list[Section]:
    """A page of one sentence."""
    return [Section(title="Now", lead="", blocks=(Text(paragraphs=(text,)),))]
