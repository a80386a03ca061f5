"""What the coordinator makes of the released histogram: an event, shares, words for people."""

import math
from typing import Any

import numpy as np
import pytest
from small import private_study

from common.errors import StudyError
from server import events, follow, live, participation, protection
from server.class_counts import class_counts

STUDY = private_study(training={"class_balance": "sampler", "class_prior": "released"})
TOTAL = np.array([70.0, 210.0])
FOUND = class_counts(TOTAL, STUDY, sites=4)
STARTED: dict[str, Any] = {
    "event": "started",
    "time": 0.0,
    "run": "r",
    "study": STUDY.model_dump(mode="json", by_alias=True),
    "study_hash": STUDY.sha256,
    "backend": "flower",
    "sites": ["a", "b"],
    "nominal_patients": {"a": 100, "b": 200},
}
COUNTED: dict[str, Any] = {
    "event": "counted", "time": 1.0, "round": 0, "attempt": 1, "participants": ["a"], "absent": {"b": "late"}, **FOUND
}  # fmt: skip
RETRY = {"event": "retry", "time": 0.5, "round": 0, "attempt": 1, "absent": {"b": "late"}}


def test_counts_noise_and_shares_are_of_the_sum_over_the_sites() -> None:
    assert FOUND["classes"] == {"dark": 70.0, "bright": 210.0}
    assert FOUND["noise"] == pytest.approx(10.0 * math.sqrt(4))
    assert FOUND["prior"] == pytest.approx([0.25, 0.75])
    hidden = class_counts(np.array([-4.0, 180.0]), STUDY, sites=4)
    assert hidden["prior"] == pytest.approx([0.1, 0.9]) and hidden["classes"]["dark"] == -4.0  # as it was released


def test_a_study_without_a_histogram_has_none_to_read() -> None:
    with pytest.raises(StudyError, match="counts no classes"):
        class_counts(TOTAL, private_study(), sites=4)


def test_the_summary_charges_a_histogram_to_the_sites_that_answered() -> None:
    found = events.summary([STARTED, COUNTED])
    assert {site: one["histogram"]["charged"] for site, one in found["privacy"].items()} == {"a": 1, "b": 0}
    assert found["class_counts"] == {**FOUND, "participants": ["a"]} and found["rounds"] == []
    assert "class_counts" not in events.summary([STARTED])
    assert events.charged([STARTED, COUNTED]) == found["privacy"]["a"]["epsilon_charged"] > 0.2


def test_a_run_that_goes_on_after_its_histogram_keeps_it_and_one_begun_anew_has_none() -> None:
    assert events.summary([STARTED, COUNTED, {"event": "resumed", "time": 2.0, "round": 0}])["class_counts"]
    assert "class_counts" not in events.summary([STARTED, COUNTED, STARTED])


def test_people_read_of_the_histogram_in_words() -> None:
    assert live.state([STARTED]) == ("counting the classes, with noise", 0.0)
    assert live.state([STARTED, RETRY]) == ("counting the classes, with noise", 0.5)
    assert live.state([STARTED, COUNTED]) == ("round 1 of 2 is open", 1.0)
    assert follow.line(COUNTED, rounds=2) == "classes counted, with noise: 1 sites; absent: b late"
    assert follow.line(RETRY, rounds=2) == "the class histogram, attempt 1: too few sites; absent: b late"
    assert participation._attempt(RETRY).startswith("The class histogram, attempt 1 missed the quorum")
    assert participation._attempt({**RETRY, "round": 3}).startswith("Round 3, attempt 1 missed the quorum")
    (section,) = protection.sections(events.summary([STARTED, COUNTED]))
    rows = [block.rows for block in section.blocks if "by class" in getattr(block, "caption", "")]
    assert rows == [(("dark", "70.0", "25.0%"), ("bright", "210.0", "75.0%"))]
