"""Server and sites as real processes on loopback: enrolled, trained, killed, resumed, offered hostile bundles."""

import io
import signal
import sqlite3
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deployed import Federation, federation, ran, wait
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from small import tiny_study, toml_of

from client.supernode import MEMORY, open_connection
from common import processes
from server import events
from server.__main__ import app as server_app
from server.control import Control

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("deployment"), sites=3) as made:
        made.start_server()
        for site in made.sites:
            made.start_site(site)
        wait("three sites online", lambda: made.online() == 3)
        yield made


def participants(found: list[events.Event]) -> list[tuple[int, int]]:
    return [(event["round"], len(event["participants"])) for event in found if event["event"] == "round"]


def test_a_study_is_trained_by_three_sites(running: Federation, tmp_path: Path) -> None:
    study = tiny_study(study={"name": "first"})
    (tmp_path / "study.toml").write_text(toml_of(study), encoding="utf-8")
    said = ran(server_app, "run", tmp_path / "study.toml", "--folder", running.folder.path, "--out", tmp_path / "out")
    assert "round 2 of 2: 3 sites" in said and "report" in said
    for name in ("model.safetensors", "model.json", "report.html", "summary.json"):
        assert (tmp_path / "out" / name).stat().st_size
    status = ran(server_app, "status", "--folder", running.folder.path)
    assert status.count("online") == 3 and "finished:completed" in status
    with urllib.request.urlopen(f"http://127.0.0.1:{running.folder.page}/", timeout=30) as answer:
        assert "first" in answer.read().decode()


def test_a_killed_worker_comes_back_and_its_site_takes_part_again(running: Federation, tmp_path: Path) -> None:
    running.kill("site-1", "client.worker")
    wait("a new worker", lambda: _has(running, "site-1", "client.worker"), seconds=30)
    running.submit(tiny_study(study={"name": "worker"}), tmp_path / "out")
    assert participants(running.finished(tmp_path / "out")) == [(1, 3), (2, 3)]


def test_a_killed_superlink_comes_back_and_the_run_goes_on(running: Federation, tmp_path: Path) -> None:
    study = tiny_study(study={"name": "superlink", "rounds": 4})
    running.submit(study, tmp_path / "out")
    wait("the first round", lambda: (1, 3) in participants(running.events(tmp_path / "out")))
    running.kill("server", "flower-superlink")
    found = running.finished(tmp_path / "out")
    assert found[-1]["event"] == "finished"
    assert [number for number, _ in participants(found)] == [1, 2, 3, 4]


