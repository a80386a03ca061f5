"""The fast way: layers whose backward pass leaves one gradient per patient in place of the one for the whole batch.

An ordinary backward pass computes for each layer the gradient by its input and the gradient by its weights. Here the
first stays as it is; the second is taken patient by patient, which is the same arithmetic. Norms are those of the very
numbers that are added up. Linear layers with few rows for each patient need no gradient at all for the norm: it follows
from two small products, and the clipped sum is one ordinary product with scaled rows.

A patient's gradient is the same bits whoever else is in the batch. What is computed for all at once has the shape of
the whole batch, blanks included; what is computed for one has the shape of his own images; which of both is done
follows from public numbers. With weights that make rounding large, another kernel would be another gradient.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from client.dp.gradients import Clip, Losses, Trained, Unreached, exact_arithmetic, squared_norms
from client.dp.microbatch import Microbatch
from common.models.standardised import StandardisedConv2d
from common.randomness import seeded

_SMALL_MAP = 100  # places of a feature map up to which one product per image is faster than grouped convolution
_CANCELLATION = 64.0  # |A| |B| over |B^T A| from which the scaled product would lose too many digits
_LONGEST = 2.0**40  # of |A|, |B|: beyond it what is scaled with may be too small for float32, as 1 / (|A| |B|)

_convolution_backward: Any = torch.ops.aten.convolution_backward


class Tape:
    """Per-patient gradients of one backward pass, by parameter. Made afresh for each micro-batch: nothing is stale."""

    def __init__(self, segments: Sequence[slice], slots: int, most: int) -> None:
        self.segments, self.slots, self.most = segments, slots, most
        self.each: dict[nn.Parameter, Tensor] = {}  # [patients, values]
        self.rows: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # Linear: input [slots, T, a], backprop [slots, T, o]
        self.apart: dict[nn.Parameter, dict[int, Tensor]] = {}  # gradients of patients whose rows would cancel

    def check(self, layer: nn.Module, value: Tensor) -> None:
        """Raises ValueError where a layer's first axis is not the images: its gradients have no owner then."""
        if value.shape[0] != self.slots:
            raise ValueError(f"{type(layer).__name__} got {value.shape[0]} rows for {self.slots} images")

    def add(self, parameter: nn.Parameter, gradients: Tensor) -> None:
        """A parameter's gradients [patients, ...] from one call of its layer; those of several calls are added."""
        flat = gradients.reshape(len(self.segments), parameter.numel())
        self.each[parameter] = self.each[parameter] + flat if parameter in self.each else flat

    def add_rows(self, weight: nn.Parameter, inputs: Tensor, backprops: Tensor) -> None:
        """A linear layer's input and backprop, kept where norms come cheaper from them than from the gradient."""
        longest, (o, a) = self.most * inputs.shape[1], weight.shape
        if longest**2 * (a + o) < a * o and weight not in self.rows and weight not in self.each:
            self.rows[weight] = inputs, backprops
            return
        if weight in self.rows:
            self.add(weight, self.products(*self.rows.pop(weight)))
        self.add(weight, self.products(inputs, backprops))

    def products(self, inputs: Tensor, backprops: Tensor) -> Tensor:
        """backprop^T input of each patient [patients, o, a]."""
        if self.most == 1:
            return self.of_patients(torch.bmm(backprops.transpose(1, 2), inputs))
        made = inputs.new_zeros(len(self.segments), backprops.shape[2], inputs.shape[2])
        for position, segment in enumerate(self.segments):
            torch.mm(backprops[segment].flatten(0, 1).t(), inputs[segment].flatten(0, 1), out=made[position])
        return made

    def of_patients(self, images: Tensor) -> Tensor:
        """Sums of per-image values [images, ...] over each patient's images [patients, ...]."""
        starts = [one.start for one in self.segments]
        if starts == list(range(len(starts))) and self.most == 1:
            return images[: len(starts)]
        total = images[starts]
        for further in range(1, self.most):
            owners = [p for p, one in enumerate(self.segments) if one.start + further < one.stop]
            total[owners] += images[[starts[p] + further for p in owners]]
        return total


