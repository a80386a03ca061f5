"""Kill -9 of every process of a federation, at random moments: what was trained and what was charged is as without.

After each kill a loop does what systemd and an operator would: start an owner again that is gone (owners start their
own children again), and resume a run that has ended before its study did, or whose executor is another one now.

What is shown of the model, in the clear: it is a function of the study, the sites' folders and of who took part in
each round. A simulation in which the same sites are absent in the same rounds gives the same bits; a round that was
abandoned, and done again after a resume, leaves no trace. Where no site was ever absent that is the unbroken run.
Under privacy and secure aggregation the weights are random; there the ledgers are compared with the audit logs.
"""

import os
import random
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from deployed import Federation, enrolled, ran, wait
from safetensors.numpy import load_file
from small import private_study, protect, tiny_study, toml_of, write_site

from client import audit, chain, ledger
from client.site import open_site, site_toml
from common import params, processes
from common.errors import RunError
from common.study import Study
from server.__main__ import app as server_app
from server.control import Control
from server.events import Event, effective
from server.exchange import Credentials
from server.federation import Options
from simulations import inprocess
from simulations.faults import Fault, Faults

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

SITES = 4
WITHIN = 1200.0  # seconds for a run with all its kills
CHILDREN = {"server": ("", "flower-superlink", "server.executor"), "site": ("", "flower-supernode", "client.worker")}
SERVER = [("server", child) for child in CHILDREN["server"]]
EVERYBODY = [*SERVER, *((f"site-{number}", child) for number in range(SITES) for child in CHILDREN["site"])]
PATIENT = {"min_sites": 3, "round_deadline": 45, "round_retries": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Sites with ledgers that admit a long private study, whose policies allow studies without privacy as well."""
    base, folders = tmp_path_factory.mktemp("crashes"), []
    for number in range(SITES):
        site = write_site(base / f"site-{number}", images=24, seed=number)
        text = site_toml(site.name, nominal_patients=20, simulated=True)
        (site / "site.toml").write_text(text + "unprotected = true\n", encoding="utf-8")  # the policy's table is last
        folders.append(protect(site))
    with enrolled(base, folders, min_sites=3) as federation:
        federation.start_all()
        yield federation


@dataclass(kw_only=True)
class Supervisor:
    """Starts again what has ended, and goes on with the run where its executor has."""

    federation: Federation
    study: Study
    out: Path
    run: int = 0
    executor: int = 0
    killed: list[str] = field(default_factory=list)
    resumed: int = 0

    def begin(self) -> None:
        self.run = self.federation.submit(self.study, self.out)
        self.executor = self.federation.child("server", "server.executor")

    @property
    def ended(self) -> bool:
        """The study, not only the run."""
        return any(event["event"] == "finished" for event in effective(self.federation.events(self.out)))

    def kill(self, owner: str, child: str) -> bool:
        """An owner itself where `child` is empty. False where there is nothing to kill just now."""
        try:
            number = self.federation.child(owner, child) if child else self.federation.running[owner].pid
            os.kill(number, signal.SIGKILL)
        except (LookupError, ProcessLookupError):
            return False
        self.killed.append(f"{owner} {child or 'owner'}")
        return True

    def look(self) -> None:
        """One look around, as a supervisor takes it every now and then."""
        for name, process in list(self.federation.running.items()):
            if process.poll() is not None:
                self.federation.start_owner(name)
        if self.ended or not processes.serving(self.federation.folder.health):
            return
        try:
            executor = self.federation.child("server", "server.executor")
        except LookupError:
            return
        with suppress(RunError), closing(Control(self.federation.folder)) as control:
            status = control.status(self.run)
            if executor != self.executor and not status.startswith("finished"):
                control.stop(self.run)  # `server stop`: its executor is gone
                status = control.status(self.run)
            if status.startswith("finished") and not self.ended:
                self.run = self.federation.submit(self.study, self.out, resume=True)
                self.executor = executor
                self.resumed += 1

    def carry_on(self, targets: list[tuple[str, str]], *, kills: int, rng: random.Random) -> None:
        """Kill as often as that, at random moments, and then wait for the study's end."""
        end = time.monotonic() + WITHIN
        next_kill = time.monotonic() + rng.uniform(2, 12)
        while not self.ended:
            assert time.monotonic() < end, f"not within {WITHIN:.0f} s; killed {self.killed}"
            due = len(self.killed) < kills and time.monotonic() > next_kill
            if due and self.kill(*rng.choice(targets)):
                next_kill = time.monotonic() + rng.uniform(2, 12)
            self.look()
            time.sleep(0.5)
        assert len(self.killed) == kills, f"the study ended after {len(self.killed)} kills: give it more rounds"


def crashed(
    made: Federation, study: Study, out: Path, *, kills: int, targets: list[tuple[str, str]] = EVERYBODY
) -> Supervisor:
    """A run of the study that was struck so many times, and has ended."""
    seed = int(os.environ.get("FEDWARD_CRASH_SEED", secrets.randbelow(10**6)))
    print(f"FEDWARD_CRASH_SEED={seed}")
    supervisor = Supervisor(federation=made, study=study, out=out)
    wait("all sites", lambda: made.online() == SITES)
    supervisor.begin()
    try:
        supervisor.carry_on(targets, kills=kills, rng=random.Random(seed))
    finally:
        print(f"killed: {', '.join(supervisor.killed)}; resumed {supervisor.resumed} times")
        for name, process in list(made.running.items()):
            if process.poll() is not None:
                made.start_owner(name)
    return supervisor


def test_twenty_kills_of_a_private_secure_run(made: Federation, tmp_path: Path) -> None:
    study = private_study(
        study={"name": "struck", "rounds": 15, **PATIENT},
        privacy={"spare_rounds": 60},
        aggregation={"secure": True},
    )
    out = tmp_path / "out"
    crashed(made, study, out, kills=20)
    found = effective(made.events(out))
    rounds = [event for event in found if event["event"] == "round"]
    assert [event["round"] for event in rounds] == list(range(1, 16)) and found[-1]["event"] == "finished"
    assert all(len(event["participants"]) >= 3 for event in rounds)
    model = params.from_bytes((out / "model.safetensors").read_bytes(), where="model")
    assert all(np.isfinite(value.numpy()).all() for value in model.values())
    for folder in made.sites:
        took_part = [event["round"] for event in rounds if folder.name in event["participants"]]
        check_ledger(folder, study, took_part)


def check_ledger(folder: Path, study: Study, took_part: list[int]) -> None:
    """The ledger has charged for every round of which the server has this site's part, for every masked vector that
    left, and once for each sum that the site has helped to open: no charge pays for two.
    """
    contents = chain.read(folder / ledger.FOLDER, ledger.NAME)  # raises where the chain doesn't hold
    ledger.state_of(contents.entries, patient_key=open_site(folder).patient_key)  # and where a rule was broken
    reserved = Counter(
        (entry.body["round"], entry.body["weights"])
        for entry in contents.entries
        if entry.kind == "reserve" and entry.body["study"] == study.sha256
    )
    assert set(took_part) <= {number for number, _ in reserved}
    log = audit.verify(folder, None).entries
    own = [entry for entry in log if entry.body.get("study") == study.sha256]
    query = {
        entry.body["hash"]: (entry.body["round"], entry.body["weights"])
        for entry in own
        if entry.kind == "received" and entry.body["order"] == "update"
    }
    left = {
        query[entry.body["hash"]]
        for entry in own
        if entry.kind == "answered" and entry.body["order"] == "update" and entry.body["reason"] == "ok"
    }
    assert left <= set(reserved) and set(took_part) <= {number for number, _ in left}
    opened = Counter(query[entry.body["hash"]] for entry in own if entry.kind == "sum")
    assert all(times <= reserved[asked] for asked, times in opened.items()), (opened, reserved)
    assert sum(reserved.values()) <= study.study.rounds + study.spare_rounds


def test_without_privacy_the_model_is_that_of_an_unbroken_run(made: Federation, tmp_path: Path) -> None:
    study = tiny_study(study={"name": "struck-clear", "rounds": 15, **PATIENT}, training={"augmentation": "standard"})
    without = shutil.ignore_patterns("supernode", "logs")
    folders = [shutil.copytree(folder, tmp_path / "copies" / folder.name, ignore=without) for folder in made.sites]
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    crashed(made, study, out, kills=10)
    rounds = [event for event in effective(made.events(out)) if event["event"] == "round"]
    assert [event["round"] for event in rounds] == list(range(1, 16))
    absent = {(event["round"], site, "update"): Fault(do="drop") for event in rounds for site in event["absent"]}
    print(f"absent: {sorted((number, site) for number, site, _ in absent)}")
    names = frozenset(folder.name for folder in folders)
    roster = made.folder.roster()
    assert roster is not None
    own = Credentials(key=made.folder.online_key(), roster=roster)  # the sites follow no other server
    options = Options(out=unbroken, backend="inprocess", roster=names, credentials=own)
    inprocess.run(study, options, folders, Faults(scripted=absent))
    assert last(out) == last(unbroken)


def test_twenty_kills_of_the_server_alone_leave_no_trace_in_the_model(tmp_path: Path) -> None:
    """The sites are stand-ins whose answers follow from site and round: all of them are in every round, and the model
    is that of a calm run, bit for bit.
    """
    folders = [tmp_path / f"site-{number}" for number in range(SITES)]
    study = tiny_study(study={"name": "struck-server", "rounds": 30, **PATIENT, "min_sites": SITES})
    with enrolled(tmp_path, folders, min_sites=3, join=False) as alone:
        alone.start_server()
        where = (f"localhost:{alone.folder.port}", str(alone.folder.root))
        alone.start("stand-ins", str(Path(__file__).parent / "stand_ins.py"), *where, *map(str, folders))
        for name, kills in (("struck", 20), ("calm", 0)):
            crashed(alone, study, tmp_path / name, kills=kills, targets=SERVER)
            rounds = [event for event in effective(alone.events(tmp_path / name)) if event["event"] == "round"]
            assert [(event["round"], event["absent"]) for event in rounds] == [(n, {}) for n in range(1, 31)]
    assert last(tmp_path / "struck") == last(tmp_path / "calm")


def last(out: Path) -> bytes:
    """The weights after the last round."""
    weights: bytes = load_file(max((out / "checkpoints").glob("round-*.safetensors")))["weights"].tobytes()
    return weights


def test_a_run_that_is_stopped_at_any_moment_goes_on_with_every_site(made: Federation, tmp_path: Path) -> None:
    """Stopped while a site fetches its order, trains or sends, and resumed at once: all are in the next round."""
    out, rng = tmp_path / "out", random.Random(5)
    study = tiny_study(study={"name": "halted", "rounds": 200, "round_deadline": 45, "min_sites": 3})
    (tmp_path / "halted.toml").write_text(toml_of(study), encoding="utf-8")
    where = ("--folder", made.folder.path)

    def closed() -> list[Event]:
        return [event for event in made.events(out) if event["event"] == "round"]

    def together(after: int) -> bool:
        return len(closed()) > after and not closed()[after]["absent"]

    ran(server_app, "run", tmp_path / "halted.toml", "--detach", "--out", out, *where)
    wait("the first round", lambda: len(closed()) > 0)
    executors = [made.child(*one) for one in EVERYBODY if one[1] in ("server.executor", "client.worker")]
    took = []
    for _ in range(12):
        time.sleep(rng.uniform(0, 3))
        ran(server_app, "stop", *where)
        next_round, begin = partial(together, len(closed())), time.monotonic()
        ran(server_app, "resume", out, "--detach", *where)
        wait("a round with everybody", next_round, seconds=40)
        took.append(time.monotonic() - begin)
    ran(server_app, "stop", *where)
    print(f"{len(took)} times stopped and resumed: {min(took):.0f} to {max(took):.0f} s to the next round")
    assert executors == [made.child(*one) for one in EVERYBODY if one[1] in ("server.executor", "client.worker")]
