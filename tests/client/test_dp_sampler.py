"""Who is drawn, which of his images, and how micro-batches are filled."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dp_cases import Ward, micro_of, some_views, study_of, ward
from small import tiny_study

from client.dp.microbatch import pack, views
from client.dp.patients import blank_of
from client.dp.sampler import choose, draw
from common.tasks.batch import Batch

KEY = bytes(range(32))


def positions(count: int, rate: float, *, key: bytes) -> list[int]:
    return [one.position for one in draw(np.ones(count), sample_rate=rate, key=key)]


def test_each_patient_is_drawn_with_the_sample_rate() -> None:
    """100,000 patients: 4 standard deviations are 0.6 % of the number; 5 % wrong fails."""
    found = len(positions(100_000, 0.25, key=KEY))
    assert abs(found - 25_000) < 550
    assert not abs(found * 1.05 - 25_000) < 550 and not abs(found * 0.95 - 25_000) < 550


def test_patients_are_drawn_independently_and_afresh() -> None:
    drawn = np.zeros((400, 50))
    for step in range(400):
        drawn[step, positions(50, 0.5, key=step.to_bytes(32, "big"))] = 1
    sizes = drawn.sum(axis=1)
    assert len(set(sizes.tolist())) > 5  # Poisson: the number varies, sd 3.5
    assert 2.5 < sizes.std() < 4.6
    together = np.corrcoef(drawn.T)[np.triu_indices(50, 1)]
    assert np.abs(together).max() < 0.25  # 5 standard deviations
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(400, 1)]).max() < 0.75


def test_rate_one_draws_all_and_a_draw_may_be_empty() -> None:
    assert positions(100, 1.0, key=KEY) == list(range(100))
    assert positions(3, 1e-12, key=KEY) == [] and positions(0, 0.5, key=KEY) == []


def test_nobody_is_drawn_more_often_than_the_rate_and_shares_lower_it() -> None:
    shares = np.repeat([1.0, 0.2, 0.0], 30_000)
    found = Counter(one.position // 30_000 for one in draw(shares, sample_rate=0.5, key=KEY))
    assert abs(found[0] - 15_000) < 400 and abs(found[1] - 3_000) < 240 and found[2] == 0
    for wrong in (1.01, -0.1, math.nan):
        with pytest.raises(ValueError, match="share"):
            draw(np.array([wrong]), sample_rate=0.5, key=KEY)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        positions(3, rate, key=KEY)


def test_all_that_is_random_about_a_patient_is_keyed_by_him_alone() -> None:
    """The trap of a public stream: with one patient more or less, nobody else's random numbers may shift."""
    all_drawn = {one.position: one.key for one in draw(np.ones(50), sample_rate=1.0, key=KEY)}
    shares = np.ones(50)
    shares[7] = 0
    others = {one.position: one.key for one in draw(shares, sample_rate=1.0, key=KEY)}
    assert 7 not in others and all(all_drawn[position] == key for position, key in others.items())
    assert len(set(all_drawn.values())) == 50


def test_images_are_chosen_afresh_and_evenly() -> None:
    counts = Counter(
        image
        for step in range(2000)
        for image in choose(
            draw(np.ones(1), sample_rate=1.0, key=step.to_bytes(32, "big"))[0], images=5, most=2
        ).tolist()
    )
    assert all(abs(counts[image] - 800) < 110 for image in range(5))
    (one,) = draw(np.ones(1), sample_rate=1.0, key=KEY)
    assert choose(one, images=3, most=4).tolist() == [0, 1, 2]
    assert len(set(choose(one, images=1000, most=4).tolist())) == 4
    with pytest.raises(ValueError, match="images_per_patient"):
        choose(one, images=3, most=0)


def test_micro_batches_have_one_shape_whoever_is_drawn() -> None:
    study = study_of("cnn gap")
    for counts in ((), (1,), (3, 3, 3), (2, 1, 4, 4, 1), (4,) * 7):
        micros = list(pack(some_views(study, counts), slots=5, blank=blank_of(study), most=4))
        assert {tuple(micro.batch.images.shape) for micro in micros} == {(5, 1, 20, 20)}
        assert sum(len(micro.segments) for micro in micros) == len(counts)


