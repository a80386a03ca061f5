"""Per-patient gradients: all ways equal, each patient's his own, broken images and layouts caught."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dp_cases import MODELS, ill_conditioned, losses_of, matrix, micro_of, model_of, only, some_views, study_of
from small import tiny_study
from torch import Tensor, nn

from client.dp import hooks, layers
from client.dp.gradients import Clipper, Unreached, Way, exact_arithmetic, one_by_one, squared_norms, trained
from client.dp.microbatch import Microbatch, Views, pack
from client.dp.patients import blank_of
from client.dp.selftest import check
from client.dp.step import way_of
from common.clip import SLACK, Bounds
from common.errors import FederationError
from common.models import groups_of
from common.models.standardised import StandardisedConv2d
from common.study import Study
from common.tasks.batch import Batch

FAST = [name for name in MODELS if name not in ("resnet18", "fasterrcnn", "retinanet")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "retinanet")]


def naive(model: nn.Module, name: str, micro: Microbatch) -> np.ndarray:  # type: ignore[type-arg]
    """Each patient's gradient by plain autograd over his own images: nothing of the code under test."""
    rows = []
    for segment in micro.segments:
        own = Batch(
            images=micro.batch.images[segment],
            labels=None if micro.batch.labels is None else micro.batch.labels[segment],
            masks=None if micro.batch.masks is None else micro.batch.masks[segment],
            objects=None if micro.batch.objects is None else micro.batch.objects[segment],
        )
        loss = losses_of(study_of(name))(model, own).mean()
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        rows.append(torch.cat([one.flatten() for one in gradients]).double().numpy())
    return np.array(rows)


def distance(one: np.ndarray, other: np.ndarray) -> float:  # type: ignore[type-arg]
    """Largest relative distance of two patients' gradients."""
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


@pytest.mark.parametrize("counts", [(2, 1, 3), (1, 1, 1, 1), (4, 3)])
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_all_ways_give_each_patients_gradient(name: str, counts: tuple[int, ...]) -> None:
    study = study_of(name)
    model, losses = model_of(study), losses_of(study)
    what, micro = trained(model), micro_of(study, counts, slots=8)
    expected = naive(model, name, micro)
    ways: list[Any] = [one_by_one, layers.layer_by_layer]
    if name in FAST:  # torchvision's residual blocks add in place, which Opacus's hooks forbid
        ways.append(hooks.opacus_hooks)
    for way in ways:
        norms: list[Tensor] = []

        def all_of_it(found: Tensor, norms: list[Tensor] = norms) -> Tensor:
            norms.append(found)
            return torch.ones_like(found)

        total = way(model, what, losses, micro, all_of_it)
        assert total.dtype == torch.float64
        assert distance(matrix(way, model, what, losses, micro), expected) < 1e-4
        assert distance(total.numpy()[None], expected.sum(axis=0)[None]) < 1e-4
        assert np.allclose(torch.cat(norms)[:, 0].numpy(), np.linalg.norm(expected, axis=1), rtol=1e-4)
        assert all(parameter.grad is None for parameter in model.parameters())


