"""Finished detectors as functions of an image: boxes and scores of fixed shape, which the caller merges."""

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model_files import Model
from common.models.detector import anchors_of, pooled


class PortableRetinaNet(nn.Module):
    """Images float32 [B, C, h, w] in [0, 1] to the corners [B, A, 4] in its pixels of all A anchors' boxes, and their
    scores [B, A, K]. Which of them are one object is for the caller: scores above 0.05, at most 1000 of each of
    the pyramid's levels, then by class no overlap above 0.5, at most 100.

    Source: Lin et al. 2017, section 4; the boxes' form Girshick et al. 2014, appendix C.
    """

    anchors: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network: Any = model.network
        self.mean, self.std = model.study.preprocessing.mean, model.study.preprocessing.std
        self.size = model.study.model.image_size
        self.register_buffer("anchors", torch.cat(levels_of(model)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.head(list(self.network.backbone((images - self.mean) / self.std).values()))
        corners = _decoded(self.network.box_coder, found["bbox_regression"], self.anchors)
        return _clipped(corners, self.size), torch.sigmoid(found["cls_logits"])


class PortableFasterRCNN(nn.Module):
    """Images float32 [B, C, h, w] in [0, 1] to the corners [B, P, K, 4] in its pixels of P proposals' boxes, one for
    each class, and their scores [B, P, K]. Which of them are one object is for the caller: scores above 0.05, then by
    class no overlap above 0.5, at most 100.

    Guarantees: proposals are those that torchvision selects: of each level of the pyramid the 1000 likeliest, of
    these none that overlaps a likelier one by more than 0.7, of all levels the 1000 likeliest, which come first. Where
    there are fewer than P, what is left scores 0, as does a box with a side below 0.01 pixels.
    Edge case: which of equally likely proposals is left out beyond 1000, each runtime decides by itself.
    Source: Ren et al. 2015, section 3; Lin et al. 2017 (pyramid), section 4.
    """

    anchors: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network: Any = model.network
        self.mean, self.std = model.study.preprocessing.mean, model.study.preprocessing.std
        self.size = model.study.model.image_size
        levels = levels_of(model)
        self.register_buffer("anchors", torch.cat(levels))
        self.levels = [len(level) for level in levels]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.backbone((images - self.mean) / self.std)
        proposals, exists = self._proposals(list(features.values()))
        heads = self.network.roi_heads
        vectors = heads.box_head(pooled(self.network, features, proposals))
        logits, deltas = heads.box_predictor(vectors)
        by_class = deltas.reshape(*proposals.shape[:2], -1, 4)
        boxes = _clipped(_decoded(heads.box_coder, by_class, proposals[:, :, None]), self.size)[:, :, 1:]
        scores = torch.softmax(logits, dim=-1).reshape(*proposals.shape[:2], -1)[:, :, 1:]
        return boxes, torch.where(exists[..., None] & _has_sides(boxes, 1e-2), scores, 0.0)

    def _proposals(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Corners [B, P, 4], likeliest first, and which of them there are [B, P]; the others are 0."""
        rpn = self.network.rpn
        most, wide = rpn.pre_nms_top_n(), max(min(count, rpn.pre_nms_top_n()) for count in self.levels)
        starts = accumulate(self.levels, initial=0)
        boxes, logits = [], []  # of each level, likeliest first, filled up to the same length
        for start, count, said, moved in zip(starts, self.levels, *rpn.head(features), strict=False):
            objectness = said.permute(0, 2, 3, 1).flatten(1)
            deltas = moved.reshape(moved.shape[0], -1, 4, *moved.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
            logit, anchor = objectness.topk(min(count, most), dim=1)
            box = _decoded(rpn.box_coder, _taken(deltas, anchor), self.anchors[start : start + count][anchor])
            room = wide - logit.shape[1]
            boxes.append(F.pad(_clipped(box, self.size), (0, 0, 0, room)))
            logits.append(F.pad(logit, (0, room)))
        box = torch.stack(boxes, dim=1)
        kept = _without_overlaps(box, _has_sides(box, rpn.min_size), rpn.nms_thresh).flatten(1)
        likely = torch.where(kept, torch.sigmoid(torch.stack(logits, dim=1).flatten(1)), -1.0)
        count = min(rpn.post_nms_top_n(), sum(min(count, most) for count in self.levels))
        chosen = likely.topk(count, dim=1)[1]
        exists = kept.gather(1, chosen)
        return torch.where(exists[..., None], _taken(box.flatten(1, 2), chosen), 0.0), exists


def levels_of(model: Model) -> list[Tensor]:
    """Corners [n, 4] of the anchors of each of the pyramid's levels, in the order of outputs."""
    return anchors_of(model.network, torch.zeros(1, model.study.model.channels, *model.study.model.image_size))


def _without_overlaps(boxes: Tensor, valid: Tensor, most: float) -> Tensor:
    """Which of boxes [..., n, 4], best first, non-maximum suppression keeps [..., n]; those not `valid` it leaves out.

    A box stays unless one that stays, and is better, overlaps it by more than `most`. Asking that of all boxes at once
    until nothing changes gives what asking one by one gives: after k times at least the first k are settled. A program
    has no lists that grow.
    """
    corner = torch.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    sides = (torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:]) - corner).clamp(min=0)
    shared, area = sides[..., 0] * sides[..., 1], (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    overlap = shared / (area[..., :, None] + area[..., None, :] - shared)
    rivals = (overlap > most).to(boxes.dtype).triu(1)
    free = valid.to(boxes.dtype)

    def changed(kept: Tensor, before: Tensor, rivals: Tensor, free: Tensor) -> Tensor:
        return (kept - before).abs().sum() > 0

    def asked(kept: Tensor, before: Tensor, rivals: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where((kept[..., None, :] @ rivals)[..., 0, :] > 0, 0.0, free), kept.clone()

    kept, _ = torch.ops.higher_order.while_loop(changed, asked, (free * 1, free - 1), (rivals, free))
    settled: Tensor = kept > 0
    return settled


def _decoded(coder: Any, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Corners [..., 4] of boxes [..., 4] moved and stretched by deltas [..., 4]."""
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + sides / 2 + deltas[..., :2] / coder.weights[0] * sides
    half = torch.exp(torch.clamp(deltas[..., 2:] / coder.weights[2], max=coder.bbox_xform_clip)) * sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def _clipped(corners: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = corners[..., 0::2].clamp(0, size[1]), corners[..., 1::2].clamp(0, size[0])
    return torch.stack([x, y], dim=-1).flatten(-2)


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(dim=-1)


def _taken(values: Tensor, positions: Tensor) -> Tensor:
    """[B, n, 4] at positions [B, m]: [B, m, 4]."""
    return values.gather(1, positions[..., None].expand(-1, -1, 4))
