"""Convolutions whose kernels have mean 0 and variance 1: they learn faster where batches are small or noised.

Source: Qiao et al. 2019, "Micro-batch training with batch-channel normalization and weight standardization",
equations 3 and 4; under differential privacy De et al. 2022, "Unlocking high-accuracy differentially private image
classification through scale", section 3. A normalisation has to follow: the kernel has lost its length.
"""

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-5  # added to the variance


class StandardisedConv2d(nn.Conv2d):
    """A convolution with `kernel` in the place of `weight`, which is what is trained and sent."""

    def kernel(self) -> Tensor:
        """(weight - mean) / sqrt(variance + 1e-5) of each output channel, [o, i, k, k]."""
        centred, scale = _standardised(self.weight)
        return centred * scale

    def by_weight(self, by_kernel: Tensor) -> Tensor:
        """Gradients by the weight from gradients by the kernel, both [n, o, i, k, k]: one linear map for all n."""
        centred, scale = _standardised(self.weight.detach())
        kernel, inputs = centred * scale, (2, 3, 4)
        rest = by_kernel - by_kernel.mean(dim=inputs, keepdim=True)
        return (rest - kernel * (by_kernel * kernel).mean(dim=inputs, keepdim=True)) * scale

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.kernel(), self.bias)
        return output


def _standardised(weight: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    return weight - mean, torch.rsqrt(variance + EPSILON)


def standardise(network: nn.Module) -> None:
    """Every convolution inside becomes a standardised one with the same weights, but for the last layer."""
    last: Any = [layer for layer in network.modules() if list(layer.parameters(recurse=False))][-1]
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and layer is not last:
                setattr(parent, name, _like(layer))


def _like(layer: nn.Conv2d) -> StandardisedConv2d:
    made: Any = StandardisedConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
        device="meta",
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made  # type: ignore[no-any-return]