class Zoo(nn.Module):
    """Strides, dilation, groups, output padding, no bias, middle axes of Linear, a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, stride=2, dilation=2, padding=(1, 2))
        self.grouped = nn.Conv2d(6, 6, 3, padding="same", groups=3, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.standardised = StandardisedConv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=2)
        self.twice = StandardisedConv2d(6, 6, 1, bias=False)
        self.rise = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=1)
        self.mix = nn.Linear(4, 5)
        self.wide = nn.Linear(5, 60)
        self.out = nn.Linear(60, 2, bias=False)
        self.again = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.grouped(torch.tanh(self.first(images)))))
        x = torch.tanh(self.standardised(x))
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.mix(torch.tanh(self.rise(x)).flatten(2).transpose(1, 2))
        x = self.out(torch.tanh(self.wide(torch.tanh(x)))).mean(dim=1)
        answer: Tensor = self.again(self.again(x))
        return answer


def zoo_losses(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none")  # type: ignore[arg-type]


def zoo_micro(*, dtype: torch.dtype, counts: tuple[int, ...] = (2, 1, 2), slots: int = 6) -> Microbatch:
    generator = torch.Generator().manual_seed(0)
    study = study_of("cnn gap")
    micro = micro_of(study, counts, slots=slots)
    images = torch.randn(slots, 2, 15, 13, generator=generator, dtype=dtype)
    return Microbatch(
        batch=Batch(images=images, labels=micro.batch.labels),
        segments=micro.segments,
        view_weights=micro.view_weights.to(dtype),
        weights=micro.weights,
        seeds=micro.seeds,
        most=micro.most,
    )


@pytest.mark.parametrize("counts", [(2, 1, 2), (1, 1, 1), (5,), ()])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_every_kind_of_layer_agrees_with_one_backward_per_patient(
    dtype: torch.dtype, bound: float, counts: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = Zoo().to(dtype).train()
    what, micro = trained(model), zoo_micro(dtype=dtype, counts=counts)
    assert way_of(model) is layers.layer_by_layer
    expected = matrix(one_by_one, model, what, zoo_losses, micro)
    for way in (layers.layer_by_layer, hooks.opacus_hooks):
        if counts:
            assert distance(matrix(way, model, what, zoo_losses, micro), expected) < bound
        assert not way(model, what, zoo_losses, micro, torch.zeros_like).any()


def test_float64_gradients_agree_to_the_last_digits() -> None:
    torch.manual_seed(0)
    model = Zoo().double().train()
    what, micro = trained(model), zoo_micro(dtype=torch.float64)
    expected = matrix(one_by_one, model, what, zoo_losses, micro)
    for way in (layers.layer_by_layer, hooks.opacus_hooks):
        assert distance(matrix(way, model, what, zoo_losses, micro), expected) < 1e-12


def test_a_large_constant_part_does_not_spoil_the_norm() -> None:
    """Inputs whose mean is 1000 spreads: the two small products cancel, and the layer falls back on the gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 300), nn.Linear(300, 2))
    what = trained(model)
    micro = micro_of(study_of("cnn gap"), (4, 4), slots=8)
    images = micro.batch.images * 1e-3 + 1
    micro = Microbatch(
        batch=Batch(images=images, labels=torch.tensor([0, 1] * 4)),
        segments=micro.segments,
        view_weights=micro.view_weights,
        weights=micro.weights,
        seeds=micro.seeds,
        most=micro.most,
    )
    norms: list[Tensor] = []
    layers.layer_by_layer(model, what, zoo_losses, micro, lambda found: norms.append(found) or found)  # type: ignore[func-returns-value,arg-type]
    exact = copy.deepcopy(model).double()
    doubled = Microbatch(
        batch=Batch(images=images.double(), labels=micro.batch.labels),
        segments=micro.segments,
        view_weights=micro.view_weights.double(),
        weights=micro.weights,
        seeds=micro.seeds,
        most=micro.most,
    )
    expected = matrix(one_by_one, exact, trained(exact), zoo_losses, doubled)
    assert np.allclose(norms[0][:, 0].numpy(), np.linalg.norm(expected, axis=1), rtol=SLACK / 10)


