"""The coordinator's commands without a SuperLink: what they print, their exit codes, and that a refusal is one line."""

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small import private_study, tiny_study, toml_of
from typer.testing import CliRunner

from client import enrolment as client_enrolment
from client import membership
from client.supernode import open_connection
from common import guarantee, processes
from common.anchor import Head
from common.errors import FederationError, RunError
from common.study import Study
from server import gate, run_cli, run_record, status_cli, status_page
from server.__main__ import app
from server.events import EventLog, read
from server.folder import Folder, open_folder
from server.run_record import Current
from simulations.loopback import free_ports

STUDY = tiny_study()


class FakeControl:
    """A SuperLink that knows one run."""

    how: ClassVar[str] = "running"
    away: ClassVar[tuple[str, ...]] = ()
    started: ClassVar[list[Study]] = []

    def __init__(self, _folder: Folder) -> None: ...

    def online(self, keys: Mapping[str, str]) -> dict[str, bool]:
        return {site: site not in self.away for site in keys}

    def status(self, _run: int) -> str:
        return self.how

    def start(self, study: Study) -> int:
        FakeControl.started.append(study)
        return 7

    def stop(self, _run: int) -> None:
        FakeControl.how = "finished:stopped"

    def close(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A federation of three sites with a roster, whose SuperLink is FakeControl."""
    for module in (run_cli, status_cli):
        monkeypatch.setattr(module, "Control", FakeControl)
    monkeypatch.setattr(processes, "serving", lambda _address, **_: True)
    monkeypatch.setattr(status_cli, "_SETTLING", 0.0)
    monkeypatch.setattr(FakeControl, "how", "running")
    monkeypatch.setattr(FakeControl, "away", ())
    monkeypatch.setattr(FakeControl, "started", [])
    made, first = tmp_path / "federation", free_ports(4)
    run("init", made, "--keys", tmp_path / "keys", "--host", "localhost", "--listen", "127.0.0.1", "--port", first,
        "--loopback", first + 1, "--min-sites", 2, "--colluding", 0)  # fmt: skip
    for number in range(3):
        site = tmp_path / f"site-{number}"
        client_enrolment.found(site, name=site.name, nominal_patients=20)
    sites = [tmp_path / f"site-{number}" / "request.json" for number in range(3)]
    added = json.loads(run("add-site", *sites, "--folder", made, "--json"))["added"]
    assert set(added) == {"site-0", "site-1", "site-2"} and added["site-0"]["nominal_patients"] == 20
    said = json.loads(run("sign", "--keys", tmp_path / "keys", "--folder", made, "--json"))
    assert said["version"] == 1 and said["sites"] == ["site-0", "site-1", "site-2"]
    return made


def run(*arguments: Any, code: int = 0) -> str:
    """What a command prints; where it is refused, the one line that follows too."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, FederationError):
        assert code == 1 and "\n" not in str(result.exception)
        return f"{result.output}error: {result.exception}"
    assert result.exit_code == code, result.output
    return result.output


def write(path: Path, study: Study) -> Path:
    path.write_text(toml_of(study), encoding="utf-8")
    return path


def begun(folder: Path, *, rounds: int = 1, study: Study = STUDY) -> Path:
    """The log of a run that goes on. Each of its rounds moved 5 MB up and 7 MB down."""
    out = folder / "runs" / "one"
    out.mkdir()
    run_record.remember(open_folder(folder), Current(run=7, out=str(out), rounds=2))
    with EventLog(out / "events.jsonl") as log:
        asked, sites = study.model_dump(mode="json", by_alias=True), ["site-0", "site-1", "site-2"]
        values = {"run": "r", "study": asked, "study_hash": study.sha256, "backend": "deployment", "sites": sites}
        log.append({"event": "started", "nominal_patients": dict.fromkeys(sites, 20), **values})
        for number in range(1, rounds + 1):
            moved = {"bytes_up": {"site-0": 5_000_000}, "bytes_down": {"site-0": 4_000_000, "site-1": 3_000_000}}
            moved |= {"audit": {"site-0": f"4-{'ab' * 32}"}}
            closed = {"participants": ["site-0", "site-1"], "absent": {"site-2": "late"}, "metrics": {}}
            log.append({"event": "round", "round": number, "attempt": 1, "seconds": {"train": 1.0}, **closed, **moved})
    return out


def test_a_plan_is_lines_or_json_and_starts_nothing(folder: Path, tmp_path: Path) -> None:
    study = write(tmp_path / "study.toml", private_study())
    planned = json.loads(run("plan", study, "--folder", folder, "--json"))
    assert (planned["sites"], planned["may_be_away"], planned["rounds"]) == (3, 1, 2)
    assert planned["bytes_total"] == 3 * (2 * (planned["bytes_down"] + planned["bytes_up"]) + planned["bytes_down"])
    assert planned["privacy"]["site-0"]["epsilon"] == 8.0
    text = run("plan", study, "--folder", folder)
    assert "up to 1 may be away" in text and "memory" in text and "site-2: epsilon 8.0" in text
    assert FakeControl.started == []


def test_a_run_is_submitted_and_another_refused_while_it_goes_on(folder: Path, tmp_path: Path) -> None:
    study = write(tmp_path / "study.toml", STUDY)
    FakeControl.away = ("site-1",)
    said = json.loads(
        run("run", study, "--folder", folder, "--out", tmp_path / "out", "--detach", "--json").splitlines()[-1]
    )
    assert said == {"schema": 1, "run": 7, "out": str(tmp_path / "out"), "away": ["site-1"]}
    assert "stop it first" in run("run", study, "--folder", folder, "--out", tmp_path / "two", "--detach", code=1)
    FakeControl.how = "finished:completed"
    assert "submitted" in run("run", study, "--folder", folder, "--out", tmp_path / "two", "--detach")


def test_the_status_is_lines_or_json(folder: Path) -> None:
    begun(folder)
    FakeControl.away = ("site-2",)
    head = Head.sign(membership.identity_of(folder.parent / "site-2"), site="site-2", sequence=12, hash="cd" * 32)
    (folder / "heads.json").write_text(json.dumps([str(head)]), encoding="ascii")
    with socket.create_server(("127.0.0.1", open_folder(folder).port)):
        found = json.loads(run("status", "--folder", folder, "--json"))
        text = run("status", "--folder", folder)
    assert found["gate"]["open"] and found["superlink"]["serving"] and found["roster"]["version"] == 1
    assert found["sites"]["site-0"] == {"online": True, "audit": f"4-{'ab' * 32}", "ledger": None}
    assert found["sites"]["site-2"] == {"online": False, "audit": None, "ledger": f"12-{'cd' * 32}"}
    assert (found["run"]["status"], found["run"]["round"], found["run"]["epsilon_charged"]) == ("running", 1, None)
    assert (found["run"]["bytes_up_last_round"], found["run"]["bytes_down_last_round"]) == (5_000_000, 7_000_000)
    assert f"site-2: offline; privacy ledger at 12-{'cd' * 32}" in text
    assert "round 1 of 2 closed" in text and f"audit log at 4-{'ab' * 32}" in text


def test_what_does_not_work_has_an_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("status", "--folder", folder, "--json", code=1)  # nobody listens on the port for the sites
    assert json.loads(said.splitlines()[0])["gate"]["open"] is False and "is closed" in said.splitlines()[-1]
    monkeypatch.setattr(processes, "serving", lambda _address, **_: False)
    said = run("status", "--folder", folder, "--json", code=1)
    assert json.loads(said.splitlines()[0])["superlink"]["serving"] is False and "server up" in said.splitlines()[-1]
    run("status", "--nonsense", code=2)
    run("stop", "--folder", folder, "too many", code=2)


def test_following_ends_with_the_run_and_says_how(folder: Path) -> None:
    out = begun(folder)
    with EventLog(out / "events.jsonl") as log:
        log.append(
            {"event": "stopped", "reason": "round 2: fewer than 2 sites answered (absent: site-1 refused:not_approved)"}
        )
    with socket.create_server(("127.0.0.1", open_folder(folder).port)):
        text = run("status", "--follow", "--folder", folder, code=1)
        assert "round 1 of 2: 2 sites" in text and "refused:not_approved" in text.splitlines()[-1]
        events = run("status", "--follow", "--json", "--folder", folder, code=1).splitlines()[1:-1]
    assert [json.loads(line)["event"] for line in events] == ["started", "round", "stopped"]


def test_sites_are_entered_all_or_none_and_the_file_that_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("site-3", "site-4"):
        client_enrolment.found(tmp_path / name, name=name, nominal_patients=20)
    good, bad, twin = (tmp_path / name / "request.json" for name in ("site-3", "site-4", "twin"))
    bad.write_bytes(bad.read_bytes().replace(b'"nominal_patients":20', b'"nominal_patients":21'))
    client_enrolment.found(twin.parent, name="site-3", nominal_patients=20)
    before = open_folder(folder).members()
    for wrong in (bad, twin, tmp_path / "none.json"):
        said = run("add-site", good, wrong, "--folder", folder, code=1)
        assert f"error: {wrong}: " in said and said.endswith("nothing was entered")
        assert open_folder(folder).members() == before
    run("add-site", good, "--folder", folder)
    assert len(open_folder(folder).members()) == 4


def test_what_the_next_roster_changes_is_in_the_status_until_it_is_signed(folder: Path, tmp_path: Path) -> None:
    def status() -> tuple[dict[str, list[str]], str]:
        with socket.create_server(("127.0.0.1", open_folder(folder).port)):
            found = json.loads(run("status", "--folder", folder, "--json"))
            return found["next_roster"], run("status", "--folder", folder)

    changes, text = status()
    assert changes == {"added": [], "changed": [], "removed": []} and "not yet in force" not in text
    client_enrolment.found(tmp_path / "site-3", name="site-3", nominal_patients=20)
    run("add-site", tmp_path / "site-3" / "request.json", "--folder", folder)
    run("remove-site", "site-0", "--folder", folder)
    changes, text = status()
    assert changes == {"added": ["site-3"], "changed": [], "removed": ["site-0"]}
    assert "not yet in force: added site-3; removed site-0; `server sign`" in text
    roster = (folder / "roster.json").read_bytes()
    (folder / "roster.json").unlink()
    changes, text = status()
    assert changes["added"] == ["site-1", "site-2", "site-3"] and "roster: none yet" in text
    (folder / "roster.json").write_bytes(roster)
    run("sign", "--keys", tmp_path / "keys", "--folder", folder)
    assert status()[0] == {"added": [], "changed": [], "removed": []}


def test_what_a_round_cost_in_bytes_and_privacy_is_in_lines_and_json(folder: Path) -> None:
    study = private_study()
    out = begun(folder, rounds=2, study=study)
    with EventLog(out / "events.jsonl") as log:
        log.append({"event": "finished"})
    FakeControl.how = "finished:completed"
    epsilons = [
        guarantee.statement(study, nominal_patients=20, rounds_charged=rounds)["epsilon_charged"] for rounds in (1, 2)
    ]
    assert 0 < epsilons[0] < epsilons[1]
    with socket.create_server(("127.0.0.1", open_folder(folder).port)):
        text = run("status", "--follow", "--folder", folder)
        lines = run("status", "--follow", "--json", "--folder", folder).splitlines()[
            :-1
        ]  # the last says where the report is
    status, *events = [json.loads(line) for line in lines]
    said = [f"5.0 MB up, 7.0 MB down, epsilon {epsilon:.2f} charged so far" for epsilon in epsilons]
    status_line, _, first, second, *_ = text.splitlines()[-6:]
    assert said[1] in status_line and said[0] in first and said[1] in second
    assert status["run"]["epsilon_charged"] == epsilons[1]
    assert [event["epsilon_charged"] for event in events if event["event"] == "round"] == epsilons


def test_following_no_run_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", open_folder(folder).port)):
        assert "no run was submitted" in run("status", "--follow", "--folder", folder, code=1)
        assert run("status", "--folder", folder)


def test_stop_writes_down_that_it_was_stopped_once(folder: Path) -> None:
    out = begun(folder, rounds=1)
    assert json.loads(run("stop", "--folder", folder, "--json"))["round"] == 1
    assert read(out / "events.jsonl")[-1] == read(out / "events.jsonl")[-1] | {
        "event": "stopped",
        "reason": status_cli.STOPPED,
    }
    assert "has ended already" in run("stop", "--folder", folder, code=1)
    assert len([event for event in read(out / "events.jsonl") if event["event"] == "stopped"]) == 1
    assert json.loads(run("report", out, "--json"))["report"] == str(out / "report.html")
    assert f"4-{'ab' * 32}" in (out / "report.html").read_text(encoding="utf-8")


def test_names_of_the_server_change_with_its_certificates(folder: Path, tmp_path: Path) -> None:
    before = open_folder(folder).tls("gate")[0].read_bytes()
    renew = ("renew", "--folder", folder, "--keys", tmp_path / "keys")
    found = json.loads(run(*renew, "--host", "new.example.org", "--json"))
    assert found["gone"] == ["localhost"] and json.loads(run(*renew, "--json"))["gone"] == []
    assert found["hosts"] == ["new.example.org"] == list(open_folder(folder).hosts)
    assert found["expires"] > time.time() and open_folder(folder).tls("gate")[0].read_bytes() != before
    assert "neither a host name" in run(*renew, "--host", "no host", code=1)
    assert open_folder(folder).hosts == ("new.example.org",)
    other = tmp_path / "others"
    run("init", tmp_path / "other", "--keys", other, "--host", "x.org")
    assert "another federation" in run("renew", "--folder", folder, "--keys", other, "--host", "y.org", code=1)


def no_key(folder: Folder) -> str:
    (folder.path / "keys" / "online.key").unlink()
    return "can't be read"


def open_key(folder: Folder) -> str:
    folder.tls("gate")[1].chmod(0o644)
    return "readable for others"


def open_secret(folder: Folder) -> str:
    folder.secret.chmod(0o640)
    return "readable for others"


@pytest.mark.parametrize("harm", [no_key, open_key, open_secret])
def test_a_server_does_not_start_with_keys_that_are_missing_or_open(folder: Path, harm: Any) -> None:
    says = harm(open_folder(folder))
    assert says in run("up", "--folder", folder, code=1)
    assert not (folder / "logs" / "superlink.log").exists()


def test_a_roster_that_is_damaged_while_the_server_runs_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roster, good, looks = folder / "roster.json", (folder / "roster.json").read_bytes(), list[bool]()
    contents, admitted = iter([good, b"{", b"{", good, b"{", good]), list[bytes]()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            for content in contents:
                roster.write_bytes(content)
                return False
            self.set()
            return True

    class Watch:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def look(self) -> None:
            looks.append(True)

        def end(self) -> None: ...

    monkeypatch.setattr(run_cli, "Watch", Watch)
    monkeypatch.setattr(run_cli, "_admit", lambda _folder, roster: admitted.append(roster.sha256) or roster.sha256)
    monkeypatch.setattr(processes, "stopped_by_signals", lambda: nullcontext(Stop()))
    run_cli.up(folder)
    said = [line for line in capsys.readouterr().out.splitlines() if "stays in force" in line]
    assert len(looks) == 7 and len(admitted) == 1
    assert len(said) == 2 and all(str(roster) in line for line in said)  # each time once


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_server_does_not_start_where_a_port_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr(run_cli, "PATIENCE", 0.0)
    port = open_folder(folder).port + which
    with socket.create_server(("127.0.0.1", port)):
        said = run("up", "--folder", folder, code=1)
    option = "--loopback PORT" if which else "--port PORT"
    assert f"127.0.0.1:{port}: another program listens there" in said
    assert f"`server init {folder} {option}`" in said
    assert not (folder / "logs" / "superlink.log").exists()


def test_a_server_does_not_start_on_an_address_that_is_not_this_machines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_cli, "PATIENCE", 0.0)
    run("init", folder, "--listen", "192.0.2.1")
    said = run("up", "--folder", folder, code=1)
    assert "192.0.2.1" in said and "can't be listened on here" in said and "--listen ADDRESS" in said
    assert not (folder / "logs" / "superlink.log").exists()


