"""All attacks, carried out now, in one table: what a lying server would gain, and what came of it.

Fedward's promise holds where no attack on it succeeds. That the attacks are right, and could succeed, is shown on
Flower's clients, and by tests that take a check out of Fedward's.
"""

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulations.attacks import hospitals, lists, openings, streams
from simulations.attacks.finding import Finding

MOST_KEYS = 16  # bits that are searched of Fedward's keys: more would be as hopeless, and take longer
LIMITS = (
    "Row 4 is carried out under differential privacy. Without it a site that trains again from the same weights sends"
    " the same update, and two opened sums that differ by one site can be subtracted, in every protocol of this kind."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack. `flower`: None where none was written for Flower."""

    attack: str
    gain: str
    fedward: Finding
    flower: Finding | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of all of them."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether no attack on Fedward succeeds."""
        return all(row.fedward.outcome in ("refused", "fails") for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """One object: errors that are infinite are null."""
        return {
            "schema": 1,
            "passed": self.passed,
            "attacks": [
                {
                    "attack": row.attack,
                    "gain": row.gain,
                    "fedward": _values(row.fedward),
                    "flower": None if row.flower is None else _values(row.flower),
                }
                for row in self.rows
            ],
            "limits": LIMITS,
        }


def carry_out(*, bits: int) -> Found:
    """Attack Fedward's real clients and Flower's. `bits`: of Flower's 28, how many are searched."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = ("open_both_shares", "split_orders", "replace_keys", "clear_numbers")
    flower = {name: _flower(name) for name in names} | {"search_seed": _flower("search_seed", bits=bits)}
    with tempfile.TemporaryDirectory() as folder:
        sites = hospitals.Hospitals(Path(folder))
        attacks: list[tuple[str, str, Callable[[], Finding], str]] = [
            (
                "show sites different survivors",
                "the sum of two sites where three are promised; one of them can subtract itself",
                openings.split_survivors,
                "",
            ),
            ("show different lists of participants", "a site's update, by both its shares", lists.split_keys, ""),
            (
                "give one site another order",
                "a site's update: all others' are zero",
                lists.split_orders,
                "split_orders",
            ),
            (
                "call a session abandoned, order again",
                "a site's update, as the difference of two sums",
                lambda: hospitals.mask_again(sites),
                "",
            ),
            (
                "sit in the middle with keys of its own",
                "a site's update, without asking anybody else",
                lists.forged_keys,
                "replace_keys",
            ),
            ("ask for both shares of one site", "a site's update", openings.both_shares, "open_both_shares"),
            ("name fewer survivors than needed", "a site's update, as a sum of its own", openings.own_sum, ""),
            ("replay an old session", "how a site's update changed between rounds", streams.replay, ""),
            # Flower's sites know no roster: all peers in that attack are the server's inventions.
            ("invent sites", "a site's update, among peers that don't exist", lists.strangers, "replace_keys"),
            (
                "order in the clear, read what comes in the clear",
                "a site's update or its numbers, as they are",
                lambda: hospitals.clear_order(sites),
                "clear_numbers",
            ),
            (
                "guess the key of a mask",
                "a site's update, if all other masks on it are known",
                lambda: streams.search_key(min(bits, MOST_KEYS)),
                "search_seed",
            ),
        ]
        rows = [
            Row(attack=attack, gain=gain, fedward=carried(), flower=flower.get(name))
            for attack, gain, carried, name in attacks
        ]
    return Found(rows=tuple(rows))


def told(found: Found, *, verbose: bool) -> Group:
    """The table for the terminal; with every answer where `verbose`."""
    table = Table("", "attack", "what a lying server gains if it works", "Fedward", f"Flower {version('flwr')}")
    parts: list[Table | Text] = [table]
    for place, row in enumerate(found.rows, start=1):
        table.add_row(str(place), row.attack, row.gain, _cell(row.fedward), _cell(row.flower))
        for finding in (row.fedward, row.flower) if verbose else ():
            if finding is not None:
                parts.append(Text(f"{place}. {finding.against}: {finding.outcome}. {finding.detail}"))
                parts += [Text(f"     {line}", style="dim") for line in finding.said]
    verdict = "No attack on Fedward succeeds." if found.passed else "FAILED: an attack on Fedward succeeds."
    return Group(*parts, Text(LIMITS), Text(verdict, style="bold"))


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "not tried"
    if finding.outcome == "not tried":
        return finding.detail
    answers = {1: " by 1 answer", 0: ""}.get(len(finding.said), f" by {len(finding.said)} answers")
    words = [f"{finding.outcome}{answers}" if finding.outcome == "refused" else finding.outcome]
    if finding.outcome == "succeeds":
        words.append(f"read to within {finding.error:.1g}")
    return "; ".join([*words, *filter(None, [finding.brief])])


def _flower(name: str, **arguments: int) -> Finding:
    """An attack on the installed flwr; `not tried` where that has other functions than the attack is written for."""
    against = f"flwr {version('flwr')}"
    try:
        from simulations.attacks import flower

        finding: Finding = getattr(flower, name)(**arguments)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(against=against, outcome="not tried", detail=f"not tried: {why}")
    return finding


def _values(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "error": finding.error if math.isfinite(finding.error) else None}
