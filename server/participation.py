"""The report's account of who took part: which sites were in which rounds, and why the others were not."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common import page
from common.errors import Reason
from common.page import Figure, Section, Text
from server.events import Event, name_of

TITLE = "Who took part"
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


def in_words(code: str) -> str:
    """A reason code in words."""
    return _REASONS.get(code, code)


def section(summary: Mapping[str, Any], counted: Sequence[Event], sites: Sequence[str]) -> Section:
    """The sites by round; those that missed one, and attempts that were repeated, in words."""
    rounds = summary["rounds"]
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
        blocks.append(page.folded(words, summary=f"All absences in words ({len(sentences)})"))
    return Section(
        title=TITLE,
        lead="Which sites contributed to each round, and why the others did not. The server learns only a reason code.",
        blocks=tuple(blocks),
    )


def _absences(site: str, reasons: Mapping[int, str], rounds: int) -> str:
    by_reason: dict[str, list[int]] = defaultdict(list)
    for number, reason in reasons.items():
        by_reason[reason].append(number)
    parts = [f"{in_words(code)} in {_spans(numbers)}" for code, numbers in by_reason.items()]
    return f"{site} took part in {rounds - len(reasons)} of {rounds} rounds: {'; '.join(parts)}."


def _attempt(event: Event) -> str:
    causes = Counter(event["absent"].values())
    parts = [f"{count} {in_words(code)}" for code, count in causes.items()]
    name = name_of(event["round"])
    return (
        f"{name[:1].upper()}{name[1:]}, attempt {event['attempt']} missed the quorum and was repeated:"
        f" {', '.join(parts)}."
    )


def _spans(numbers: Sequence[int]) -> str:
    """Rounds in words: "rounds 3, 5–7 and 12"; beyond six spans the rest is counted."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(a) if a == b else f"{a}–{b}" for a, b in spans]
    return f"{'round' if len(numbers) == 1 else 'rounds'} {page.listed(words, 7)}"


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
