"""Noised steps: draw patients, clip each one's gradient once, add up, add noise, divide by a public number."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.dp import hooks, layers
from client.dp.gradients import Clipper, Losses, Observed, Trained, Unreached, Way, one_by_one, trained
from client.dp.microbatch import Augment, Microbatch, Views, pack, part, views, without
from client.dp.patients import Patients
from client.dp.sampler import draw
from common import clip, noise, params
from common.errors import FederationError
from common.tasks.batch import Batch

Keys = Callable[[], bytes]  # a new 256-bit key at each call; `common.noise.fresh_key` in production


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides about the private steps of one order: public, and what the account is made from.

    `slots` alone is the site's own matter (memory): images in a micro-batch, at least images x augmentations.
    """

    sample_rate: float
    noise_multiplier: float
    bounds: clip.Bounds
    nominal_patients: float  # public number of the pool's patients
    local_steps: int
    images_per_patient: int = 1
    augmentations: int = 1
    slots: int = 32
    proximal_mu: float = 0.0

    def __post_init__(self) -> None:
        positive = {
            "sample_rate": self.sample_rate,
            "noise_multiplier": self.noise_multiplier,
            "nominal_patients": self.nominal_patients,
            "local_steps": self.local_steps,
            "images_per_patient": self.images_per_patient,
            "augmentations": self.augmentations,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value}: needs a number above 0")
        if not self.sample_rate <= 1:
            raise ValueError(f"sample_rate = {self.sample_rate}: a probability is at most 1")
        if not 0 <= self.proximal_mu < math.inf:
            raise ValueError(f"proximal_mu = {self.proximal_mu}: needs a number of 0 or more")
        if not self.slots >= self.views:
            raise ValueError(f"slots = {self.slots}: at least images_per_patient x augmentations")

    @property
    def views(self) -> int:
        """Most images of one patient in a step."""
        return self.images_per_patient * self.augmentations

    @property
    def divisor(self) -> float:
        """The public number that the noised sum is divided by: how many patients are drawn on average."""
        return self.sample_rate * self.nominal_patients

    @property
    def standard_deviation(self) -> float:
        """Of the noise, in steps of the grid; the sensitivity is `clip.GRID_STEPS` of them."""
        return self.noise_multiplier * clip.GRID_STEPS


