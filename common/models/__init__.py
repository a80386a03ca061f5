"""The networks a study can name: built from the study alone, started from given weights, partly frozen.

Guarantees for every model: no batch normalisation, no dropout, no in-place activation, zero padding only, no buffers
(the parameters are the whole state), and every trainable parameter takes part in the loss of every single image.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import StudyError
from common.parts import Freeze
from common.study import Study

# How the backbone's parameters begin: cnn; resnet18; unet's way down; the extractor under a detector's pyramid.
_BACKBONE = ("features.", "conv1.", "bn1.", "layer", "down.", "backbone.body.")
# How the layers of detectors begin that know the classes; other models have one, their last.
_HEAD = ("head.classification_head.cls_logits.", "roi_heads.box_predictor.")


def build_model(study: Study) -> nn.Module:
    """The study's network with random weights, drawn from torch's global generator: call it under `seeded(...)`.

    Input: images float32 [B, channels, height, width], already normalised. Classifiers return logits [B, K], `unet`
    logits [B, K, height, width] (one independent channel per class, background is none); detectors are called through
    `common.models.detector`.

    Guarantees: equal studies under equal seeds give equal weights; what the study freezes has requires_grad False.
    Raises StudyError when the network can't be built for the study's image size or anchors.
    """
    if study.sha256 in _stand_ins:
        return _stand_ins[study.sha256]()
    network = _network(study)
    if study.model.weight_standardisation:
        from common.models.standardised import standardise

        standardise(network)
    for name in _frozen(network, study.model.freeze):
        network.get_parameter(name).requires_grad_(False)
    return network


_stand_ins: dict[str, Callable[[], nn.Module]] = {}


@contextmanager
def stand_in(study: Study, build: Callable[[], nn.Module]) -> Iterator[None]:
    """Inside the block, `build_model` answers with another network for this very study: for an audit that sends a
    network of its own through the code that trains all others.

    Guarantees: of this process alone. No study, message or setting can ask for it, and whoever else is sent the study
    builds what it says.
    """
    _stand_ins[study.sha256] = build
    try:
        yield
    finally:
        del _stand_ins[study.sha256]


def _network(study: Study) -> nn.Module:
    model, classes = study.model, len(study.study.classes)
    # Imported here because torchvision takes a second that commands without a model need not pay.
    match model.name:
        case "cnn":
            from common.models.cnn import ConvNet

            return ConvNet(
                channels=model.channels, classes=classes, image_size=model.image_size, norm=model.norm, head=model.head
            )
        case "scatter":
            from common.models.scatter import PixelScatter, Scatter

            if study.study.task == "segmentation":
                return PixelScatter(channels=model.channels, classes=classes)
            return Scatter(channels=model.channels, classes=classes, image_size=model.image_size)
        case "unet":
            from common.models.unet import UNet

            return UNet(channels=model.channels, classes=classes, base_channels=model.base_channels, norm=model.norm)
        case "resnet18":
            from common.models.resnet import resnet18

            return resnet18(channels=model.channels, classes=classes, image_size=model.image_size, norm=model.norm)
        case "retinanet" | "fasterrcnn":
            from common.models.detector import detector

            return detector(model, classes=classes)


def backbone_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that count as backbone, in the model's order.

    The feature layers of `cnn` and `resnet18`, the contracting path of `unet`, the extractor under a detector's
    pyramid.
    """
    return tuple(name for name, _ in model.named_parameters() if name.startswith(_BACKBONE))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the layers that know the classes, in the model's order: others serve any classes.

    The last layer of a classifier or `unet`; of `retinanet` the convolution that gives logits (its boxes are the same
    for all classes), of `fasterrcnn` the linear layers that give logits and boxes.
    """
    names = [name for name, _ in model.named_parameters()]
    last = names[-1].rpartition(".")[0] + "."
    return tuple(name for name in names if name.startswith(_HEAD)) or tuple(
        name for name in names if name.startswith(last)
    )


def _frozen(model: nn.Module, freeze: Freeze) -> set[str]:
    everything = {name for name, _ in model.named_parameters()}
    norms = {name for name in everything if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.GroupNorm)}
    match freeze:
        case "none":
            return set()
        case "backbone":
            return set(backbone_names(model))
        case "all_but_norms":
            return everything - set(head_names(model)) - norms
        case "all_but_head":
            return everything - set(head_names(model))


def groups_of(model: nn.Module, how: Literal["one", "layers"]) -> dict[str, int]:
    """For each trained parameter the group, from 0, in which it is clipped: all in one, or each layer by itself.

    Guarantees: no group is empty. With clip norm / sqrt(groups) for each of them a patient moves the sum by as much as
    with one group.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if how == "one":
        return dict.fromkeys(names, 0)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return {name: layers.index(name.rpartition(".")[0]) for name in names}


def load_pretrained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Start `model` from `tensors`, which hold all its parameters, all but the head's, or exactly its backbone.

    Guarantees: the model is unchanged when the tensors are refused; what is frozen stays frozen.
    Raises StudyError, one line, for missing or unknown names, other shapes, values that are not finite numbers, or
    tensors without a part that the study freezes.
    """
    parameters = dict(model.named_parameters())
    parts = [set(backbone_names(model)), set(parameters) - set(head_names(model)), set(parameters)]
    wanted = next((part for part in parts if set(tensors) <= part), set(parameters))
    if missing := sorted(wanted - set(tensors)):
        raise StudyError(f"pretrained weights lack {missing[0]!r} and {len(missing) - 1} more: another architecture")
    if unknown := sorted(set(tensors) - wanted):
        raise StudyError(f"pretrained weights hold {unknown[0]!r} and {len(unknown) - 1} more that this model has not")
    for name in sorted(wanted):
        given, own = tensors[name], parameters[name]
        if given.shape != own.shape:
            raise StudyError(f"pretrained {name!r} has shape {list(given.shape)}, this model's has {list(own.shape)}")
        if not (given.is_floating_point() and bool(torch.isfinite(given).all())):
            raise StudyError(f"pretrained {name!r} holds values that are not finite numbers")
    if left := [name for name, one in parameters.items() if not (one.requires_grad or name in wanted)]:
        raise StudyError(
            f"pretrained weights lack {left[0]!r} and {len(left) - 1} more that model.freeze keeps as given"
        )
    with torch.no_grad():
        for name in wanted:
            parameters[name].copy_(tensors[name])