class _Conv(torch.autograd.Function):
    """Convolution, standardised or transposed, by torch's own kernels; the weights' gradient is taken patient by
    patient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, tape: Tape) -> Tensor:
        tape.check(layer, x)
        if isinstance(layer, StandardisedConv2d):
            weight = layer.kernel()
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.tape = layer, tape
        transposed = isinstance(layer, nn.ConvTranspose2d)
        output_padding = list(layer.output_padding) if transposed else [0, 0]
        ctx.how = (list(layer.stride), list(padding_of(layer)), list(layer.dilation), transposed, output_padding)
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *ctx.how, layer.groups)
        return y

    @staticmethod
    def backward(ctx: Any, *backprops: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer, tape, backprop = ctx.layer, ctx.tape, backprops[0].contiguous()
        if layer.weight.requires_grad:
            found = _convolution_weights(tape, layer, x, backprop, ctx.how)
            tape.add(layer.weight, layer.by_weight(found) if isinstance(layer, StandardisedConv2d) else found)
        if layer.bias is not None and layer.bias.requires_grad:
            tape.add(layer.bias, tape.of_patients(backprop.sum(dim=(2, 3))))
        by_input = None
        if ctx.needs_input_grad[0]:
            by_input = _convolution_backward(backprop, x, weight, None, *ctx.how, layer.groups, [True, False, False])[0]
        return by_input, None, None, None, None


def _convolution_weights(tape: Tape, layer: Any, x: Tensor, backprop: Tensor, how: Sequence[Any]) -> Tensor:
    """Gradients of the weights [patients, ...] by the method that is fastest for the layer's shape on a CPU.

    Where patients have two images at most: all images in one convolution that takes each image for a group of channels,
    or one batched product where feature maps are so small that groups do not pay; then added up by patient. Else by
    patient.
    """
    slots, weight, groups = tape.slots, layer.weight, layer.groups
    mask = [False, True, False]
    if tape.most > 2:
        found = [
            _convolution_backward(backprop[one], x[one], weight, None, *how, groups, mask)[1] for one in tape.segments
        ]
        return torch.stack(found) if found else weight.new_zeros(0, *weight.shape)
    small = backprop[0, 0].numel() <= _SMALL_MAP or layer.kernel_size == (1, 1)
    if small and groups == 1 and isinstance(layer, nn.Conv2d):
        windows = _windows(layer, x, backprop.shape[2:])
        images = torch.bmm(backprop.flatten(2), windows).view(slots, *weight.shape)
    else:
        grouped = [one.reshape(1, -1, *one.shape[2:]) for one in (backprop, x)]
        shape = weight.new_empty(slots * weight.shape[0], *weight.shape[1:])  # only its shape is looked at
        images = _convolution_backward(*grouped, shape, None, *how, slots * groups, mask)[1].view(slots, *weight.shape)
    return tape.of_patients(images)


def _windows(layer: nn.Conv2d, x: Tensor, places: Sequence[int]) -> Tensor:
    """What each place of the output sees of the input, [images, places, channels x kernel]."""
    (top, left), (down, right) = padding_of(layer), layer.stride
    padded = nn.functional.pad(x, (left, left, top, top)).contiguous()
    image, channel, row, column = padded.stride()
    (y, z) = layer.dilation
    seen = padded.as_strided(
        (len(x), *places, x.shape[1], *layer.kernel_size),
        (image, row * down, column * right, channel, row * y, column * z),
    )
    return seen.reshape(len(x), places[0] * places[1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Linear, tape: Tape) -> Tensor:
        tape.check(layer, x)
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.tape = layer, tape
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *backprops: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer, tape, backprop = ctx.layer, ctx.tape, backprops[0]
        inputs = x.detach().reshape(tape.slots, -1, x.shape[-1])
        rows = backprop.reshape(tape.slots, -1, backprop.shape[-1])
        if layer.weight.requires_grad:
            tape.add_rows(layer.weight, inputs, rows)
        if layer.bias is not None and layer.bias.requires_grad:
            tape.add(layer.bias, tape.of_patients(rows.sum(dim=1)))
        return (backprop @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.GroupNorm, tape: Tape) -> Tensor:
        tape.check(layer, x)
        ctx.layer, ctx.tape = layer, tape
        ctx.size = (x.shape[0], x.shape[1], x[0, 0].numel(), layer.num_groups)
        x = x.contiguous()
        y, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *ctx.size, layer.eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        made: Tensor = y
        return made

    @staticmethod
    def backward(ctx: Any, *backprops: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        layer, tape, backprop = ctx.layer, ctx.tape, backprops[0].contiguous()
        slots, channels, places, groups = ctx.size
        # All images as one with slots x channels channels: what torch sums over images is then each image's own.
        mask = [ctx.needs_input_grad[0], layer.weight.requires_grad, layer.bias.requires_grad]
        size, rows = (1, slots * channels, places, slots * groups), (1, -1)
        by_input, by_weight, by_bias = torch.ops.aten.native_group_norm_backward(
            backprop, x, mean.view(rows), rstd.view(rows), weight.repeat(slots), *size, mask
        )
        if mask[1]:
            tape.add(layer.weight, tape.of_patients(by_weight.view(slots, channels)))
        if mask[2]:
            tape.add(layer.bias, tape.of_patients(by_bias.view(slots, channels)))
        return by_input.view_as(x) if mask[0] else None, None, None, None, None


# Exact types: a subclass may compute anything.
LAYERS: dict[type[nn.Module], Any] = {
    nn.Conv2d: _Conv,
    StandardisedConv2d: _Conv,
    nn.ConvTranspose2d: _Conv,
    nn.Linear: _Linear,
    nn.GroupNorm: _GroupNorm,
}


def padding_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...]:
    """Zeros on each side. Raises ValueError for padding that is not the same on both sides."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return (0,) * len(layer.kernel_size)
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(one % 2 for one in reach):
            raise ValueError("padding 'same' of an even kernel")
        return tuple(one // 2 for one in reach)
    return tuple(layer.padding)


def own_parameters(layer: nn.Module) -> tuple[nn.Parameter, ...]:
    """The trained parameters that belong to this module itself."""
    return tuple(p for p in layer.parameters(recurse=False) if p.requires_grad)


def supported(model: nn.Module) -> bool:
    """Whether every trained parameter belongs to a layer that this way knows."""
    for layer in model.modules():
        if own_parameters(layer):
            if type(layer) not in LAYERS:
                return False
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                try:
                    padding_of(layer)
                except ValueError:
                    return False
    return True


@contextmanager
def _taped(model: nn.Module, tape: Tape) -> Iterator[None]:
    """The layers' forward passes replaced inside the block."""
    replaced = []

    def forward(layer: Any, function: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: function.apply(x, layer.weight, layer.bias, layer, tape)

    try:
        for layer in model.modules():
            if own_parameters(layer):
                layer.forward = forward(layer, LAYERS[type(layer)])
                replaced.append(layer)
        yield
    finally:
        for layer in replaced:
            del layer.forward


def layer_by_layer(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, clip: Clip) -> Tensor:
    """One forward and one backward pass for all patients of the micro-batch, for models that are `supported`."""
    device, tape = micro.batch.images.device, Tape(micro.segments, micro.slots, micro.most)
    with exact_arithmetic(device):
        with _taped(model, tape), seeded(micro.seeds[0] if micro.seeds else 0, "micro-batch"):
            each = losses(model, micro.batch)
            weights = micro.view_weights.to(each)
            stray = torch.autograd.grad([each], what.parameters, [weights], allow_unused=True)
        # The layers answer None: whatever is here came past them, and belongs to nobody.
        if used := [name for name, gradient in zip(what.names, stray, strict=True) if gradient is not None]:
            raise Unreached(f"{used[0]} is used outside its own layer, where its gradient has no owner")
        return clipped(what, tape, clip)


def clipped(what: Trained, tape: Tape, clip: Clip) -> Tensor:
    """What a `Way` answers, from a tape that holds all the gradients."""
    total = torch.zeros(what.count, dtype=torch.float64, device=what.parameters[0].device)
    patients = len(tape.segments)
    squares = torch.zeros(patients, 1 + max(what.groups), dtype=torch.float64, device=total.device)
    for parameter, group, _ in what.places():
        squares[:, group] += _squares(tape, parameter)
    scale = clip(squares.sqrt())
    for parameter, group, place in what.places():
        if not (parameter in tape.rows or parameter in tape.each):
            continue
        total[place] = _scaled(tape, parameter, scale[:, group]).flatten()
    return total


def _squares(tape: Tape, weight: nn.Parameter) -> Tensor:
    if weight in tape.rows:
        return _ghost(tape, weight)
    if weight not in tape.each:  # the losses of these images do not depend on it
        return torch.zeros(len(tape.segments), dtype=torch.float64, device=weight.device)
    return squared_norms(tape.each[weight])


def _ghost(tape: Tape, weight: nn.Parameter) -> Tensor:
    """Squared norms of backprop^T input, sum((A A^T) * (B B^T)). A patient whose rows cancel each other or are very
    long, so that the scaled product would lose too many digits, gets his gradient itself, in `tape.apart`.
    """
    inputs, backprops = tape.rows[weight]
    if inputs.shape[1] == 1 and tape.most == 1:  # one row each: nothing cancels; in float64 nothing vanishes
        both = [tape.of_patients(squared_norms(rows[:, 0].double())) for rows in (inputs, backprops)]
        within = (both[0] <= _LONGEST**2) & (both[1] <= _LONGEST**2)
        for position in torch.nonzero(~within)[:, 0].tolist():
            a, b = (rows[tape.segments[position]].flatten(0, 1).double() for rows in (inputs, backprops))
            tape.apart.setdefault(weight, {})[position] = b.t() @ a
        return both[0] * both[1]
    squares = inputs.new_zeros(len(tape.segments), dtype=torch.float64)
    for position, segment in enumerate(tape.segments):
        a, b = inputs[segment].flatten(0, 1).double(), backprops[segment].flatten(0, 1).double()
        squares[position] = ((a @ a.t()) * (b @ b.t())).sum().clamp(min=0)
        lengths = float(a.square().sum()), float(b.square().sum())
        cancels = math.prod(lengths) > _CANCELLATION**2 * float(squares[position])
        if cancels or not max(lengths) <= _LONGEST**2:
            product = b.t() @ a
            tape.apart.setdefault(weight, {})[position] = product
            squares[position] = product.square().sum()
    return squares


def _scaled(tape: Tape, weight: nn.Parameter, scale: Tensor) -> Tensor:
    """The sum of scale x gradient. A patient of scale 0 is left out altogether: 0 x infinity would be no number.

    Factors have all of float32's digits: rows are within `_LONGEST`, and a gradient whose square is no float32 is
    infinite.
    """
    used = scale != 0
    if weight in tape.rows:
        inputs, backprops = tape.rows[weight]
        by_image, apart = scale.new_zeros(tape.slots), tape.apart.get(weight, {})
        for position, segment in enumerate(tape.segments):
            by_image[segment] = 0 if position in apart else scale[position]
        shown = (by_image != 0)[:, None, None]
        a = inputs if bool(shown.all()) else torch.where(shown, inputs, 0)
        b = torch.where(shown, backprops * by_image.to(backprops)[:, None, None], 0)
        total = torch.mm(b.flatten(0, 1).t(), a.flatten(0, 1)).double()
        for position, product in apart.items():
            if used[position]:
                total += scale[position] * product
        return total
    each = tape.each[weight]
    if not bool(used.all()):
        each, scale = each[used], scale[used]
    return torch.mv(each.t(), scale.to(each))
