"""Parameters as vectors, files and layouts."""

import hashlib

import numpy as np
import pytest
import torch
from small import tiny_study
from torch import nn

from common import metrics, params
from common.errors import StudyError
from common.layout import layout_of, metric_shapes
from common.models import build_model
from common.randomness import derive, seeded, stream


def model() -> nn.Module:
    built = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    built[0].weight.requires_grad_(False)
    return built


def test_assign_and_vector_of_are_inverse() -> None:
    one, other = model(), model()
    params.assign(other, params.vector_of(one, trainable=False))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name])


def test_trainable_leaves_frozen_parameters_out() -> None:
    names = [name for name, _ in params.shapes(model(), trainable=True)]
    assert names == ["0.bias", "1.weight", "1.bias"]
    assert params.vector_of(model(), trainable=True).size == 2 + 2 + 1


def test_a_vector_of_another_length_changes_nothing() -> None:
    one = model()
    before = params.vector_of(one, trainable=False)
    with pytest.raises(ValueError, match="12"):
        params.assign(one, np.zeros(12, np.float32))
    assert np.array_equal(params.vector_of(one, trainable=False), before)


def test_zero_dimensional_tensors_count_as_one_value() -> None:
    of: params.Shapes = (("scale", ()), ("empty", (0, 3)), ("rest", (2,)))
    named = params.split(np.arange(3, dtype=np.float32), of)
    assert params.length(of) == 3 and float(named["scale"]) == 0 and named["empty"].size == 0
    assert named["rest"].tolist() == [1, 2]


def test_a_safetensors_file_holds_the_names_and_values() -> None:
    of = params.shapes(model(), trainable=False)
    vector = np.arange(params.length(of), dtype=np.float32)
    tensors = params.from_bytes(params.to_bytes(of, vector, metadata={"run": "x"}), where="f")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(of)
    assert torch.equal(tensors["1.bias"], torch.tensor([10.0]))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04\x95", b"\xff" * 64])
def test_anything_else_than_safetensors_is_refused(data: bytes) -> None:
    with pytest.raises(StudyError, match="model"):
        params.from_bytes(data, where="model.bin")


def test_only_the_pinned_file_is_loaded() -> None:
    of = params.shapes(model(), trainable=False)
    data = params.to_bytes(of, np.zeros(params.length(of), np.float32), metadata={})
    assert params.pinned(data, sha256=hashlib.sha256(data).hexdigest(), where="f")
    with pytest.raises(StudyError, match="pretrained_sha256"):
        params.pinned(data, sha256="0" * 64, where="f")


def test_the_layout_follows_from_the_study_alone() -> None:
    study = tiny_study()
    layout = layout_of(study, "update")
    torch.manual_seed(0)
    assert layout.tensors == params.shapes(build_model(study), trainable=True)
    assert layout.sums[0] == ("weight", ())
    assert {name for name, _ in layout.sums[1:]} == {f"validation/{name}" for name in metric_shapes(study)}
    assert layout.sha256 != layout_of(study, "evaluate").sha256
    assert not layout_of(study, "evaluate").tensors


def test_pack_and_unpack_are_inverse() -> None:
    layout = layout_of(tiny_study(), "update")
    rng = np.random.default_rng(0)
    tensors = rng.normal(size=layout.tensor_length).astype(np.float32)
    sums = {name: rng.normal(size=shape).astype(np.float32).astype(np.float64) for name, shape in layout.sums}
    vector = layout.pack(tensors, sums)
    assert vector.shape == (layout.length,) and vector.dtype == np.float32
    assert np.array_equal(vector[: layout.tensor_length], tensors)
    for name, value in layout.unpack_sums(vector[layout.tensor_length :].astype(np.float64)).items():
        assert np.array_equal(value, sums[name])


def test_pack_refuses_missing_and_foreign_sums() -> None:
    layout = layout_of(tiny_study(), "evaluate")
    sums = {name: np.zeros(shape) for name, shape in layout.sums}
    with pytest.raises(KeyError):
        layout.pack(np.zeros(0, np.float32), {})
    with pytest.raises(ValueError, match="layout"):
        layout.pack(np.zeros(0, np.float32), {**sums, "more": np.zeros(())})
    with pytest.raises(ValueError, match="layout"):
        layout.pack(np.zeros(1, np.float32), sums)


def test_sums_refuse_other_names_and_shapes() -> None:
    total = metrics.zeros({"a": (2,)})
    metrics.add(total, {"a": np.array([1.0, 2.0])})
    assert total["a"].tolist() == [1, 2]
    with pytest.raises(KeyError):
        metrics.add(total, {"b": np.zeros(2)})
    with pytest.raises(ValueError, match="shape"):
        metrics.add(total, {"a": np.zeros(3)})


def test_derive_hashes_every_part_with_its_length() -> None:
    text = b"".join(len(part).to_bytes(4, "big") + part for part in (b"7", b"shuffle", b"site-1", b"3"))
    assert derive(7, "shuffle", site="site-1", round=3) == int.from_bytes(hashlib.sha256(text).digest(), "big")
    assert derive(1, "ab", site="c") != derive(1, "a", site="bc")


def test_seeded_repeats_inside_and_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1, "x"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1, "x"):
        assert torch.equal(torch.rand(3), inside)
    with seeded(1, "y"):
        assert not torch.equal(torch.rand(3), inside)


def test_streams_of_different_uses_differ() -> None:
    draws = {
        stream(1, "a").random(),
        stream(2, "a").random(),
        stream(1, "b").random(),
        stream(1, "a", round=1).random(),
    }
    assert len(draws) == 4 and stream(1, "a").random() in draws
