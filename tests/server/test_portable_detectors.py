"""Detectors of fixed shape select, pool and suppress as torchvision's do, whose shapes depend on what they find."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predict_cases import FASTER, saved
from small import tiny_study
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from common.model_files import open_model
from common.models.detector import pooled
from server.portable_detectors import PortableFasterRCNN, _without_overlaps


def faster(folder: Path, side: int) -> tuple[Any, Any, Tensor]:
    """Network, portable module and three images, normalised."""
    study = tiny_study(study=FASTER["study"], model={**FASTER["model"], "image_size": [side, side + 32]})
    model = open_model(saved(folder / "m", study))
    images = np.random.default_rng(5).normal(size=(3, 1, side, side + 32)).astype(np.float32)
    return model.network, PortableFasterRCNN(model).eval(), torch.from_numpy(images)


@pytest.mark.parametrize("side", [64, 160])  # with more anchors than 1000 on a level, and with fewer
def test_proposals_are_those_that_torchvision_selects(tmp_path: Path, side: int) -> None:
    network, module, images = faster(tmp_path, side)
    assert (max(module.levels) > 1000) == (side == 160)
    with torch.no_grad():
        features = network.backbone(images)
        theirs, _ = network.rpn(ImageList(images, [(side, side + 32)] * 3), features)
        boxes, exists = module._proposals(list(features.values()))
    for own, is_there, expected in zip(boxes, exists, theirs, strict=True):
        found = own[is_there]
        assert len(found) == len(expected)
        far = (found[:, None] - expected[None]).abs().amax(dim=2)
        assert far.amin(dim=0).max() < 1e-4 and far.amin(dim=1).max() < 1e-4


def test_what_is_no_proposal_scores_0_as_does_a_box_without_sides(tmp_path: Path) -> None:
    _, module, images = faster(tmp_path, 64)
    with torch.no_grad():
        features = module.network.backbone((images - module.mean) / module.std)
        _, exists = module._proposals(list(features.values()))
        boxes, scores = module(images)
        assert not exists.all() and (scores[~exists] == 0).all() and (scores[exists] > 0).any()
        module.network.roi_heads.box_predictor.bbox_pred.bias.fill_(-1000.0)  # left of and above the image
        assert (module(images)[1] == 0).all()
    assert boxes.shape == (*scores.shape, 4)


def test_pooling_is_torchvisions(tmp_path: Path) -> None:
    network, _, images = faster(tmp_path, 64)
    rng = np.random.default_rng(2)
    corner, sides = rng.random((3, 40, 2)) * 60, rng.random((3, 40, 2)) * rng.choice([2, 20, 90], (3, 40, 1))
    boxes = torch.from_numpy(np.concatenate([corner, corner + sides], axis=2).astype(np.float32))
    with torch.no_grad():
        features = network.backbone(images)
        expected = network.roi_heads.box_roi_pool(features, list(boxes), [(64, 96)] * 3)
        torch.testing.assert_close(pooled(network, features, boxes), expected, rtol=0, atol=0)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2).sqrt()
    assert areas.min() < 4 and areas.max() > 64  # boxes of the first and of the last level


@pytest.mark.parametrize("most", [0.2, 0.7])
def test_suppression_all_at_once_is_suppression_one_by_one(most: float) -> None:
    rng = np.random.default_rng(3)
    corner, sides = rng.random((2, 3, 150, 2)) * 40, rng.random((2, 3, 150, 2)) * 30
    boxes = torch.from_numpy(np.concatenate([corner, corner + sides], axis=3).astype(np.float32))
    valid = torch.from_numpy(rng.random((2, 3, 150)) < 0.8)
    found = _without_overlaps(boxes, valid, most)
    for own, there, of_level in zip(*(one.flatten(0, 1) for one in (boxes, valid, found)), strict=True):
        place = torch.nonzero(there)[:, 0]
        kept = place[nms(own[place], -torch.arange(len(place), dtype=torch.float32), most)]
        assert sorted(kept.tolist()) == torch.nonzero(of_level)[:, 0].tolist() and 0 < len(kept) < len(place)


def test_each_box_of_a_chain_depends_on_all_before_it() -> None:
    """As deep as it can be: every second one stays."""
    left = torch.arange(60.0)
    boxes = torch.stack([left, torch.zeros(60), left + 1.9, torch.ones(60)], dim=1)
    assert _without_overlaps(boxes, torch.ones(60, dtype=torch.bool), 0.3).tolist() == [True, False] * 30
