"""The noised step: sensitivity, noise, divisor, public numbers of steps, and nothing that depends on patients."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from dp_cases import Ward, ill_conditioned, losses_of, model_of, random_batch, study_of, ward
from numpy.typing import NDArray
from torch import Tensor, nn

from client.dp import step
from client.dp.gradients import Observed, Trained, Unreached, one_by_one, trained
from client.dp.layers import layer_by_layer
from client.dp.patients import Patients
from client.dp.step import Plan, exact_sum, noised_gradient, private_update
from common import clip, noise
from common.clip import GRID_STEPS, SLACK, Bounds
from common.noise import fresh_key
from common.study import Study
from common.tasks.batch import Batch
from common.tasks.classification import Classification

BOUNDS = Bounds(clip_norms=(0.1,))
PLAN = Plan(
    sample_rate=1.0, noise_multiplier=1.0, bounds=BOUNDS, nominal_patients=10, local_steps=2, slots=4,
    images_per_patient=2,
)  # fmt: skip
STUDY = study_of("cnn gap")


def keys_of(seed: int) -> Callable[[], bytes]:
    """A test's own keys: repeatable."""
    counter = itertools.count(seed << 32)
    return lambda: next(counter).to_bytes(32, "big")


def sum_of(patients: Patients, *, plan: Plan = PLAN, observed: Observed | None = None) -> NDArray[np.int64]:
    model = model_of(STUDY)
    exact = exact_sum(
        model, trained(model), patients, losses_of(STUDY), plan, layer_by_layer,
        augment=None, key=bytes(32), observed=observed or Observed(),
    )  # fmt: skip
    return exact.steps


def update_of(
    patients: Patients, *, plan: Plan = PLAN, study: Study = STUDY, keys: Callable[[], bytes] | None = None,
    learning_rate: float = 0.1, momentum: float = 0.0, decay: float = 0.0, model: nn.Module | None = None,
) -> tuple[NDArray[np.float32], Observed]:  # fmt: skip
    model = model or model_of(study)
    what = trained(model)
    optimizer = torch.optim.SGD(what.parameters, lr=learning_rate, momentum=momentum, weight_decay=decay)
    return private_update(
        model, what, patients, losses_of(study), plan, optimizer, augment=None, keys=keys or keys_of(1)
    )


def test_one_patient_more_at_any_position_moves_the_sum_by_at_most_the_clip_norm() -> None:
    """The whole path: real gradients, packing, float32 sums, grid. Nothing but the slack keeps this true."""
    counts = (1, 2, 2, 1, 1, 2, 1, 1, 2)
    patients, extra = ward(STUDY, counts), random_batch(STUDY, 2, rng=np.random.default_rng(9))
    without = sum_of(patients)
    for position in range(len(counts) + 1):
        batches = [*patients.batches[:position], extra, *patients.batches[position:]]
        difference = (sum_of(Ward(study=STUDY, batches=batches)) - without).astype(np.float64)
        assert 0.98 * GRID_STEPS < np.linalg.norm(difference) <= GRID_STEPS


def test_one_patient_more_with_weights_that_make_rounding_large() -> None:
    """Weights are the server's: with these most of a gradient is rounding; it must be the same with him and without."""
    rng, model = np.random.default_rng(5), ill_conditioned(model_of(STUDY))
    batches = [random_batch(STUDY, int(rng.integers(1, 4)), rng=rng) for _ in range(40)]
    plan = replace(PLAN, slots=16, images_per_patient=4)

    def total(of: list[Batch]) -> NDArray[np.float64]:
        exact = exact_sum(
            model, trained(model), Ward(study=STUDY, batches=of), losses_of(STUDY), plan, layer_by_layer,
            augment=None, key=bytes(32), observed=Observed(),
        )  # fmt: skip
        return exact.steps.astype(np.float64)

    without, moved = total(batches), []
    for count in (1, 1, 2, 2, 4, 4):
        extra = random_batch(STUDY, count, rng=rng)
        for position in (0, 7, 40):
            difference = total([*batches[:position], extra, *batches[position:]]) - without
            moved.append(float(np.linalg.norm(difference)) / GRID_STEPS)
    assert 0.9 < max(moved) <= 1  # some are sure of their class already: 0


