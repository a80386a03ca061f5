"""Hospitals' networks as they are: a site cut off, two cut off, a slow uplink, a line that stalls and hangs up.

Real processes under secure aggregation, each site in a network namespace of its own. Rounds go on without who is away,
name him, and take him back; what was counted is compared with the images that each site holds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Federation, enrolled, wait
from network_cases import MISSING, Line, Network, cut, in_order, move, network
from PIL import Image
from small import KEY

from client import index
from client.dataset import open_dataset
from client.site import open_site, site_toml
from common import params, secure
from common.layout import Answering
from common.models import build_model
from common.randomness import seeded
from common.study import Study, parse
from server.events import Event, effective

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

SIDE = 16  # pixels: one at the bottom of the U-Net
SITES = 4
PAIR = {"site-0", "site-1"}
KINDS: tuple[Answering, ...] = ("update", "evaluate")


def study(name: str, *, base_channels: int = 4, **agreement: Any) -> Study:
    """A secure study of three sites at least, with a U-Net."""
    return parse(
        {
            "study": {
                "schema": 1,
                "name": name,
                "task": "segmentation",
                "classes": ["square"],
                "min_sites": 3,
                "round_deadline": 30,
                "round_retries": 10,
                **agreement,
            },
            "model": {"name": "unet", "image_size": [SIDE, SIDE], "base_channels": base_channels},
            "training": {"local_steps": 1, "batch_size": 2, "learning_rate": 0.01},
            "aggregation": {"weights": "equal", "secure": True, "range": 1.0},
        },
        where="test",
    )


def write_site(folder: Path, *, images: int) -> Path:
    """A site of images with a bright square, and masks of the square."""
    rng = np.random.default_rng(images)
    for name in ("images", "masks"):
        (folder.parent / f"{folder.name}-data" / name).mkdir(parents=True)
    for number in range(images):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        row, column = rng.integers(0, SIDE - 6, 2)
        mask[row : row + 6, column : column + 6] = 1
        pixels = (rng.integers(0, 100, mask.shape) + 100 * mask).astype(np.uint8)
        for name, values in (("images", pixels), ("masks", mask)):
            Image.fromarray(values).save(folder.parent / f"{folder.name}-data" / name / f"{number}.png")
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "patient.key").write_bytes(KEY)
    (folder / "keys" / "patient.key").chmod(0o600)
    (folder / "site.toml").write_text(site_toml(folder.name, nominal_patients=20, simulated=True), encoding="utf-8")
    index.build("masks", folder.parent / f"{folder.name}-data", folder, patient_key=KEY)
    return folder


@dataclass(frozen=True, kw_only=True)
class Hospitals:
    """Four sites, each on a cable of its own; the last one's leads through a bad line."""

    federation: Federation
    network: Network
    line: Line
    validation: dict[str, int]  # images by site

    def rounds(self, out: Path) -> list[Event]:
        return [event for event in effective(self.federation.events(out)) if event["event"] == "round"]

    def retries(self, out: Path) -> list[Event]:
        return [event for event in self.federation.events(out) if event["event"] == "retry"]

    def await_rounds(self, out: Path, true: Callable[[list[Event]], bool]) -> None:
        wait("the round", lambda: true(self.rounds(out)), seconds=240)

    def finished(self, out: Path, *, seconds: float = 240.0) -> list[Event]:
        """The rounds of a run that ended well, each site counted once in each of them."""
        found = self.federation.finished(out, seconds=seconds)
        assert found[-1]["event"] == "finished", found[-1]
        rounds = self.rounds(out)
        assert in_order([event["round"] for event in rounds])
        for event in rounds:
            counted = sum(self.validation[site] for site in event["participants"])
            assert event["metrics"]["val"]["images"] == counted
            assert set(event["participants"]) | event["absent"].keys() == self.validation.keys()
        return rounds

    def all_online(self) -> None:
        wait("all sites online", lambda: self.federation.online() == SITES, seconds=180)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    base = tmp_path_factory.mktemp("network")
    folders = [write_site(base / f"site-{number}", images=20 + 10 * number) for number in range(SITES)]
    with (
        network(SITES) as lines,
        enrolled(base, folders, min_sites=3) as made,
        Line.to(lines.address, made.folder.port) as line,
    ):
        ports = [made.folder.port] * (SITES - 1) + [line.port]
        move(made, lines.address, dict(zip(folders, ports, strict=True)))
        made.prefix.update({f"site-{number}": cable.prefix for number, cable in enumerate(lines.cables)})
        made.start_all()
        found = Hospitals(federation=made, network=lines, line=line, validation=_validation(folders))
        made.submit(study("warm", rounds=1, round_deadline=120), base / "warm")  # programs in memory, images in caches
        found.finished(base / "warm")
        yield found
        made.end()