@pytest.mark.parametrize("address", ["999.1.1.1", "[::]", "example.org", "::1::"])
def test_what_is_no_address_is_not_listened_on(folder: Path, address: str) -> None:
    before = (folder / "federation.toml").read_bytes()
    said = run("init", folder, "--listen", address, code=1)
    assert repr(address) in said and "IPv4 or IPv6 address" in said
    assert (folder / "federation.toml").read_bytes() == before


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize(
    ("address", "reached"), [("::", ("127.0.0.1", "::1")), ("::1", ("::1",)), ("", ("127.0.0.1",))]
)
def test_the_open_port_is_on_the_address_that_was_named(folder: Path, address: str, reached: tuple[str, ...]) -> None:
    run("init", folder, "--listen", address)
    opened = open_folder(folder)
    run_cli._demand_ports(opened)
    with gate.open_port(opened) as listening:
        for name in reached:
            socket.create_connection((name, opened.port), timeout=5).close()
            listening.accept()[0].close()
        shown = f"[{address}]:{opened.port}" if address.startswith(":") else f":{opened.port}"
        assert f"port for the sites: {shown}, open" in run("status", "--folder", folder)


def test_another_port_is_a_command_that_says_what_the_sites_have_to_do(folder: Path, tmp_path: Path) -> None:
    before, roster = open_folder(folder), (folder / "roster.json").read_bytes()
    certificate = before.tls("gate")[0].read_bytes()
    said = run("init", folder, "--port", 443)
    assert f"changed: port is 443, was {before.port}" in said and "next `server up`" in said
    assert "client join SITE roster.json --ca ca.pem --server localhost:443" in said and "sign" not in said
    after = open_folder(folder)
    assert after == replace(before, port=443)
    assert (folder / "roster.json").read_bytes() == roster and after.tls("gate")[0].read_bytes() == certificate
    found = json.loads(run("init", folder, "--loopback", 21000, "--listen", "0.0.0.0", "--json"))
    assert found["changed"] == {"loopback": 21000, "listen": "0.0.0.0"} and "join" not in str(found["next"])
    assert "nothing was changed" in run("init", folder, "--port", 443)
    joined = tmp_path / "site-0"
    for port in (443, 444):
        run("init", folder, "--port", port)
        settled = client_enrolment.examine(
            joined,
            roster_file=folder / "roster.json",
            certificate_file=folder / "ca.pem",
            server=f"localhost:{port}",
        )
        client_enrolment.pin(joined, settled)  # the same roster again: what the words above promise
        assert open_connection(joined).server == f"localhost:{port}"


