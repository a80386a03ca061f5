"""torchvision's RetinaNet and Faster R-CNN with GroupNorm, fed with images that are already normalised and sized."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.poolers import LevelMapper

from common.errors import StudyError
from common.models.cnn import norm_layer
from common.models.resnet import residual, tame
from common.parts import ModelPart
from common.randomness import seeded

STRIDES = (8, 16, 32, 64)  # pixels between the cells of the pyramid's levels
MOST_DETECTIONS = 100  # per image: COCO's limit, beyond which its metric does not look

Target = dict[str, Tensor]  # "boxes" float32 [n, 4], "labels" int64 [n]


def detector(model: ModelPart, *, classes: int) -> nn.Module:
    """The study's detector: extractor, feature pyramid with strides 8, 16, 32, 64, anchors of some shapes per level.

    Anchor sides are `anchor_sizes` or the shorter image side divided by 12, 6, 3, 1.5, each in all `anchor_ratios`;
    RetinaNet has them in `anchor_scales` sizes, equal parts of an octave apart. Boxes below a score of 0.05 are not
    proposed; overlaps of more than 0.5 in a class are suppressed; at most 100 boxes leave. All of that is torchvision's
    default but RetinaNet's 100.

    Raises StudyError for sides that are no multiple of 32, or another number of anchor sizes than levels.
    """
    if any(side % 32 for side in model.image_size):
        raise StudyError(f"model.image_size = {list(model.image_size)}: detectors need multiples of 32")
    sizes = model.anchor_sizes or tuple(min(model.image_size) / divisor for divisor in (12, 6, 3, 1.5))
    if len(sizes) != len(STRIDES):
        raise StudyError(
            f"model.anchor_sizes has {len(sizes)} values: the pyramid has {len(STRIDES)} levels, one value each"
        )
    ratios = (model.anchor_ratios,) * len(sizes)
    pyramid, hidden = _pyramid(model)
    network: nn.Module
    if model.name == "retinanet":
        octave = [2 ** (part / model.anchor_scales) for part in range(model.anchor_scales)]
        anchors = AnchorGenerator(tuple(tuple(size * part for part in octave) for size in sizes), ratios)
        norm = norm_layer(model.norm) if model.norm != "none" else None
        head = RetinaNetHead(pyramid.out_channels, len(octave) * len(model.anchor_ratios), classes, norm_layer=norm)
        network = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, detections_per_img=MOST_DETECTIONS)
    else:
        # Boxes as large as the second anchor are pooled from the second level, and so on by octaves.
        pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=round(sizes[1]), canonical_level=4)
        network = FasterRCNN(
            pyramid,
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in sizes), ratios),
            box_roi_pool=pool,
            box_head=TwoMLPHead(pyramid.out_channels * 7 * 7, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes + 1),
            box_detections_per_img=MOST_DETECTIONS,
        )
    network.transform = _AsIs()
    tame(network, norm=model.norm)
    return network


def detector_losses(model: nn.Module, images: Tensor, targets: Sequence[Target], *, focal: bool) -> Tensor:
    """The loss of each image [B]; the model is in train mode. `focal` concerns Faster R-CNN: RetinaNet's always is."""
    if isinstance(model, FasterRCNN):
        return _fasterrcnn_losses(model, images, targets, focal=focal)
    return _retinanet_losses(model, images, targets)


def _retinanet_losses(model: nn.Module, images: Tensor, targets: Sequence[Target]) -> Tensor:
    """Focal loss plus L1 box loss of each image [B], each divided by that image's own number of positive anchors.

    The same as torchvision's loss of each image by itself, in one pass; an image without objects has focal loss only.
    Source: Lin et al. 2017, equation 5, alpha 0.25, gamma 2.
    """
    retina: Any = model
    features = list(retina.backbone(images).values())
    outputs = retina.head(features)
    logits, deltas = outputs["cls_logits"].float(), outputs["bbox_regression"].float()
    anchors = retina.anchor_generator(_image_list(images[:1]), features)[0]
    matches = torch.stack([_match(retina.proposal_matcher, target["boxes"], anchors) for target in targets])
    image, anchor = torch.nonzero(matches >= 0, as_tuple=True)
    offsets = torch.tensor([0, *(len(target["boxes"]) for target in targets)]).cumsum(0).to(images.device)
    found = matches[image, anchor] + offsets[image]
    truth = torch.zeros_like(logits)
    truth[image, anchor, torch.cat([target["labels"] for target in targets])[found]] = 1
    aimed = retina.box_coder.encode_single(torch.cat([target["boxes"] for target in targets])[found], anchors[anchor])
    positives = (matches >= 0).sum(dim=1).clamp(min=1)
    usable = (matches != retina.proposal_matcher.BETWEEN_THRESHOLDS)[..., None]
    focal = (_focal(logits, truth) * usable).sum(dim=(1, 2))
    distance = (deltas[image, anchor] - aimed).abs().sum(dim=1)
    losses: Tensor = (focal + torch.zeros_like(focal).index_add(0, image, distance)) / positives
    return losses


