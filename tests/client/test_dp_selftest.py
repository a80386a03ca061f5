"""The self-test passes what is separable and names what is not."""

from typing import Any

import pytest
import torch
from dp_cases import MODELS, losses_of, model_of, study_of
from torch import Tensor, nn

from client.dp import layers
from client.dp.gradients import Clip, Losses, Trained, Way, one_by_one, trained
from client.dp.microbatch import Microbatch
from client.dp.patients import blank_of
from client.dp.selftest import NotSeparable, check
from client.dp.step import way_of
from common.tasks.batch import Batch


def run(name: str, *, model: nn.Module | None = None, losses: Losses | None = None, way: Way | None = None) -> None:
    study = study_of(name)
    model = model or model_of(study)
    way, losses, blank = way or way_of(model), losses or losses_of(study), blank_of(study)
    for most in (1, 2, 8):
        check(model, trained(model), losses, study, way, blank=blank, most=most, seed=1)


SLOW = ("resnet18", "retinanet", "fasterrcnn")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
def test_every_model_and_task_is_separable(name: str) -> None:
    run(name)


class MeanOfBatch(nn.Module):
    """Couples images without any parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


def with_layer(layer: nn.Module) -> nn.Module:
    model = model_of(study_of("cnn gap"))
    model.features[1] = layer  # type: ignore[index,operator]
    return model.train()


@pytest.mark.parametrize(
    "layer",
    [MeanOfBatch(), nn.BatchNorm2d(16, affine=False), nn.BatchNorm2d(16, affine=False, track_running_stats=False)],
)
def test_batch_statistics_are_refused_by_the_layers_name(layer: nn.Module) -> None:
    with pytest.raises(NotSeparable, match=rf"layer features\.1 \({type(layer).__name__}\) mixes patients"):
        run("cnn gap", model=with_layer(layer), way=layers.layer_by_layer)


def batch_dice(model: nn.Module, batch: Batch) -> Tensor:
    """Dice over the pixels of the whole batch, for each image: the usual one, and the wrong one here."""
    probability = torch.sigmoid(model(batch.images))
    truth = (batch.masks > 0).float()[:, None]  # type: ignore[operator]
    dice = 2 * (probability * truth).sum() / (probability.sum() + truth.sum() + 1)
    return (1 - dice).expand(len(batch.images))


def test_batch_dice_is_refused_by_the_losss_name() -> None:
    with pytest.raises(NotSeparable, match="loss batch_dice mixes patients"):
        run("unet without norm", losses=batch_dice)


def positives_of_the_batch(model: nn.Module, batch: Batch) -> Tensor:
    """A detector's loss as torchvision divides it: by the objects of all images."""
    each = losses_of(study_of("retinanet"))(model, batch)
    own = [max(1, len(one.boxes)) for one in batch.objects or ()]
    return each * torch.tensor(own) / sum(own)


@pytest.mark.slow
def test_a_detector_loss_divided_by_the_batchs_positives_is_refused_by_name() -> None:
    with pytest.raises(NotSeparable, match="loss positives_of_the_batch mixes patients"):
        run("retinanet", losses=positives_of_the_batch)


def divided_by_the_batchs_positives(model: nn.Module, batch: Batch) -> Tensor:
    """The same fault in small: only the truth of the others is in it."""
    each = losses_of(study_of("cnn gap"))(model, batch)
    return each / (1 + (batch.labels == 1).sum())


def neighbours(model: nn.Module, batch: Batch) -> Tensor:
    """Each image's loss is right in its value, but pulls at its neighbour's output."""
    each = losses_of(study_of("cnn gap"))(model, batch)
    pull = each.roll(1)
    return each + 5 * (pull - pull.detach())


def test_a_loss_divided_by_others_labels_is_refused_by_name() -> None:
    with pytest.raises(NotSeparable, match="loss divided_by_the_batchs_positives mixes patients"):
        run("cnn gap", losses=divided_by_the_batchs_positives)


def test_a_loss_that_reaches_other_images_gradients_is_refused_by_name() -> None:
    with pytest.raises(NotSeparable, match="loss neighbours"):
        run("cnn gap", losses=neighbours)


class _Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] + gradients[0].roll(1, 0)


class Leaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Leak.apply(x)
        return made


def test_a_layer_whose_backward_pass_mixes_is_refused_by_name() -> None:
    with pytest.raises(NotSeparable, match=r"layer features\.1 mixes patients in its backward pass"):
        run("cnn gap", model=with_layer(Leaky()))


def test_a_loss_of_the_batch_is_refused() -> None:
    def mean(model: nn.Module, batch: Batch) -> Tensor:
        return losses_of(study_of("cnn gap"))(model, batch).mean()

    with pytest.raises(NotSeparable, match=r"shape \[\] for 4 images"):
        run("cnn gap", losses=mean)


def test_a_parameter_without_part_in_the_loss_is_refused_by_name() -> None:
    model = model_of(study_of("cnn gap"))
    model.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(NotSeparable, match=r"parameter spare\.weight"):
        run("cnn gap", model=model)


def test_wrong_per_patient_gradients_are_refused_by_the_parameters_name() -> None:
    """As of a layout or layer that the fast way gets wrong."""

    def wrong(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, clip: Clip) -> Tensor:
        total = one_by_one(model, what, losses, micro, clip)
        for name, (_, _, place) in zip(what.names, what.places(), strict=True):
            if name == "features.4.weight":
                total[place] *= 1.5
        return total

    with pytest.raises(NotSeparable, match=r"features\.4\.weight is wrong under wrong"):
        run("cnn gap", way=wrong)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    def endless(model: nn.Module, batch: Batch) -> Tensor:
        return losses_of(study_of("cnn gap"))(model, batch) / 0

    with pytest.raises(NotSeparable, match="finite"):
        run("cnn gap", losses=endless)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = model_of(study_of("cnn gap")).train(training)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run("cnn gap", model=model)
    assert model.training is training
    assert all(bool((p == old).all()) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())
