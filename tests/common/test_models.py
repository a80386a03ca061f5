"""The networks: exact sizes, repeatable weights, nothing that couples the images of a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common import study as studies
from common.errors import StudyError
from common.models import backbone_names, build_model, groups_of, head_names, load_pretrained
from common.models.detector import anchors_of
from common.models.standardised import StandardisedConv2d
from common.randomness import seeded
from common.study import MODELS_OF_TASK, Study
from common.tasks import task_of
from common.tasks.batch import Batch, Objects

torch.set_num_threads(1)

TASK_OF_MODEL = {model: task for task, models in reversed(MODELS_OF_TASK.items()) for model in models}


def make(name: str, *, task: str = "", classes: int = 2, **model: Any) -> Study:
    """A study with this model; a detector's images are 64x96, others 32x32, unless said otherwise."""
    task = task or TASK_OF_MODEL[name]
    size = [64, 96] if task == "detection" else [32, 32]
    return studies.parse(
        {
            "study": {
                "schema": 1,
                "name": "test",
                "task": task,
                "classes": [f"class {k}" for k in range(classes)],
                "rounds": 1,
            },
            "model": {"name": name, "image_size": size, **model},
            "training": {"local_steps": 1},
        },
        where="test",
    )


EVERY = {
    "cnn": make("cnn"),
    "cnn in colour": make("cnn", channels=3, classes=3),
    "cnn, small head": make("cnn", head="gap"),
    "cnn without norm": make("cnn", norm="none"),
    "cnn, standardised": make("cnn", head="gap", weight_standardisation=True),
    "scatter": make("scatter", image_size=[20, 28]),
    "scatter in colour": make("scatter", channels=3, classes=3),
    "scatter of pixels": make("scatter", task="segmentation"),
    "resnet18, small images": make("resnet18", image_size=[16, 16]),
    "resnet18, large images": make("resnet18", image_size=[72, 32], channels=3),
    "resnet18 without norm": make("resnet18", image_size=[16, 16], norm="none"),
    "resnet18, standardised": make("resnet18", image_size=[16, 16], weight_standardisation=True),
    "unet": make("unet", base_channels=4),
    "unet, standardised": make("unet", base_channels=2, weight_standardisation=True),
    "unet without norm": make("unet", base_channels=3, norm="none"),
    "retinanet": make("retinanet", channels=3),
    "retinanet without norm": make("retinanet", norm="none"),
    "retinanet, one anchor": make("retinanet", anchor_ratios=[1.0], anchor_scales=1),
    "fasterrcnn": make("fasterrcnn"),
    "fasterrcnn without norm": make("fasterrcnn", norm="none"),
}
every_model = pytest.mark.parametrize("study", EVERY.values(), ids=EVERY.keys())
every_model_and_more = pytest.mark.parametrize(
    "study",
    [*EVERY.values(), make("retinanet", backbone="resnet18")],
    ids=[*EVERY, "retinanet on resnet18"],
)
each_architecture = pytest.mark.parametrize(
    "name", ["cnn", "resnet18, small images", "unet", "retinanet", "fasterrcnn"]
)


def build(study: Study, *, seed: int = 0) -> nn.Module:
    with seeded(seed, "test"):
        return build_model(study)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def batch_of_three(study: Study, *, seed: int = 0) -> Batch:
    """Three images with truths, the second without any object or mask."""
    rng = np.random.default_rng(seed)
    height, width = study.model.image_size
    images = torch.from_numpy(rng.normal(size=(3, study.model.channels, height, width)).astype(np.float32))
    classes = len(study.study.classes)
    labels = torch.from_numpy(rng.integers(0, classes, 3))
    masks = torch.from_numpy(rng.integers(0, classes + 1, (3, height, width)).astype(np.uint8))
    masks[1] = 0
    objects = []
    for number in (2, 0, 3):
        corner = rng.uniform(0, min(height, width) / 2, (number, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, min(height, width) / 2, (number, 2))], axis=1)
        objects.append(Objects(boxes=boxes.astype(np.float32), classes=rng.integers(0, classes, number)))
    return Batch(images=images, labels=labels, masks=masks, objects=tuple(objects))


def first_replaced(batch: Batch, other: Batch) -> Batch:
    """The batch with everything of its first image taken from the second of another, which shows nothing."""
    assert batch.labels is not None and batch.masks is not None and batch.objects is not None
    assert other.labels is not None and other.masks is not None and other.objects is not None
    images, labels, masks = batch.images.clone(), batch.labels.clone(), batch.masks.clone()
    images[0], labels[0], masks[0] = 5 * other.images[1], 1 - labels[0].clamp(max=1), other.masks[1]
    objects = [other.objects[1], *batch.objects[1:]]
    return Batch(images=images, labels=labels, masks=masks, objects=tuple(objects))