@pytest.mark.slow
def test_one_patient_more_among_a_thousand() -> None:
    patients, extra = ward(STUDY, (1,) * 1000), random_batch(STUDY, 1, rng=np.random.default_rng(9))
    plan = replace(PLAN, slots=32)
    without = sum_of(patients, plan=plan)
    for position in range(0, 1001, 50):
        batches = [*patients.batches[:position], extra, *patients.batches[position:]]
        difference = (sum_of(Ward(study=STUDY, batches=batches), plan=plan) - without).astype(np.float64)
        assert np.linalg.norm(difference) <= GRID_STEPS


def test_hundreds_of_images_weigh_as_much_as_one() -> None:
    one = random_batch(STUDY, 1, rng=np.random.default_rng(1))
    many = Batch(images=one.images.repeat(300, 1, 1, 1), labels=one.labels.repeat(300))  # type: ignore[union-attr]
    single, hundreds = (sum_of(Ward(study=STUDY, batches=[batch])) for batch in (one, many))
    assert np.linalg.norm((single - hundreds).astype(np.float64)) < 1e-3 * GRID_STEPS


def test_micro_batches_change_no_result() -> None:
    patients = ward(STUDY, (1, 2, 2, 1, 2))
    small, large = (sum_of(patients, plan=replace(PLAN, slots=slots)) for slots in (2, 32))
    assert np.linalg.norm((small - large).astype(np.float64)) < 1e-3 * GRID_STEPS


def test_the_weight_multiplies_what_is_clipped_already() -> None:
    """The trap: a weight in the loss is undone by the clip, one above 1 breaks the bound."""
    patients = ward(STUDY, (1,))
    whole, half = (sum_of(replace(patients, patient_weights=[weight])) for weight in (1.0, 0.5))
    assert np.abs(half - whole / 2).max() <= 1
    with pytest.raises(ValueError, match="weight"):
        sum_of(replace(patients, patient_weights=[2.0]))


def test_the_noise_has_the_plans_size_and_is_added_before_the_division() -> None:
    """40,000 values: 4 standard deviations are 1.4 %."""
    plan = replace(PLAN, noise_multiplier=3.0, sample_rate=0.5)
    exact = clip.to_grid(np.full(40_000, 0.02), BOUNDS)
    released = noised_gradient(exact, plan, key=bytes(32)).astype(np.float64) * 0.5 * 10
    assert abs((released - 0.02).std() / (3.0 * 0.1) - 1) < 0.014
    assert abs((released - 0.02).mean()) < 0.3 * 0.02


def test_groups_share_the_noise_of_the_whole_sensitivity() -> None:
    plan = replace(PLAN, bounds=Bounds(clip_norms=(0.3, 0.4)))
    released = noised_gradient(clip.to_grid(np.zeros(40_000), plan.bounds), plan, key=bytes(32)).astype(np.float64)
    assert abs(released.std() * plan.divisor / 0.5 - 1) < 0.014


def test_every_step_has_fresh_noise_and_no_key_serves_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bytes] = []
    for module, name in ((step, "draw"), (noise, "gaussian")):
        whole = getattr(module, name)

        def spy(*args: object, whole: Callable[..., object] = whole, **named: object) -> object:
            assert isinstance(named["key"], bytes)
            used.append(named["key"])
            return whole(*args, **named)

        monkeypatch.setattr(module, name, spy)
    plan = replace(PLAN, local_steps=5)
    update_of(ward(STUDY, ()), plan=plan, keys=fresh_key)
    assert len(used) == 10 and len(set(used)) == 10


def test_noise_of_two_steps_is_independent() -> None:
    """With no patients a step is noise alone; 14,274 values, 5 standard deviations."""
    plan = replace(PLAN, local_steps=1)
    first, _ = update_of(ward(STUDY, ()), plan=plan, keys=keys_of(5))
    both, _ = update_of(ward(STUDY, ()), plan=replace(plan, local_steps=2), keys=keys_of(5))
    second = both - first
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 5 / math.sqrt(len(first))
    assert abs(second.std() / first.std() - 1) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_no_seed_of_torch_reaches_the_noise(seed: int) -> None:
    torch.manual_seed(0)
    one, _ = update_of(ward(STUDY, ()), keys=fresh_key)
    torch.manual_seed(0)
    other, _ = update_of(ward(STUDY, ()), keys=fresh_key)
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 0.05