def test_another_smallest_round_is_the_next_rosters(folder: Path, tmp_path: Path) -> None:
    said = run("init", folder, "--min-sites", 3)
    assert "changed: min_sites is 3, was 2" in said and "server sign" in said and "server up" not in said
    roster = open_folder(folder).roster()
    assert roster is not None and roster.min_sites == 2
    signed = json.loads(run("sign", "--keys", tmp_path / "keys", "--folder", folder, "--json"))
    roster = open_folder(folder).roster()
    assert signed["version"] == 2 and roster is not None and roster.min_sites == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give what to change"),
        (("--host", "x.org"), "server renew"),
        (("--keys", "k", "--host", "x.org"), "--keys is not changed here"),
        (("--name", "x"), "--name is not changed here"),
        (("--colluding", 5), "honest sites"),
        (("--loopback", 443, "--port", 444, "--listen", "0.0.0.0"), "port 444 is one of the 3 on loopback, 443 to 445"),
    ],
)
def test_what_init_can_not_change_is_said_and_not_ignored(folder: Path, options: tuple[Any, ...], says: str) -> None:
    before = (folder / "federation.toml").read_bytes()
    assert says in run("init", folder, *options, code=1)
    assert (folder / "federation.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 1),
        (("--keys", "KEYS"), 1),
        (("--keys", "KEYS", "--host", ""), 1),
        (("--keys", "KEYS", "--host", "x.org", "--port", 0), 2),
        (("--keys", "KEYS", "--host", "x.org", "--port", 65536), 2),
        (("--keys", "KEYS", "--host", "x.org", "--port", 9094), 1),
        (("--keys", "KEYS", "--host", "x.org", "--name", "x" * 80), 1),
        (("--keys", "KEYS", "--host", "x.org", "--name", ""), 1),
        (("--keys", "KEYS", "--host", "x.org", "--min-sites", 2), 1),
    ],
)
def test_a_federation_that_can_not_be_leaves_nothing_behind(
    tmp_path: Path, options: tuple[Any, ...], code: int
) -> None:
    words = [tmp_path / "keys" if word == "KEYS" else word for word in options]
    run("init", tmp_path / "federation", *words, code=code)
    assert list(tmp_path.iterdir()) == []


