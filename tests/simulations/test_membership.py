"""The membership audit passes what keeps its promise, and fails faults planted into the code that makes it."""

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import private_study, tiny_study, write_npz
from typer.testing import CliRunner

from client import index
from client.dp import step
from client.dp.gradients import one_by_one, trained
from client.dp.microbatch import Views, pack, part
from client.ledger import Ledger
from common import clip, guarantee, noise
from common.annotation import Annotation, Box
from common.errors import RunError, StudyError
from common.models import build_model, stand_in
from common.study import Study
from common.tasks import task_of
from common.tasks.batch import Batch
from simulations.__main__ import app
from simulations.membership import mechanism, model
from simulations.membership.audit import Request, audit
from simulations.membership.mechanism import Linear, attack, audited_study, write_canaries

Plant = Callable[[pytest.MonkeyPatch], None]


def study(*, rounds: int, local_steps: int = 1, images: int = 1, rate: float = 0.5) -> Study:
    """`rounds` orders in all: one of them is spare."""
    return private_study(
        study={"rounds": rounds - 1},
        training={"local_steps": local_steps},
        privacy={"sample_rate": rate, "spare_rounds": 1, "images_per_patient": images},
    )


def no_clip(patch: pytest.MonkeyPatch) -> None:
    def factors(norms: Any, bounds: clip.Bounds, *, weights: Any) -> Any:
        return np.repeat(weights[:, None], norms.shape[1], axis=1)

    patch.setattr("client.dp.gradients.factors", factors)


def clip_by_image(patch: pytest.MonkeyPatch) -> None:
    def by_image(found: Iterable[Views], *, slots: int, blank: Batch, most: int) -> Iterator[Any]:
        images = (
            replace(one, batch=part(one.batch, slice(i, i + 1))) for one in found for i in range(len(one.batch.images))
        )
        return pack(images, slots=slots, blank=blank, most=most)

    patch.setattr(step, "pack", by_image)


def weaker_noise(by: float) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def weaker(plan: step.Plan) -> float:
            return by * plan.noise_multiplier * clip.GRID_STEPS

        patch.setattr(step.Plan, "standard_deviation", property(weaker))

    return plant


def noise_once_per_round(patch: pytest.MonkeyPatch) -> None:
    calls = 0

    def now_and_then(exact: clip.GridSum, plan: step.Plan, *, key: bytes) -> Any:
        nonlocal calls
        calls += 1
        if calls % plan.local_steps == 0:
            return noised(exact, plan, key=key)
        return clip.release(exact, np.zeros_like(exact.steps), divisor=plan.divisor)

    noised = step.noised_gradient
    patch.setattr(step, "noised_gradient", now_and_then)


def the_same_noise(patch: pytest.MonkeyPatch) -> None:
    gaussian = noise.gaussian

    def again(count: int, *, standard_deviation: float, key: bytes) -> Any:
        return gaussian(count, standard_deviation=standard_deviation, key=bytes(32))

    patch.setattr(noise, "gaussian", again)


def drawn_too_often(patch: pytest.MonkeyPatch) -> None:
    draw = step.draw

    def always(shares: Any, *, sample_rate: float, key: bytes) -> Any:
        return draw(shares, sample_rate=min(1.0, 2 * sample_rate), key=key)

    patch.setattr(step, "draw", always)


def no_charge(patch: pytest.MonkeyPatch) -> None:
    def free(_ledger: Ledger, _query: Any, _event: Any, compute: Callable[[], bytes]) -> bytes:
        return compute()

    patch.setattr(Ledger, "release", free)


def unharmed(_patch: pytest.MonkeyPatch) -> None:
    pass