@pytest.mark.parametrize("name", ["cnn gap", "unet", "retinanet", pytest.param("resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("most", "counts"), [(1, (1,) * 6), (2, (2, 1, 1, 2, 1)), (3, (3, 1, 2, 3))])
def test_a_patients_gradient_has_the_same_bits_whoever_else_is_there(
    name: str, most: int, counts: tuple[int, ...]
) -> None:
    """The trap: a kernel that is chosen by who shares the batch is another rounding, and thereby another gradient."""
    study = study_of(name)
    model, found = ill_conditioned(model_of(study)), some_views(study, counts, seed=1)
    what, losses = trained(model), losses_of(study)

    def own(chosen: Sequence[int], *, slots: int) -> Tensor:
        views = [found[position] for position in chosen]
        (micro,) = pack(views, slots=slots, blank=blank_of(study), most=most)
        return layers.layer_by_layer(model, what, losses, micro, only(list(chosen).index(2)))

    for slots in (11, 16):
        alone = own((2,), slots=slots)
        assert alone.isfinite().all()
        for chosen in ((1, 2), (0, 2, 3), (2, 0, 1), (3, 1, 0, 2), tuple(range(len(counts)))):
            assert torch.equal(own(chosen, slots=slots), alone)


def test_rows_that_cancel_are_one_patients_own_matter() -> None:
    """With T rows each: one whose rows cancel gets his gradient itself, and the others are as without him."""
    torch.manual_seed(0)
    model = nn.Linear(400, 300, bias=False)
    what, rows = trained(model), torch.randn(6, 2, 400)
    rows[2:4] = 1 + 1e-5 * torch.randn(2, 2, 400)

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        factors = torch.tensor([0.7, -0.7]).to(batch.images).view(1, 2, 1)
        return (model(batch.images) * factors).sum(dim=(1, 2))

    def gradients(chosen: Sequence[int]) -> Tensor:
        views = [Views(batch=Batch(images=rows[2 * k : 2 * k + 2]), weight=1.0, seed=0) for k in chosen]
        (micro,) = pack(views, slots=8, blank=Batch(images=torch.zeros(1, 2, 400)), most=2)
        made = matrix(layers.layer_by_layer, model, what, losses, micro)
        each = [0.7 * (rows[2 * k : 2 * k + 2, 0] - rows[2 * k : 2 * k + 2, 1]).mean(dim=0) for k in chosen]
        expected = torch.stack(each).double().repeat(1, 300).numpy()
        assert distance(made, expected) < 1e-3
        norms: list[Tensor] = []
        layers.layer_by_layer(model, what, losses, micro, lambda found: norms.append(found) or found)  # type: ignore[func-returns-value,arg-type]
        return norms[0][:, 0]

    together, apart = gradients((0, 1, 2)), gradients((0, 2))
    assert together[[0, 2]].tolist() == apart.tolist()


def test_a_gradient_whose_factors_are_tiny_and_huge_is_measured() -> None:
    """The trap: the norm of a product by the norms of its factors, one of which vanishes when it is squared."""
    study = study_of("cnn gap")
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 300, bias=False))
    what, micro = trained(model), micro_of(study, (1, 1), slots=2)
    images = torch.full((2, 1, 20, 20), 1e17)

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.images).sum(dim=1) * 1e-24

    micro = replace(micro, batch=Batch(images=images, labels=micro.batch.labels))
    norms: list[Tensor] = []
    layers.layer_by_layer(model, what, losses, micro, lambda found: norms.append(found) or found)  # type: ignore[func-returns-value,arg-type]
    assert norms[0].flatten().tolist() == pytest.approx([1e-7 * (400 * 300) ** 0.5] * 2, rel=1e-4)


def test_squared_norms_do_not_drift_with_length() -> None:
    for size in (1, 511, 512, 513, 3_000_001):
        rows = torch.full((2, size), 0.1)
        assert squared_norms(rows).tolist() == pytest.approx([size * float(rows[0, 0]) ** 2] * 2, rel=1e-5)
    assert squared_norms(torch.zeros(2, 600)).tolist() == [0, 0]
    assert squared_norms(torch.full((1, 600), 1e30)).isinf().all()
    assert squared_norms(torch.full((1, 3), float("nan"))).isnan().all()


