"""Both operators' days with a federation of real processes: every command, in the order in which they come up.

What tests/test_deployment.py has (kills, hostile bundles) and tests/client/test_operate_cli.py (each answer of the
hospital's commands) is not repeated here. One function after the other uses the same federation.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Federation, enrolled, wait
from PIL import Image
from proxy import HOST, Proxy, listening
from small import KEY, tiny_study, toml_of
from typer.testing import CliRunner

from client import index, outside, run_cli
from client.__main__ import app as client_app
from client.site import site_toml
from client.supernode import open_connection
from common.errors import FederationError
from server import run_cli as server_run
from server.__main__ import app as server_app

pytestmark = pytest.mark.e2e

NAMES = ("DOE^JANE", "Doe_Jane", "19710203", "MRN4711", "Oncology-Ward")
WHY = "asked by Dr. Mustermann of the ethics board"
LONG = tiny_study(study={"name": "long", "rounds": 200, "round_deadline": 60})
SHORT = tiny_study(study={"name": "short"})


def archive(folder: Path, *, seed: int) -> Path:
    """Images that are named after patients, in every way that an archive has."""
    lines, owners, rng = ["key,label,ward"], ["file,patient"], np.random.default_rng(seed)
    for number in range(24):
        name = f"Oncology-Ward/Doe_Jane-19710203-MRN4711-{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey = rng.integers(0, 120, (20, 20)) + 100 * (number % 2)
        Image.fromarray(grey.astype(np.uint8)).save(folder / name)
        lines.append(f"{name},{('dark', 'bright')[number % 2]},Oncology-Ward")
        owners.append(f"{name},DOE^JANE {number}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "patients.csv").write_text("\n".join(owners), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    base, sites = tmp_path_factory.mktemp("operators"), []
    for number in range(3):
        site = base / f"site-{number}"
        (site / "keys").mkdir(parents=True)
        (site / "keys" / "patient.key").write_bytes(KEY)
        (site / "keys" / "patient.key").chmod(0o600)
        text = site_toml(site.name, nominal_patients=20, simulated=True)
        (site / "site.toml").write_text(text, encoding="utf-8")
        index.build("dicom", archive(base / "archives" / site.name, seed=number), site, patient_key=KEY)
        sites.append(site)
    for study in (LONG, SHORT):
        (base / f"{study.study.name}.toml").write_text(toml_of(study), encoding="utf-8")
    with enrolled(base, sites) as made:
        yield made


def ask(room: str, *arguments: Any, code: int = 0) -> str:
    """What a command prints, having ended with this exit code; one that raises would print its line and end with 1."""
    app = client_app if room == "client" else server_app
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        if not isinstance(result.exception, FederationError):
            raise result.exception
        assert code == 1 and "\n" not in str(result.exception), result.exception
        return f"{result.output}error: {result.exception}"
    assert result.exit_code == code, result.output
    return result.output


def server(running: Federation, *arguments: Any, code: int = 0) -> str:
    return ask("server", *arguments, "--folder", running.folder.path, code=code)


def told(text: str) -> dict[str, Any]:
    """The first line, which is JSON."""
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    assert found["schema"] == 1
    return found


def lines(site: Path, *options: str, code: int = 0) -> dict[str, tuple[str, str]]:
    found = told(ask("client", "check", site, "--json", *options, code=code))["findings"]
    return {line["about"]: (line["level"], line["text"]) for line in found}


def test_before_the_server_is_up_everybody_says_so(running: Federation) -> None:
    said = server(running, "status", "--json", code=1)
    assert told(said)["superlink"]["serving"] is False and "server up" in said.splitlines()[-1]
    site = running.sites[0]
    assert told(ask("client", "status", site, "--json", code=1))["supernode"] == "not serving"
    found = lines(site, code=1)
    assert found["connection"][0] == "FAIL" and "can't be reached" in found["connection"][1]
    assert {about for about, (level, _) in found.items() if level == "FAIL"} == {"connection"}
    assert "connection" not in lines(site, "--offline")
    assert "does not answer" in server(running, "stop", code=1) or "no run was submitted" in server(
        running, "stop", code=1
    )


def test_a_site_in_order_passes_the_preflight(running: Federation) -> None:
    running.start_all()
    for site in running.sites:
        found = lines(site)
        assert [found[about][0] for about in ("connection", "clock", "executor")] == ["PASS"] * 3
        assert "100.0% of the files used" in found["quality"][1]
    found = told(ask("client", "status", running.sites[0], "--json"))
    assert (found["supernode"], found["workers"]) == ("serving", 1)
    assert "  connection " in (running.base / "site-0.out").read_text()  # `client up` looks first
    status = told(server(running, "status", "--json"))
    assert status["gate"]["open"] and status["warnings"] == [] and status["run"] is None
    assert all(site["online"] for site in status["sites"].values()) and len(status["sites"]) == 3


def test_a_second_up_is_refused_and_the_first_goes_on(running: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cli, "PATIENCE", 0.0)
    monkeypatch.setattr(server_run, "PATIENCE", 0.0)
    assert "another program listens there" in ask("client", "up", running.sites[0], code=1)
    assert "holds this site's secret" in ask("client", "up", running.sites[0], "--only", "worker", code=1)
    assert "another program listens there" in server(running, "up", code=1)
    assert running.online() == 3


def test_plan_run_status_stop_and_resume(running: Federation) -> None:
    study, out = running.base / "long.toml", running.base / "out-long"
    planned = told(server(running, "plan", study, "--json"))
    assert (planned["sites"], planned["rounds"], planned["may_be_away"]) == (3, 200, 1)
    assert planned["bytes_total"] > 200 * 3 * planned["bytes_down"]
    begun = told(server(running, "run", study, "--detach", "--json", "--out", out))
    assert begun["out"] == str(out) and begun["away"] == []
    wait("two rounds", lambda: told(server(running, "status", "--json"))["run"]["round"] >= 2)
    executors = [("server", "server.executor"), *((site.name, "client.worker") for site in running.sites)]
    before = [running.child(*executor) for executor in executors]
    status = told(server(running, "status", "--json"))
    assert status["run"]["status"] == "running" and status["run"]["bytes_up_last_round"] > 0
    assert all(site["audit"] for site in status["sites"].values())
    assert "is going on" in server(running, "run", running.base / "short.toml", code=1)
    assert "holds a run already" in server(running, "run", study, "--out", out, code=1)
    assert told(server(running, "stop", "--json"))["round"] >= 2
    assert running.events(out)[-1]["event"] == "stopped"
    assert "ended already" in server(running, "stop", code=1)
    assert [event["event"] for event in running.events(out)].count("stopped") == 1
    assert [running.child(*executor) for executor in executors] == before  # a stopped run ends no process
    stopped = json.loads(ask("server", "report", out, "--json"))["report"]
    assert "stopped early: the coordinator stopped it" in Path(stopped).read_text(encoding="utf-8")
    followed = server(running, "status", "--follow", code=1)
    assert "round 1 of 200: 3 sites" in followed and "goes on" in followed.splitlines()[-1]


def test_a_denial_reaches_the_coordinator_as_a_reason_code_alone(running: Federation) -> None:
    out, site = running.base / "out-long", running.sites[2]
    ask("client", "deny", site, LONG.sha256[:12], "--reason", WHY, "--by", "anna")
    closed = len(running.events(out))
    server(running, "resume", out, "--detach")

    def refused() -> bool:
        new = running.events(out)[closed:]
        return any(event.get("absent", {}).get("site-2") == "refused:not_approved" for event in new)

    wait("the refusal", refused)
    assert WHY in ask("client", "studies", site) and "Mustermann" not in str(running.events(out))
    resumed = next(event for event in running.events(out)[closed:] if event["event"] == "resumed")
    assert resumed["round"] >= 2


def test_a_site_leaves_and_certificates_change_while_a_run_goes_on(running: Federation) -> None:
    out, keys = running.base / "out-long", running.base / "keys"
    before = outside.ask(open_connection(running.sites[0])).certificate
    renewed = told(server(running, "renew", "--keys", keys, "--host", "localhost", "--host", HOST, "--json"))
    assert renewed["hosts"] == ["localhost", HOST]
    wait("the new certificate", lambda: outside.ask(open_connection(running.sites[0])).certificate != before)
    server(running, "remove-site", "site-2")
    signed = told(server(running, "sign", "--keys", keys, "--json"))
    assert (signed["version"], signed["sites"]) == (2, ["site-0", "site-1"])
    wait("site-2 shut out", lambda: "shut out" in (running.base / "server.out").read_text())
    closed = told(server(running, "status", "--json"))["run"]["round"]
    wait("another round", lambda: told(server(running, "status", "--json"))["run"]["round"] > closed + 1)
    assert sorted(told(server(running, "status", "--json"))["sites"]) == ["site-0", "site-1"]
    server(running, "stop")
    for site in running.sites[:2]:  # a roster that only removes: no question is asked
        text = ask("client", "join", site, *_back(running))
        assert "change: site-2: gone" in text and "PASS  connection" in text
    assert "identity is not in it" in ask("client", "join", running.sites[2], *_back(running), "--yes", code=1)
    assert [event for event in running.events(out) if event["event"] == "stopped"]
    running.end("site-2")


def _back(running: Federation, server: str = "") -> tuple[Any, ...]:
    """What a coordinator sends back, as `client join` takes it."""
    folder = running.folder.path
    return (folder / "roster.json", "--ca", folder / "ca.pem", "--server", server or f"localhost:{running.folder.port}")


@contextmanager
def proxied(running: Federation) -> Iterator[Proxy]:
    proxy = Proxy(to=running.folder.port)
    with listening(proxy.talk) as door, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HTTPS_PROXY", f"http://127.0.0.1:{door}")
        yield proxy


def test_a_site_behind_a_proxy_trains_like_any_other(running: Federation) -> None:
    """Its server's name is known to the proxy alone; the SuperNode's own loopback does not go through it."""
    site, out = running.sites[1], running.base / "out-short"
    running.end(site.name)
    with proxied(running) as proxy:
        assert "through the proxy" in ask(
            "client", "join", site, *_back(running, f"{HOST}:{running.folder.port}"), "--yes"
        )
        running.start_site(site)
        wait("two sites online", lambda: running.online() == 2)
        text = server(running, "run", running.base / "short.toml", "--json", "--out", out)
        running.end(site.name)
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["started", "round", "round", "final", "finished"]
    assert all(event["participants"] == ["site-0", "site-1"] for event in events if event["event"] == "round")
    assert {line.split()[1] for line in proxy.asked} == {f"{HOST}:{running.folder.port}"}
    ask("client", "join", site, *_back(running), "--yes")
    running.start_site(site)


def test_the_model_is_judged_at_a_site_and_the_report_names_every_log(running: Federation) -> None:
    out, site = running.base / "out-short", running.sites[0]
    judged = json.loads(ask("client", "evaluate", site, "--model", out, "--json"))["metrics"]
    assert set(judged) == {"validation", "test"}
    anchors = {name: found["audit"] for name, found in told(server(running, "status", "--json"))["sites"].items()}
    report = (out / "report.html").read_text(encoding="utf-8")
    assert all(line and line in report for line in anchors.values())
    for name, line in anchors.items():
        assert told(ask("client", "audit", "verify", running.base / name, "--anchor", line, "--json"))["lines"] > 5
    assert "does not contain line" in ask("client", "audit", "verify", site, "--anchor", anchors["site-1"], code=1)


def test_a_site_comes_back_with_the_next_roster(running: Federation) -> None:
    site = running.sites[2]
    assert "never let in again" in server(running, "add-site", site / "request.json", code=1)
    ask("client", "init", site, "--name", site.name, "--patients", 20, "--new-key")
    server(running, "add-site", site / "request.json")
    assert told(server(running, "sign", "--keys", running.base / "keys", "--json"))["version"] == 3
    for one in running.sites:
        ask("client", "join", one, *_back(running), "--yes")
    running.start_site(site)
    wait("three sites online", lambda: running.online() == 3)
    assert "the same" in server(running, "sign", "--keys", running.base / "keys", code=1)


def test_nothing_that_anybody_wrote_names_a_patient(running: Federation) -> None:
    """Logs, audit, events, reports, messages as the audit log and Flower's database have them, models, bundles: all
    files but the archives and each site's index.
    """
    bundle = running.base / "bundle.json"
    ask("client", "doctor", running.sites[0], "--out", bundle)
    (running.base / "archives" / "site-0" / "Oncology-Ward").rename(running.base / "archives" / "gone")
    again = tiny_study(study={"name": "gone", "round_retries": 0, "round_deadline": 60})
    running.submit(again, running.base / "out-gone")
    found = running.finished(running.base / "out-gone")
    assert found[-1]["event"] == "finished" or "site-0" in found[-1].get("reason", "")
    ask("client", "doctor", running.sites[0], "--out", running.base / "bundle-2.json")
    running.end()
    secret = {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "headers.sealed"}
    files = [path for path in running.base.rglob("*") if path.is_file() and path.name not in secret]
    files = [path for path in files if (running.base / "archives") not in path.parents]
    names = {path.name for path in files}
    assert {"audit.jsonl", "events.jsonl", "report.html", "supernode.log", "worker.log", "state.sqlite"} <= names
    assert {"bundle.json", "bundle-2.json", "executor.log", "gate.log", "server.out"} <= names
    told_of = {(path, name) for path in files for name in NAMES if name.encode() in path.read_bytes()}
    assert told_of == set()
    outward = [path for path in files if not any(path.is_relative_to(site) for site in running.sites)]
    assert [path for path in outward if b"Mustermann" in path.read_bytes()] == []
