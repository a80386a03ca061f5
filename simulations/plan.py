"""A dry run: what a study costs in parameters, bytes, memory, steps and time, before anybody trains."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.private import slots
from client.train import device, make_optimizer, precision
from common import guarantee, params
from common.accounting import noise_over_signal, plan_mu
from common.kinds import Answering
from common.layout import layout_of
from common.models import build_model
from common.randomness import seeded, stream
from common.secure import encoding_of
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch, Objects
from server.private_metrics import measurable, planned_half_width
from simulations.sites import lifetime

_MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}  # values an optimiser keeps per trained parameter
_TRY = "too much for a linear model; try on public images"  # a network may learn all the same: common.accounting


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What `[privacy]` costs in learning, if all sites have `patients` and one image each.

    Classes whose shares are not yet known count as equally common: else there is less signal than this.
    Noise over signal of the whole run: below 0.1 all is well, above 0.5 a linear model learns nothing.
    """

    statement: dict[str, Any]
    patients: int
    mu: float
    noise_over_signal: float
    lifetime_epsilon: float  # the smallest that a site's ledger must have been made with, if the study is its first
    half_widths: dict[str, float | None]  # by metric, of the interval that noise alone will give; None: not measurable
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Costs of a study for one site with `images` training images, or for all `sites` where it says so.

    Bytes are payload; memory in bytes leaves out Python and libraries (about 0.5 GB); seconds were measured on this
    machine
    with `threads` threads, over steps on made-up images.
    """

    images: int
    sites: int
    parameters: int
    trained: int
    bytes_down: int  # per site and round
    bytes_up: int
    bytes_total: int  # all sites, all rounds, class histogram and last evaluation included
    steps_per_round: int
    steps: int
    client_memory: int
    server_memory: int
    seconds_per_step: float
    seconds: float  # one site, all rounds, training alone
    threads: int
    privacy: Protection | None  # None without [privacy]


def plan(study: Study, *, images: int, sites: int, threads: int) -> Plan:
    """Build the model, take a few steps on made-up images and count. Reads no data and opens no connection."""
    torch.set_num_threads(threads)
    where = device()
    with seeded(study.study.seed, "initialisation"):
        model = build_model(study).to(where)
    batch = _made_up(study).to(where)
    activations, per_step = _measure(study, model, batch)
    training = study.training
    if study.privacy is not None:
        per_step *= max(1.0, study.privacy.sample_rate * images * study.privacy.augmentations / len(batch.images))
    per_pass = math.ceil(images / len(batch.images))
    steps = training.local_steps if training.local_steps is not None else (training.local_epochs or 0) * per_pass
    everything = params.length(params.shapes(model, trainable=False))
    trained = params.length(params.shapes(model, trainable=True))
    up, last = _bytes_up(study, "update", sites=sites), _bytes_up(study, "evaluate", sites=sites)
    counting = _bytes_up(study, "count", sites=sites) if guarantee.counts(study) else 0
    rounds, model_bytes = study.study.rounds, 4 * everything
    moments = _MOMENTS[training.optimizer] if not (training.optimizer == "sgd" and training.momentum == 0) else 0
    return Plan(
        images=images,
        sites=sites,
        parameters=everything,
        trained=trained,
        bytes_down=model_bytes,
        bytes_up=up,
        bytes_total=sites * (rounds * (model_bytes + up) + model_bytes + last + counting),
        steps_per_round=steps,
        steps=rounds * steps,
        # weights, order, copy before training, update in two forms; gradients and moments of what is trained
        client_memory=3 * model_bytes + 4 * trained * (3 + moments) + activations,
        # weights and order, float32 and fixed-point sum, mean, moments of the server's optimiser
        server_memory=3 * model_bytes + trained * (4 + 8 + 8 + 8 * _server_moments(study)),
        seconds_per_step=per_step,
        seconds=rounds * steps * per_step,
        threads=threads,
        privacy=_protection(study, trained, images=images, sites=sites),
    )


def _bytes_up(study: Study, kind: Answering, *, sites: int) -> int:
    """Payload of an answer, without headers and the protocol's messages (some kB a site)."""
    if study.aggregation.secure:
        return 8 * encoding_of(study, kind, sites=sites).words
    return 4 * layout_of(study, kind).length


