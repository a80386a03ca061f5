"""The report's account of differential privacy: what each site promises its patients, and what is not covered."""

from collections.abc import Mapping
from typing import Any

from common import page
from common.guarantee import NOT_COVERED
from common.page import Section, Table, Text
from server.private_metrics import describe

_POOLS = {"train": "training", "validation": "validation", "test": "test"}


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """Everything that has to stand beside epsilon, site by site; nothing for a study without `[privacy]`."""
    sites: Mapping[str, Mapping[str, Any]] = summary.get("privacy") or {}
    if not sites:
        return []
    first = next(iter(sites.values()))
    names = sorted(sites, key=page.natural)
    promise = (
        f"Whatever anybody makes of everything that a site sent in this study, it tells at most epsilon = "
        f"{first['epsilon']:g} (delta = {first['delta']:g}) about whether any one patient of that site's training pool "
        f"took part. The unit is the {first['unit']}: all images under one patient identifier at one site; "
        f"neighbouring data sets: {first['neighbours']}. It holds against the server, other sites and readers of the "
        "model, all of them together, whoever drops out."
    )
    how = (
        f"In each step a patient takes part with probability {first['sample_rate']:g}; his gradient is clipped to norm "
        f"{first['clip_norm']:g}, and Gaussian noise of {first['noise_multiplier']:g} times that norm is added to the "
        f"sum. {first['steps_planned']} such steps were paid for, spare rounds included. Accountant: "
        f"{first['accountant']}, an upper bound with its numerical errors added."
    )
    table = Table(
        caption="The study's promise by site",
        columns=(
            "Site",
            "Epsilon",
            "Delta",
            "Steps planned",
            "Steps charged, at least",
            "Epsilon of these",
            "Declared patients",
        ),
        rows=tuple(
            (
                name,
                f"{sites[name]['epsilon']:g}",
                f"{sites[name]['delta']:g}",
                sites[name]["steps_planned"],
                sites[name]["steps_charged"],
                f"{sites[name]['epsilon_charged']:.2f}",
                sites[name]["nominal_patients"],
            )
            for name in names
        ),
    )
    if "histogram" in first:
        how += (
            f" Of the same patients the study may take {first['histogram']['planned']} histograms of classes, in which"
            f" a patient counts as one at most, with noise of {first['histogram']['noise_multiplier']:g}: they are"
            " within this epsilon."
        )
    blocks: list[page.Block] = [Text(paragraphs=(promise, how)), page.folded(table, summary=f"All {len(names)} sites")]
    if "class_counts" in summary:
        blocks.append(_histogram(summary["class_counts"]))
    if "evaluation" in first:
        blocks.append(Text(paragraphs=(_evaluation(first["evaluation"]),)))
    released = [(f"After round {r['round']}: ", r["released"]) for r in summary["rounds"] if "released" in r]
    if "evaluation" not in first:
        released.append(("", None))
    elif summary.get("final_private"):
        released.append(("Final model: ", summary["final_private"]))
    lines = [f"{of}{line}" for of, metrics in released for line in describe(metrics)]
    blocks.append(Text(paragraphs=tuple(lines), listed=len(lines) > 1))
    if "ledger" in first:
        blocks.append(_ledgers(sites, names))
    else:
        text = (
            "Charged steps are counted from the answers that closed a round. A site's own ledger counts every attempt,"
            " and is right; it never goes beyond the steps planned, for which the study's epsilon stands."
        )
        blocks.append(Text(paragraphs=(text,)))
    blocks += [Text(paragraphs=("Not covered:",)), Text(paragraphs=NOT_COVERED, listed=True)]
    return [
        Section(
            title="What protects the patients",
            lead="Differential privacy: a limit, proved and not hoped for, on what the study can tell of one patient.",
            blocks=tuple(blocks),
        )
    ]


def _histogram(found: Mapping[str, Any]) -> page.Block:
    """What the classes are balanced by: all that anybody learnt of how common they are."""
    table = Table(
        caption="Training patients by class, as released before round 1: the sum over "
        f"{page.counted(len(found['participants']), 'site')}, noise of standard deviation {found['noise']:.1f} in each",
        columns=("Class", "Count with noise", "Share used"),
        rows=tuple(
            (name, f"{count:.1f}", f"{share:.1%}")
            for (name, count), share in zip(found["classes"].items(), found["prior"], strict=True)
        ),
    )
    return page.folded(table, summary="How common the classes are, with noise")


def _evaluation(found: Mapping[str, Any]) -> str:
    times = page.counted(found["releases"], "release")
    return (
        f"The metrics that were sent ({times}) come from other patients, the {_POOLS[found['pool']]} pool, who have an "
        f"account of their own: epsilon = {found['epsilon']:g}, delta = {found['delta']:g} for each of them."
    )


def _ledgers(sites: Mapping[str, Mapping[str, Any]], names: list[str]) -> page.Block:
    """The other, larger statement: of all studies that a cohort's ledger records."""
    table = Table(
        caption="Each site's privacy ledger: the limit of all studies of its patients together, and what is left",
        columns=("Site", "Epsilon", "Delta", *(f"Left, {_POOLS[pool]} pool" for pool in _POOLS)),
        rows=tuple(
            (
                name,
                f"{(own := sites[name]['ledger'])['epsilon']:g}",
                f"{own['delta']:g}",
                *(f"{own['left'][pool]:.1%}" for pool in _POOLS),
            )
            for name in names
        ),
    )
    return page.folded(table, summary="The sites' ledgers")
