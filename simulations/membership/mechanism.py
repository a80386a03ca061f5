"""The mechanism under attack: the real sampler, clip, noise, ledger, wire and rounds, with canaries easy to see.

A canary is a patient whose images are black but for one pixel that no other patient has; the model is linear, without
bias. So his gradient lies along one weight, ten times as long as the clip allows, and whoever reads what the site sends
sees him there, with the noise and nothing else. Real patients, whose gradients overlap, are better hidden.
"""

import math
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from client.cache import open_cache
from client.records import Row
from client.sources import Source
from common import guarantee, wire
from common.annotation import Annotation
from common.errors import RunError
from common.models import stand_in
from common.study import Study, parse
from server import federation
from simulations import inprocess
from simulations.faults import Faults
from simulations.membership.bounds import Bound, Present, lower_bounds
from simulations.membership.signal import Noise, expected, noise_of, score
from simulations.sites import charged, protect, write_site

CANARIES, THOROUGH = 2_000, 10_000
LENGTH = 10.0  # of a canary's gradient, in clip norms
IMAGES = 4  # of each canary at most: enough to see whether images are clipped in the place of patients
_WAVE = 500  # images written to the cache at once
_LIT = "lit"


class Linear(nn.Module):
    """One weight for each pixel, from 0, no bias: images [B, 1, h, w] to the logits of two classes, the first 0.

    While the weights stay near 0, the gradient of the cross-entropy of an image of the second class is -length x image.
    """

    def __init__(self, *, pixels: int, length: float) -> None:
        super().__init__()
        self.length = length
        self.head = nn.Linear(pixels, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(2 * self.length * images.flatten(1))
        return nn.functional.pad(logits, (1, 0))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the attack on the mechanism found. `gaussian` decides, `free` is for whoever trusts no assumption."""

    canaries: int
    present: int
    images_per_canary: int
    orders: int
    local_steps: int
    sample_rate: float
    noise_multiplier: float
    steps_charged: int
    claim: float
    delta: float
    gaussian: Bound
    expected: float  # what `gaussian` is on average where all is right
    free: Bound
    noise: Noise

    @property
    def faults(self) -> tuple[str, ...]:
        """What contradicts the promise; nothing in a mechanism that keeps it, but for 5 % at the very most."""
        taken, noise = self.orders * self.local_steps, self.noise
        said = {
            f"the canaries could be told apart as if epsilon were at least {self.gaussian.epsilon:.2f}": (
                not self.gaussian.epsilon <= self.claim
            ),
            f"the noise is {noise.measured:.3f} clip norms in the place of {noise.promised:.3f}": noise.short,
            f"the noise of one order returns in the next (correlation {noise.repeated})": noise.reused,
            f"the ledger was charged for {self.steps_charged} steps, and {taken} were taken": (
                self.steps_charged != taken
            ),
        }
        return tuple(text for text, holds in said.items() if holds)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"passed": not self.faults, "faults": list(self.faults), **asdict(self)}


def attack(study: Study, *, canaries: int, folder: Path) -> Found:
    """One run of as many orders as the study pays for, with `canaries` that secret fair coins put in or leave out.

    Works in a temporary folder within `folder`. Raises StudyError for a study without `[privacy]`, RunError where the
    site did not answer every order.
    """
    audited = audited_study(study, canaries=canaries)
    present = np.array([secrets.randbits(1) for _ in range(canaries)], np.bool_)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        site = write_canaries(Path(name) / "canaries", audited, present)
        nominal = _nominal(audited, canaries)
        sent = released(audited, site, nominal_patients=nominal, out=Path(name) / "out")
        steps_charged = charged(audited, nominal, site)["steps_charged"]
    event, privacy = guarantee.order_event(audited), guarantee.privacy_of(audited)
    # How often each canary was seen in each order [orders, canaries], with the noise.
    seen = sent[:, :canaries] * (event.sample_rate * nominal / (audited.training.learning_rate * privacy.clip_norm))
    gaussian, free = lower_bounds(score(seen, event), present, delta=privacy.delta)
    return Found(
        canaries=canaries,
        present=int(present.sum()),
        images_per_canary=privacy.images_per_patient,
        orders=len(sent),
        local_steps=event.steps,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        steps_charged=steps_charged,
        claim=privacy.epsilon,
        delta=privacy.delta,
        gaussian=gaussian,
        expected=expected(event, orders=len(sent), canaries=canaries, delta=privacy.delta),
        free=free,
        noise=noise_of(seen[:, ~present], event),
    )


def audited_study(study: Study, *, canaries: int) -> Study:
    """The study whose mechanism is attacked: privacy, orders and local steps of the given one, and a linear model.

    Spare rounds become rounds, so that everything that was paid for is asked. What would only hide canaries is left
    out: momentum and other optimisers, augmentation, class balance. The learning rate is so small that no weight moves
    far enough to change a gradient. The name is new each time: what a process keeps of a study is never used again.
    """
    privacy, side = guarantee.privacy_of(study), max(8, math.isqrt(canaries - 1) + 1)
    values = {
        "study": {
            "schema": 1,
            "name": f"membership-audit-{secrets.token_hex(8)}",
            "task": "classification",
            "classes": ("dark", _LIT),
            "rounds": study.study.rounds + study.spare_rounds,
            "min_sites": 1,
            "round_deadline": 7 * 86400.0,
            "split": (1.0, 0.0, 0.0),
            "select": "last",
        },
        "model": {"name": "cnn", "image_size": (side, side)},
        "preprocessing": {"mean": 0.0, "std": 1.0},
        "training": {
            "local_steps": study.training.local_steps,
            "learning_rate": min(100.0, 1e-5 / privacy.clip_norm**2),
            "momentum": 0.0,
        },
        "aggregation": {"weights": "equal"},
        "privacy": {
            **privacy.model_dump(exclude={"evaluation"}),
            "spare_rounds": 0,
            "images_per_patient": min(IMAGES, privacy.images_per_patient),
            "augmentations": 1,
        },
    }
    return parse(values, where="membership audit")


def write_canaries(folder: Path, study: Study, present: Present) -> Path:
    """A site folder with a ledger, whose patients are the canaries that are present."""
    side = study.model.image_size[0]
    count = guarantee.privacy_of(study).images_per_patient
    source = Source(root=folder, path="none", kind="array")  # the images are in the cache, and nowhere else
    numbers = np.flatnonzero(present).tolist()
    names = [(f"{number:06d}-{image}", number) for number in numbers for image in range(count)]
    rows = [
        Row(
            image=name,
            patient=f"{number:06d}",
            study=None,
            source=source,
            height=side,
            width=side,
            modality=None,
            scanner=None,
            burned_in=False,
            official=None,
            annotation=Annotation(label=_LIT),
            columns={},
        )
        for name, number in names
    ]
    nominal = _nominal(study, len(present))
    write_site(folder, rows=rows, cache=folder / "cache", key=secrets.token_bytes(32), nominal_patients=nominal)
    cache = open_cache(folder / "cache", study)
    for start in range(0, len(names), _WAVE):
        cache.add_many({name: _picture(number, side) for name, number in names[start : start + _WAVE]})
    protect(folder, study, shares={"train": 1.0, "validation": 0.0, "test": 0.0})
    return folder


def _picture(number: int, side: int) -> NDArray[np.float16]:
    picture = np.zeros(side * side, np.float16)
    picture[number] = 1
    return picture.reshape(1, side, side)


def _nominal(study: Study, canaries: int) -> int:
    """Half of the canaries, or as many patients as the study's delta admits: it is but the divisor of the sum."""
    return max(1, min(canaries // 2, int(0.999 / (10 * guarantee.privacy_of(study).delta))))


def released(study: Study, site: Path, *, nominal_patients: int, out: Path) -> NDArray[np.float64]:
    """Every update that the site sent in a whole run, as it came over the wire [orders, pixels]."""
    pixels = math.prod(study.model.image_size)
    updates: dict[int, wire.Vector] = {}

    def observe(record: wire.Record, reply: wire.Record) -> None:
        order = wire.order_from(record)
        if order.kind == "update":
            answer = wire.answer_from(reply, to=order, length=pixels)
            if answer.vector is not None:
                updates[order.round] = answer.vector

    options = federation.Options(
        out=out, backend="inprocess", roster=frozenset({site.name}), nominal={site.name: nominal_patients}
    )
    length = LENGTH * guarantee.privacy_of(study).clip_norm
    with stand_in(study, lambda: Linear(pixels=pixels, length=length)):
        inprocess.run(study, options, [site], Faults(scripted={}), observe)
    if sorted(updates) != list(range(1, study.study.rounds + 1)):
        raise RunError(f"the site answered {len(updates)} of {study.study.rounds} orders: nothing can be concluded")
    return np.stack([updates[number] for number in sorted(updates)]).astype(np.float64)