def _validation(folders: list[Path]) -> dict[str, int]:
    agreed = study("count", rounds=1)
    found = {folder.name: len(open_dataset(open_site(folder), agreed).pools["validation"]) for folder in folders}
    assert all(found.values())
    return found


def test_sites_that_are_cut_off_are_named_and_taken_back(hospitals: Hospitals, tmp_path: Path) -> None:
    """One is missed by a round; with two away a round is tried until one is back, and closes with it."""
    out, (first, second) = tmp_path / "out", hospitals.network.cables[:2]
    hospitals.federation.submit(study("cut", rounds=6), out)
    hospitals.await_rounds(out, lambda rounds: len(rounds) > 0)
    with cut(first):
        hospitals.await_rounds(out, lambda rounds: "site-0" in rounds[-1]["absent"])
        with cut(second):
            wait("a round that fails", lambda: any(event["absent"].keys() >= PAIR for event in hospitals.retries(out)))
            closed = len(hospitals.rounds(out))
            first.mend()
            hospitals.await_rounds(out, lambda rounds: len(rounds) > closed)
    rounds = hospitals.finished(out)
    back = rounds[closed]
    assert rounds[0]["absent"] == {} and back["participants"] == ["site-0", "site-2", "site-3"]
    assert {why for event in rounds for why in event["absent"].values()} <= {"late", "offline"}
    hospitals.all_online()


def test_a_slow_uplink_carries_what_the_encoding_says_and_the_round_closes(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    out, cable = tmp_path / "out", hospitals.network.cables[2]
    agreed = study("slow", base_channels=64, rounds=1, round_deadline=600)
    with seeded(agreed.study.seed, "initialisation"):
        parameters = params.length(params.shapes(build_model(agreed), trainable=False))
    expected = 8 * sum(secure.encoding_of(agreed, kind, sites=SITES).words for kind in KINDS)
    assert 30e6 < parameters < 32e6 and expected / parameters < 2.7
    hospitals.all_online()
    cable.throttle(up="5mbit", down="50mbit")
    try:
        before, begin = cable.carried(), time.monotonic()
        hospitals.federation.submit(agreed, out)
        (closed,) = hospitals.finished(out, seconds=900)
        up, down = (after - earlier for after, earlier in zip(cable.carried(), before, strict=True))
    finally:
        cable.free()
    assert closed["absent"] == {}
    took = closed["seconds"]["sites"]["site-2"]
    print(f"{took:.0f} s the round, {time.monotonic() - begin:.0f} s the run, {up / expected:.3f} up")
    assert 8 * expected / 5e6 < took < 600
    assert 1.0 < up / expected < 1.1  # headers, up to 4.6 %, and receipts for what comes down
    assert 1.0 < down / (2 * 4 * parameters) < 1.1  # the weights twice: to train, and to be evaluated in the end


def test_a_line_that_is_late_stalls_and_hangs_up_spoils_no_round(hospitals: Hospitals, tmp_path: Path) -> None:
    out, line = tmp_path / "out", hospitals.line
    hospitals.all_online()
    line.delay = 0.2
    try:
        hospitals.federation.submit(study("line", rounds=4), out)
        hospitals.await_rounds(out, lambda rounds: len(rounds) > 0)
        line.stalled.set()
        time.sleep(20)
        line.stalled.clear()
        for _ in range(6):
            line.reset()
            time.sleep(3)
        rounds = hospitals.finished(out)
    finally:
        line.delay = 0.0
        line.stalled.clear()
    assert line.resets > 0
    assert all({"site-0", "site-1", "site-2"} <= set(event["participants"]) for event in rounds)
    hospitals.all_online()
