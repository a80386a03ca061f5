"""The networks a study can name: built from the study alone, started from given weights, partly frozen.

Guarantees for every model: no batch normalisation, no dropout, no in-place activation, zero padding only, no buffers
(the parameters are the whole state), and every trainable parameter takes part in the loss of every single image.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.errors import StudyError
from common.study import Study

# How the backbone's parameters begin: cnn; resnet18; unet's way down; the extractor under a detector's pyramid.
_BACKBONE = ("features.", "conv1.", "bn1.", "layer", "down.", "backbone.body.")


def build_model(study: Study) -> nn.Module:
    """The study's network with random weights, drawn from torch's global generator: call it under `seeded(...)`.

    Input: images float32 [B, channels, height, width], already normalised. Classifiers return logits [B, K], `unet`
    logits [B, K, height, width] (one independent channel per class, background is none); detectors are called through
    `common.models.detector`.

    Guarantees: equal studies under equal seeds give equal weights; what the study freezes has requires_grad False.
    Raises StudyError when the network can't be built for the study's image size or anchors.
    """
    network = _network(study)
    if study.model.freeze == "backbone":
        for name in backbone_names(network):
            network.get_parameter(name).requires_grad_(False)
    return network


def _network(study: Study) -> nn.Module:
    model, classes = study.model, len(study.study.classes)
    # Imported here because torchvision takes a second that commands without a model need not pay.
    match model.name:
        case "cnn":
            from common.models.cnn import ConvNet

            return ConvNet(
                channels=model.channels, classes=classes, image_size=model.image_size, norm=model.norm, head=model.head
            )
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


def load_pretrained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Start `model` from `tensors`, which hold all its parameters or exactly its backbone.

    Guarantees: the model is unchanged when the tensors are refused; what is frozen stays frozen.
    Raises StudyError, one line, for missing or unknown names, other shapes, or values that are not finite numbers.
    """
    parameters = dict(model.named_parameters())
    backbone = backbone_names(model)
    wanted = set(backbone) if set(tensors) <= set(backbone) else set(parameters)
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
    with torch.no_grad():
        for name in wanted:
            parameters[name].copy_(tensors[name])
