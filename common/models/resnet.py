"""torchvision's residual networks without batch normalisation, as classifier and as a detector's feature extractor."""

from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from common.models.cnn import norm_layer

SMALL_IMAGE = 64  # pixels: longest side up to which the stem keeps the resolution


def resnet18(*, channels: int, classes: int, image_size: tuple[int, int], norm: Literal["none", "group"]) -> nn.Module:
    """ResNet-18: images [B, channels, H, W] to logits [B, classes].

    Images with no side above 64 pixels get a 3x3 stem of stride 1 without max-pooling (He et al. 2016, section 4.2):
    the usual stem would leave a 28-pixel image one feature cell.
    """
    network = residual(BasicBlock, (2, 2, 2, 2), channels=channels, classes=classes, norm=norm)
    if max(image_size) <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def residual(
    block: type[BasicBlock | Bottleneck],
    layers: tuple[int, int, int, int],
    *,
    channels: int,
    classes: int,
    norm: Literal["none", "group"],
) -> nn.Module:
    """torchvision's ResNet for 1 or 3 channels with GroupNorm or nothing in the place of batch normalisation."""
    network: nn.Module = ResNet(block, list(layers), num_classes=classes, norm_layer=norm_layer(norm))
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    tame(network, norm=norm)
    return network


def tame(network: nn.Module, *, norm: Literal["none", "group"]) -> None:
    """Make torchvision's modules fit: no in-place activation; without normalisation, residual branches start at zero,
    because their sums would double in variance with every block."""
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif norm == "none" and isinstance(module, BasicBlock | Bottleneck):
            last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
            nn.init.zeros_(last.weight)
