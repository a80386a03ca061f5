"""Metrics from noised sums: intervals that cover, figures that are withheld, and what the planner says before."""

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import params
from common.accounting import gaussian_mu
from common.tasks.release import Release, release_of
from server.private_metrics import (
    LARGEST_HALF_WIDTH,
    describe,
    measurable,
    noise_of,
    planned_half_width,
    private_metrics,
)

BINARY = release_of("classification", ("no", "yes"), score_bins=8)
SEVERAL = release_of("classification", ("a", "b", "c", "d"), score_bins=8)
MASKS = release_of("segmentation", ("a",), score_bins=8)
BOXES = release_of("detection", ("a", "b"), score_bins=8)
RELEASES = {"binary": BINARY, "several": SEVERAL, "masks": MASKS, "boxes": BOXES}


def sigma(epsilon: float) -> float:
    return 1 / gaussian_mu(epsilon=epsilon, delta=1e-5)


def equal(release: Release) -> list[float]:
    return [1 / len(release.classes)] * len(release.classes)


def read(total: NDArray[np.float64], release: Release, **multipliers: float) -> dict[str, Any]:
    given = multipliers or {"site-0": 1.4, "site-1": 1.4}
    return private_metrics(total, release, noise_multipliers=given, nominal_patients=dict.fromkeys(given, 500))


@pytest.mark.parametrize(
    ("epsilon", "sites", "positives", "negatives", "score_bins"),
    [(3.0, 4, 390, 234, 8), (1.0, 4, 1000, 1000, 8), (8.0, 10, 200, 400, 12), (3.0, 1, 150, 250, 6)],
)
def test_the_interval_is_twice_the_designs_rule_of_thumb_within_25_percent(
    epsilon: float, sites: int, positives: int, negatives: int, score_bins: int
) -> None:
    """0.3 x sigma x sqrt(score_bins x sites) x (1 / positives + 1 / negatives) is the standard deviation."""
    release, patients = release_of("classification", ("no", "yes"), score_bins=score_bins), positives + negatives
    planned = planned_half_width(
        release,
        noise_multiplier=sigma(epsilon),
        sites=sites,
        nominal_patients=patients,
        class_prior=(negatives / patients, positives / patients),
    )["auc"]
    thumb = 0.3 * sigma(epsilon) * math.sqrt(score_bins * sites) * (1 / positives + 1 / negatives)
    assert planned / (1.96 * thumb) == pytest.approx(1, abs=0.25)


def test_the_interval_of_dice_is_that_of_a_ratio() -> None:
    """Delta method: half of sqrt(1 + r^2) of the noise over the patients, at r = 2 Dice - 1."""
    planned = planned_half_width(MASKS, noise_multiplier=1.4, sites=3, nominal_patients=500)["dice"]
    deviation = 1.5 * 1.4 * math.sqrt(3)
    assert planned == pytest.approx(1.96 * deviation / 500 / 2 * math.hypot(1, 0.6), rel=0.1)


def test_noise_adds_up_over_sites_in_squares_and_counts_in_bounds() -> None:
    assert noise_of(BINARY, [3.0, 4.0]) == pytest.approx(5.0)
    assert noise_of(SEVERAL, [3.0, 4.0]) == pytest.approx(10.0)


def test_before_a_run_the_planner_knows_what_can_not_be_measured() -> None:
    """Under about 1,000 held-out patients in all, one release; detection needs several thousand at small epsilon."""

    def planned(release: Release, patients: int, epsilon: float, releases: int = 1) -> float:
        multiplier = sigma(epsilon) * math.sqrt(releases)
        found = planned_half_width(release, noise_multiplier=multiplier, sites=4, nominal_patients=patients)
        return next(iter(found.values()))

    assert measurable(planned(BINARY, 1000, 3.0)) and not measurable(planned(BINARY, 1000, 3.0, releases=10))
    assert not measurable(planned(BINARY, 300, 3.0)) and measurable(planned(MASKS, 300, 3.0))
    assert not measurable(planned(BOXES, 1000, 1.0)) and measurable(planned(BOXES, 4000, 1.0))
    assert planned(SEVERAL, 20, 1.0) == math.inf


def test_planning_for_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="class_prior"):
        planned_half_width(BINARY, noise_multiplier=1.0, sites=1, nominal_patients=10, class_prior=(1.0,))


@pytest.mark.parametrize("name", RELEASES)
def test_without_much_noise_the_figures_are_those_of_the_sum(name: str) -> None:
    release = RELEASES[name]
    total = release.expected(1e6, equal(release))
    metrics = read(total, release)
    figures = release.figures(
        params.split(total, release.layout), list(release.support(params.split(total, release.layout)))
    )
    for (metric, of_class), value in figures.items():
        entry = metrics["per_class"][of_class][metric] if of_class else metrics[metric]
        assert entry["value"] == pytest.approx(value)
        assert entry["low"] <= value <= entry["high"] and entry["half_width"] < 0.001 and entry["reason"] == ""
    assert metrics["left_out"] == [] and metrics["sites"] == ["site-0", "site-1"]
    assert metrics["nominal_patients"] == 1000 and metrics["level"] == 0.95
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("name", RELEASES)
def test_the_same_sum_gives_the_same_metrics_and_another_one_others(name: str) -> None:
    release = RELEASES[name]
    total = release.expected(3000.0, equal(release))
    assert read(total, release) == read(total.copy(), release)
    assert read(total, release) != read(total + 1e-3, release)


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("patients", [0.0, 40.0])
def test_what_noise_drowns_is_never_a_figure(name: str, patients: float) -> None:
    release = RELEASES[name]
    rng = np.random.default_rng(3)
    total = release.expected(patients, equal(release)) + noise_of(release, [5.0, 5.0]) * rng.normal(
        size=params.length(release.layout)
    )
    metrics = read(total, release, a=5.0, b=5.0)
    entries = [value for value in metrics.values() if isinstance(value, dict) and "value" in value]
    assert entries and all(entry["value"] is entry["low"] is entry["high"] is None for entry in entries)
    assert all(entry["reason"].startswith("not measurable at this epsilon") for entry in entries)
    assert not any(digit in line for line in describe(metrics) for digit in ("0.9 ", " to "))
    json.dumps(metrics, allow_nan=False)


