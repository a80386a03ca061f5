"""Training on a GPU, where there is one: close to the CPU's, within what bfloat16 allows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import tiny_study, write_site

from client import train
from client.dataset import open_dataset
from client.site import open_site
from common.models import build_model
from common.randomness import seeded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_update_on_the_gpu_is_close_to_the_cpus(tmp_path: Path) -> None:
    study = tiny_study()
    dataset = open_dataset(open_site(write_site(tmp_path / "site-0", images=40, seed=1)), study)
    vectors = []
    for where in ("cpu", "cuda"):
        with seeded(study.study.seed, "initialisation"):
            model = build_model(study).to(where)
        vectors.append(train.update(model, dataset, study, site="site-0", round=1))
    error = np.linalg.norm(vectors[1] - vectors[0]) / np.linalg.norm(vectors[0])
    assert error < 0.05  # bfloat16 keeps 8 bits
