"""Finished models for other programs: ONNX, torch.export, MONAI bundle; each is opened again and must answer alike."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import DataError, RunError
from common.model_files import Model, open_model
from server import bundle
from server.checkpoint import write_atomically
from server.portable import portable

Form = Literal["onnx", "torch", "monai"]
TOLERANCE = 1e-4  # of probabilities; boxes are measured in sides of the image
ONNX, TORCH = "model.onnx", "model.pt2"


def export(folder: Path, out: Path, form: Form) -> dict[str, Any]:
    """Write the model in `folder` to `out` in another form; what was written, and how far its answers are from ours.

    Guarantees: what lies in `out` afterwards was opened again and answered within 1e-4 for one image and for three at
    once; Faster R-CNN on one of three tries, as rounding decides between proposals that are equally likely.
    Raises DataError, StudyError or RunError, one line, where it can't be read, exported or written.
    """
    model = open_model(folder)
    module = portable(model)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if form == "onnx":
            path, answer = _onnx(model, module, out / ONNX)
        elif form == "torch":
            path, answer = _torch(model, module, out / TORCH)
        else:
            path, answer = _torch(model, module, bundle.prepare(model, out))
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or type(error).__name__}") from None
    difference = _difference(model, module, answer)
    if not difference <= TOLERANCE:
        path.unlink()
        raise RunError(f"{path}: answers differ by {difference:.2g}, more than {TOLERANCE:g}: not exported")
    return {"schema": 1, "format": form, "file": str(path), "bytes": path.stat().st_size, "difference": difference}


def description(model: Model) -> dict[str, str]:
    """What stands in every export, as text."""
    study = model.study
    return {
        **model.provenance,
        "task": study.study.task,
        "classes": json.dumps(list(study.study.classes), ensure_ascii=False),
        "preprocessing": study.preprocessing.model_dump_json(),
        "input": f"float32 [batch, {study.model.channels}, {study.model.image_size[0]}, {study.model.image_size[1]}],"
        " 0 to 1 after window and resizing; mean and std are inside",
        "output": "; ".join(outputs_of(model)),
        "intended_use": model.intended_use,
    }


def outputs_of(model: Model) -> list[str]:
    """What comes out, one line for each output."""
    count = len(model.study.study.classes)
    match model.study.study.task:
        case "classification":
            return [f"probabilities [batch, {count}], sum 1"]
        case "segmentation":
            return [f"probabilities [batch, {count}, height, width], each class by itself"]
        case "detection" if model.study.model.name == "fasterrcnn":
            return [
                f"boxes [batch, proposals, {count}, 4], corners in pixels",
                f"scores [batch, proposals, {count}], to be merged",
            ]
        case "detection":
            return ["boxes [batch, anchors, 4], corners in pixels", f"scores [batch, anchors, {count}], to be merged"]


def _example(model: Model, images: int, draw: int = 0) -> Tensor:
    rng = np.random.default_rng((images, draw))
    shape = (images, model.study.model.channels, *model.study.model.image_size)
    return torch.from_numpy(rng.random(shape, np.float32))


def _program(model: Model, module: nn.Module) -> Any:
    example = _example(model, 2)
    with torch.no_grad(), _quiet():
        module(example)  # what is computed once and kept, is computed before the program is recorded
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _torch(model: Model, module: nn.Module, path: Path) -> tuple[Path, Callable[[Tensor], Any]]:
    text = json.dumps(description(model), ensure_ascii=False)
    with _quiet():
        torch.export.save(_program(model, module), path, extra_files={"fedward.json": text})
        loaded = torch.export.load(path).module()
    return path, loaded


def _onnx(model: Model, module: nn.Module, path: Path) -> tuple[Path, Callable[[Tensor], Any]]:
    try:
        onnx, onnxruntime = (import_module(name) for name in ("onnx", "onnxruntime"))
        import_module("onnxscript")  # torch's exporter needs it, and says so late
    except ImportError as error:
        raise RunError(f"ONNX needs the package {error.name}: pip install 'fedward[export]'") from None
    names = ["boxes", "scores"] if model.study.study.task == "detection" else ["probabilities"]
    with _quiet():
        made = torch.onnx.export(
            _program(model, module), dynamo=True, verbose=False, input_names=["images"], output_names=names
        )
    if made is None:
        raise RunError("torch gave no ONNX model")
    proto = made.model_proto
    onnx.helper.set_model_props(proto, description(model))
    onnx.checker.check_model(proto)
    write_atomically(path, [proto.SerializeToString()])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Any:
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return tuple(torch.from_numpy(np.asarray(one)) for one in found)

    return path, answer


def _difference(model: Model, module: nn.Module, answer: Callable[[Tensor], Any]) -> float:
    """The largest between what was written and the model itself, over noise of other batch sizes than the recorded.

    Faster R-CNN is asked about three draws of noise before a difference counts: of two proposals that are as likely to
    the seventh digit, rounding decides which one is left out.
    """
    draws = 3 if model.study.model.name == "fasterrcnn" else 1
    largest = 0.0
    for size in (1, 3):
        for draw in range(draws):
            images = _example(model, size, draw)
            with torch.no_grad():
                found = _apart(model, module(images), answer(images))
            if found <= TOLERANCE:
                break
        largest = found if not found <= largest else largest
    return largest


def _apart(model: Model, own: Any, theirs: Any) -> float:
    own, theirs = (one if isinstance(one, tuple) else (one,) for one in (own, theirs))
    for a, b in zip(own, theirs, strict=True):
        if a.shape != b.shape:
            raise RunError(f"the exported model answers with {list(b.shape)} where {list(a.shape)} is right")
    if not all(bool(one.isfinite().all()) for one in (*own, *theirs)):
        return math.nan
    if len(own) == 1:
        return float((own[0] - theirs[0]).abs().max())
    scale = max(model.study.model.image_size)
    if model.study.model.name != "fasterrcnn":
        return max(float((own[0] - theirs[0]).abs().max()) / scale, float((own[1] - theirs[1]).abs().max()))
    # As likely ones may have changed places: each proposal with the nearest of the other side, both ways.
    ours, other = (torch.cat([boxes.flatten(2) / scale, scores], dim=2) for boxes, scores in (own, theirs))
    between = torch.cdist(ours, other, p=math.inf)
    return max(float(between.amin(dim=1).max()), float(between.amin(dim=2).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn of their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