@pytest.mark.parametrize("way", [one_by_one, layers.layer_by_layer, hooks.opacus_hooks])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_one_nan_image_becomes_zero_and_is_counted(way: Any, bad: float) -> None:
    """The trap: one NaN makes every parameter NaN. Its patient adds exactly nothing; the others are as before."""
    study = study_of("cnn dense")
    model, losses, bounds = model_of(study), losses_of(study), Bounds(clip_norms=(0.01,))
    what, micro = trained(model), micro_of(study, (1, 2, 1), slots=5)
    rows = matrix(one_by_one, model, what, losses, micro)
    micro.batch.images[1] = bad
    clipper = Clipper(bounds, micro.weights)
    total = way(model, what, losses, micro, clipper).numpy()
    assert clipper.not_finite == 1
    limit = 0.01 * (1 - SLACK)
    expected = sum(rows[i] * min(1, limit / np.linalg.norm(rows[i])) for i in (0, 2))
    assert np.linalg.norm(total - expected) < 1e-4 * limit


def test_each_patient_is_clipped_once_and_then_weighed() -> None:
    study = study_of("unet without norm")
    model, losses, bounds = model_of(study), losses_of(study), Bounds(clip_norms=(0.05,))
    what = trained(model)
    micro = micro_of(study, (1, 3), slots=4)
    micro = Microbatch(
        batch=micro.batch,
        segments=micro.segments,
        view_weights=micro.view_weights,
        weights=(1.0, 0.25),
        seeds=micro.seeds,
        most=micro.most,
    )
    rows = naive(model, "unet without norm", micro)
    assert np.linalg.norm(rows, axis=1).min() > 0.05
    expected = (
        0.05
        * (1 - SLACK)
        * sum(weight * row / np.linalg.norm(row) for weight, row in zip((1.0, 0.25), rows, strict=True))
    )
    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        total = way(model, what, losses, micro, Clipper(bounds, micro.weights)).numpy()
        assert distance(total[None], expected[None]) < 1e-4


def test_groups_of_parameters_are_clipped_apart() -> None:
    study = study_of("cnn gap")
    model, losses = model_of(study), losses_of(study)
    what = trained(model, group_of=lambda name: int(name.startswith("head.")))
    micro, bounds = micro_of(study, (2, 1), slots=3), Bounds(clip_norms=(0.01, 0.02))
    rows = naive(model, "cnn gap", micro)
    head = np.concatenate([np.full(p.numel(), n.startswith("head.")) for n, p in model.named_parameters()])
    expected = np.zeros(what.count)
    for row in rows:
        for part, norm in ((~head, 0.01), (head, 0.02)):
            expected[part] += row[part] * min(1, norm * (1 - SLACK) / np.linalg.norm(row[part]))
    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        total = way(model, what, losses, micro, Clipper(bounds, micro.weights)).numpy()
        assert distance(total[None], expected[None]) < 1e-4


def test_the_layers_as_groups_move_the_sum_as_far_as_one_group_and_no_farther() -> None:
    """Each group at clip norm / sqrt(groups): one patient's whole contribution is then at most the clip norm."""
    study, clip_norm = study_of("cnn gap"), 1e-3
    model, losses = model_of(study), losses_of(study)
    groups = groups_of(model, "layers")
    what = trained(model, group_of=groups.__getitem__)
    count = 1 + max(what.groups)
    assert what.groups == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)
    bounds, micro = Bounds(clip_norms=(clip_norm / count**0.5,) * count), micro_of(study, (2,), slots=3)
    assert bounds.sensitivity == pytest.approx(clip_norm, rel=1e-12)
    (row,) = naive(model, "cnn gap", micro)
    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        total = way(model, what, losses, micro, Clipper(bounds, micro.weights)).numpy()
        for (name, parameter), (_, group, place) in zip(model.named_parameters(), what.places(), strict=True):
            own = np.concatenate([row[at] for _, other, at in what.places() if other == group])
            scale = min(1, clip_norm / count**0.5 * (1 - SLACK) / np.linalg.norm(own))
            assert np.allclose(total[place], scale * row[place], rtol=1e-3, atol=1e-9), (name, parameter.shape)
        assert np.linalg.norm(total) <= clip_norm * (1 - SLACK) * (1 + 1e-5)


