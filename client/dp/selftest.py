"""Before any data is opened: does a patient's gradient depend on anybody else? On made-up images of the study's shape.

The promise of one clip per patient holds only where it does not. Batch statistics, losses over the whole batch and
wrong per-image gradients all break it silently; here they are found on the very path that training will use.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.dp.gradients import Losses, Trained, Way, one_by_one
from client.dp.microbatch import Microbatch, Views, pack
from common.errors import FederationError, Reason
from common.randomness import seeded
from common.study import Study
from common.tasks.batch import Batch, Objects

TOLERANCE = 1e-4  # relative; float32 arithmetic stays below 1e-5 where nothing is coupled
_MOST = 3  # images of a patient: from here on all are taken by patient (`client.dp.layers`)


class NotSeparable(FederationError):
    """One patient's contribution depends on another: no clip bounds it. The study's, or its author's, to mend."""

    code = Reason.POLICY


def check(
    model: nn.Module, what: Trained, losses: Losses, study: Study, way: Way, *, blank: Batch, most: int, seed: int
) -> None:
    """Demand of model, losses and way that a patient's contribution is his alone, and right.

    Of two made-up patients, each in turn is exchanged for another (pixels, labels, masks, boxes) and taken away; the
    other one's contribution must stay, and must be that of `one_by_one`. Every trained parameter must have a
    gradient. Uses no data; the seed is public, as is `most`, the largest number of a patient's images in a step.

    Raises NotSeparable with the name of the layer, loss or parameter at fault.
    """
    mode = model.training
    model.train()
    try:
        rng = np.random.Generator(np.random.PCG64(seed))
        most, where = min(most, _MOST), what.parameters[0].device
        counts = (min(2, most), 1)  # images of the two made-up patients
        views = [_made_up(study, count, blank, rng) for count in counts]
        others = [_made_up(study, count, blank, rng) for count in counts]
        before = _packed(views, most, blank, where)
        _one_loss_each(model, what, losses, before)
        contributions = [_own(model, what, losses, before, way, i) for i in range(len(views))]
        if not all(bool(one.any()) for one in contributions):
            raise NotSeparable("a made-up patient has no gradient")
        for i, j in product(range(len(views)), repeat=2):
            if i == j:
                continue
            changed = _packed([others[k] if k == j else one for k, one in enumerate(views)], most, blank, where)
            absent = _packed([one for k, one in enumerate(views) if k != j], most, blank, where)
            for after, place in ((changed, i), (absent, i - (j < i))):
                # The random numbers of a micro-batch are those of its first patient: here all have the same.
                own = _own(model, what, losses, replace(after, seeds=before.seeds[: len(after.seeds)]), way, place)
                if not _close(own, contributions[i]):
                    raise NotSeparable(_culprit(model, losses, before, after, i, place))
        for i, contribution in enumerate(contributions):
            if not _close(_own(model, what, losses, before, one_by_one, i), contribution):
                raise NotSeparable(_wrong_layer(what, model, losses, before, way, i))
    finally:
        model.train(mode)