def _protection(study: Study, trained: int, *, images: int, sites: int) -> Protection | None:
    if study.privacy is None:
        return None
    guarantee.check_nominal(study, {"each site": images})
    event = guarantee.training_event(study)
    mu, prior = plan_mu(event), _known_prior(study)
    counted = len(prior) * min(prior) if prior else 1.0  # mean weight of a patient, whose class is as common as said
    ratio = noise_over_signal(mu=mu, trained_parameters=trained, sites=sites, patients=sites * images * counted)
    verdict = "all is well" if ratio < 0.1 else "learning will suffer" if ratio <= 0.5 else _TRY
    return Protection(
        statement=guarantee.statement(study, nominal_patients=images, rounds_charged=0),
        patients=images,
        mu=mu,
        noise_over_signal=ratio,
        lifetime_epsilon=lifetime(study).epsilon,
        half_widths=_half_widths(study, images=images, sites=sites),
        verdict=verdict,
    )


def _half_widths(study: Study, *, images: int, sites: int) -> dict[str, float | None]:
    """Of the released metrics, from public numbers alone; {} where none are released."""
    if not guarantee.release_rounds(study):
        return {}
    event, (train, validation, test) = guarantee.release_event(study), study.study.split
    held_out = images / train * {"validation": validation, "test": test}.get(event.pool, 0.0)
    planned = planned_half_width(
        guarantee.metrics_of(study),
        noise_multiplier=event.noise_multiplier,
        sites=sites,
        nominal_patients=sites * held_out,
        class_prior=_known_prior(study),
    )
    return {name: found if measurable(found) else None for name, found in planned.items()}


def _known_prior(study: Study) -> tuple[float, ...]:
    """The classes' shares as far as they are known before a run: () where they are released in it."""
    prior = study.training.class_prior
    return () if isinstance(prior, str) else prior


def _server_moments(study: Study) -> int:
    if study.aggregation.algorithm in ("fedadam", "fedyogi"):
        return 2
    return 1 if study.aggregation.server_momentum > 0 else 0


def _made_up(study: Study) -> Batch:
    """A batch of the study's shape: noise, with a square in the middle as the object of the first class."""
    model, rng = study.model, stream(0, "made-up images")
    height, width = model.image_size
    size = study.training.batch_size or slots(study)
    images = torch.from_numpy(rng.standard_normal((size, model.channels, height, width), dtype=np.float32))
    match study.study.task:
        case "classification":
            return Batch(images=images, labels=torch.from_numpy(rng.integers(0, len(study.study.classes), size)))
        case "segmentation":
            masks = torch.zeros((size, height, width), dtype=torch.uint8)
            masks[:, height // 4 : height // 2, width // 4 : width // 2] = 1
            return Batch(images=images, masks=masks)
        case "detection":
            box = np.array([[width / 4, height / 4, width / 2, height / 2]], np.float32)
            objects = Objects(boxes=box, classes=np.zeros(1, np.int64))
            return Batch(images=images, objects=(objects,) * size)


def _measure(study: Study, model: torch.nn.Module, batch: Batch) -> tuple[int, float]:
    """Bytes that autograd keeps for one step's backward, and seconds of a step (the fastest of three after a first)."""
    task, kept = task_of(study), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], study.training, rate=1e-6)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with precision(batch.images.device):
            losses = task.losses(model, batch)
        torch.autograd.backward([losses.mean()])
        optimizer.step()

    with seeded(0, "made-up images"):
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            step()
        return sum(size for place, size in kept.items() if place not in own), min(_timed(step) for _ in range(3))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