@pytest.mark.parametrize("clip_norms", [(1.0,), (1.0, 1.0, 1.0)])
def test_groups_without_a_clip_norm_each_are_refused(clip_norms: tuple[float, ...]) -> None:
    """One norm for two groups would let a patient contribute it twice."""
    study = study_of("cnn gap")
    model, losses = model_of(study), losses_of(study)
    what = trained(model, group_of=lambda name: int(name.startswith("head.")))
    micro = micro_of(study, (2, 1), slots=3)
    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        with pytest.raises(Unreached, match=f"2 groups of parameters for {len(clip_norms)} clip norms"):
            way(model, what, losses, micro, Clipper(Bounds(clip_norms=clip_norms), micro.weights))


LEVERS = {
    "cnn, standardised": {"model": {"name": "cnn", "head": "gap", "weight_standardisation": True}},
    "unet, standardised": {
        "study": {"task": "segmentation", "classes": ["a", "b"]},
        "model": {
            "name": "unet",
            "head": "dense",
            "image_size": [16, 16],
            "base_channels": 2,
            "weight_standardisation": True,
        },
    },
    "unet, head": {
        "study": {"task": "segmentation", "classes": ["a", "b"]},
        "model": {
            "name": "unet",
            "head": "dense",
            "image_size": [16, 16],
            "base_channels": 2,
            "freeze": "all_but_head",
            "pretrained_sha256": "0" * 64,
        },
    },
    "unet, norms": {
        "study": {"task": "segmentation", "classes": ["a", "b"]},
        "model": {
            "name": "unet",
            "head": "dense",
            "image_size": [16, 16],
            "base_channels": 2,
            "freeze": "all_but_norms",
            "pretrained_sha256": "0" * 64,
        },
    },
    "scatter": {"model": {"name": "scatter", "head": "dense"}},
    "scatter of pixels": {
        "study": {"task": "segmentation", "classes": ["a", "b"]},
        "model": {"name": "scatter", "head": "dense"},
    },
}
SLOW_LEVERS = {
    "resnet18, standardised": {
        "model": {"name": "resnet18", "head": "dense", "image_size": [16, 16], "weight_standardisation": True}
    },
    "retinanet, head": {
        "study": {"task": "detection", "classes": ["a", "b"]},
        "model": {
            "name": "retinanet",
            "head": "dense",
            "image_size": [64, 64],
            "freeze": "all_but_head",
            "pretrained_sha256": "0" * 64,
        },
    },
}


def lever(name: str) -> Study:
    return tiny_study(**{**LEVERS, **SLOW_LEVERS}[name])


@pytest.mark.parametrize("name", [*LEVERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_LEVERS)])
def test_models_that_learn_under_noise_have_the_right_gradients_on_the_fast_way(name: str) -> None:
    study = lever(name)
    model, losses = model_of(study), losses_of(study)
    what, micro = trained(model), micro_of(study, (2, 1, 3), slots=8)
    assert way_of(model) is layers.layer_by_layer
    expected = matrix(one_by_one, model, what, losses, micro)
    assert distance(matrix(layers.layer_by_layer, model, what, losses, micro), expected) < 1e-4
    if name in LEVERS:
        assert hooks.supported(model)
        assert distance(matrix(hooks.opacus_hooks, model, what, losses, micro), expected) < 1e-4
    check(model, what, losses, study, layers.layer_by_layer, blank=blank_of(study), most=2, seed=0)


