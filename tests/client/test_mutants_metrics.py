"""Faults planted into the private metrics: each must be noticed."""

from mutants import noticed, placed, unharmed

CURVES, RELEASE = ("tests/common/test_noisy_curves.py",), ("tests/common/test_tasks_release.py",)
SITE, SERVER = ("tests/client/test_dp_metrics.py",), ("tests/server/test_private_metrics.py",)

FAULTS = {
    "no clip": ("client/dp/metrics.py", "total += vector * clip.factors(", "total += vector + 0 * clip.factors(", SITE),
    "clipped to twice the bound": (
        "client/dp/metrics.py",
        "clip_norms=(release.bound,)",
        "clip_norms=(2 * release.bound,)",
        SITE,
    ),
    "norm of the largest value": ("client/dp/metrics.py", "math.hypot(*vector.tolist())", "abs(vector).max()", SITE),
    "not a number is added": ("client/dp/metrics.py", "if not math.isfinite(norm):", "if norm == math.inf:", SITE),
    "no noise": (
        "client/dp/metrics.py",
        "return clip.release(exact, values, divisor=1.0)",
        "return clip.release(exact, 0 * values, divisor=1.0)",
        SITE,
    ),
    "noise of half the size": (
        "client/dp/metrics.py",
        "event.noise_multiplier * clip.GRID_STEPS",
        "event.noise_multiplier * clip.GRID_STEPS / 2",
        SITE,
    ),
    "always the same noise": (
        "client/dp/metrics.py",
        "standard_deviation=deviation, key=key)",
        "standard_deviation=deviation, key=bytes(32))",
        SITE,
    ),
    "divided by the patients": (
        "client/dp/metrics.py",
        "return noised_sum(exact_sum(vectors, release, seen=seen), event, key=key), seen",
        "return noised_sum(exact_sum(vectors, release, seen=seen), event, key=key) / seen.patients, seen",
        SITE,
    ),
    "any event goes": ("client/dp/metrics.py", "if not (event.sample_rate == 1 and", "if not (True and", SITE),
    "each image a patient": (
        "client/dp/metrics.py",
        "grouped.setdefault(row.patient, [])",
        "grouped.setdefault(str(position), [])",
        SITE,
    ),
    "an error stops the release": (
        "client/dp/metrics.py",
        "release, rows)\n            except Exception:",
        "release, rows)\n            except KeyboardInterrupt:",
        SITE,
    ),
    "broken maps become masks": ("client/dp/metrics.py", "if not all(_finite(one) for one in raw):", "if False:", SITE),
    "sum in the place of the mean": ("common/tasks/release.py", "+= 1 / len(truths)", "+= 1", RELEASE),
    "bound of one histogram": (
        "common/tasks/release.py",
        "return math.sqrt(len(self.measured))",
        "return 1.0",
        RELEASE,
    ),
    "bound of masks too small": ("common/tasks/release.py", "return 1.5", "return 1.25", RELEASE),
    "dice not centred": ("common/tasks/release.py", "np.array([2 * dice - 1,", "np.array([2 * dice,", RELEASE),
    "images without a structure count": ("common/tasks/release.py", "if not shown:", "if shown < 0:", RELEASE),
    "objects of all images added up": (
        "common/tasks/release.py",
        "flat / (max(len(truths), 1) * OBJECTS_CAP)",
        "flat / OBJECTS_CAP",
        RELEASE,
    ),
    "all proposals count": ("common/tasks/release.py", 'kind="stable")[:MOST]', 'kind="stable")', RELEASE),
    "true and false exchanged": ("common/tasks/release.py", "place, (1 - hits) / 2)", "place, hits / 2)", RELEASE),
    "bins from the lower side": ("common/tasks/noisy_curves.py", 'side="right"', 'side="left"', CURVES),
    "ties count whole": (
        "common/tasks/noisy_curves.py",
        "np.cumsum(negatives, axis=-1) - negatives / 2",
        "np.cumsum(negatives, axis=-1)",
        CURVES,
    ),
    "neighbours the wrong way": ("common/tasks/noisy_curves.py", "+ adjacent.sum(", "- adjacent.sum(", CURVES),
    "clamped before the area": (
        "common/tasks/noisy_curves.py",
        "    ones, others = positives.sum(axis=-1)",
        "    positives, negatives = np.maximum(positives, 0), np.maximum(negatives, 0)\n"
        "    ones, others = positives.sum(axis=-1)",
        CURVES,
    ),
    "one site's noise": (
        "server/private_metrics.py",
        "math.hypot(*noise_multipliers)",
        "max(noise_multipliers)",
        SERVER,
    ),
    "noise without the bound": (
        "server/private_metrics.py",
        "return release.bound * math.hypot",
        "return math.hypot",
        SERVER,
    ),
    "interval of one standard deviation": ("server/private_metrics.py", "LEVEL * DRAWS", "0.68 * DRAWS", SERVER),
    "figures that noise made": (
        "server/private_metrics.py",
        "return half_width <= LARGEST_HALF_WIDTH",
        "return half_width <= 10 * LARGEST_HALF_WIDTH",
        SERVER,
    ),
    "a value beside the verdict": (
        "server/private_metrics.py",
        '{"value": None, "low": None',
        '{"value": value, "low": None',
        SERVER,
    ),
    "rare classes in the mean": (
        "server/private_metrics.py",
        "count >= LEAST_SUPPORT",
        "count >= -LEAST_SUPPORT",
        SERVER,
    ),
    "doubts forgotten": ("server/private_metrics.py", "    reason = doubt\n", '    reason = ""\n', SERVER),
    "another interval each time": (
        "server/private_metrics.py",
        'PCG64(int.from_bytes(seed, "big"))',
        "PCG64()",
        SERVER,
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
