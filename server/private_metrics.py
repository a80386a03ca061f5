"""From the sum of the sites' noised vectors to metrics, each with the interval that the noise alone gives, or none."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import params
from common.tasks.release import Figure, Release, Summed, Sums

LEVEL = 0.95  # of the intervals
LARGEST_HALF_WIDTH = 0.05  # a figure that noise moves further is none
LEAST_SUPPORT = 5.0  # standard deviations that a class's counts lie above 0, or the class is left out
DRAWS = 1000

NAMES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity at a score of 0.5",
    "specificity": "Specificity at a score of 0.5",
    "dice": "Dice",
    "iou": "IoU",
    "map50": "mAP@50",
    "ap50": "AP@50",
}


def private_metrics(
    total: NDArray[np.float64],
    release: Release,
    *,
    noise_multipliers: Mapping[str, float],
    nominal_patients: Mapping[str, int],
) -> dict[str, Any]:
    """Metrics as plain values from the sum over the sites that answered, whose noise multipliers are given.

    An entry is {"value", "low", "high", "half_width", "reason"}: value, low and high are None where the figure can't be
    measured, and `reason` says why; half_width is None where noise leaves nothing. "per_class" has the classes' own,
    "left_out" those whose counts can't be told from noise. `nominal_patients`: public number in each such site's pool.

    Guarantees: equal arguments give equal metrics. Intervals cover the noise at about 95 %, and nothing else: neither
    that other patients would have given another figure, nor score bins, nor clipping.
    Raises ValueError for a sum of another length or with values that are not finite, or no sites.
    """
    if not noise_multipliers or noise_multipliers.keys() != nominal_patients.keys():
        raise ValueError(f"noise of {sorted(noise_multipliers)}, sizes of {sorted(nominal_patients)}: the same sites")
    if not np.isfinite(total).all():
        raise ValueError("a released sum has values that are not finite: the site that sent them is at fault")
    deviation = noise_of(release, list(noise_multipliers.values()))
    sums = params.split(total, release.layout)
    support = release.support(sums)
    known = [name for name, counts in support.items() if _supported(counts, deviation)]
    doubts = release.doubts(sums, known)
    entries = {
        figure: _entry(value, half_width, doubts.get(figure, ""))
        for figure, (value, half_width) in _intervals(total, release, known, deviation=deviation).items()
    }
    return {
        **{name: entry for (name, of_class), entry in entries.items() if not of_class},
        "per_class": {
            name: {metric: entry for (metric, of_class), entry in entries.items() if of_class == name}
            for name in known
            if any(of_class == name for _, of_class in entries)
        },
        "left_out": [name for name in support if name and name not in known],
        "level": LEVEL,
        "noise": deviation,
        "sites": sorted(noise_multipliers),
        "nominal_patients": sum(nominal_patients.values()),
    }


def noise_of(release: Summed, noise_multipliers: Sequence[float]) -> float:
    """Standard deviation of the noise in each value of the sum: bound x root of the sites' squared multipliers."""
    return release.bound * math.hypot(*noise_multipliers)


def planned_half_width(
    release: Release,
    *,
    noise_multiplier: float,
    sites: int,
    nominal_patients: float,
    class_prior: Sequence[float] = (),
) -> dict[str, float]:
    """Half the width of the interval to expect, by name of the metric over all classes, before a run: inf for none.

    From public numbers alone: the noise multiplier of one site and one release, patients in the pools of all sites,
    shares of the classes among them (none given: equal), and a middling model, since the real one is not known.
    A figure is to be promised to nobody where this is above LARGEST_HALF_WIDTH.
    """
    count = len(release.classes)
    prior = tuple(class_prior) or (1 / count,) * count
    if len(prior) != count:
        raise ValueError(f"class_prior has {len(prior)} shares for {count} classes")
    total = release.expected(nominal_patients, prior)
    deviation = noise_of(release, [noise_multiplier] * sites)
    known = list(release.support(params.split(total, release.layout)))
    found = _intervals(total, release, known, deviation=deviation)
    return {name: half_width for (name, of_class), (_, half_width) in found.items() if not of_class}


def measurable(half_width: float) -> bool:
    """Whether a figure with this interval may be printed."""
    return half_width <= LARGEST_HALF_WIDTH


def describe(metrics: Mapping[str, Any] | None) -> tuple[str, ...]:
    """One line of plain English for each metric, for the report. None: the study has no [privacy.evaluation]."""
    if metrics is None:
        return ("No metric was released: the study has no [privacy.evaluation], and nothing else may tell one.",)
    lines = [_line(NAMES[name], entry) for name, entry in metrics.items() if name in NAMES]
    lines += [
        _line(f"{NAMES[name]} of “{of_class}”", entry)
        for of_class, entries in metrics["per_class"].items()
        for name, entry in entries.items()
    ]
    if metrics["left_out"]:
        names = ", ".join(f"“{name}”" for name in metrics["left_out"])
        lines.append(f"Left out, as the patients who have it can't be told from the noise: {names}.")
    return tuple(lines)


def _line(name: str, entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"{name}: {entry['reason']}."
    return (
        f"{name} {entry['value']:.2f} ({entry['low']:.2f} to {entry['high']:.2f}; "
        "the interval covers the noise, not the sampling of patients)"
    )


def _entry(value: float, half_width: float, doubt: str) -> dict[str, Any]:
    known = half_width if math.isfinite(half_width) else None
    reason = doubt
    if not measurable(half_width):
        size = "" if known is None else f" (the noise alone moves it by {known:.2f})"
        reason = f"not measurable at this epsilon{size}"
    if reason:
        return {"value": None, "low": None, "high": None, "half_width": known, "reason": reason}
    low, high = (min(max(edge, 0.0), 1.0) for edge in (value - half_width, value + half_width))
    return {"value": min(max(value, 0.0), 1.0), "low": low, "high": high, "half_width": known, "reason": ""}


def _supported(counts: Sequence[tuple[float, int]], deviation: float) -> bool:
    return all(count >= LEAST_SUPPORT * deviation * math.sqrt(cells) for count, cells in counts)


def _intervals(
    total: NDArray[np.float64], release: Release, known: Sequence[str], *, deviation: float
) -> dict[Figure, tuple[float, float]]:
    """Each figure of the sum, and how far 95 % of the figures lie from it when the noise is added once more.

    The noise is known exactly, so this is the parametric bootstrap with a symmetric interval: an error of the mean,
    which ratios have under noise, widens it. The generator is seeded by the sum itself.
    Source: Efron, Tibshirani 1993, "An introduction to the bootstrap", chapters 6.5 and 13; Hall 1988 (symmetric).
    """

    def figures(of: NDArray[np.float64]) -> dict[Figure, float]:
        sums: Sums = params.split(of, release.layout)
        return release.figures(sums, known)

    seed = hashlib.sha256(np.ascontiguousarray(total, "<f8").tobytes()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
    given = figures(total)
    drawn = [figures(total + deviation * rng.standard_normal(total.size)) for _ in range(DRAWS)]
    place = math.ceil(LEVEL * DRAWS) - 1
    found = {}
    for figure, value in given.items():
        distances = np.abs(np.array([one[figure] for one in drawn]) - value)
        found[figure] = (value, float(np.sort(np.where(np.isnan(distances), math.inf, distances))[place]))
    return found
