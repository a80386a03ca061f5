"""The way of Opacus: its hooks leave one gradient per image, which are added up by patient before the norm."""

import warnings
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.utils import register_grad_sampler
from torch import Tensor, nn

from client.dp.gradients import Clip, Losses, Trained, Unreached, exact_arithmetic
from client.dp.layers import Tape, clipped, own_parameters, padding_of
from client.dp.microbatch import Microbatch
from common.models.standardised import StandardisedConv2d
from common.randomness import seeded


def transposed_convolution(
    layer: nn.ConvTranspose2d, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Per-image gradients of ConvTranspose2d: the input's pixels times the window of the backprop that each one fed.

    Opacus has none and would fall back to functorch. Source: privacy-norms.md, row ConvTranspose2d.
    """
    made: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        inputs, groups = activations[0], layer.groups
        windows = nn.functional.unfold(
            backprops, layer.kernel_size, dilation=layer.dilation, padding=padding_of(layer), stride=layer.stride
        )
        # [images, groups, channels of the group, pixels] on both sides
        inputs, windows = (one.reshape(len(one), groups, -1, inputs[0, 0].numel()) for one in (inputs, windows))
        made[layer.weight] = torch.einsum("ngit,ngot->ngio", inputs, windows).reshape(-1, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        made[layer.bias] = backprops.sum(dim=(2, 3))
    return made


def standardised_convolution(
    layer: StandardisedConv2d, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Per-image gradients by the kernel, taken on to the weight that the kernel is made from.

    Opacus would fall back to functorch: its own sampler knows no subclass.
    """
    made: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        windows = nn.functional.unfold(
            activations[0], layer.kernel_size, dilation=layer.dilation, padding=padding_of(layer), stride=layer.stride
        )
        windows, outputs = (one.reshape(len(one), layer.groups, -1, windows.shape[2]) for one in (windows, backprops))
        by_kernel = torch.einsum("ngot,ngit->ngoi", outputs, windows).reshape(-1, *layer.weight.shape)
        made[layer.weight] = layer.by_weight(by_kernel)
    if layer.bias is not None and layer.bias.requires_grad:
        made[layer.bias] = backprops.sum(dim=(2, 3))
    return made


register_grad_sampler(nn.ConvTranspose2d)(transposed_convolution)
register_grad_sampler(StandardisedConv2d)(standardised_convolution)


def supported(model: nn.Module) -> bool:
    """Whether Opacus has a sampler of its own for every layer with trained parameters (no functorch)."""
    return all(type(layer) in GradSampleHooks.GRAD_SAMPLERS for layer in model.modules() if own_parameters(layer))


def opacus_hooks(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, clip: Clip) -> Tensor:
    """One forward and one backward pass under Opacus's hooks, which are attached and taken off again."""
    device, tape = micro.batch.images.device, Tape(micro.segments, micro.slots, micro.most)
    mode = model.training
    hooks: Any = GradSampleHooks(model.train(), loss_reduction="sum", strict=False)
    try:
        with exact_arithmetic(device):
            with seeded(micro.seeds[0] if micro.seeds else 0, "micro-batch"), warnings.catch_warnings():
                # The images need no gradient, which makes torch warn about the first layer's hook.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                each = losses(model, micro.batch)
                torch.autograd.grad([each], what.parameters, [micro.view_weights.to(each)], allow_unused=True)
            for name, parameter in zip(what.names, what.parameters, strict=True):
                found = getattr(parameter, "grad_sample", None)
                if found is None:  # the losses of these images do not depend on it
                    continue
                if not isinstance(found, Tensor) or found.shape[0] != tape.slots:
                    raise Unreached(f"{name} has no gradient for each image")
                tape.add(parameter, tape.of_patients(found))
            return clipped(what, tape, clip)
    finally:
        hooks.cleanup()
        for layer in model.modules():  # left behind where the losses raised an error
            for name in ("activations", "max_batch_len"):
                if hasattr(layer, name):
                    delattr(layer, name)
        model.train(mode)