def way_of(model: nn.Module) -> Way:
    """The fastest way to this model's per-patient gradients: layer by layer, Opacus's hooks, one patient at a time.

    Raises FederationError, naming the layer, for batch statistics, buffers, and layouts whose per-image gradients are
    wrong or untested.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or list(layer.buffers(recurse=False)):
            kind = type(layer).__name__
            raise FederationError(f"{name or 'model'} ({kind}) keeps or mixes what it has seen of patients: GroupNorm")
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise FederationError(f"{name or 'model'}: padding_mode = {layer.padding_mode!r}: only zeros under DP")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4 and not parameter.is_contiguous():
            raise FederationError(f"{name}: channels_last: only contiguous weights under DP")
    if _regions(model):
        return one_by_one
    if layers.supported(model):
        return layers.layer_by_layer
    return hooks.opacus_hooks if hooks.supported(model) else one_by_one


def _regions(model: nn.Module) -> bool:
    """Whether the model has layers whose first axis is regions of images (Faster R-CNN)."""
    return any(type(layer).__name__ == "RoIHeads" for layer in model.modules())


def exact_sum(
    model: nn.Module,
    what: Trained,
    patients: Patients,
    losses: Losses,
    plan: Plan,
    way: Way,
    *,
    augment: Augment | None,
    key: bytes,
    observed: Observed,
) -> clip.GridSum:
    """One step's integer sum of clipped gradients at the model's weights, before noise. Not for release.

    Raises ValueError for weights or shares outside [0, 1], whoever is drawn.
    """
    weights = patients.weights
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError("a patient's weight is outside [0, 1]: more than 1 would break the bound")
    drawn = draw(patients.shares, sample_rate=plan.sample_rate, key=key)
    observed.drawn += len(drawn)

    def found() -> Iterator[Views]:
        for one in drawn:
            made = views(
                patients,
                one,
                images_per_patient=plan.images_per_patient,
                augmentations=plan.augmentations,
                augment=augment,
            )
            if made is None:
                observed.unusable += 1
            else:
                yield made

    where = what.parameters[0].device
    total = np.zeros(what.count, np.float64)
    for micro in pack(found(), slots=plan.slots, blank=patients.blank, most=plan.views):
        micro = replace(micro, batch=micro.batch.to(where))
        total += contribution(model, what, losses, micro, plan.bounds, way, blank=patients.blank, observed=observed)
    return clip.to_grid(total, plan.bounds)


def contribution(
    model: nn.Module,
    what: Trained,
    losses: Losses,
    micro: Microbatch,
    bounds: clip.Bounds,
    way: Way,
    *,
    blank: Batch,
    observed: Observed,
) -> NDArray[np.float64]:
    """A micro-batch's clipped sum. Patients who cause an error are blanks in it, and that is said only here: all others
    go the same way as without them. Memory that does not suffice for blanks alone is an error, whoever is there.
    """
    clipper = Clipper(bounds, micro.weights)
    try:
        total = way(model, what, losses, micro, clipper)
    except Unreached:  # by the architecture: the same for all patients
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            way(model, what, losses, without(micro, range(len(micro.segments)), blank=blank), clipper)
        culprits = [at for at, one in enumerate(_each(micro)) if not _possible(model, what, losses, one, bounds)]
        if not micro.segments:
            raise
        if not culprits and way is not one_by_one:  # only together, which an error of memory can be
            return contribution(model, what, losses, micro, bounds, one_by_one, blank=blank, observed=observed)
        culprits = culprits or list(range(len(micro.segments)))
        observed.failed += len(culprits)
        others = without(micro, culprits, blank=blank)
        return contribution(model, what, losses, others, bounds, way, blank=blank, observed=observed)
    observed.not_finite += clipper.not_finite
    flat: NDArray[np.float64] = total.cpu().numpy()
    return flat


def _possible(model: nn.Module, what: Trained, losses: Losses, one: Microbatch, bounds: clip.Bounds) -> bool:
    """Whether the model and the loss take this patient."""
    try:
        one_by_one(model, what, losses, one, Clipper(bounds, one.weights))
    except Exception:
        return False
    return True


def _each(micro: Microbatch) -> Iterator[Microbatch]:
    """Each patient of a micro-batch alone."""
    for segment, weight, seed in zip(micro.segments, micro.weights, micro.seeds, strict=True):
        count = segment.stop - segment.start
        yield Microbatch(
            batch=part(micro.batch, segment),
            segments=(slice(0, count),),
            view_weights=micro.view_weights[segment],
            weights=(weight,),
            seeds=(seed,),
            most=micro.most,
        )


def noised_gradient(exact: clip.GridSum, plan: Plan, *, key: bytes) -> NDArray[np.float32]:
    """The released gradient of one step: (sum + noise) / divisor."""
    values = noise.gaussian(exact.steps.size, standard_deviation=plan.standard_deviation, key=key)
    return clip.release(exact, values, divisor=plan.divisor)


def private_update(
    model: nn.Module,
    what: Trained,
    patients: Patients,
    losses: Losses,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    *,
    augment: Augment | None,
    keys: Keys,
) -> tuple[NDArray[np.float32], Observed]:
    """Take exactly `plan.local_steps` noised steps; the local minus the order's weights, and what stays at the site.

    `optimizer` is over `what.parameters`; its momentum and weight decay work on noised gradients, as does the proximal
    term. Two keys are taken for each step: for the patients, and for the noise.

    Guarantees: the update is a function of the order's weights, the plan and the released gradients alone, so it may
    leave the site; it is finite unless the learning rate drives it out of float32's range, in which case it is 0 there.
    Edge cases: no patients, none drawn, none usable, weights that are not finite: the same number of noised steps.
    """
    observed, way, mode = Observed(), way_of(model), model.training
    before = [parameter.detach().clone() for parameter in what.parameters]
    try:
        model.train()
        for _ in range(plan.local_steps):
            patients_key, noise_key = keys(), keys()
            exact = exact_sum(
                model, what, patients, losses, plan, way, augment=augment, key=patients_key, observed=observed
            )
            _assign(what, noised_gradient(exact, plan, key=noise_key), before, mu=plan.proximal_mu)
            optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
        model.train(mode)
    change = params.flatten(new.detach() - old for new, old in zip(what.parameters, before, strict=True))
    return np.where(np.isfinite(change), change, np.float32(0)), observed


def _assign(what: Trained, gradient: NDArray[np.float32], before: list[Tensor], *, mu: float) -> None:
    flat = torch.from_numpy(gradient)
    for (parameter, _, place), start in zip(what.places(), before, strict=True):
        parameter.grad = flat[place].view_as(parameter).to(parameter)
        if mu:
            parameter.grad += mu * (parameter.detach() - start)


__all__ = ["Keys", "Plan", "contribution", "exact_sum", "noised_gradient", "private_update", "trained", "way_of"]