def test_a_status_page_whose_port_is_taken_is_one_line(folder: Path) -> None:
    made = open_folder(folder)
    with (
        socket.create_server(("127.0.0.1", made.page)),
        pytest.raises(RunError, match="can't be served"),
        status_page.served(made),
    ):
        pass


def test_a_key_of_another_length_is_one_line(folder: Path) -> None:
    path = folder / "keys" / "online.key"
    path.write_bytes(b"short")
    with pytest.raises(FederationError, match="5 bytes instead of 32; restore it"):
        open_folder(folder).online_key()


def test_a_study_for_more_sites_than_there_are_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    study = write(tmp_path / "study.toml", tiny_study(study={"min_sites": 4}))
    for command in ("plan", "run"):
        assert "study.min_sites = 4; 2 (the roster's) to 3 (all)" in run(command, study, "--folder", folder, code=1)
    (tmp_path / "study.toml").write_text("[study]\nnonsense = 1\n")
    assert "nonsense" in run("plan", study, "--folder", folder, code=1)
    assert "can't be read" in run("plan", tmp_path / "none.toml", "--folder", folder, code=1)
    assert FakeControl.started == []


def test_a_folder_that_is_none_is_one_line_for_every_command(tmp_path: Path) -> None:
    study = write(tmp_path / "study.toml", STUDY)
    for command in (
        ("up",), ("status",), ("stop",), ("plan", study), ("run", study), ("sign", "--keys", tmp_path),
        ("remove-site", "a"), ("renew", "--keys", tmp_path),
    ):  # fmt: skip
        assert "no federation's folder" in run(*command, "--folder", tmp_path, code=1)
    assert "no federation's folder" in run("resume", tmp_path, "--folder", tmp_path, code=1)
    assert "can't be read" in run("report", tmp_path, code=1)


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "add-site",
        "remove-site",
        "sign",
        "renew",
        "up",
        "plan",
        "run",
        "status",
        "stop",
        "resume",
        "report",
        "export",
    ],
)
def test_every_command_says_what_it_is_for(command: str) -> None:
    assert len(run(command, "--help").split("Usage:")[1].split()) > 20


def test_the_top_says_what_exit_codes_mean() -> None:
    assert "Exit codes: 0 done; 1 refused or failed" in run("--help")