def test_the_verdict_turns_at_a_half_width_of_0_05() -> None:
    assert measurable(0.05) and not measurable(0.0501) and not measurable(math.inf) and not measurable(math.nan)
    assert LARGEST_HALF_WIDTH == 0.05
    for patients in (200.0, 300.0, 400.0, 500.0, 700.0):
        entry = read(BINARY.expected(patients, (0.5, 0.5)), BINARY)["auc"]
        assert (entry["value"] is None) == (entry["half_width"] > 0.05)


def test_a_rare_class_is_left_out_of_the_mean_and_named() -> None:
    prior = (0.398, 0.3, 0.3, 0.002)
    metrics = read(SEVERAL.expected(3000.0, prior), SEVERAL)
    assert metrics["left_out"] == ["d"] and set(metrics["per_class"]) == {"a", "b", "c"}
    means = [metrics["per_class"][name]["auc"]["value"] for name in "abc"]
    assert metrics["auc"]["value"] == pytest.approx(np.mean(means))
    assert any("“d”" in line for line in describe(metrics))


def test_scores_in_one_bin_are_no_figure_however_little_the_noise() -> None:
    scores = np.zeros((1, 2, 8))
    scores[0, :, 4] = 1e6
    metrics = read(scores.ravel(), BINARY)
    assert metrics["auc"]["value"] is None and "score bin" in metrics["auc"]["reason"]
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(0.5, abs=1e-3)


def test_values_and_edges_stay_in_0_to_1() -> None:
    dice = read(np.array([2000.0, -1000.0, 2000.0]), MASKS)["dice"]
    assert dice["value"] == dice["high"] == 1.0 and 0.99 < dice["low"] < 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sums_that_are_not_finite_and_unknown_sites_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        read(np.full(3, value), MASKS)
    with pytest.raises(ValueError, match="the same sites"):
        private_metrics(np.zeros(3), MASKS, noise_multipliers={"a": 1.0}, nominal_patients={"b": 1})
    with pytest.raises(ValueError, match="the same sites"):
        private_metrics(np.zeros(3), MASKS, noise_multipliers={}, nominal_patients={})
    with pytest.raises(ValueError, match="vector"):
        read(np.zeros(4), MASKS)


def test_sentences_for_the_report() -> None:
    lines = describe(read(BINARY.expected(2000.0, (0.5, 0.5)), BINARY))
    assert lines[0].startswith("AUC 0.89 (0.8")
    assert lines[0].endswith("; the interval covers the noise, not the sampling of patients)")
    withheld = describe(read(BINARY.expected(200.0, (0.5, 0.5)), BINARY))
    assert withheld[0].startswith("AUC: not measurable at this epsilon (the noise alone moves it by 0.0")
    assert describe(None) == (
        "No metric was released: the study has no [privacy.evaluation], and nothing else may tell one.",
    )


@pytest.mark.stat
@pytest.mark.parametrize(
    ("name", "patients", "prior"),
    [
        ("binary", 600, (0.5, 0.5)),
        ("binary", 2000, (0.9, 0.1)),
        ("several", 1500, (0.4, 0.3, 0.2, 0.1)),
        ("masks", 150, (1.0,)),
        ("boxes", 1500, (0.6, 0.4)),
    ],
)
def test_intervals_cover_the_truth_at_about_the_stated_level(
    name: str, patients: int, prior: tuple[float, ...]
) -> None:
    """400 releases: 95 % has a standard error of 1.1 %. An interval 25 % too short covers 86 %, one 25 % too long
    98.6 %: both would fail."""
    release, rng, repeats = RELEASES[name], np.random.default_rng(11), 400
    exact = release.expected(patients, prior)
    sums = params.split(exact, release.layout)
    truth = release.figures(sums, list(release.support(sums)))
    covered: dict[str, list[bool]] = {}
    for _ in range(repeats):
        total = exact + noise_of(release, [1.4, 1.4]) * rng.normal(size=exact.size)
        metrics = read(total, release)
        assert metrics["left_out"] == []
        for (metric, of_class), value in truth.items():
            if not of_class and metrics[metric]["value"] is not None:
                covered.setdefault(metric, []).append(metrics[metric]["low"] <= value <= metrics[metric]["high"])
    assert covered.keys() == {metric for metric, of_class in truth if not of_class}
    for metric, hits in covered.items():
        assert len(hits) > 0.9 * repeats, metric
        assert 0.92 <= np.mean(hits) <= 0.98, (metric, np.mean(hits))