def _made_up(study: Study, count: int, blank: Batch, rng: np.random.Generator) -> Views:
    """A patient of noise with bright patches, and truth of every kind that the study's task has."""
    classes, (height, width) = len(study.study.classes), study.model.image_size
    pixels = rng.normal(size=(count, *blank.images.shape[1:])).astype(np.float32)
    masks = np.zeros((count, height, width), np.uint8)
    objects = []
    for image in range(count):
        boxes = []
        for _ in range(int(rng.integers(1, 4))):
            top, left = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
            bottom, right = top + int(rng.integers(3, height // 2 + 1)), left + int(rng.integers(3, width // 2 + 1))
            pixels[image, :, top:bottom, left:right] += rng.normal(scale=2)
            masks[image, top:bottom, left:right] = rng.integers(1, min(classes, 255) + 1)
            boxes.append((left, top, right, bottom))
        labels = rng.integers(0, classes, len(boxes))
        objects.append(Objects(boxes=np.array(boxes, np.float32), classes=labels))
    batch = Batch(
        images=torch.from_numpy(pixels),
        labels=None if blank.labels is None else torch.from_numpy(rng.integers(0, classes, count)),
        masks=None if blank.masks is None else torch.from_numpy(masks),
        objects=None if blank.objects is None else tuple(objects),
    )
    return Views(batch=batch, weight=1.0, seed=1)


def _packed(views: Sequence[Views], most: int, blank: Batch, where: torch.device) -> Microbatch:
    (micro,) = pack(views, slots=4, blank=blank, most=most)  # one is a blank, whoever is there
    return replace(micro, batch=micro.batch.to(where))


def _own(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, way: Way, position: int) -> Tensor:
    """One patient's part of the sum, as long as it is: a clip would hide that another one stretches it."""
    seen = 0

    def clip(norms: Tensor) -> Tensor:
        nonlocal seen
        factors = torch.zeros_like(norms)
        if seen <= position < seen + len(norms):
            factors[position - seen] = 1
        seen += len(norms)
        return factors

    return way(model, what, losses, micro, clip)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(one - other) <= TOLERANCE * torch.linalg.vector_norm(other))


def _one_loss_each(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch) -> None:
    """Raises NotSeparable for a loss that is not one finite number per image, or does not depend on a parameter."""
    with torch.no_grad(), seeded(1, "self-test"):
        each = losses(model, micro.batch)
    if each.shape != micro.view_weights.shape:
        raise NotSeparable(f"the loss has shape {list(each.shape)} for {len(micro.view_weights)} images: one per image")
    if not torch.isfinite(each).all():
        raise NotSeparable("the loss of a made-up image is not a finite number")
    with seeded(1, "self-test"):
        each = losses(model, micro.batch)
        found = torch.autograd.grad([each.sum()], what.parameters, allow_unused=True)
    for name, gradient in zip(what.names, found, strict=True):
        if gradient is None:
            raise NotSeparable(f"parameter {name} has no part in the loss: freeze it, or use it")


def _culprit(model: nn.Module, losses: Losses, before: Microbatch, after: Microbatch, i: int, place: int) -> str:
    """What lets patient `i` (at `place` afterwards) see the others: the first layer whose output for him changes, else
    the loss, else the way back.
    """
    old_layers, old_losses = _seen(model, losses, before)
    new_layers, new_losses = _seen(model, losses, after)
    old, new = before.segments[i], after.segments[place]
    for (name, layer, old_output), (_, _, new_output) in zip(old_layers, new_layers, strict=False):
        whole = before.slots
        if old_output.dim() == 0 or old_output.shape != new_output.shape or len(old_output) != whole:
            continue
        if not torch.allclose(old_output[old], new_output[new], rtol=1e-3, atol=1e-4, equal_nan=True):
            return (
                f"layer {name} ({type(layer).__name__}) mixes patients: one patient's output depends on another's image"
            )
    if not torch.allclose(old_losses[old], new_losses[new], rtol=1e-3, atol=1e-5, equal_nan=True):
        return f"loss {_name(losses)} mixes patients: one patient's loss depends on another's image or truth"
    if (mixing := _mixing_backward(model, losses, before)) is not None:
        return f"layer {mixing} mixes patients in its backward pass"
    return f"loss {_name(losses)} mixes patients: one patient's loss reaches another's images"


def _seen(model: nn.Module, losses: Losses, micro: Microbatch) -> tuple[list[tuple[str, nn.Module, Tensor]], Tensor]:
    """Outputs of all layers without layers inside, in the order of their calls, and the losses."""
    outputs: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((name, layer, output.detach().clone()))

        return hook

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(keep(name or "model")) for name, layer in leaves]
    try:
        with torch.no_grad(), seeded(1, "self-test"):
            each = losses(model, micro.batch)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, each


def _mixing_backward(model: nn.Module, losses: Losses, micro: Microbatch) -> str | None:
    """The first layer, on the way back, that gives a gradient to images whose own outputs got none."""
    found: list[str] = []
    own = micro.segments[0]

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, by_inputs: Any, by_outputs: Any) -> None:
            pairs = [one for one in (*by_outputs[:1], *by_inputs[:1]) if one is not None]
            if len(pairs) == 2 and all(len(one) == len(micro.view_weights) for one in pairs):
                behind, before = (bool(one[own.stop :].any()) for one in pairs)
                if before and not behind:
                    found.append(name)

        return hook

    images = micro.batch.images.detach().clone().requires_grad_()
    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_full_backward_hook(look(name or "model")) for name, layer in leaves]
    try:
        with seeded(1, "self-test"):
            each = losses(model, replace(micro.batch, images=images))
            torch.autograd.grad([each[own].sum()], [images], allow_unused=True)
    except RuntimeError:  # in-place operations behind a layer forbid such hooks
        return None
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _wrong_layer(what: Trained, model: nn.Module, losses: Losses, micro: Microbatch, way: Way, i: int) -> str:
    """Which parameter's gradient differs between the way of training and one backward pass for the patient alone."""
    ours, right = (_own(model, what, losses, micro, one, i) for one in (way, one_by_one))
    worst, share = what.names[0], -1.0
    for name, (_, _, place) in zip(what.names, what.places(), strict=True):
        if (distance := float(torch.linalg.vector_norm(ours[place] - right[place]))) > share:
            worst, share = name, distance
    return f"the per-patient gradient of {worst} is wrong under {getattr(way, '__name__', way)}"


def _name(losses: Losses) -> str:
    owner = getattr(losses, "__self__", None)
    return getattr(losses, "__name__", "") if owner is None else type(owner).__name__
