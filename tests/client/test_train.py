"""Local training, against a loop written out here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import tiny_study, write_site

from client import train
from client.dataset import Dataset, Images, open_dataset
from client.site import open_site
from common import params
from common.errors import DataError
from common.layout import layout_of
from common.models import build_model
from common.randomness import seeded, stream
from common.study import Study, parse
from common.tasks import task_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("s") / "site-0", images=40, seed=1)


def model_of(study: Study) -> torch.nn.Module:
    with seeded(study.study.seed, "initialisation"):
        return build_model(study)


def data_of(folder: Path, study: Study) -> Dataset:
    return open_dataset(open_site(folder), study)


def parts_of(study: Study, vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float64]]]:
    layout = layout_of(study, "update")
    return vector[: layout.tensor_length], layout.unpack_sums(vector[layout.tensor_length :].astype(np.float64))


def test_an_update_is_what_a_plain_loop_gives(folder: Path) -> None:
    study = tiny_study()
    vector = train.update(model_of(study), data_of(folder, study), study, site="site-0", round=2)

    model, images = model_of(study), data_of(folder, study).pools["train"]
    before = params.vector_of(model, trainable=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = stream(3, "shuffle", site="site-0", round=2).permutation(len(images))
    for start in range(0, len(order), 8):
        batch = images.batch(order[start : start + 8])
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    change = params.vector_of(model, trainable=True) - before

    tensors, sums = parts_of(study, vector)
    assert float(sums["weight"]) == len(images)
    assert np.allclose(tensors / len(images), change, atol=1e-6)


def test_validation_sums_are_of_the_weights_that_came(folder: Path) -> None:
    study = tiny_study()
    dataset, model = data_of(folder, study), model_of(study)
    validation = dataset.pools["validation"]
    assert len(validation)
    with torch.no_grad():
        batch = validation.batch(range(len(validation)))
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="sum")
    _, sums = parts_of(study, train.update(model, dataset, study, site="site-0", round=1))
    assert float(sums["validation/images"]) == len(validation)
    assert float(sums["validation/loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_equal_seeds_give_equal_bits_and_leave_torchs_generator_alone(folder: Path) -> None:
    study = tiny_study(training={"augmentation": "standard", "class_balance": "sampler"})
    torch.manual_seed(1)
    expected = torch.rand(2)
    vectors = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        torch.rand(junk)
        vectors.append(train.update(model_of(study), data_of(folder, study), study, site="site-0", round=1))
    torch.manual_seed(1)
    train.update(model_of(study), data_of(folder, study), study, site="site-0", round=1)
    assert vectors[0].tobytes() == vectors[1].tobytes()
    assert torch.equal(torch.rand(2), expected)


def test_rounds_and_sites_have_random_numbers_of_their_own(folder: Path) -> None:
    study = tiny_study()
    results = [
        train.update(model_of(study), data_of(folder, study), study, site=site, round=round).tobytes()
        for site, round in (("site-0", 1), ("site-0", 2), ("site-1", 1))
    ]
    assert len(set(results)) == 3


@pytest.mark.parametrize(("weights", "expected"), [("images", None), ("patients", None), ("equal", 1.0)])
def test_the_weight_is_what_the_study_says(folder: Path, weights: str, expected: float | None) -> None:
    study = tiny_study(aggregation={"weights": weights})
    dataset = data_of(folder, study)
    _, sums = parts_of(study, train.update(model_of(study), dataset, study, site="site-0", round=1))
    assert float(sums["weight"]) == (expected or len(dataset.pools["train"]))


def test_a_site_without_training_images_answers_with_weight_0(tmp_path: Path) -> None:
    study = tiny_study()
    dataset = data_of(write_site(tmp_path / "site-9", images=0, seed=1), study)
    vector = train.update(model_of(study), dataset, study, site="site-9", round=1)
    assert vector.shape == (layout_of(study, "update").length,) and not vector.any()


def test_training_that_is_not_finite_is_an_error_not_an_answer(folder: Path) -> None:
    study = tiny_study(training={"learning_rate": 100.0, "momentum": 0.99, "local_epochs": 60})
    model = model_of(study)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(DataError, match="not finite"):
        train.update(model, data_of(folder, study), study, site="site-0", round=1)


def test_fedprox_adds_the_gradient_of_its_proximal_term(folder: Path) -> None:
    """One step from the anchor has no pull; two steps of plain SGD can be written out."""
    base = {"local_epochs": None, "local_steps": 2, "batch_size": 100, "momentum": 0.0, "learning_rate": 0.1}
    plain = tiny_study(training=base)
    prox = tiny_study(training=base, aggregation={"algorithm": "fedprox", "proximal_mu": 0.5})
    images = data_of(folder, plain).pools["train"]
    one_plain, one_prox = run_steps(plain, images, 1), run_steps(prox, images, 1)
    two_plain, two_prox = run_steps(plain, images, 2), run_steps(prox, images, 2)
    assert np.array_equal(one_plain, one_prox)
    assert np.allclose(two_prox - two_plain, -0.1 * 0.5 * one_plain, atol=1e-6)


def run_steps(study: Study, images: Images, steps: int) -> NDArray[np.float32]:
    values = study.model_dump(mode="json", by_alias=True)
    values["training"]["local_steps"] = steps
    changed = parse(values, where="test")
    model = model_of(changed)
    before = params.vector_of(model, trainable=True)
    assert train.local_train(model, images, changed, site="site-0", round=1) == steps
    return params.vector_of(model, trainable=True) - before


def test_weighted_balance_scales_each_images_loss(folder: Path) -> None:
    base = {"local_epochs": None, "local_steps": 1, "batch_size": 100, "momentum": 0.0}
    study = tiny_study(training={**base, "class_balance": "weighted"})
    images = data_of(folder, study).pools["train"]
    got = run_steps(study, images, 1)

    model = model_of(study)
    batch = images.batch(range(len(images)))
    assert batch.labels is not None
    losses = torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none")
    counts = torch.bincount(batch.labels)
    weights = len(images) / (2.0 * counts[batch.labels])
    (losses * weights).mean().backward()  # type: ignore[no-untyped-call]
    expected = params.flatten(-0.05 * p.grad for p in model.parameters() if p.grad is not None)
    assert np.allclose(got, expected, atol=1e-6)


def test_the_cosine_schedule_starts_at_the_rate_and_ends_near_zero() -> None:
    training = tiny_study(training={"schedule": "cosine", "learning_rate": 0.2}).training
    rates = [train.learning_rate(training, round=r, rounds=10) for r in range(1, 11)]
    assert rates[0] == 0.2 and rates == sorted(rates, reverse=True) and rates[5] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.01


def test_predictions_do_not_depend_on_the_evaluation_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study()
    images, model = data_of(folder, study).pools["train"], model_of(study)
    whole = [p for _, _, batch in train.predicted(model, images, study) for p in batch]
    monkeypatch.setattr(train, "EVALUATION_BATCH", 3)
    parts = [p for _, _, batch in train.predicted(model, images, study) for p in batch]
    assert len(parts) == len(images) and np.allclose(whole, parts, atol=1e-6)
    assert task_of(study).headline == "auc"