@pytest.mark.parametrize(
    ("study", "parameters"),
    [
        (make("cnn", classes=10, image_size=[224, 224], channels=3, norm="none"), 11_132_618),
        (make("unet", classes=1, norm="none"), 31_030_593),
        (make("cnn", head="gap", image_size=[28, 28]), 14_274),  # 160+4640+9248 convolutions, 160 norms, 66 linear
    ],
    ids=["cnn", "unet", "small cnn"],
)
def test_a_model_has_exactly_its_number_of_parameters(study: Study, parameters: int) -> None:
    assert count(build(study)) == parameters


def test_base_channels_scale_the_unet() -> None:
    whole, half = (count(build(make("unet", base_channels=channels, norm="none"))) for channels in (16, 8))
    assert 3.9 < whole / half < 4


def test_the_small_detectors_are_small() -> None:
    for name in ("retinanet", "fasterrcnn"):
        assert 1e6 < count(build(make(name, image_size=[192, 256], channels=3, classes=3))) < 1.5e6


@every_model
def test_equal_seeds_give_equal_weights_and_others_do_not(study: Study) -> None:
    first, same, other = (nn.utils.parameters_to_vector(build(study, seed=s).parameters()) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert torch.equal(first, other) == (study.model.name == "scatter")  # which starts at 0


@every_model_and_more
def test_no_layer_couples_images_or_works_in_place(study: Study) -> None:
    model = build(study)
    assert not list(model.buffers())
    for module in model.modules():
        assert not isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd)
        assert not getattr(module, "inplace", False)
        assert getattr(module, "padding_mode", "zeros") == "zeros"
    normed = study.model.norm == "group" and study.model.name != "scatter"
    assert any(isinstance(module, nn.GroupNorm) for module in model.modules()) == normed


@every_model_and_more
def test_each_image_alone_reaches_every_parameter_with_a_finite_gradient(study: Study) -> None:
    model = build(study).train()
    with seeded(0, "losses"):
        losses = task_of(study).losses(model, batch_of_three(study))
    assert losses.shape == (3,)
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name


@every_model
def test_an_image_changes_no_other_image_s_loss(study: Study) -> None:
    model, task = build(study).train(), task_of(study)
    batch, other = batch_of_three(study), batch_of_three(study, seed=1)
    with seeded(0, "losses"):
        before = task.losses(model, batch).detach()
    with seeded(0, "losses"):
        after = task.losses(model, first_replaced(batch, other)).detach()
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-6, atol=1e-6)
    if study.model.name == "scatter":
        assert not model(batch.images).any()  # whatever the image: its loss changes with its truth alone
        return
    assert abs(after[0] - before[0]) > 1e-3


@pytest.mark.parametrize(
    ("study", "shape"),
    [(EVERY["cnn"], (2,)), (EVERY["resnet18, large images"], (2,)), (EVERY["unet"], (2, 32, 32))],
    ids=["cnn", "resnet18", "unet"],
)
def test_logits_have_one_value_for_each_class(study: Study, shape: tuple[int, ...]) -> None:
    assert build(study)(batch_of_three(study).images).shape == (3, *shape)


def test_small_images_keep_their_resolution_in_the_stem_of_resnet18() -> None:
    small, large = (build(make("resnet18", image_size=[side, side])) for side in (64, 65))
    assert small.get_submodule("conv1")(torch.zeros(1, 1, 64, 64)).shape[2:] == (64, 64)
    assert large.get_submodule("conv1")(torch.zeros(1, 1, 64, 64)).shape[2:] == (32, 32)
    assert isinstance(small.get_submodule("maxpool"), nn.Identity)


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (make("cnn", image_size=[17, 28]), "18 pixels"),
        (make("retinanet", image_size=[64, 100]), "multiples of 32"),
        (make("fasterrcnn", anchor_sizes=[8.0, 16.0]), "4 levels"),
    ],
    ids=["too small", "odd size", "anchors"],
)
def test_what_can_not_be_built_is_refused_in_one_line(study: Study, words: str) -> None:
    with pytest.raises(StudyError, match=words) as caught:
        build(study)
    assert "\n" not in str(caught.value)


