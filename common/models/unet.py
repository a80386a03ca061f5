"""The U-Net: a logit for every class at every pixel. Source: Ronneberger et al. 2015, with padded convolutions."""

from typing import Literal

import torch
from torch import Tensor, nn

from common.models.cnn import norm_layer


class UNet(nn.Module):
    """Four levels down, four up, skip connections: images [B, C, H, W] to logits [B, K, H, W], H and W multiples of 16.

    Channels are `base_channels` times 1, 2, 4, 8, 16. Initialised as the paper asks (its section 3: variance
    2 / inputs), without which a signal does not survive 18 layers where there is no normalisation.

    Guarantees: 31,030,593 parameters at 64 base channels, one channel, one class, without normalisation.
    """

    def __init__(self, *, channels: int, classes: int, base_channels: int, norm: Literal["none", "group"]) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            _double_convolution(inputs, outputs, norm)
            for inputs, outputs in zip([channels, *widths], widths, strict=False)
        )
        self.halve = nn.MaxPool2d(2)
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(_double_convolution(2 * width, width, norm) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(base_channels, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, skipped = images, []
        for level, block in enumerate(self.down):
            features = block(self.halve(features) if level else features)
            skipped.append(features)
        skipped.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            features = block(torch.cat([skipped.pop(), rise(features)], dim=1))
        logits: Tensor = self.head(features)
        return logits


def _double_convolution(inputs: int, outputs: int, norm: Literal["none", "group"]) -> nn.Sequential:
    normalise = norm_layer(norm)
    block = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), normalise(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), normalise(outputs), nn.ReLU(),
    )  # fmt: skip
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return block