@pytest.mark.parametrize("clip_norm", [2.0**-20, 1.0])
@pytest.mark.parametrize(("inputs", "backprops"), [
    (1e38, 1e-36), (1e38, 1e-38), (1e19, 1e19), (1e30, 1e8), (1e-36, 1e38), (1e36, 1e36), (1.0, 1e38), (1e38, 1.0),
    (1.0, 1.0),
])  # fmt: skip
@pytest.mark.parametrize("way", [layers.layer_by_layer, hooks.opacus_hooks])
@pytest.mark.parametrize(("wide", "most"), [(True, 1), (True, 2), (False, 1)], ids=["rows", "two rows", "gradients"])
def test_no_patient_is_longer_than_the_clip_norm_however_large_the_numbers(
    way: Way, wide: bool, most: int, inputs: float, backprops: float, clip_norm: float
) -> None:
    """The trap: a factor, or what it has scaled, so small that float32 has no digits for it and rounds it up."""
    torch.manual_seed(0)
    shape = (80, 64) if wide else (3, 1)
    layer = nn.Linear(*shape, bias=False)
    nn.init.zeros_(layer.weight)
    what, images = trained(layer), inputs * (0.5 + torch.rand(2 * most, shape[0]))

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch.images) * backprops).sum(dim=1)

    views = [Views(batch=Batch(images=images[most * k :][:most]), weight=1.0, seed=0) for k in (0, 1)]
    (micro,) = pack(views, slots=2 * most, blank=Batch(images=torch.zeros(1, shape[0])), most=most)
    for position in (0, 1):
        clipper, calls = Clipper(Bounds(clip_norms=(clip_norm,)), (1.0, 1.0)), only(position)
        made = way(layer, what, losses, micro, lambda norms, c=clipper, o=calls: c(norms) * o(norms)).numpy()  # type: ignore[misc]
        mean = images[most * position :][:most].double().mean(dim=0) * backprops
        exact = mean.repeat(shape[1]).numpy()
        length = np.linalg.norm(exact)
        expected = exact * min(1.0, clip_norm * (1 - SLACK) / length)
        assert not made.any() or np.linalg.norm(made - expected) < 1e-4 * np.linalg.norm(expected)
        assert np.linalg.norm(made) <= clip_norm
        assert made.any() or length > 1e38  # infinite in float32: adds nothing


def test_frozen_layers_have_no_place_in_the_sum() -> None:
    study = study_of("cnn gap")
    model, losses = model_of(study), losses_of(study)
    model.features.requires_grad_(False)  # type: ignore[union-attr,operator]
    model.head[2].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    what, micro = trained(model), micro_of(study, (1, 2), slots=4)
    assert what.names == ("head.2.weight",)
    expected = naive(model, "cnn gap", micro)
    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        assert distance(matrix(way, model, what, losses, micro), expected) < 1e-4


def test_nothing_stale_is_left_when_a_loss_misses_a_branch_once() -> None:
    """The trap of Opacus's ghost mode: a layer that one loss leaves out must count as zero, not as last time."""
    torch.manual_seed(0)
    left, right = nn.Linear(3, 2), nn.Linear(3, 2)
    model = nn.ModuleDict({"left": left, "right": right})
    what, micro = trained(model), zoo_micro(dtype=torch.float32, counts=(1, 1), slots=2)
    images = torch.randn(2, 3)
    micro = Microbatch(
        batch=Batch(images=images, labels=torch.tensor([0, 1])),
        segments=micro.segments,
        view_weights=micro.view_weights,
        weights=micro.weights,
        seeds=micro.seeds,
        most=micro.most,
    )

    def both(_model: nn.Module, batch: Batch) -> Tensor:
        return (left(batch.images) + right(batch.images)).square().sum(dim=1)

    def one(_model: nn.Module, batch: Batch) -> Tensor:
        return left(batch.images).square().sum(dim=1)  # type: ignore[no-any-return]

    for way in (one_by_one, layers.layer_by_layer, hooks.opacus_hooks):
        assert way(model, what, both, micro, torch.ones_like)[-8:].any()
        assert not way(model, what, one, micro, torch.ones_like)[-8:].any()