@each_architecture
def test_pretrained_weights_replace_the_whole_model_or_its_backbone(name: str) -> None:
    study = EVERY[name]
    source, backbone = build(study, seed=1), set(backbone_names(build(study)))
    names = {name for name, _ in source.named_parameters()}
    assert backbone and backbone < names
    for given in (names, backbone):
        model = build(study)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        load_pretrained(model, {name: source.get_parameter(name).detach() for name in given})
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, source.get_parameter(key) if key in given else before[key])
            assert parameter.requires_grad


def test_anchors_have_the_sides_ratios_and_scales_that_the_study_says() -> None:
    study = make("retinanet", anchor_sizes=[10, 20, 30, 40], anchor_ratios=[4.0], anchor_scales=2)
    anchors = torch.cat(anchors_of(build(study), torch.zeros(1, 1, 64, 96)))
    sides = {(round(float(x1 - x0)), round(float(y1 - y0))) for x0, y0, x1, y1 in anchors}
    areas = [size * octave for size in (10, 20, 30, 40) for octave in (1, 2**0.5)]
    assert sides == {(2 * round(area / 4), 2 * round(area)) for area in areas}  # torchvision's halves are whole
    assert len(anchors) == 2 * sum((64 // stride) * (96 // stride) for stride in (8, 16)) + 2 * (2 * 3 + 1 * 2)


def frozen(study: Study, freeze: str) -> Study:
    values = study.model_dump(mode="json", by_alias=True)
    values["model"] |= {"freeze": freeze, "pretrained_sha256": "0" * 64}
    return studies.parse(values, where="test")


@each_architecture
@pytest.mark.parametrize("freeze", ["backbone", "all_but_norms", "all_but_head"])
def test_what_is_frozen_is_exactly_what_no_longer_trains(name: str, freeze: str) -> None:
    study = frozen(EVERY[name], freeze)
    model = build(study).train()
    load_pretrained(model, {key: p.detach().clone() for key, p in model.named_parameters()})
    fixed = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    everything = {key for key, _ in model.named_parameters()}
    norms = {
        f"{path}.{kind}"
        for path, layer in model.named_modules()
        for kind in ("weight", "bias")
        if isinstance(layer, nn.GroupNorm)
    }
    head = set(head_names(model))
    free = {"backbone": everything - set(backbone_names(model)), "all_but_norms": norms | head, "all_but_head": head}
    assert everything - fixed == free[freeze]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = task_of(study).losses(model, batch_of_three(study)).sum()
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, trained))


@pytest.mark.parametrize(
    ("name", "head", "values"),
    [
        ("cnn", {"head.3"}, 64 * 2 + 2),
        ("cnn, small head", {"head.2"}, 32 * 2 + 2),
        ("scatter", {"head"}, 81 * 5 * 7 + 1),
        ("resnet18, small images", {"fc"}, 512 * 2 + 2),
        ("unet", {"head"}, 4 * 2 + 2),
        ("unet, standardised", {"head"}, 2 * 2 + 2),
        (
            "retinanet",
            {"head.classification_head.cls_logits"},
            9 * 2 * (9 * 64 + 1),
        ),
        (
            "retinanet, one anchor",
            {"head.classification_head.cls_logits"},
            2 * (9 * 64 + 1),
        ),
        ("fasterrcnn", {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}, 129 * 3 * 5),
    ],
)
def test_the_head_is_what_gives_the_answer(name: str, head: set[str], values: int) -> None:
    model = build(EVERY[name])
    assert {key.rpartition(".")[0] for key in head_names(model)} == head
    assert sum(model.get_parameter(key).numel() for key in head_names(model)) == values


@each_architecture
def test_weights_without_a_head_leave_the_head_as_it_was_drawn(name: str) -> None:
    model, source = build(frozen(EVERY[name], "all_but_head")), build(EVERY[name], seed=1)
    before, head = {key: p.detach().clone() for key, p in model.named_parameters()}, set(head_names(model))
    load_pretrained(model, {key: p.detach() for key, p in source.named_parameters() if key not in head})
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key] if key in head else source.get_parameter(key))


def test_the_norms_and_the_head_of_a_small_unet_are_about_a_thousand_values() -> None:
    model = build(frozen(make("unet", base_channels=8, classes=1), "all_but_norms"))
    widths = 8 * (2 * (1 + 2 + 4 + 8 + 16) + 2 * (8 + 4 + 2 + 1))  # channels after all convolutions
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == 2 * widths + 9


@pytest.mark.parametrize(
    "changes", [{"freeze": "all_but_norms", "pretrained_sha256": "0" * 64}, {"weight_standardisation": True}]
)
def test_what_needs_normalisation_is_refused_without(changes: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"needs model\.norm = 'group'"):
        make("unet", norm="none", **changes)