# The study, and whether the Gaussian bound must be above the claim. Powers are at least 99.9 %.
MUST_FAIL: dict[str, tuple[Plant, Study, bool]] = {
    "noise halved": (weaker_noise(0.5), study(rounds=44), True),
    "clipped by image": (clip_by_image, study(rounds=10, images=4), True),
    "no clip": (no_clip, study(rounds=10), True),
    "noise once in a round of 4 steps": (noise_once_per_round, study(rounds=11, local_steps=4), True),
    "drawn twice as often": (drawn_too_often, study(rounds=44), True),
    "noise a tenth too small": (weaker_noise(0.9), study(rounds=6), False),
    "the same noise twice": (the_same_noise, study(rounds=3), False),
    "not charged": (no_charge, study(rounds=3), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MUST_FAIL)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, of, by_bound = MUST_FAIL[fault]
    plant(monkeypatch)
    found = attack(of, canaries=2000, folder=tmp_path)
    assert found.faults and found.as_json()["passed"] is False
    if by_bound:
        assert found.gaussian.epsilon > found.claim


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "steps", "images"), [(44, 1, 1), (11, 4, 1), (10, 1, 4)])
def test_what_keeps_its_promise_passes(rounds: int, steps: int, images: int, tmp_path: Path) -> None:
    """Wrong by chance in about 2 of 10,000 runs: three figures, each tested at 4 standard errors."""
    found = attack(study(rounds=rounds, local_steps=steps, images=images), canaries=2000, folder=tmp_path)
    assert not found.faults
    assert (found.orders, found.local_steps, found.steps_charged) == (rounds, steps, rounds * steps)
    assert abs(found.gaussian.epsilon - found.expected) < 2.5  # it is no attack that finds nothing
    assert found.free.epsilon <= found.claim
    assert not list(tmp_path.iterdir())


def test_an_audit_of_200_passes_and_one_without_clip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attack(study(rounds=3), canaries=200, folder=tmp_path)
    assert not right.faults and right.orders == right.steps_charged == 3
    assert right.noise_multiplier == guarantee.training_event(study(rounds=3)).noise_multiplier
    no_clip(monkeypatch)
    wrong = attack(study(rounds=3), canaries=200, folder=tmp_path)
    assert wrong.gaussian.epsilon > wrong.claim and "as if epsilon were at least" in wrong.faults[0]


def test_the_audited_study_takes_privacy_and_steps_from_the_given_one() -> None:
    given = private_study(
        study={"rounds": 30, "name": "real"},
        training={"local_steps": 3, "optimizer": "sgd", "momentum": 0.9, "augmentation": "standard"},
        privacy={"clip_norm": 0.25, "images_per_patient": 7, "augmentations": 3, "evaluation": {"epsilon": 3.0}},
    )
    derived = audited_study(given, canaries=2000)
    assert derived.privacy is not None and given.privacy is not None
    event = guarantee.training_event(given)
    assert guarantee.training_event(derived) == event and event.steps == 99
    assert derived.study.rounds == 33 and derived.spare_rounds == 0 and derived.training.momentum == 0
    for key in ("epsilon", "delta", "clip_norm", "sample_rate", "clip_groups"):
        assert getattr(derived.privacy, key) == getattr(given.privacy, key)
    assert derived.privacy.evaluation is None and derived.privacy.images_per_patient == 4
    assert derived.model.image_size == (45, 45)
    assert audited_study(given, canaries=10_000).model.image_size == (100, 100)
    assert audited_study(given, canaries=2000).sha256 != derived.sha256


@pytest.mark.parametrize("clip_norm", [2.0**-20, 1.0, 2.0**20])
def test_a_canarys_gradient_is_ten_clip_norms_along_his_pixel(clip_norm: float) -> None:
    derived = audited_study(private_study(privacy={"clip_norm": clip_norm}), canaries=100)
    images = torch.zeros(1, 1, 10, 10)
    images[0, 0, 3, 7] = 1
    network = Linear(pixels=100, length=10 * clip_norm)
    losses = task_of(derived).losses(network, Batch(images=images, labels=torch.ones(1, dtype=torch.int64)))
    (gradient,) = torch.autograd.grad([losses.sum()], [network.head.weight])
    wanted = torch.zeros(1, 100)
    wanted[0, 37] = -10 * clip_norm
    assert torch.allclose(gradient, wanted)
    what = trained(network)
    assert step.way_of(network) is not one_by_one and what.count == 100


