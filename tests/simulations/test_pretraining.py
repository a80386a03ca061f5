"""Public pre-training: a file that a study can start from, made from public images and nothing else."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small import tiny_study, write_npz

from common import params
from common.errors import DataError, StudyError
from common.models import build_model, head_names, load_pretrained
from common.randomness import seeded
from common.study import Study, parse
from simulations.pretraining import Pretrained, pretrain

torch.set_num_threads(1)


def made(study: Study, out: Path, **changes: Any) -> Pretrained:
    return pretrain(study, **{"images": 12, "epochs": 1, "out": out, "seed": 0, **changes})


def starting_from(found: Pretrained, study: Study) -> Study:
    """The study with the lines that pre-training printed."""
    values = study.model_dump(mode="json", by_alias=True)
    values["model"] |= tomllib.loads(found.lines)
    return parse(values, where="test")


def test_the_file_is_what_the_printed_lines_ask_for(tmp_path: Path) -> None:
    found = made(tiny_study(), tmp_path / "new" / "w.safetensors")
    data = found.path.read_bytes()
    study = starting_from(found, tiny_study())
    assert study.model.freeze == "all_but_norms"
    assert hashlib.sha256(data).hexdigest() == found.sha256 == study.model.pretrained_sha256
    with seeded(0, "test"):
        model = build_model(study)
    tensors = params.pinned(data, sha256=study.model.pretrained_sha256, where="file")
    load_pretrained(model, tensors)
    assert found.parameters == sum(one.numel() for one in tensors.values())
    left = {name for name, _ in model.named_parameters()} - set(tensors)
    assert left == set(head_names(model)) and all(model.get_parameter(name).requires_grad for name in left)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_a_network_without_norms_is_offered_its_head_alone(tmp_path: Path) -> None:
    data = f"medmnist:{write_npz(tmp_path / 'public.npz', images=20, seed=0)}"
    study = tiny_study(model={"norm": "none"})
    found = made(study, tmp_path / "w.safetensors", data=data)
    assert starting_from(found, study).model.freeze == "all_but_head"


def test_the_head_is_in_the_file_only_where_the_public_images_have_the_study_s_classes(tmp_path: Path) -> None:
    other = made(tiny_study(), tmp_path / "other.safetensors")
    same = made(tiny_study(study={"classes": ["lesion", "normal"]}), tmp_path / "same.safetensors")
    assert (other.whole, other.classes) == (False, ("normal", "lesion"))
    assert (same.whole, same.classes) == (True, ("lesion", "normal"))
    head = set(head_names(build_model(tiny_study())))
    tensors = [set(params.from_bytes(one.path.read_bytes(), where="file")) for one in (other, same)]
    assert head and tensors[1] - tensors[0] == head


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    data = f"medmnist:{write_npz(tmp_path / 'public.npz', images=20, seed=0)}"
    hashes = [
        made(tiny_study(), tmp_path / f"{n}.safetensors", data=data, seed=seed).sha256
        for n, seed in enumerate((3, 3, 4))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_study_s_own_training_and_privacy_play_no_part(tmp_path: Path) -> None:
    data = f"medmnist:{write_npz(tmp_path / 'public.npz', images=20, seed=0)}"
    private = {
        "training": {"local_epochs": None, "local_steps": 1, "batch_size": None, "learning_rate": 3.0},
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
    }
    plain = made(tiny_study(), tmp_path / "plain.safetensors", data=data)
    assert made(tiny_study(**private), tmp_path / "private.safetensors", data=data).sha256 == plain.sha256


def test_another_public_set_serves_too_and_only_so_many_of_its_images(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "public.npz", images=60, seed=0, official=True)
    seen: list[str] = []
    found = made(
        tiny_study(), tmp_path / "w.safetensors", data=f"medmnist:{source}", images=40, epochs=4, say=seen.append
    )
    assert (found.classes, found.whole, found.images) == (("0", "1"), False, 40)
    assert seen[-1] == "pass 4 of 4"
    assert found.metrics["images"] > 0 and found.metrics["auc"] is not None
    with safe_open(found.path, framework="pt") as file:
        about = json.loads(file.metadata()["pretraining"])
    assert about["classes"] == ["0", "1"] and about["data"] == f"medmnist:{source}" and about["epochs"] == 4


def test_pre_training_learns(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "public.npz", images=200, seed=0, official=True)
    found = made(tiny_study(), tmp_path / "w.safetensors", data=f"medmnist:{source}", images=200, epochs=6)
    assert found.metrics["auc"] > 0.9


def test_outlines_are_learnt_from_the_phantom_s_lesions(tmp_path: Path) -> None:
    study = tiny_study(
        study={"task": "segmentation", "classes": ["organ", "vessel"]},
        model={"name": "unet", "image_size": [16, 16], "base_channels": 2, "head": "dense", "channels": 3},
    )
    found = made(study, tmp_path / "w.safetensors", images=60)
    assert (found.classes, found.whole) == (("lesion",), False)
    assert "dice" in found.metrics


@pytest.mark.slow
def test_boxes_are_learnt_from_the_phantom_s_lesions(tmp_path: Path) -> None:
    study = tiny_study(
        study={"task": "detection", "classes": ["lesion"]},
        model={"name": "retinanet", "image_size": [64, 64], "head": "dense"},
    )
    found = made(study, tmp_path / "w.safetensors", images=60)
    assert found.whole and "map50" in found.metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"images": 0}, "0 images"), ({"epochs": 0}, "0 epochs")],
)
def test_nothing_to_do_is_an_error(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        made(tiny_study(), tmp_path / "w.safetensors", **changes)


def test_fixed_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nothing to pre-train"):
        made(tiny_study(model={"name": "scatter", "head": "dense"}), tmp_path / "w.safetensors")


def test_data_without_annotations_for_the_task_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "public.npz", images=20, seed=0)
    study = tiny_study(
        study={"task": "segmentation", "classes": ["organ"]},
        model={"name": "unet", "image_size": [16, 16], "base_channels": 2, "head": "dense"},
    )
    with pytest.raises(DataError, match="no usable image for segmentation"):
        made(study, tmp_path / "w.safetensors", data=f"medmnist:{source}")
    assert [path.name for path in tmp_path.iterdir()] == ["public.npz"]