def test_a_patient_is_never_split() -> None:
    study = study_of("cnn gap")
    given = some_views(study, (2, 2, 2, 3, 1, 4))
    found = []
    for micro in pack(given, slots=5, blank=blank_of(study), most=4):
        for segment in micro.segments:
            found.append(micro.batch.images[segment])
    assert [len(one) for one in found] == [2, 2, 2, 3, 1, 4]
    assert all(bool((one == own.batch.images).all()) for one, own in zip(found, given, strict=True))
    with pytest.raises(ValueError, match="slots"):
        list(pack(given, slots=3, blank=blank_of(study), most=4))
    with pytest.raises(ValueError, match="at most 3"):
        list(pack(given, slots=5, blank=blank_of(study), most=3))


def test_an_empty_draw_is_one_blank_micro_batch() -> None:
    study = study_of("unet")
    (micro,) = pack([], slots=4, blank=blank_of(study), most=4)
    assert micro.segments == () and micro.view_weights.tolist() == [0.0] * 4 and not micro.batch.images.any()
    assert micro.batch.masks is not None and micro.batch.masks.shape == (4, 32, 16)


def test_weights_are_means_over_a_patients_images_and_zero_for_blanks() -> None:
    micro = micro_of(study_of("retinanet"), (2, 1), slots=5)
    assert micro.view_weights.tolist() == [0.5, 0.5, 1.0, 0.0, 0.0]
    assert micro.batch.objects is not None and [len(one.boxes) for one in micro.batch.objects[3:]] == [0, 0]


def test_at_most_so_many_images_each_so_many_times() -> None:
    study = study_of("cnn gap")
    (one,) = draw(np.ones(1), sample_rate=1.0, key=KEY)
    noisy = []

    def augment(batch: Batch, rng: np.random.Generator) -> Batch:
        noisy.append(rng.random())
        return batch

    made = views(ward(study, (9,)), one, images_per_patient=2, augmentations=3, augment=augment)
    assert made is not None and len(made.batch.images) == 6 and len(noisy) == 1
    assert bool((made.batch.images[:2] == made.batch.images[2:4]).all())  # the same two images, changed apart


def test_an_image_that_cannot_be_had_makes_a_blank_and_no_error() -> None:
    study = study_of("cnn gap")
    (one,) = draw(np.ones(1), sample_rate=1.0, key=KEY)
    own = ward(study, (2,))
    wrong = Ward(study=study, batches=[Batch(images=own.batches[0].images[:, :, :5], labels=own.batches[0].labels)])
    gone = Ward(study=study, batches=own.batches, broken=lambda _: True)
    for patients in (wrong, gone, ward(study, (0,))):
        assert views(patients, one, images_per_patient=4, augmentations=1, augment=None) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"masks": torch.zeros(1, 3, 3, dtype=torch.uint8)},
        {"labels": None},
        {"labels": torch.zeros(2, dtype=torch.int64)},
        {"labels": torch.zeros(1, dtype=torch.float32)},
    ],
    ids=["a mask where none belongs", "no label", "two labels", "a label of another kind"],
)
def test_a_patient_whose_truths_are_of_another_form_than_the_blanks_is_a_blank(odd: dict[str, Any]) -> None:
    """Put behind others' they would raise an error, which says that he is here."""
    blank = blank_of(tiny_study())
    (one,) = draw(np.ones(1), sample_rate=1.0, key=bytes(32))
    for batch, usable in ((blank, True), (replace(blank, **odd), False)):
        his = SimpleNamespace(blank=blank, weights=np.ones(1), images=lambda _: 1, batch=lambda *_, b=batch: b)
        made = views(his, one, images_per_patient=1, augmentations=1, augment=None)  # type: ignore[arg-type]
        assert (made is not None) == usable