def test_a_parameter_used_outside_its_layer_is_refused() -> None:
    layer = nn.Linear(3, 2)

    def sly(_model: nn.Module, batch: Batch) -> Tensor:
        return layer(batch.images).sum(dim=1) + (batch.images @ layer.weight.t()).square().sum(dim=1)

    micro = zoo_micro(dtype=torch.float32, counts=(1, 1), slots=2)
    micro.batch.__dict__["images"] = torch.randn(2, 3)
    with pytest.raises(Unreached, match="outside"):
        layers.layer_by_layer(layer, trained(layer), sly, micro, torch.ones_like)


def test_rows_that_are_not_images_are_refused_by_the_fast_way() -> None:
    """Regions of interest: one image has many rows, and a clip of rows is none of images."""
    layer = nn.Linear(3, 2)

    def regions(_model: nn.Module, batch: Batch) -> Tensor:
        found = layer(batch.images.repeat(4, 1)).sum(dim=1).view(4, -1)
        return found.sum(dim=0)  # type: ignore[no-any-return]

    micro = zoo_micro(dtype=torch.float32, counts=(1, 1), slots=2)
    micro.batch.__dict__["images"] = torch.randn(2, 3)
    with pytest.raises(ValueError, match="8 rows for 2 images"):
        layers.layer_by_layer(layer, trained(layer), regions, micro, torch.ones_like)


def test_the_way_is_chosen_by_the_model() -> None:
    ways = {name: way_of(model_of(study_of(name))) for name in MODELS if name != "resnet18"}
    assert ways.pop("fasterrcnn") is one_by_one
    assert set(ways.values()) == {layers.layer_by_layer}
    assert way_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 2, 2]))) is hooks.opacus_hooks
    assert way_of(nn.Bilinear(2, 2, 2)) is one_by_one

    class Own(nn.Conv2d):
        """A subclass may compute anything."""

    assert way_of(Own(1, 2, 3)) is one_by_one
    assert way_of(nn.Conv2d(1, 2, 2, padding="same")) is not layers.layer_by_layer


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_refused(mode: Any) -> None:
    with pytest.raises(FederationError, match=rf"0: padding_mode = '{mode}'"):
        way_of(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode)))


def test_channels_last_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(FederationError, match="channels_last"):
        way_of(model)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.BatchNorm1d(2, track_running_stats=False)]
)
def test_batch_norm_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(FederationError, match=rf"1 \({type(layer).__name__}\)"):
        way_of(nn.Sequential(nn.Conv2d(1, 2, 3), layer))


def test_channels_last_images_do_not_change_the_gradients() -> None:
    study = study_of("cnn gap")
    model, losses = model_of(study), losses_of(study)
    what, micro = trained(model), micro_of(study, (2, 1), slots=4)
    expected = naive(model, "cnn gap", micro)
    micro.batch.__dict__["images"] = micro.batch.images.to(memory_format=torch.channels_last)
    assert distance(matrix(layers.layer_by_layer, model, what, losses, micro), expected) < 1e-4


def test_arithmetic_is_exact_inside_and_as_before_outside() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with exact_arithmetic(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.is_autocast_enabled("cpu") and not torch.backends.cudnn.allow_tf32
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_models_forward_is_put_back_after_an_error() -> None:
    study = study_of("cnn gap")
    model, micro = model_of(study), micro_of(study, (1,), slots=1)
    before = set(model.head.__dict__)

    def broken(_model: nn.Module, batch: Batch) -> Tensor:
        _model(batch.images)
        raise RuntimeError("no loss")

    for way in (layers.layer_by_layer, hooks.opacus_hooks):
        with pytest.raises(RuntimeError, match="no loss"):
            way(model, trained(model), broken, micro, only(0))
        assert set(model.head.__dict__) == before
        assert all("forward" not in layer.__dict__ and not hasattr(layer, "activations") for layer in model.modules())


def test_warnings_of_the_hooks_are_silent() -> None:
    study = study_of("cnn gap")
    model, micro = model_of(study), micro_of(study, (1,), slots=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks.opacus_hooks(model, trained(model), losses_of(study), micro, only(0))
