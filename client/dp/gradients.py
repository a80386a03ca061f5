"""Clipped sums of per-patient gradients: what every way to them answers, and the slow way that is the oracle."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.dp.microbatch import Microbatch, part
from common.clip import Bounds, factors
from common.randomness import seeded
from common.tasks.batch import Batch

Losses = Callable[[nn.Module, Batch], Tensor]  # the loss of each image [B]
Clip = Callable[[Tensor], Tensor]  # norms [patients, groups] float64 to factors of the same shape
_ROW = 512  # values that are squared and added in float32, before float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The parameters that are trained, in the model's order, and the group of each for clipping."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    groups: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values in all of them."""
        return sum(parameter.numel() for parameter in self.parameters)

    def places(self) -> Iterator[tuple[nn.Parameter, int, slice]]:
        """Each parameter with its group and its place in the flat vector."""
        start = 0
        for parameter, group in zip(self.parameters, self.groups, strict=True):
            yield parameter, group, slice(start, start + parameter.numel())
            start += parameter.numel()


def trained(model: nn.Module, *, group_of: Callable[[str], int] = lambda _: 0) -> Trained:
    """What the model trains, in one group unless `group_of` names others.

    Raises ValueError where nothing is trained, or a parameter has no values.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named or any(parameter.numel() == 0 for _, parameter in named):
        raise ValueError("a model without trained values has no gradient")
    return Trained(
        names=tuple(name for name, _ in named),
        parameters=tuple(parameter for _, parameter in named),
        groups=tuple(group_of(name) for name, _ in named),
    )


class Way(Protocol):
    """A way to the clipped sum. All ways give the same, but for rounding."""

    def __call__(self, model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, clip: Clip) -> Tensor:
        """Sum over the micro-batch's patients of factor x gradient of the mean of his images' losses, flat, float64.

        `clip` is called with norms of shape [patients, groups], of all patients at once or one by one, and answers with
        the factors. A gradient whose factor is 0 adds exactly 0, whatever it holds. `parameter.grad` is left alone.
        Raises Unreached where a parameter's gradient can't be told by patient, whatever the images are.
        """


class Unreached(RuntimeError):
    """A trained parameter without gradients by patient (used behind the back of its layer), or without a clip norm."""


@dataclass(kw_only=True)
class Observed:
    """What stays at the site: how many patients were drawn, and how many contributed nothing, by reason."""

    drawn: int = 0
    not_finite: int = 0  # gradient infinite or not a number
    unusable: int = 0  # no image of his could be had
    failed: int = 0  # the model or the loss raised an error


class Clipper:
    """The `Clip` of one micro-batch: factors from norms by the bounds, then each patient's weight.

    Patients are taken in the micro-batch's order. Keeps `not_finite`.
    """

    def __init__(self, bounds: Bounds, weights: Sequence[float]) -> None:
        self._bounds, self._weights, self._next = bounds, np.array(weights, np.float64), 0
        self.not_finite = 0

    def __call__(self, norms: Tensor) -> Tensor:
        values: NDArray[np.float64] = norms.detach().cpu().numpy()
        if values.shape[1] != len(self._bounds.clip_norms):  # one norm would be taken for that of every group
            raise Unreached(f"{values.shape[1]} groups of parameters for {len(self._bounds.clip_norms)} clip norms")
        weights = self._weights[self._next : self._next + len(values)]
        self._next += len(values)
        self.not_finite += int(len(values) - np.isfinite(values).all(axis=1).sum())
        return torch.from_numpy(factors(values, self._bounds, weights=weights)).to(norms.device)


def one_by_one(model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, clip: Clip) -> Tensor:
    """One backward pass for each patient: right for every model, and what the other ways are measured against.

    Guarantees: a patient's gradient is computed from his own images alone, with his own random numbers.
    """
    total = torch.zeros(what.count, dtype=torch.float64, device=micro.batch.images.device)
    with exact_arithmetic(micro.batch.images.device):
        if not micro.segments:  # blanks take the same path, and add nothing
            _gradient(model, what, losses, micro, slice(None), seed=0)
        for segment, seed in zip(micro.segments, micro.seeds, strict=True):
            gradients = _gradient(model, what, losses, micro, segment, seed=seed)
            squares = torch.zeros(1, 1 + max(what.groups), dtype=torch.float64, device=total.device)
            for (_, group, _), gradient in zip(what.places(), gradients, strict=True):
                squares[0, group] += squared_norms(gradient.reshape(1, -1))[0]
            scale = clip(squares.sqrt())[0]
            for (_, group, place), gradient in zip(what.places(), gradients, strict=True):
                if scale[group] > 0:
                    total[place] += gradient.flatten().double() * scale[group]
    return total


def _gradient(
    model: nn.Module, what: Trained, losses: Losses, micro: Microbatch, where: slice, *, seed: int
) -> list[Tensor]:
    with seeded(seed, "patient"):
        each = losses(model, part(micro.batch, where))
        weights = micro.view_weights[where].to(each)
        found = torch.autograd.grad([each], what.parameters, grad_outputs=[weights], allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(what.parameters, found, strict=True)
    ]


def squared_norms(rows: Tensor) -> Tensor:
    """Squared L2 norm of each row [P, n], float64. Short pieces are added in float32, the pieces in float64.

    Edge cases: values so large that their square is no float32 give infinity, which counts as not finite.
    """
    whole = rows.shape[1] - rows.shape[1] % _ROW
    squares: Tensor = torch.linalg.vector_norm(rows[:, whole:], dim=1).double().square()
    if whole:
        pieces = torch.linalg.vector_norm(rows[:, :whole].reshape(len(rows), whole // _ROW, _ROW), dim=2)
        squares = squares + pieces.double().square().sum(dim=1)
    return squares


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Full float32 inside the block: no autocast, no TF32, no reduced products; everything is put back afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    off = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with off:
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