def test_the_site_holds_those_who_are_in_and_their_images_are_equal(tmp_path: Path) -> None:
    derived = audited_study(private_study(privacy={"images_per_patient": 3}), canaries=10)
    present = np.arange(10) % 2 == 0
    folder = write_canaries(tmp_path / "canaries", derived, present)
    rows = index.read(folder)
    assert sorted({row.patient for row in rows}) == [f"{number:06d}" for number in range(0, 10, 2)]
    assert len(rows) == 15 and len({row.image for row in rows}) == 15


def test_a_stand_in_is_for_one_study_and_ends_with_its_block() -> None:
    one, other = tiny_study(), tiny_study(study={"seed": 4})
    with stand_in(one, lambda: Linear(pixels=4, length=1.0)):
        assert isinstance(build_model(one), Linear) and not isinstance(build_model(other), Linear)
    assert not isinstance(build_model(one), Linear)


def test_an_answer_that_is_missing_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.private.noised_update", lambda *_a, **_k: 1 / 0)
    with pytest.raises(RunError, match="fewer than 1 sites answered"):
        attack(study(rounds=2), canaries=100, folder=tmp_path)


def test_what_cant_be_audited_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no \[privacy\]"):
        audit(Request(study=tiny_study(), out=tmp_path))
    with pytest.raises(StudyError, match="--sites 1"):
        audit(Request(study=private_study(), out=tmp_path, sites=1))
    (tmp_path / "model").mkdir()
    with pytest.raises(RunError, match="holds an audit already"):
        audit(Request(study=private_study(), out=tmp_path))


def row(patient: str, annotation: Annotation, *, size: tuple[int, int] = (4, 6)) -> Any:
    return mechanism.Row(
        image=f"{patient}-0",
        patient=patient,
        study=None,
        source=mechanism.Source(root=Path("/"), path="none", kind="array"),
        height=size[0],
        width=size[1],
        modality=None,
        scanner=None,
        burned_in=None,
        official=None,
        annotation=annotation,
        columns={},
    )


def test_a_mislabelled_patient_gets_another_class() -> None:
    patients = {
        name: model._Patient(folder=Path("/"), rows=(row(name, Annotation(label=label)),))
        for name, label in (("a", "dark"), ("b", "bright"), ("c", "0"))
    }
    for name, wrong in (("a", "bright"), ("b", "dark"), ("c", "bright")):
        (changed,) = model.mislabelled(tiny_study(), name, patients, random.Random(1))
        assert (changed.image, changed.annotation.label) == (f"{name}-0", wrong)


def test_a_mask_is_that_of_a_patient_who_shows_something_else() -> None:
    outlines = tiny_study(
        study={"task": "segmentation", "classes": ["lesion"]},
        model={"name": "unet", "image_size": [32, 32], "head": "dense", "base_channels": 2},
    )
    full, empty = Annotation(mask=np.ones((4, 6), np.uint8)), Annotation(mask=np.zeros((4, 6), np.uint8))
    patients = {
        name: model._Patient(folder=Path("/"), rows=(row(name, known),))
        for name, known in (("a", full), ("b", empty), ("c", empty), ("d", empty))
    }
    for seed in range(10):
        for name, shown in (("a", 0), ("b", 1)):
            (changed,) = model.mislabelled(outlines, name, patients, random.Random(seed))
            assert changed.annotation.mask is not None and changed.annotation.mask.max() == shown
    del patients["a"]
    (changed,) = model.mislabelled(outlines, "b", patients, random.Random(1))
    assert changed.annotation.mask is not None and changed.annotation.mask.max() == 0


