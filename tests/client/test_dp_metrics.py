"""Private metrics at a site: one patient's influence, whatever he is, and what leaves."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small import tiny_study, write_site
from torch import Tensor, nn

from client.dataset import open_dataset
from client.dp.metrics import Seen, exact_sum, noised_sum, parts, released
from client.site import open_site
from client.train import predicted
from common import params
from common.accounting import gaussian_release
from common.clip import GRID_STEPS, SLACK
from common.event import Event
from common.models import build_model
from common.noise import fresh_key
from common.randomness import seeded
from common.study import Study
from common.tasks.batch import Batch, Detections, Objects
from common.tasks.release import Release, release_of

STUDY = tiny_study()
BINARY = release_of("classification", ("dark", "bright"), score_bins=8)
SEVERAL = release_of("classification", tuple("abcdefg"), score_bins=8)
MASKS = release_of("segmentation", ("a",), score_bins=8)
BOXES = release_of("detection", ("a", "b"), score_bins=8)
EVENT = Event(sample_rate=1.0, noise_multiplier=2.0, steps=1, pool="test")
ALL = pytest.mark.parametrize("release", [BINARY, SEVERAL, MASKS, BOXES])


@dataclass
class Site:
    """What `parts` asks of a pool's images, each of one brightness."""

    patients: dict[str, list[float]]
    study: Study = STUDY
    batches: list[list[int]] = field(default_factory=list)
    broken: frozenset[int] = frozenset()

    @property
    def _flat(self) -> list[tuple[str, float]]:
        return [(name, value) for name, values in self.patients.items() for value in values]

    @property
    def rows(self) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(patient=name) for name, _ in self._flat)

    @property
    def truths(self) -> tuple[int, ...]:
        return tuple(int(value > 0) for _, value in self._flat)

    def batch(self, positions: list[int]) -> Batch:
        self.batches.append(list(positions))
        if self.broken & set(positions):
            raise OSError("an image that can't be read")
        values = [self._flat[position][1] for position in positions]
        return Batch(images=torch.tensor(values)[:, None, None, None].expand(-1, 1, 20, 20))

    def restored(self, position: int, prediction: Any) -> Any:
        return prediction