def test_a_killed_executor_loses_at_most_the_open_round(running: Federation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = tiny_study(study={"name": "executor", "rounds": 4})
    number = running.submit(study, out)
    wait("the second round", lambda: (2, 3) in participants(running.events(out)))
    running.kill("server", "server.executor")
    control = Control(running.folder)
    wait("Flower to notice", lambda: control.status(number) == "finished:failed", seconds=120)
    control.close()
    running.submit(study, out, resume=True)
    found = running.finished(out)
    assert found[-1]["event"] == "finished"
    assert [event["round"] for event in events.effective(found) if event["event"] == "round"] == [1, 2, 3, 4]
    resumed = next(event for event in found if event["event"] == "resumed")
    assert resumed["round"] >= 2


def test_each_node_is_the_site_whose_key_it_holds(running: Federation) -> None:
    roster = running.folder.roster()
    assert roster is not None
    with closing(Control(running.folder)) as control:
        assert sorted(control.sites(roster.supernodes).values()) == ["site-0", "site-1", "site-2"]
        swapped = {"site-0": roster.supernodes["site-1"], "site-1": roster.supernodes["site-0"]}
        by_key, other = control.sites(roster.supernodes), control.sites(swapped)
    assert {by_key[node]: site for node, site in other.items()} == {"site-0": "site-1", "site-1": "site-0"}


def test_a_site_that_is_away_is_named(running: Federation, tmp_path: Path) -> None:
    running.end("site-2")
    wait("two sites online", lambda: running.online() == 2)
    try:
        running.submit(tiny_study(study={"name": "away"}), tmp_path / "out")
        found = running.finished(tmp_path / "out")
    finally:
        running.start_site(running.sites[2])
    rounds = [event for event in found if event["event"] == "round"]
    assert [event["absent"] for event in rounds] == [{"site-2": "offline"}] * 2
    wait("three sites online", lambda: running.online() == 3)


HOSTILE = {
    "client/__init__.py": "",
    "client/app.py": "open({mark!r}, 'w').close()\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n",
    "server/__init__.py": "",
    "server/app.py": "open({mark!r}, 'w').close()\nfrom flwr.serverapp import ServerApp\napp = ServerApp()\n",
    "sitecustomize.py": "open({mark!r}, 'w').close()\n",
    "torch.py": "open({mark!r}, 'w').close()\n",
    "pyproject.toml": (
        '[project]\nname = "fedward"\nversion = "9"\nlicense = "Apache-2.0"\n'
        'dependencies = ["no-such-package-of-anybody==1.0", "evil @ file:///nowhere"]\n'
        '[tool.flwr.app]\npublisher = "fedward"\n'
        '[tool.flwr.app.components]\nserverapp = "server.app:app"\nclientapp = "client.app:app"\n'
        '[tool.flwr.app.config]\nstudy = ""\n'
    ),
}


def hostile_bundle(mark: Path) -> bytes:
    """A bundle whose every module leaves a mark when it is imported, with dependencies to install."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, text in HOSTILE.items():
            file.writestr(name, text.replace("{mark!r}", repr(str(mark))))
    return made.getvalue()


def test_nothing_in_a_bundle_is_run_or_installed(running: Federation, tmp_path: Path) -> None:
    mark, out = tmp_path / "mark", tmp_path / "out"
    running.submit(tiny_study(study={"name": "hostile"}), out, bundle=hostile_bundle(mark))
    assert participants(running.finished(out)) == [(1, 3), (2, 3)]
    assert not mark.exists()
    homes = [running.folder.path / "flower", *(site / "supernode" / "flower" for site in running.sites)]
    assert not [path for home in homes for path in home.rglob("*.py")]


def test_a_run_of_agent_type_is_refused_and_the_next_study_is_trained(running: Federation, tmp_path: Path) -> None:
    """Flower knows by the bundle what kind of run it is."""
    mark, made = tmp_path / "mark", io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, text in HOSTILE.items():
            text = text.replace("{mark!r}", repr(str(mark)))
            file.writestr(name, text.replace('serverapp = "server.app:app"', 'agentapp = "server.app:app"'))
    with closing(Control(running.folder)) as control:
        request = StartRunRequest(fab=Fab(content=made.getvalue()), user_prompt="train")
        number = int(control._ask(control._client.StartRun, request).run_id)
        wait("its end", lambda: control.status(number) == "finished:failed", seconds=60)
    assert not mark.exists()
    running.submit(tiny_study(study={"name": "after-agent"}), tmp_path / "out")
    assert participants(running.finished(tmp_path / "out")) == [(1, 3), (2, 3)]


def test_the_bundle_would_leave_its_mark_if_it_were_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(hostile_bundle(tmp_path / "mark"))) as file:
        file.extractall(tmp_path / "bundle")
    subprocess.run([sys.executable, "-c", "import client.app"], cwd=tmp_path / "bundle", check=True, timeout=60)
    assert (tmp_path / "mark").exists()


def test_a_bundle_that_unzips_to_a_gigabyte_ends_a_supernode_and_nothing_else(
    running: Federation, tmp_path: Path
) -> None:
    """A server that lies: its SuperLink hands out another bundle than the one that was submitted.

    A SuperNode ends at such a bundle also without a limit, as it holds no project; hence its log has to say why, and
    the sites with more memory, which end too, are the control.
    """
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file, file.open("pyproject.toml", "w") as part:
        for _ in range(2**10):
            part.write(b"#" * 2**20)
    assert len(bomb.getvalue()) < 2**21
    site, database = running.sites[0], running.folder.path / "flower" / "state.sqlite"
    settings = site / "supernode" / "supernode.toml"
    settings.write_text(settings.read_text().replace(f"memory = {MEMORY}", f"memory = {2 * 2**30}"))
    running.end(site.name)
    running.start_site(site)
    wait("three sites online", lambda: running.online() == 3)
    worker, supernode = running.child(site.name, "client.worker"), running.child(site.name, "flower-supernode")
    with closing(sqlite3.connect(database, timeout=30)) as rows:
        rows.execute("CREATE TABLE bomb (content BLOB)")
        rows.execute("INSERT INTO bomb VALUES (?)", (bomb.getvalue(),))
        for event in ("INSERT", "UPDATE"):
            rows.execute(
                f"CREATE TRIGGER bomb_{event} AFTER {event} ON fab BEGIN"
                " UPDATE fab SET content = (SELECT content FROM bomb) WHERE fab_hash = NEW.fab_hash; END"
            )
        rows.commit()
    study = tiny_study(study={"name": "bomb", "round_deadline": 30, "round_retries": 0})
    try:
        number = running.submit(study, tmp_path / "out")
        wait("the SuperNode's end", lambda: not Path(f"/proc/{supernode}").exists(), seconds=180)
        assert running.child(site.name, "client.worker") == worker
        logs = [(one / "logs" / "supernode.log").read_text() for one in running.sites]
        assert ["Unable to allocate" in log for log in logs] == [True, False, False]
    finally:
        with closing(Control(running.folder)) as control:
            control.stop(number)
        with closing(sqlite3.connect(database, timeout=30)) as rows:
            for event in ("INSERT", "UPDATE"):
                rows.execute(f"DROP TRIGGER bomb_{event}")
            rows.execute("DELETE FROM fab")
            rows.commit()
    wait("the SuperNode again", lambda: _has(running, site.name, "flower-supernode"))
    wait("three sites online", lambda: running.online() == 3)
    running.submit(tiny_study(study={"name": "after"}), tmp_path / "after")
    assert participants(running.finished(tmp_path / "after", seconds=400))[-1] == (2, 3)


def test_children_end_with_their_owner(running: Federation) -> None:
    child = running.child("site-0", "client.worker")
    running.running["site-0"].send_signal(signal.SIGKILL)
    running.running.pop("site-0").wait(10)
    wait("the worker's end", lambda: not Path(f"/proc/{child}").exists(), seconds=30)
    wait("a free health port", lambda: not processes.serving(_health(running.sites[0])), seconds=60)
    running.start_site(running.sites[0])
    wait("three sites online", lambda: running.online() == 3)


def _health(site: Path) -> str:
    return open_connection(site).health


def _has(running: Federation, owner: str, what: str) -> bool:
    try:
        return bool(running.child(owner, what))
    except LookupError:
        return False
