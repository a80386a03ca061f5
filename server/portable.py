"""A finished model as one function of an image that needs no Fedward: mean, std and the last activation are inside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import StudyError
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


class PortableDetector(nn.Module):
    """Images float32 [B, C, h, w] in [0, 1] to the corners [B, A, 4] in its pixels of all A anchors' boxes, and their
    scores [B, A, K]. Which of them are one object is for the caller: scores of 0.05 or more, at most 1000 of each of
    the pyramid's levels, then by class no overlap above 0.5, at most 100.

    Source: Lin et al. 2017, section 4; the boxes' form Girshick et al. 2014, appendix C.
    """

    anchors: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        from common.models.detector import anchors_of

        self.network: Any = model.network
        self.mean, self.std = model.study.preprocessing.mean, model.study.preprocessing.std
        self.height, self.width = model.study.model.image_size
        shape = (1, model.study.model.channels, *model.study.model.image_size)
        self.register_buffer("anchors", anchors_of(model.network, torch.zeros(shape)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.head(list(self.network.backbone((images - self.mean) / self.std).values()))
        deltas, sides = found["bbox_regression"], self.anchors[:, 2:] - self.anchors[:, :2]
        centres = self.anchors[:, :2] + sides / 2 + deltas[..., :2] * sides
        half = torch.exp(torch.clamp(deltas[..., 2:], max=self.network.box_coder.bbox_xform_clip)) * sides / 2
        corners = torch.cat([centres - half, centres + half], dim=-1).clamp(min=0)
        limit = torch.tensor([self.width, self.height, self.width, self.height], dtype=corners.dtype)
        return torch.minimum(corners, limit), torch.sigmoid(found["cls_logits"])


def portable(model: Model) -> nn.Module:
    """The model as it is exported. Raises StudyError for one whose inside depends on what it finds."""
    name = model.study.model.name
    if name == "fasterrcnn":
        raise StudyError("fasterrcnn asks itself again about what it has proposed: only retinanet can be exported")
    if name == "retinanet":
        return PortableDetector(model).eval()
    return Portable(model).eval()