class Mixing(nn.Module):
    """A model that shows what else is in the batch, as last bits do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(dim=(1, 2, 3)) + 3 * (len(images) % 2) + images.mean()
        return torch.stack([-level * self.weight, level], dim=1)


def vectors_of(site: Site) -> list[NDArray[np.float64]]:
    return list(parts(Mixing(), site, BINARY))  # type: ignore[arg-type]


def steps_of(vectors: list[NDArray[np.float64]], release: Release) -> NDArray[np.float64]:
    return exact_sum(vectors, release, seen=Seen()).steps.astype(np.float64)


def random_vectors(release: Release, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    length = params.length(release.layout)
    return [rng.normal(size=length) * 10.0 ** rng.uniform(-4, 2) for _ in range(count)]


STRANGE = {
    "long": lambda n: np.full(n, 1e6),
    "longer than its square can be": lambda n: np.full(n, 1e200),
    "nan": lambda n: np.full(n, math.nan),
    "one nan": lambda n: np.r_[math.nan, np.ones(n - 1)],
    "infinite": lambda n: np.full(n, math.inf),
    "both": lambda n: np.r_[math.inf, np.full(n - 1, math.nan)],
    "zero": np.zeros,
    "tiny": lambda n: np.full(n, 1e-300),
    "negative": lambda n: np.full(n, -50.0),
}


@ALL
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strange=st.sampled_from(["", *STRANGE]))
def test_with_one_patient_more_the_sum_differs_by_at_most_the_grid_steps(
    release: Release, seed: int, strange: str
) -> None:
    rng = np.random.default_rng(seed)
    others = random_vectors(release, 12, rng)
    length = params.length(release.layout)
    one = STRANGE[strange](length) if strange else random_vectors(release, 1, rng)[0]
    other = random_vectors(release, 1, rng)[0]
    without = steps_of(others, release)
    for position in (0, 6, 12):
        added = steps_of([*others[:position], one, *others[position:]], release)
        assert np.linalg.norm(added - without) <= GRID_STEPS
        changed = steps_of([*others[:position], other, *others[position:]], release)
        assert np.linalg.norm(added - changed) <= 2 * GRID_STEPS


def test_the_longest_vector_keeps_the_slack_and_a_shorter_one_its_length() -> None:
    length = params.length(BOXES.layout)
    long = steps_of([np.r_[7.0, np.zeros(length - 1)]], BOXES)
    assert long[0] == pytest.approx((1 - SLACK) * GRID_STEPS, abs=1)
    assert steps_of([np.r_[0.5, np.zeros(length - 1)]], BOXES)[0] == GRID_STEPS / 2


def test_real_patients_with_many_images_stay_within_the_bound() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (10_000, 2)).astype(np.float32)
    many = Detections(
        boxes=np.concatenate([corner, corner + 9], axis=1),
        classes=rng.integers(0, 2, 10_000),
        scores=rng.random(10_000).astype(np.float32),
    )
    truth = Objects(boxes=many.boxes[:500], classes=many.classes[:500])
    cases = [
        (BINARY, [np.array([0.01, 0.99], np.float32)] * 1000, [1] * 1000),
        (SEVERAL, [np.eye(7, dtype=np.float32)[2]] * 1000, [2] * 1000),
        (MASKS, [np.ones((1, 4, 4), bool)] * 1000, [np.ones((4, 4), np.uint8)] * 1000),
        (BOXES, [many] * 3, [truth] * 3),
    ]
    for release, predictions, truths in cases:
        length = np.linalg.norm(steps_of([release.part(predictions, truths)], release))
        assert 0.9 * GRID_STEPS < length <= GRID_STEPS


def test_a_vector_that_is_not_finite_adds_nothing_and_is_counted_here_alone() -> None:
    length, seen = params.length(BINARY.layout), Seen()
    good = np.r_[1.0, np.zeros(length - 1)]
    exact = exact_sum([np.full(length, math.nan), good, np.full(length, math.inf)], BINARY, seen=seen)
    np.testing.assert_array_equal(exact.steps, exact_sum([good], BINARY, seen=Seen()).steps)
    assert (seen.patients, seen.unusable) == (3, 2)


def test_vectors_of_another_release_are_refused() -> None:
    with pytest.raises(ValueError, match="released values"):
        exact_sum([np.zeros(3)], BINARY, seen=Seen())


def test_an_empty_pool_gives_noise_of_the_events_size_in_units_of_the_bound() -> None:
    """128,000 values: 5 % off is 25 standard errors away; 1 % is five."""
    release = release_of("classification", tuple(f"class {n}" for n in range(1000)), score_bins=64)
    noised, seen = released([], release, EVENT, key=bytes(range(32)))
    deviation = 2.0 * math.sqrt(1000)
    assert noised.dtype == np.float32 and noised.shape == (128_000,)
    assert noised.std() == pytest.approx(deviation, rel=0.01)
    assert abs(noised.mean()) < 5 * deviation / math.sqrt(noised.size)
    assert (seen.patients, seen.unusable) == (0, 0)


def test_what_leaves_is_sum_and_noise_by_the_key_and_the_key_alone() -> None:
    vector = np.r_[0.5, np.zeros(params.length(BINARY.layout) - 1)]
    empty, one = (exact_sum(own, BINARY, seen=Seen()) for own in ([], [vector]))
    key = bytes(range(32))
    np.testing.assert_allclose(noised_sum(one, EVENT, key=key) - noised_sum(empty, EVENT, key=key), vector, atol=1e-6)
    assert not np.array_equal(noised_sum(one, EVENT, key=key), noised_sum(one, EVENT, key=fresh_key()))
    assert np.array_equal(noised_sum(one, EVENT, key=key) / BINARY.bound * GRID_STEPS % 1, np.zeros(16))


def test_the_event_of_a_study_is_accepted_and_others_are_not() -> None:
    exact = exact_sum([], BINARY, seen=Seen())
    plan = gaussian_release(epsilon=3.0, delta=1e-5, releases=1, pool="test")
    assert noised_sum(exact, plan, key=bytes(32)).shape == (16,)
    for wrong in (
        Event(sample_rate=0.5, noise_multiplier=2.0, steps=1, pool="test"),
        Event(sample_rate=1.0, noise_multiplier=2.0, steps=1, grid=2.0**-10, pool="test"),
    ):
        with pytest.raises(ValueError, match="whole pool"):
            noised_sum(exact, wrong, key=bytes(32))


def test_a_patients_part_does_not_depend_on_who_else_is_there() -> None:
    anna, bert, carl = [0.5, -0.25, 2.0], [1.0], [-3.0, 0.1]
    everybody = vectors_of(Site({"anna": anna, "bert": bert, "carl": carl}))
    alone = [vectors_of(Site({name: own}))[0] for name, own in (("anna", anna), ("bert", bert), ("carl", carl))]
    np.testing.assert_array_equal(everybody, alone)
    np.testing.assert_array_equal(vectors_of(Site({"anna": anna, "carl": carl})), [alone[0], alone[2]])


def test_images_of_a_patient_are_found_wherever_they_lie() -> None:
    site = Site({"anna": [0.5, -0.25], "bert": [1.0], "anna again": [2.0]})
    rows = [SimpleNamespace(patient=row.patient.split()[0]) for row in site.rows]
    images = SimpleNamespace(
        study=STUDY, rows=tuple(rows), truths=site.truths, batch=site.batch, restored=site.restored
    )
    assert len(list(parts(Mixing(), images, BINARY))) == 2  # type: ignore[arg-type]
    assert site.batches == [[0, 1, 3], [2]]


def test_an_image_that_can_not_be_read_spoils_its_own_patient_only() -> None:
    patients = {"anna": [0.5, -0.25], "bert": [1.0, 2.0], "carl": [-3.0]}
    whole = vectors_of(Site(patients))
    broken = vectors_of(Site(patients, broken=frozenset({2})))
    assert np.isnan(broken[1]).all()
    np.testing.assert_array_equal([broken[0], broken[2]], [whole[0], whole[2]])


def test_weights_that_are_not_finite_end_in_noise_and_not_in_an_error() -> None:
    model = Mixing()
    with torch.no_grad():
        model.weight.fill_(math.nan)
    site = Site({"anna": [0.5], "bert": [0.0]})
    noised, seen = released(parts(model, site, BINARY), BINARY, EVENT, key=bytes(32))  # type: ignore[arg-type]
    np.testing.assert_array_equal(noised, released([], BINARY, EVENT, key=bytes(32))[0])
    assert (seen.patients, seen.unusable) == (2, 2)


def test_probability_maps_that_are_not_finite_are_seen_before_they_become_masks() -> None:
    study = tiny_study(
        study={"task": "segmentation", "classes": ["a"]},
        model={"name": "unet", "image_size": [16, 16], "base_channels": 2, "head": "dense"},
    )

    class Broken(Mixing):
        def forward(self, images: Tensor) -> Tensor:
            return images * math.nan

    site = Site({"anna": [0.5]}, study=study)
    images = SimpleNamespace(
        study=study,
        rows=site.rows,
        truths=(np.ones((20, 20), np.uint8),),
        batch=site.batch,
        restored=lambda position, maps: maps >= 0.5,
    )
    assert np.isnan(next(parts(Broken(), images, MASKS))).all()  # type: ignore[arg-type]


def test_the_models_mode_is_put_back() -> None:
    for mode in (True, False):
        model = Mixing().train(mode)
        list(parts(model, Site({"anna": [1.0]}), BINARY))  # type: ignore[arg-type]
        assert model.training is mode


def test_a_site_folders_patients_give_what_the_exact_evaluation_sees(tmp_path: Path) -> None:
    dataset = open_dataset(open_site(write_site(tmp_path / "site-0", images=40, seed=1)), STUDY)
    images = dataset.pools["train"]
    with seeded(1, "test model"):
        model = build_model(STUDY)
    scores = np.concatenate([np.stack(found) for _, _, found in predicted(model, images, STUDY)])
    histogram = np.zeros((2, 8))
    logits = np.log(scores[:, 1] / scores[:, 0])
    for logit, truth in zip(logits, images.truths, strict=True):
        histogram[truth, int(np.clip((logit + 6) / 12 * 8, 0, 7))] += 1
    assert len(images) == dataset.patients["train"]  # one image each
    np.testing.assert_allclose(sum(parts(model, images, BINARY)), histogram.ravel())