@pytest.mark.parametrize("name", ["none", "none drawn", "none usable", "only nan", "model error"])
def test_the_number_of_steps_is_public_whatever_the_patients_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers with as many noised steps as any other, and with the same noise under the same keys."""
    patients, plan = ward(STUDY, (1, 2, 1)), PLAN
    if name == "none":
        patients = ward(STUDY, ())
    elif name == "none drawn":
        plan = replace(PLAN, sample_rate=1e-12, nominal_patients=1e13)
    elif name == "none usable":
        patients = replace(patients, broken=lambda _: True)
    elif name == "only nan":
        for batch in patients.batches:
            batch.images[:] = math.nan
    else:
        whole = Classification.losses

        def losses(self: Classification, model: nn.Module, batch: Batch) -> Tensor:
            if batch.images.any():
                raise IndexError("this label has no class")
            return whole(self, model, batch)

        monkeypatch.setattr(Classification, "losses", losses)
    noise_alone, _ = update_of(ward(STUDY, ()), plan=plan)
    update, observed = update_of(patients, plan=plan)
    assert np.array_equal(update, noise_alone) and update.any()
    assert (
        observed
        == {
            "none": Observed(),
            "none drawn": Observed(),
            "none usable": Observed(drawn=6, unusable=6),
            "only nan": Observed(drawn=6, not_finite=6),
            "model error": Observed(drawn=6, failed=6),
        }[name]
    )


def test_an_empty_draw_takes_the_same_path_once_per_step() -> None:
    seen = []

    def way(model: nn.Module, what: Trained, losses: object, micro: object, clipper: object) -> Tensor:
        seen.append(micro)
        return layer_by_layer(model, what, losses, micro, clipper)  # type: ignore[arg-type]

    model = model_of(STUDY)
    exact_sum(
        model, trained(model), ward(STUDY, ()), losses_of(STUDY), PLAN, way,
        augment=None, key=bytes(32), observed=Observed(),
    )  # fmt: skip
    assert len(seen) == 1


def test_one_patients_error_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = ward(STUDY, (1, 2, 1))
    rest = sum_of(replace(patients, batches=[patients.batches[0], patients.batches[2]]))
    whole = Classification.losses
    poison = patients.batches[1].images[0]

    def losses(self: Classification, model: nn.Module, batch: Batch) -> Tensor:
        if any(bool((image == poison).all()) for image in batch.images):
            raise ValueError("odd truth")
        return whole(self, model, batch)

    monkeypatch.setattr(Classification, "losses", losses)
    observed = Observed()
    found = sum_of(patients, observed=observed)
    assert observed.failed == 1 and np.array_equal(found, rest)


def memory(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Batch], bool]) -> None:
    """A model that lacks memory for some batches."""
    whole = Classification.losses

    def losses(self: Classification, model: nn.Module, batch: Batch) -> Tensor:
        if fails(batch):
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, model, batch)

    monkeypatch.setattr(Classification, "losses", losses)


def test_memory_that_one_patient_lacks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    patients, observed = ward(STUDY, (1, 2, 1)), Observed()
    poison = patients.batches[1].images[0]
    rest = sum_of(replace(patients, batches=[patients.batches[0], patients.batches[2]]))
    memory(monkeypatch, lambda batch: any(bool((image == poison).all()) for image in batch.images))
    assert np.array_equal(sum_of(patients, observed=observed), rest) and observed.failed == 1


def test_memory_that_blanks_lack_too_is_an_error_whoever_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, lambda batch: len(batch.images) == PLAN.slots)
    for counts in ((1, 2, 1), ()):
        with pytest.raises(torch.OutOfMemoryError):
            sum_of(ward(STUDY, counts))


def test_memory_that_only_all_together_lack_is_found_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    patients, observed = ward(STUDY, (1, 2, 1)), Observed()
    expected = sum_of(patients)
    memory(monkeypatch, lambda batch: int((batch.images.flatten(1) != 0).any(dim=1).sum()) > 2)
    found = sum_of(patients, observed=observed)
    assert observed.failed == 0 and np.linalg.norm((found - expected).astype(np.float64)) < 1e-3 * GRID_STEPS


def test_what_no_patient_causes_is_an_error() -> None:
    def way(*_: object) -> Tensor:
        raise Unreached("a parameter")

    model = model_of(STUDY)
    with pytest.raises(Unreached):
        exact_sum(
            model, trained(model), ward(STUDY, (1,)), losses_of(STUDY), PLAN, way,
            augment=None, key=bytes(32), observed=Observed(),
        )  # fmt: skip


def test_weights_that_are_not_finite_cost_a_step_and_are_answered() -> None:
    model = model_of(STUDY)
    with torch.no_grad():
        next(model.parameters())[0] = math.nan
    update, observed = update_of(ward(STUDY, (1, 1)), model=model, decay=0.1)
    assert observed.not_finite == 4 and np.isfinite(update).all() and update.any()


def test_the_update_is_sgd_on_noised_gradients_with_decay_and_proximal_term_after_the_noise() -> None:
    """Against a few lines of numpy: momentum, weight decay and the pull to the order's weights, of which the first step
    has none."""
    model = model_of(STUDY)
    start = torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()
    plan = replace(PLAN, local_steps=3, proximal_mu=0.7)
    update, _ = update_of(ward(STUDY, ()), plan=plan, momentum=0.9, decay=0.2, learning_rate=0.05, model=model)
    keys, weights, speed = keys_of(1), start.copy(), np.zeros_like(start)
    for _ in range(3):
        keys()
        drawn = noise.gaussian(len(start), standard_deviation=2.0**20, key=keys())
        gradient = drawn * (0.1 * 2.0**-20) / 10
        gradient += 0.7 * (weights - start) + 0.2 * weights
        speed = 0.9 * speed + gradient
        weights = weights - 0.05 * speed
    assert np.allclose(update, weights - start, atol=1e-6)


def test_the_patients_part_is_the_mean_of_clipped_gradients_over_the_public_divisor() -> None:
    model = model_of(STUDY)
    patients = ward(STUDY, (1, 2))
    rows = []
    for batch in patients.batches:
        loss = losses_of(STUDY)(model, batch).mean()
        row = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))]).double()
        rows.append(row * min(1.0, 0.1 * (1 - SLACK) / float(row.norm())))
    expected = (rows[0] + rows[1]).numpy() / 10
    plan = replace(PLAN, local_steps=1)
    with_patients, observed = update_of(patients, plan=plan, learning_rate=1.0)
    noise_alone, _ = update_of(ward(STUDY, ()), plan=plan, learning_rate=1.0)
    assert observed == Observed(drawn=2)
    assert np.linalg.norm(noise_alone - with_patients - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_divisor_does_not_depend_on_how_many_there_are() -> None:
    assert Plan(**{**PLAN.__dict__, "sample_rate": 0.25, "nominal_patients": 400}).divisor == 100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0.0), ("sample_rate", 1.5), ("sample_rate", math.nan), ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan), ("noise_multiplier", math.inf), ("nominal_patients", 0.0),
        ("nominal_patients", -3.0), ("local_steps", 0), ("images_per_patient", 0), ("augmentations", 0),
        ("slots", 1), ("proximal_mu", -1.0), ("proximal_mu", math.nan),
    ],
)  # fmt: skip
def test_a_plan_without_meaning_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Plan(**{**PLAN.__dict__, name: value})


def test_the_model_is_left_in_its_mode_and_without_gradients() -> None:
    model = model_of(STUDY).eval()
    update_of(ward(STUDY, (1,)), model=model)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_faster_rcnn_takes_one_patient_at_a_time_with_his_own_random_numbers() -> None:
    """With another patient beside him, the sampling of his regions must not shift."""
    study = study_of("fasterrcnn")
    model, plan = model_of(study), replace(PLAN, images_per_patient=1)
    what = trained(model)

    def steps(patients: Ward) -> NDArray[np.int64]:
        way = step.way_of(model)
        assert way is one_by_one
        observed = Observed()
        return exact_sum(
            model, what, patients, losses_of(study), plan, way, augment=None, key=bytes(32), observed=observed
        ).steps

    both = ward(study, (1, 1))
    whole = steps(both)
    first = steps(replace(both, patient_shares=[1.0, 0.0]))
    second = steps(replace(both, patient_shares=[0.0, 1.0]))
    assert np.abs(whole - first - second).max() <= 1 and first.any() and second.any()
