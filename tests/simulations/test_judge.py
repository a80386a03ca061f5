"""Intervals of differences, and planning."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from small import tiny_study, write_site
from torchmetrics.functional.classification import binary_auroc

from common import params
from common.errors import StudyError
from common.models import backbone_names, build_model
from server.model_card import save_model
from simulations.comparison import Judges
from simulations.judge import Judged, difference, everything, load_model, pool_of, together
from simulations.plan import plan
from simulations.sites import Federation


def judged(scores: np.ndarray, labels: np.ndarray, folder: Path) -> Judged:
    images = everything(tiny_study(), folder)
    assert len(images) == len(scores)
    object.__setattr__(images, "truths", tuple(int(label) for label in labels))
    predictions = tuple(np.array([1 - s, s], np.float32) for s in scores)
    return Judged(study=tiny_study(), images=images, predictions=predictions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("j") / "site-0", images=60, seed=0)


def test_the_interval_is_that_of_a_naive_paired_bootstrap(folder: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    good = np.clip(0.5 + 0.2 * (labels - 0.5) + 0.2 * rng.normal(size=60), 0.01, 0.99)
    poor = rng.uniform(0.01, 0.99, 60)
    found = difference(judged(good, labels, folder), judged(poor, labels, folder), seed=1, site="a")
    naive = []
    for _ in range(1000):
        drawn = rng.integers(0, 60, 60)
        pair = [float(binary_auroc(torch.tensor(s[drawn]), torch.tensor(labels[drawn]))) for s in (good, poor)]
        naive.append(pair[0] - pair[1])
    assert found is not None
    # Ends of a 95 % interval from 1,000 resamples scatter by about 0.01 here.
    assert np.allclose(found, np.percentile(naive, [2.5, 97.5]), atol=0.03)


def test_too_few_patients_or_one_class_have_no_interval(folder: Path) -> None:
    scores = np.linspace(0.1, 0.9, 60)
    one_class = judged(scores, np.zeros(60), folder)
    assert difference(one_class, one_class, seed=1, site="a") is None


def test_equal_models_differ_by_nothing(folder: Path) -> None:
    one = judged(np.linspace(0.1, 0.9, 60), np.arange(60) % 2, folder)
    assert difference(one, one, seed=1, site="a") == (0.0, 0.0)


def test_a_site_without_test_patients_is_not_judged_on_its_validation_patients(tmp_path: Path) -> None:
    study = tiny_study(study={"split": [0.5, 0.5, 0.0]})
    site = write_site(tmp_path / "site-0", images=20, seed=0)
    federation = Federation(
        folders=(site,),
        unprotected=(site,),
        nominal={},
        credentials=None,
        pooled=site,
        central=None,
        counts=(),
        unusable={},
    )
    save_model(
        tmp_path,
        study,
        run="",
        shapes=params.shapes(model := build_model(study), trainable=False),
        weights=params.vector_of(model, trainable=False),
        validation={},
    )
    own, central = Judges(study, federation).of(tmp_path)
    assert len(pool_of(study, site, "validation")) and not own["site-0"].predictions and not central.metrics


def test_a_file_that_holds_a_part_of_the_model_is_refused(tmp_path: Path) -> None:
    model = build_model(tiny_study())
    part = {name: p.detach() for name, p in model.named_parameters() if name in backbone_names(model)}
    save_file(part, tmp_path / "model.safetensors")
    with pytest.raises(StudyError, match="not the whole model"):
        load_model(tiny_study(), tmp_path)


def test_together_is_all_images_at_once(folder: Path) -> None:
    one = judged(np.linspace(0.1, 0.9, 60), np.arange(60) % 2, folder)
    assert together([one, one]).metrics["images"] == 120


def test_the_plan_counts_parameters_bytes_and_steps() -> None:
    study = tiny_study(study={"rounds": 4}, training={"local_epochs": 2, "batch_size": 8})
    found = plan(study, images=33, sites=3, threads=1)
    parameters = params.length(params.shapes(build_model(study), trainable=False))
    assert found.parameters == found.trained == parameters
    assert found.bytes_down == 4 * parameters < found.bytes_up
    assert found.steps_per_round == 2 * 5 and found.steps == 40
    assert found.seconds == pytest.approx(40 * found.seconds_per_step) and found.seconds_per_step > 0
    assert found.client_memory > 4 * 4 * parameters and found.server_memory > 0
