"""From a study to words and back: caps, what a site with nothing to give says, and settings that all parties share."""

import os

import numpy as np
import pytest
from session_cases import roster_of
from small import private_study, tiny_study

from common import secure
from common.errors import DataError, StudyError
from common.layout import layout_of
from common.masking import MaskedSum
from common.study import Study

RUN = "ab" * 32


def secured(**more: object) -> Study:
    return tiny_study(aggregation={"secure": True, "weights": "images", "weight_cap": 50.0, **more})


def vector(study: Study, *, weight: float) -> np.ndarray:
    layout = layout_of(study, "update")
    rng = np.random.default_rng(int(weight))
    tensors = rng.uniform(-0.5, 0.5, layout.tensor_length).astype(np.float32) * np.float32(weight)
    sums = rng.uniform(0, 9, layout.length - layout.tensor_length).astype(np.float32)
    sums[0] = weight
    return np.concatenate([tensors, sums])


def test_words_of_two_sites_add_up_to_the_sum_of_their_vectors() -> None:
    study, roster = secured(), roster_of(("a", "b"))
    vectors = [vector(study, weight=weight) for weight in (50.0, 20.0)]
    total = MaskedSum(secure.encoding_of(study, "update", sites=2))
    for one in vectors:
        total.add(secure.to_words(one, study, "update", roster, key=os.urandom(32)))
    found, saturated = secure.from_sum(total, study, "update", roster, sites=2)
    unit = secure.encoding_of(study, "update", sites=2).unit * 50
    assert saturated == 0 and np.abs(found - np.sum(vectors, axis=0, dtype=np.float64)).max() < 2 * unit
    tail = layout_of(study, "update").tensor_length
    assert np.abs(found[tail:] - np.sum(vectors, axis=0, dtype=np.float64)[tail:]).max() <= 2 * 2.0**-17 + 1e-5


def test_what_is_beyond_the_range_is_cut_off_and_counted() -> None:
    study, roster = secured(range=0.25), roster_of(("a", "b"))
    total = MaskedSum(secure.encoding_of(study, "update", sites=2))
    one = vector(study, weight=50.0)
    total.add(secure.to_words(one, study, "update", roster, key=os.urandom(32)))
    _, saturated = secure.from_sum(total, study, "update", roster, sites=1)
    beyond = np.abs(one[: layout_of(study, "update").tensor_length] / 50) > 0.25
    assert saturated == beyond.sum() > 0


@pytest.mark.parametrize(("weight", "error"), [(51.0, StudyError), (0.0, DataError)])
def test_a_weight_above_the_cap_and_a_site_with_nothing_are_refused(weight: float, error: type[Exception]) -> None:
    study, roster = secured(), roster_of(("a", "b"))
    with pytest.raises(error):
        secure.to_words(vector(study, weight=weight), study, "update", roster, key=bytes(32))


def test_caps_are_public() -> None:
    roster = roster_of(("a", "b"))
    largest = max(site.nominal_patients for site in roster.sites)
    assert secure.weight_cap(private_study(aggregation={"secure": True}), roster) == largest
    assert secure.weight_cap(secured(), roster) == 50.0
    equal = tiny_study(aggregation={"secure": True, "weights": "equal"})
    assert secure.weight_cap(equal, roster) == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "images"}, "need the most that any site has"),
        ({"weights": "equal", "weight_cap": 5.0}, "and only they"),
        ({"secure": False, "weights": "equal", "range": 0.5}, "aggregation.range is not a key without secure"),
        ({"secure": False, "lanes": 4}, "aggregation.lanes is not a key without secure"),
    ],
)
def test_keys_of_secure_aggregation_are_refused_where_they_mean_nothing(changes: dict[str, object], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        tiny_study(aggregation={"secure": True, **changes})


def test_settings_differ_with_whatever_sites_must_agree_on() -> None:
    study, roster = secured(), roster_of(("a", "b"))
    one = secure.setting_of(study, roster, run=RUN)
    others = [
        secure.setting_of(secured(range=0.5), roster, run=RUN),
        secure.setting_of(study, roster_of(("a", "b", "c")), run=RUN),
        secure.setting_of(study, roster, run="cd" * 32),
    ]
    assert one.transcript(1) == secure.setting_of(study, roster, run=RUN).transcript(1)
    assert len({one.transcript(1), one.transcript(2), *(other.transcript(1) for other in others)}) == 5


def test_more_sites_than_a_sum_has_room_for_are_refused_in_one_line() -> None:
    with pytest.raises(StudyError, match=r"aggregation.secure with 129 sites"):
        secure.encoding_of(secured(), "update", sites=129)