def _fasterrcnn_losses(model: nn.Module, images: Tensor, targets: Sequence[Target], *, focal: bool) -> Tensor:
    """Sum of the two proposal and the two head losses of each image [B], image by image.

    `focal` weighs the head's cross-entropy by (1 - probability)^2. torchvision samples anchors and proposals at random;
    here each image has a stream of its own, derived from one draw, so that no image moves another's sample.
    """
    if not model.training:
        raise ValueError("Faster R-CNN has losses in train mode only: in eval mode its proposals have none")
    faster: Any = model
    features = faster.backbone(images)
    seed = int(torch.randint(2**62, ()))
    losses = []
    for position, target in enumerate(targets):
        own = OrderedDict((name, level[position : position + 1].float()) for name, level in features.items())
        target = {"boxes": target["boxes"], "labels": target["labels"] + 1}  # 0 is background
        image = _image_list(images[position : position + 1])
        with seeded(seed, "proposal sample", round=position):
            proposals, proposal_losses = faster.rpn(image, own, [target])
            proposals, _, labels, aimed = faster.roi_heads.select_training_samples(proposals, [target])
        pooled = faster.roi_heads.box_roi_pool(own, proposals, image.image_sizes)
        logits, deltas = faster.roi_heads.box_predictor(faster.roi_heads.box_head(pooled))
        label, entropy = labels[0], F.cross_entropy(logits, labels[0], reduction="none")
        if focal:
            entropy = (1 - torch.exp(-entropy)) ** 2 * entropy
        positive = torch.nonzero(label > 0)[:, 0]
        boxes = F.smooth_l1_loss(
            deltas.reshape(len(label), -1, 4)[positive, label[positive]],
            aimed[0][positive],
            beta=1 / 9,
            reduction="sum",
        )
        losses.append(sum(proposal_losses.values()) + entropy.mean() + boxes / len(label))
    return torch.stack(losses)


def detect(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Boxes [n, 4] in pixels of the model's input, class positions [n] and scores [n] of each image, best first."""
    first = 1 if isinstance(model, FasterRCNN) else 0
    found: list[Target] = model(list(images))
    return [{**one, "labels": one["labels"] - first} for one in found]


class _AsIs(nn.Module):
    """In the place of torchvision's resizing and normalising, which the preprocessing has done."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        return _image_list(torch.stack(images)), targets

    def postprocess(self, found: list[Target], sizes: Any, original_sizes: Any) -> list[Target]:
        return found


def _pyramid(model: ModelPart) -> tuple[Any, int]:
    """Extractor with feature pyramid, and the width of Faster R-CNN's head that goes with it."""
    if model.backbone == "small":
        body, widths, outputs, hidden = _small_body(model), [64, 128, 192], 64, 128
    else:
        block, layers = (BasicBlock, (2, 2, 2, 2)) if model.backbone == "resnet18" else (Bottleneck, (3, 4, 6, 3))
        body = residual(block, layers, channels=model.channels, classes=1, norm=model.norm)
        widths, outputs, hidden = [block.expansion * width for width in (128, 256, 512)], 256, 1024
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    norm = norm_layer(model.norm) if model.norm != "none" else None
    return BackboneWithFPN(body, levels, widths, outputs, norm_layer=norm), hidden


def _small_body(model: ModelPart) -> nn.Module:
    """A stem and four residual blocks that each halve the image: 0.9 million parameters."""
    norm = norm_layer(model.norm)
    widths = (32, 32, 64, 128, 192)
    stem = nn.Sequential(nn.Conv2d(model.channels, 32, 3, stride=2, padding=1, bias=False), norm(32), nn.ReLU())
    layers: list[tuple[str, nn.Module]] = [("stem", stem)]
    for level, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), norm(outputs))
        layers.append((f"layer{level}", BasicBlock(inputs, outputs, 2, shortcut, norm_layer=norm)))
    body = nn.Sequential(OrderedDict(layers))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def _image_list(images: Tensor) -> ImageList:
    return ImageList(images, [(images.shape[2], images.shape[3])] * len(images))


def _match(matcher: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """For each anchor the position of its box, or a negative number: background, or too close to call."""
    if not len(boxes):
        return torch.full((len(anchors),), matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    found: Tensor = matcher(box_iou(boxes, anchors))
    return found


def _focal(logits: Tensor, truth: Tensor) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = torch.sigmoid(logits)
    wrong = probability + truth - 2 * probability * truth
    return (0.25 * truth + 0.75 * (1 - truth)) * wrong**2 * entropy


def anchors_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Corners [n, 4] of the anchors of each of the pyramid's levels on images [B, C, H, W], in the order of outputs."""
    detector: Any = model
    generator = detector.rpn.anchor_generator if isinstance(model, FasterRCNN) else detector.anchor_generator
    with torch.no_grad():
        features = list(detector.backbone(images).values())
        anchors: Tensor = generator(_image_list(images[:1]), features)[0]
    each = generator.num_anchors_per_location()
    counts = [level.shape[2] * level.shape[3] * n for level, n in zip(features, each, strict=True)]
    return list(torch.split(anchors, counts))


def pooled(model: nn.Module, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
    """What Faster R-CNN's head sees of boxes [B, n, 4] in pixels: [B * n, C, 7, 7], each from its level of the pyramid.

    The same as torchvision's own pooling, which sorts boxes by level into lists whose lengths depend on them.
    Edge case: a box without area is pooled from the finest level.
    """
    pool: Any = cast(Any, model).roi_heads.box_roi_pool
    mapper = LevelMapper(3, 5, pool.canonical_scale, pool.canonical_level)  # of 2 ** 3 to 2 ** 5 pixels a cell
    number = torch.arange(boxes.shape[0], dtype=boxes.dtype)[:, None, None].expand(-1, boxes.shape[1], 1)
    regions, level = torch.cat([number, boxes], dim=2).flatten(0, 1), mapper([boxes.flatten(0, 1)])
    found = torch.zeros(())
    for position, name in enumerate(pool.featmap_names):
        own = roi_align(features[name], regions, pool.output_size, 1 / STRIDES[position], pool.sampling_ratio)
        found = torch.where((level == position)[:, None, None, None], own, found)
    return found
