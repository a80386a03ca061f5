"""A finished model as one function of an image that needs no Fedward: mean, std and the last activation are inside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model_files import Model
from server.real_scatter import RealScatter


class Portable(nn.Module):
    """Images float32 [B, C, h, w] in [0, 1] to probabilities [B, K] (sum 1) or [B, K, h, w] (each class by itself)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        if model.study.model.name == "scatter":
            kind = _Scatter if model.study.study.task == "classification" else _PixelScatter
            self.network = kind(model.network, model.study.model.image_size)
        self.mean, self.std = model.study.preprocessing.mean, model.study.preprocessing.std
        self.is_classifier = model.study.study.task == "classification"

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network((images - self.mean) / self.std)
        return torch.softmax(logits, dim=1) if self.is_classifier else torch.sigmoid(logits)


class _Scatter(nn.Module):
    """A classifier of scattering features that computes them each time: a program can't look them up by digest."""

    def __init__(self, network: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.head = network.head
        self.features = RealScatter(image_size, network.cells, second=True)

    def forward(self, images: Tensor) -> Tensor:
        found = self.features(images)
        logits: Tensor = self.head(F.group_norm(found, found.shape[1] // 3).flatten(1))
        return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)


class _PixelScatter(nn.Module):
    """A classifier of every pixel by the scattering features near it."""

    def __init__(self, network: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.features = RealScatter(image_size, (image_size[0] // 2, image_size[1] // 2), second=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network.answer(self.features(images), images)
        return logits


def portable(model: Model) -> nn.Module:
    """The model as it is exported."""
    if model.study.study.task != "detection":
        return Portable(model).eval()
    from server.portable_detectors import PortableFasterRCNN, PortableRetinaNet  # here, as they bring in torchvision

    kind = PortableFasterRCNN if model.study.model.name == "fasterrcnn" else PortableRetinaNet
    return kind(model).eval()
