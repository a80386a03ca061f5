"""The convolutional classifier, and the normalisation that all models share."""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from common.errors import StudyError


def norm_layer(norm: Literal["none", "group"]) -> Callable[[int], nn.Module]:
    """From a number of channels to the layer that normalises them: nothing, or GroupNorm.

    Up to eight groups, fewer where eight does not divide the channels: groups of several channels keep statistics
    meaningful on feature maps of a few pixels.
    """
    if norm == "none":
        return nn.Identity
    return lambda channels: nn.GroupNorm(math.gcd(channels, 8), channels)


class ConvNet(nn.Module):
    """Three valid 3x3 convolutions, 2x2 max-pooling after the first two, then a classifier; returns logits [B, K].

    `head="dense"`: channels 32, 64, 64 and a 64-unit dense layer. `head="gap"`: half the channels, averaged over the
    image, and one linear layer: small enough to learn under noise, and its size does not depend on the image's.

    Guarantees: 11,132,618 parameters at 224x224x3, ten classes, dense, without normalisation.
    Raises StudyError for images with a side under 18 pixels, of which the convolutions leave nothing.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        image_size: tuple[int, int],
        norm: Literal["none", "group"],
        head: Literal["dense", "gap"],
    ) -> None:
        super().__init__()
        height, width = (((side - 2) // 2 - 2) // 2 - 2 for side in image_size)
        if min(height, width) < 1:
            raise StudyError(f"model.image_size = {list(image_size)}: cnn needs at least 18 pixels on each side")
        first, second, third = (32, 64, 64) if head == "dense" else (16, 32, 32)
        normalise = norm_layer(norm)
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 3), normalise(first), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3), normalise(second), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(second, third, 3), normalise(third), nn.ReLU(),
        )  # fmt: skip
        self.head: nn.Module
        if head == "dense":
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(height * width * third, 64), nn.ReLU(), nn.Linear(64, classes)
            )
        else:
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