def test_masks_and_boxes_of_another_are_stretched_to_the_image() -> None:
    mask = np.zeros((2, 3), np.uint8)
    mask[1, 0] = 1
    donor = row("a", Annotation(mask=mask, boxes=(Box(x1=0, y1=1, x2=1, y2=2, name="0"),)), size=(2, 3))
    found = model.fitted(donor, row("b", Annotation(), size=(4, 6)))
    assert found.mask is not None and found.boxes is not None
    assert found.mask.tolist() == np.kron(mask, np.ones((2, 2), np.uint8)).tolist()
    assert found.boxes == (Box(x1=0, y1=2, x2=2, y2=4, name="0"),)


def test_guesses_are_the_surest_and_their_number_is_fixed() -> None:
    present = np.arange(50) < 25
    perfect = model.guesses_of(np.where(present, 1.0, 0.0), present, delta=0)
    assert [(one.guesses, one.correct) for one in perfect] == [(50, 50), (24, 24), (10, 10)]
    right = (0.05 / 3) ** (1 / 50)
    assert perfect[0].epsilon == pytest.approx(math.log(right / (1 - right)), abs=1e-6)
    wrong = model.guesses_of(np.where(present, 0.0, 1.0), present, delta=0)
    assert [(one.correct, one.epsilon) for one in wrong] == [(0, 0), (0, 0), (0, 0)]


def test_the_model_is_trained_on_canaries_that_are_in_and_on_no_others(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", images=48, seed=0)
    request = Request(study=private_study(), out=tmp_path / "out", part="b", data=f"medmnist:{data}", sites=2)
    found = audit(request)
    assert found.passed and found.mechanism is None and found.model is not None
    told = json.loads((tmp_path / "out" / "membership.json").read_text(encoding="utf-8"))
    assert told["mechanism"] is None and told["model"]["epsilon"] == found.model.epsilon
    labels = {r.image: r.annotation.label for r in index.read(tmp_path / "out" / "model" / "data")}
    sites = [tmp_path / "out" / "model" / "sites" / name for name in ("site-0", "site-1")]
    trained_on = {r.image: r.annotation.label for site in sites for r in index.read(site)}
    changed = sum(labels[image] != label for image, label in trained_on.items())
    assert changed == found.model.present
    assert len(labels) - len(trained_on) == found.model.canaries - found.model.present


@pytest.mark.slow
def test_a_model_that_learns_by_heart_gives_its_canaries_away(tmp_path: Path) -> None:
    """Without privacy, so many passes that every wrong label of a patient who is in is learnt."""
    learner = tiny_study(
        study={"rounds": 6},
        model={"head": "dense"},
        training={"local_epochs": 10, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.003},
    )
    data = write_npz(tmp_path / "data.npz", images=160, seed=0)
    found = audit(Request(study=learner, out=tmp_path / "out", part="b", data=f"medmnist:{data}", sites=2))
    assert found.model is not None and found.model.canaries == 50 and found.model.epsilon > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["phantom-masks", "phantom-boxes"])
def test_masks_and_boxes_can_be_canaries_too(task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "membership",
        task,
        "--part",
        "b",
        "--data",
        "phantom:40",
        "--sites",
        "2",
        "--out",
        str(out),
        "--quiet",
    ]
    done = CliRunner().invoke(app, [*arguments, "--set", "study.rounds=1"])
    assert done.exit_code == 0 and "Not a pass mark" in done.stdout, done.output


@pytest.mark.slow
def test_the_command_says_what_was_done_and_its_exit_code_is_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.attack_cli.study_from", lambda _path, _changes: study(rounds=3))
    arguments = ["membership", "study.toml", "--part", "a", "--quiet", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert done.exit_code == 0, done.output
    for said in ("2,000 invented patients", "PASSED", "decides", "proves no epsilon"):
        assert said in " ".join(done.stdout.split())
    no_clip(monkeypatch)
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False and json.loads(done.stdout)["mechanism"]["faults"]