def test_weights_that_lack_what_is_frozen_are_refused_and_change_nothing() -> None:
    model = build(frozen(EVERY["unet"], "all_but_head"))
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    backbone = {name: torch.ones_like(model.get_parameter(name)) for name in backbone_names(model)}
    with pytest.raises(StudyError, match=r"lack 'rise\.0\.weight' and \d+ more that model\.freeze keeps"):
        load_pretrained(model, backbone)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


@pytest.mark.parametrize("name", ["cnn, standardised", "resnet18, standardised", "unet, standardised"])
def test_every_convolution_but_the_last_layer_is_standardised(name: str) -> None:
    study = EVERY[name]
    model = build(study)
    plain = build(studies.parse(_without(study, "weight_standardisation"), where="test"))
    head = {key.rpartition(".")[0] for key in head_names(model)}
    for (path, layer), (_, ordinary) in zip(model.named_modules(), plain.named_modules(), strict=True):
        if isinstance(ordinary, nn.Conv2d):
            assert isinstance(layer, StandardisedConv2d) == (path not in head)
            assert torch.equal(layer.weight, ordinary.weight) and layer.extra_repr() == ordinary.extra_repr()
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]


def _without(study: Study, key: str) -> dict[str, Any]:
    values = study.model_dump(mode="json", by_alias=True)
    del values["model"][key]
    return values


@pytest.mark.parametrize("scale", [1e-6, 0.1, 50.0])
def test_a_standardised_kernel_has_mean_0_and_variance_1(scale: float) -> None:
    """Qiao et al. 2019, equation 4; a weight that hardly varies leaves a kernel that hardly does."""
    layer = StandardisedConv2d(6, 4, 3, groups=2, padding=1, bias=False).double()
    torch.nn.init.normal_(layer.weight, 3 * scale, scale)
    kernel = layer.kernel().detach().numpy()
    weight = layer.weight.detach().numpy()
    for one, own in zip(kernel, weight, strict=True):
        expected = (own - own.mean()) / np.sqrt(own.var() + 1e-5)
        assert np.allclose(one, expected) and abs(one.mean()) < 1e-9
    images = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected_output = nn.functional.conv2d(images, layer.kernel(), groups=2, padding=1)
    assert torch.equal(layer(images), expected_output)


def test_gradients_are_taken_from_the_kernel_to_the_weight_by_the_chain_rule() -> None:
    layer = StandardisedConv2d(3, 4, 3).double()
    by_kernel = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    found = layer.by_weight(by_kernel)
    for one, own in zip(by_kernel, found, strict=True):
        (expected,) = torch.autograd.grad([layer.kernel()], [layer.weight], [one])
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("name", ["cnn", "unet", "retinanet", "scatter"])
def test_each_layer_is_a_group_and_no_group_is_empty(name: str) -> None:
    model = build(EVERY[name])
    names = [key for key, _ in model.named_parameters()]
    assert groups_of(model, "one") == dict.fromkeys(names, 0)
    groups = groups_of(model, "layers")
    owners = {key: [path for path, layer in model.named_modules() if key in _own(path, layer)] for key in names}
    for one in names:
        for other in names:
            assert (groups[one] == groups[other]) == (owners[one] == owners[other])
    assert sorted(set(groups.values())) == list(range(max(groups.values()) + 1))


def test_what_is_frozen_is_in_no_group() -> None:
    assert groups_of(build(frozen(EVERY["unet"], "all_but_head")), "layers") == {"head.weight": 0, "head.bias": 0}


def _own(path: str, layer: nn.Module) -> set[str]:
    return {f"{path}.{key}" for key, _ in layer.named_parameters(recurse=False)}


@pytest.mark.parametrize("fault", ["another architecture", "a name too many", "a name too few", "shape", "not finite"])
def test_wrong_pretrained_weights_are_refused_in_one_line_and_change_nothing(fault: str) -> None:
    study = make("cnn", head="gap")
    model = build(study)
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    tensors = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    if fault == "another architecture":
        tensors = {name: p.detach() for name, p in build(make("unet", base_channels=2)).named_parameters()}
    elif fault == "a name too many":
        tensors["extra"] = torch.zeros(1)
    elif fault == "a name too few":
        del tensors["features.0.bias"]
    elif fault == "shape":
        tensors["head.2.weight"] = torch.ones(3, 32)
    else:
        tensors["head.2.bias"][0] = torch.nan
    with pytest.raises(StudyError, match="pretrained") as caught:
        load_pretrained(model, tensors)
    assert "\n" not in str(caught.value)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
