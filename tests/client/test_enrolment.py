"""How a site asks for membership and pins a roster: what is shown, what is refused, what is kept."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from client import enrolment, executors, index, membership, run_cli, supernode
from client.__main__ import app as whole
from client.policy import Policy
from client.site import open_site, site_toml
from common import processes, roster
from common.crypto import certificates, node_key
from common.crypto.identity import Identity
from common.errors import DataError, FederationError, MessageError
from common.processes import Program
from common.roster import Member, Roster, RosterError
from simulations.loopback import free_ports

NOW = int(time.time())
app = typer.Typer()
for command in (run_cli.init, run_cli.join, run_cli.up):
    app.command()(command)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    done = CliRunner().invoke(app, ["init", str(folder), "--name", "mine", "--patients", "100"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def coordinator(tmp_path: Path) -> Identity:
    (tmp_path / "ca.pem").write_bytes(certificates.authority("test", now=NOW).certificate)
    return Identity.new()


SERVER = Identity.new().public


def own(site: Path) -> Member:
    line = (site / "supernode" / "node.pub").read_text()
    return membership.described(site, name="mine", supernode=line, nominal_patients=100)


def other(name: str) -> Member:
    return roster.member(Identity.new(), name=name, supernode=node_key.generate()[1], nominal_patients=50)


def issued(coordinator: Identity, members: list[Member], **changes: object) -> Roster:
    values = {"sites": members, "server": SERVER, "colluding": 0, "min_sites": 2, "now": NOW, **changes}
    return roster.issue(coordinator, **values)  # type: ignore[arg-type]


def examined(site: Path, made: Roster, *, server: str = "federation.example.org:9092") -> enrolment.Pin:
    path = site.parent / "roster.json"
    path.write_bytes(made.to_bytes())
    return enrolment.examine(site, roster_file=path, certificate_file=site.parent / "ca.pem", server=server)


def test_keys_are_for_their_owner_alone_and_the_two_halves_apart(site: Path) -> None:
    private = ["keys/identity.key", "keys/patient.key"]
    private += [f"supernode/{name}" for name in ("node.key", "runtime.key", "executor.secret")]
    assert all((site / name).stat().st_mode & 0o077 == 0 for name in private)
    assert {path.suffix for path in (site / "keys").iterdir()} == {".key"}
    assert b"PRIVATE" not in (site / "request.json").read_bytes()
    assert open_site(site).name == "mine" and open_site(site).nominal_patients == 100


def test_asking_again_keeps_the_keys(site: Path) -> None:
    before = {path: path.read_bytes() for path in (*site.glob("keys/*"), *site.glob("supernode/*"))}
    said = (site / "request.json").read_bytes()
    done = CliRunner().invoke(app, ["init", str(site), "--name", "mine", "--patients", "100"])
    assert done.exit_code == 0 and (site / "request.json").read_bytes() == said
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(DataError, match=r"site\.toml"):
        CliRunner().invoke(app, ["init", str(site), "--name", "other", "--patients", "9"], catch_exceptions=False)


def test_a_site_that_was_indexed_first_takes_up_its_name_and_number_once(tmp_path: Path) -> None:
    site, words = tmp_path / "images-2", ["init", str(tmp_path / "images-2"), "--patients", "100", "--name"]
    (site / "keys").mkdir(parents=True)
    (site / "keys" / "patient.key").write_bytes(bytes(32))
    (site / "site.toml").write_text(site_toml("images-2"))  # as `client index` leaves it
    with pytest.raises(DataError, match="site name"):
        CliRunner().invoke(app, [*words, 'a"b'], catch_exceptions=False)
    assert CliRunner().invoke(app, [*words, "mine"]).exit_code == 0
    assert open_site(site).name == "mine" and open_site(site).nominal_patients == 100
    assert open_site(site).policy == Policy() and open_site(site).cache == site / "cache"
    with pytest.raises(DataError, match="name mine"):  # others have seen it
        CliRunner().invoke(app, [*words, "another"], catch_exceptions=False)
    with pytest.raises(DataError, match="nominal_patients 100"):
        CliRunner().invoke(app, ["init", str(site), "--name", "mine", "--patients", "90"], catch_exceptions=False)


def test_a_new_supernode_key_is_in_the_request_and_nothing_else_changes(site: Path) -> None:
    before = {path: path.read_bytes() for path in (*site.glob("keys/*"), *site.glob("supernode/*"))}
    done = CliRunner().invoke(app, ["init", str(site), "--name", "mine", "--patients", "100", "--new-key"])
    assert done.exit_code == 0
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"node.key", "node.pub"}
    assert (site / "supernode" / "node.key").stat().st_mode & 0o777 == 0o600
    assert (site / "supernode" / "node.pub").read_text().split()[1] in (site / "request.json").read_text()


def test_joining_shows_everybody_and_pins_only_when_agreed(site: Path, coordinator: Identity) -> None:
    made = issued(coordinator, [own(site), other("theirs")])
    (site.parent / "roster.json").write_bytes(made.to_bytes())
    words = ["join", str(site), str(site.parent / "roster.json"), "--ca", str(site.parent / "ca.pem")]
    words += ["--server", "federation.example.org:9092"]
    no = CliRunner().invoke(app, words, input="n\n")
    assert membership.pinned(site) is None and isinstance(no.exception, DataError)
    yes = CliRunner().invoke(app, words, input="y\n")
    assert made.fingerprint in yes.output and membership.pinned(site) == made
    for entry in made.sites:
        assert entry.name in yes.output and entry.identity.hex() in yes.output
    assert supernode.open_connection(site).server == "federation.example.org:9092"


def test_joining_with_json_asks_no_question_and_pins_with_yes_alone(site: Path, coordinator: Identity) -> None:
    made = issued(coordinator, [own(site), other("theirs")])
    (site.parent / "roster.json").write_bytes(made.to_bytes())
    words = ["join", str(site), str(site.parent / "roster.json"), "--ca", str(site.parent / "ca.pem")]
    words += ["--server", "127.0.0.1:1", "--json"]
    no = CliRunner().invoke(app, words, input="y\n")
    assert isinstance(no.exception, DataError) and "--yes" in str(no.exception) and membership.pinned(site) is None
    said = json.loads(CliRunner().invoke(app, [*words, "--yes"]).output)
    assert membership.pinned(site) == made and said["fingerprint"] == made.fingerprint
    assert said["sites"] == sorted(["mine", "theirs"]) and said["version"] == made.version
    assert {"FAIL"} == {line["level"] for line in said["findings"] if line["about"] == "connection"}


def pinned(site: Path, coordinator: Identity, *options: str) -> str:
    """What `join` prints to a site that agrees at once, to a server that is away."""
    made = issued(coordinator, [own(site), other("theirs")])
    (site.parent / "roster.json").write_bytes(made.to_bytes())
    words = ["join", str(site), str(site.parent / "roster.json"), "--ca", str(site.parent / "ca.pem"), "--yes"]
    done = CliRunner().invoke(app, [*words, "--server", "127.0.0.1:1", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_joining_says_that_the_roster_asks_for_less_than_the_sites_own_policy(
    site: Path, coordinator: Identity
) -> None:
    text = (site / "site.toml").read_text(encoding="utf-8")
    assert "FAIL  roster" not in pinned(site, coordinator)
    (site / "site.toml").write_text(f"{text}min_sites = 3\n", encoding="utf-8")  # the policy's table is last
    line = next(line for line in pinned(site, coordinator).splitlines() if line.startswith("FAIL  roster"))
    assert "min_sites = 2; this site asks for at least 0 and 3" in line and "secure aggregation" in line
    found = json.loads(pinned(site, coordinator, "--json"))["findings"]
    assert [each["text"] for each in found if each["about"] == "roster"] == [line.split(maxsplit=2)[2]]


def test_joining_looks_at_the_connection_and_is_done_though_the_server_is_away(
    site: Path, coordinator: Identity
) -> None:
    text = pinned(site, coordinator)
    assert "FAIL  connection" in text and "PASS  certificate" in text and "PASS  executor" in text
    assert "joined" in text.splitlines()[-1] and membership.pinned(site) is not None


def test_the_authority_of_a_proxy_that_opens_tls_is_trusted_after_the_federations(
    site: Path, coordinator: Identity
) -> None:
    proxy, path = certificates.authority("the hospital's proxy", now=NOW).certificate, site.parent / "proxy.pem"
    path.write_bytes(proxy)
    pinned(site, coordinator, "--proxy-ca", str(path))
    federation = (site.parent / "ca.pem").read_bytes()
    assert supernode.open_connection(site).server_root.read_bytes() == federation + b"\n" + proxy
    pinned(site, coordinator)
    assert supernode.open_connection(site).server_root.read_bytes() == federation
    path.write_bytes(b"no certificate")
    with pytest.raises(DataError, match="not a certificate"):
        pinned(site, coordinator, "--proxy-ca", str(path))


def test_other_ports_are_a_command_and_keep_everything_else(site: Path, coordinator: Identity) -> None:
    pinned(site, coordinator)
    before = supernode.open_connection(site)
    words = ["init", str(site), "--name", "mine", "--patients", "100", "--json"]
    done = CliRunner().invoke(app, [*words, "--loopback", "19100"], catch_exceptions=False)
    said = json.loads(done.output)
    assert said["request"] == str(site / "request.json") and len(said["fingerprint"].split()) == 10
    after = supernode.open_connection(site)
    assert (after.runtime, after.health) == ("127.0.0.1:19100", "127.0.0.1:19101")
    assert (after.server, after.memory) == (before.server, before.memory) == ("127.0.0.1:1", before.memory)
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert supernode.open_connection(site) == after


def init(site: Path, *options: str) -> str:
    """What `client init` prints."""
    done = CliRunner().invoke(app, ["init", str(site), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def addresses(site: Path) -> tuple[str, str]:
    connection = supernode.open_connection(site)
    return connection.runtime, connection.health


def certified(site: Path) -> set[str]:
    return set(certificates.hosts_of((site / "supernode" / "runtime.pem").read_bytes()))


def test_ports_and_host_change_one_without_the_other_and_it_is_said(site: Path) -> None:
    containers = ("runtime:9094", "runtime:9095")
    said = init(site, "--host", "runtime")
    assert addresses(site) == containers and certified(site) == {"runtime"}
    assert "changed: runtime is runtime:9094, was 127.0.0.1:9094" in said and "certificate is another one" in said
    before = (site / "supernode" / "runtime.pem").read_bytes()
    said = init(site, "--loopback", "9194")
    assert addresses(site) == ("runtime:9194", "runtime:9195") and certified(site) == {"runtime"}
    assert "health is runtime:9195, was runtime:9095" in said and "client up" in said
    assert (site / "supernode" / "runtime.pem").read_bytes() == before and "certificate" not in said
    assert "changed" not in init(site, "--host", "runtime", "--loopback", "9194")
    init(site, "--host", "127.0.0.1")
    assert addresses(site) == ("127.0.0.1:9194", "127.0.0.1:9195") and certified(site) == {"127.0.0.1", "localhost"}


def test_asking_again_without_a_word_changes_nothing_and_says_so(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    said = init(site)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    assert "changed" not in said and "as before" in said
    assert json.loads(init(site, "--json"))["changed"] == [] and not json.loads(init(site, "--json"))["new_request"]
    assert json.loads(init(site, "--json", "--new-key"))["new_request"]
    assert json.loads(init(site, "--json", "--new-key"))["changed"] == ["the SuperNode's key is another one"]


def test_what_is_missing_is_made_anew_and_named(site: Path) -> None:
    before = (site / "request.json").read_bytes()
    (site / "supernode" / "executor.secret").unlink()
    said = init(site)
    assert "changed: supernode/executor.secret was missing and is made anew" in said and "as before" in said
    (site / "keys" / "identity.key").unlink()
    said = init(site)
    assert "keys/identity.key was missing" in said and "send it to the coordinator" in said
    assert (site / "request.json").read_bytes() != before


def test_a_lost_patient_key_is_not_made_anew_where_there_is_a_ledger(site: Path) -> None:
    (site / "keys" / "cohort").write_text("c")
    (site / "keys" / "patient.key").unlink()
    with pytest.raises(DataError, match="restore the key from your backup"):
        init(site)
    assert not (site / "keys" / "patient.key").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --name and --patients"),
        (["--name", "a"], "give --name and --patients"),
        (["--name", "A b", "--patients", "9"], "site name 'A b'"),
        (["--name", "a", "--patients", "9", "--host", "a b"], "'a b' is neither a host name"),
    ],
)
def test_what_can_not_be_asked_for_is_one_line_and_leaves_nothing(
    tmp_path: Path, options: list[str], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        init(tmp_path / "new", *options)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_a_number_with_which_others_could_count_patients_is_not_declared(tmp_path: Path) -> None:
    """A ledger is for good: a typing error must not make one."""
    for command, option in (
        (["init", str(tmp_path / "new"), "--name", "a"], "--patients"),
        (["ledger", "create", str(tmp_path / "new"), "--epsilon", "9"], "--nominal-patients"),
    ):
        done = CliRunner(env={"COLUMNS": "200"}).invoke(whole, [*command, option, "387"])
        assert done.exit_code == 2 and "387 has more than one significant digit" in done.output
        assert "say 400" in done.output and not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [["--patients", "0"], ["--loopback", "65535"], ["--loopback", "0"]])
def test_numbers_out_of_range_are_wrong_usage_and_leave_nothing(tmp_path: Path, options: list[str]) -> None:
    words = ["init", str(tmp_path / "new"), "--name", "a", "--patients", "9", *options]
    assert CliRunner().invoke(app, words).exit_code == 2 and not (tmp_path / "new").exists()


def test_index_and_init_in_either_order_give_the_same_site(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(images / f"{number}.png")
    (images / "labels.csv").write_text("key,label\n0.png,a\n1.png,b\n2.png,a\n", encoding="utf-8")
    indexing = ("index", str(images), "--image-is-patient", "--quiet", "--out")
    asking = ("--name", "north", "--patients", "30")
    for first, folder in ((True, tmp_path / "one"), (False, tmp_path / "two")):
        if first:
            assert CliRunner().invoke(whole, [*indexing, str(folder)]).exit_code == 0
            with pytest.raises(DataError, match="declares no number of patients; give --patients"):
                init(folder, "--name", "north")
            said = init(folder, *asking)
            assert "name is north, was one" in said and "nominal_patients is 30" in said
        else:
            assert "changed" not in init(folder, *asking)
            assert CliRunner().invoke(whole, [*indexing, str(folder)]).exit_code == 0
        made = open_site(folder)
        assert (made.name, made.nominal_patients, index.counts(folder).images) == ("north", 30, 3)
        assert json.loads(init(folder, "--json"))["new_request"] is False


def test_what_the_ledger_was_told_need_not_be_said_again(tmp_path: Path) -> None:
    """Both commands call it --nominal-patients, as site.toml does; `client init` --patients too."""
    for option, folder in (("--patients", tmp_path / "one"), ("--nominal-patients", tmp_path / "two")):
        (folder / "keys").mkdir(parents=True)
        (folder / "keys" / "patient.key").write_bytes(bytes(32))
        (folder / "site.toml").write_text(site_toml("one"))
        made = CliRunner().invoke(
            whole, ["ledger", "create", str(folder), "--epsilon", "9", "--nominal-patients", "40"]
        )
        assert made.exit_code == 0, made.output
        with pytest.raises(DataError, match="nominal_patients 40"):
            init(folder, "--name", "north", option, "50")
        assert "changed: name is north, was one" in init(folder, "--name", "north")
        assert open_site(folder).nominal_patients == 40


def test_a_site_toml_that_is_written_in_another_way_is_refused_and_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('"name" = "images"\n')
    with pytest.raises(DataError, match="do it there"):
        init(tmp_path, "--name", "north", "--patients", "30")


def up(site: Path, *options: str) -> str:
    """Why `client up` ends before it starts anything."""
    with pytest.raises(FederationError) as caught:
        CliRunner().invoke(app, ["up", str(site), *options], catch_exceptions=False)
    assert "\n" not in str(caught.value) and not (site / "logs").exists()
    return str(caught.value)


@pytest.fixture
def joined(site: Path, coordinator: Identity, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_cli, "PATIENCE", 0.0)
    pinned(site, coordinator)
    first = free_ports(2)
    CliRunner().invoke(
        app,
        ["init", str(site), "--name", "mine", "--patients", "100", "--loopback", str(first)],
        catch_exceptions=False,
    )
    return site


def test_up_before_joining_says_so(site: Path) -> None:
    assert f"joined no federation; run `client join {site} roster.json --ca ca.pem --server" in up(site)


@pytest.mark.parametrize("gone", ["node.key", "executor.secret", "server-ca.pem"])
def test_up_without_a_file_of_its_half_says_which(joined: Path, gone: str) -> None:
    (joined / "supernode" / gone).unlink()
    assert gone in up(joined, "--only", "supernode") and "backup" in up(joined)


@pytest.mark.parametrize(
    ("file", "mode", "half"),
    [
        ("supernode/node.key", 0o640, "supernode"),
        ("supernode/runtime.key", 0o604, "supernode"),
        ("supernode/executor.secret", 0o644, "supernode"),
        ("keys/identity.key", 0o644, "worker"),
        ("keys/patient.key", 0o640, "worker"),
    ],
)
def test_up_with_a_key_that_others_can_read_says_so(
    joined: Path, monkeypatch: pytest.MonkeyPatch, file: str, mode: int, half: str
) -> None:
    monkeypatch.setattr(executors, "strangers", lambda _secret: [4711])  # nothing is started in any case
    (joined / file).chmod(mode)
    for options in ((), ("--only", half)):
        assert f"{file}: readable for others" in (said := up(joined, *options)) and f"chmod 600 {joined / file}" in said


def test_up_with_a_secret_that_is_a_groups_goes_on(joined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (joined / "supernode" / "executor.secret").chmod(0o640)
    monkeypatch.setattr(executors, "strangers", lambda _secret: [4711])
    assert "process 4711" in up(joined)  # what ends it is another thing, that is looked at later


def test_up_without_an_identity_says_so(joined: Path) -> None:
    (joined / "keys" / "identity.key").unlink()
    assert "can't be read" in up(joined, "--only", "worker")


@pytest.mark.parametrize("which", [0, 1])
def test_up_where_a_port_is_taken_says_which_and_how_to_choose_another(joined: Path, which: int) -> None:
    connection = supernode.open_connection(joined)
    address = (connection.runtime, connection.health)[which]
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        said = up(joined)
    assert address in said and "--loopback PORT" in said


def test_up_beside_another_executor_ends(joined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "strangers", lambda _secret: [4711])
    assert "process 4711" in up(joined)
    assert "process 4711" in up(joined, "--only", "worker")


class Looked:
    """Stands for Watch: what it is given runs at once; after so many looks the command is asked to end."""

    stop = threading.Event()
    looks = 0

    def __init__(self, programs: Sequence[Program], *, say: object) -> None:
        Looked.stop, Looked.looks = threading.Event(), 0
        self._names = [program.name for program in programs]

    def look(self) -> None:
        Looked.looks += 1
        if Looked.looks > 4:
            Looked.stop.set()

    def pids(self) -> dict[str, int]:
        return dict.fromkeys(self._names, 1)

    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("only", "seen", "says"),
    [
        ("worker", [False, False, False, False], ["started: worker", "not serving as yet"]),
        ("worker", [False, True, True, False], ["started: worker", "not serving as yet", "serving", "not serving"]),
        ("supernode", [False, False, True, True], ["started: supernode", "serving"]),
        ("both", [False, False, False, False], ["started: supernode, worker"]),
        ("both", [True, True, False, False], ["started: supernode, worker", "serving", "not serving"]),
    ],
)
def test_up_says_what_it_has_started_and_seen_and_nothing_else(
    joined: Path, monkeypatch: pytest.MonkeyPatch, only: str, seen: list[bool], says: list[str]
) -> None:
    answers = iter(seen)

    @contextmanager
    def signals() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(is_set=lambda: Looked.stop.is_set(), wait=lambda _seconds: None)

    monkeypatch.setattr(run_cli, "Watch", Looked)
    monkeypatch.setattr(processes, "serving", lambda _address: next(answers))
    monkeypatch.setattr(processes, "stopped_by_signals", signals)
    done = CliRunner().invoke(app, ["up", str(joined), "--only", only], catch_exceptions=False)
    lines = done.output.splitlines()
    lines = lines[next(number for number, line in enumerate(lines) if line.startswith("started: ")) :]
    runtime = supernode.open_connection(joined).runtime
    assert [line.removeprefix(f"SuperNode on {runtime}: ").partition(";")[0] for line in lines] == says


def test_up_where_the_machine_has_not_that_name_says_how_to_choose_another(joined: Path) -> None:
    init(joined, "--host", "runtime.invalid")
    said = up(joined)
    assert "runtime.invalid" in said and "can't be listened on" in said and "--host" in said


def test_a_roster_that_only_removes_is_pinned_without_a_question(site: Path, coordinator: Identity) -> None:
    first = issued(coordinator, [own(site), other("a"), other("b")])
    enrolment.pin(site, examined(site, first))
    fewer = issued(coordinator, list(first.sites[1:]), before=first, expires=first.expires)
    assert first.sites[0].name == "a"
    (site.parent / "roster.json").write_bytes(fewer.to_bytes())
    words = ["join", str(site), str(site.parent / "roster.json"), "--ca", str(site.parent / "ca.pem")]
    done = CliRunner().invoke(app, [*words, "--server", "x.org:1"], input="")
    assert done.exit_code == 0 and "a: gone" in done.output and membership.pinned(site) == fewer


def test_what_may_not_be_pinned_is_refused(site: Path, coordinator: Identity) -> None:
    good = issued(coordinator, [own(site), other("theirs")])
    path = site.parent / "roster.json"
    with pytest.raises(RosterError, match="identity is not in it"):
        examined(site, issued(coordinator, [other("a"), other("b")]))
    with pytest.raises(RosterError, match="expired"):
        examined(site, issued(coordinator, [own(site), other("a")], now=NOW - roster.LIFE - 1))
    stranger = roster.member(membership.identity_of(site), name="mine", supernode="x", nominal_patients=100)
    with pytest.raises(RosterError, match="SuperNode key"):
        examined(site, issued(coordinator, [stranger, other("a")]))
    path.write_bytes(good.to_bytes().replace(b"theirs", b"others"))
    with pytest.raises(MessageError):
        enrolment.examine(site, roster_file=path, certificate_file=site.parent / "ca.pem", server="a:1")
    newer = issued(coordinator, list(good.sites), before=good)
    enrolment.pin(site, examined(site, newer))
    with pytest.raises(RosterError, match="older"):
        examined(site, good)
    for server in ("federation.example.org", "https://x.org:1", "x.org:0", "x.org:99999", ":1", "a b:1"):
        with pytest.raises(DataError):
            examined(site, newer, server=server)


@pytest.mark.parametrize("wrong", ["roster.json", "ca.pem", "proxy.pem"])
def test_a_file_that_is_another_one_is_named(site: Path, coordinator: Identity, wrong: str) -> None:
    made = issued(coordinator, [own(site), other("theirs")])
    files = {"roster.json": made.to_bytes(), "ca.pem": (site.parent / "ca.pem").read_bytes()}
    for name, content in {**files, "proxy.pem": files["ca.pem"], wrong: b"name = 1\n"}.items():
        (site.parent / name).write_bytes(content)
    roster_file, ca, proxy = (site.parent / name for name in ("roster.json", "ca.pem", "proxy.pem"))
    with pytest.raises(FederationError, match=f"^{site.parent / wrong}: ") as caught:
        enrolment.examine(site, roster_file=roster_file, certificate_file=ca, server="a:1", proxy_file=proxy)
    assert "\n" not in str(caught.value) and membership.pinned(site) is None


def test_a_pinned_roster_that_was_damaged_is_named(site: Path) -> None:
    (site / "roster.json").write_text("{}")
    with pytest.raises(FederationError, match=r"site/roster\.json: "):
        membership.pinned(site)


def test_a_difference_is_spelled_out(site: Path, coordinator: Identity) -> None:
    first = issued(coordinator, [own(site), other("a")])
    enrolment.pin(site, examined(site, first))
    changed = issued(Identity.new(), [own(site), other("a"), other("b")], min_sites=3, before=first)
    assert examined(site, changed).difference == (
        "the coordinator's key is another one",
        "min_sites is 3, was 2",
        "b: new",
        "a: changed",
    )


def test_the_supernode_is_told_nothing_of_the_data(site: Path, coordinator: Identity) -> None:
    with pytest.raises(DataError, match="joined no federation"):
        supernode.programs(site, supernode.open_connection(site))
    enrolment.pin(site, examined(site, issued(coordinator, [own(site), other("a")])))
    made = supernode.programs(site, supernode.open_connection(site))
    words = made["supernode"].command
    paths = [word.split("=", 1)[-1] for word in words if str(site) in word]
    assert paths and all(Path(path).is_relative_to(site / "supernode") for path in paths)
    assert "--isolation=process" in words and "--insecure" not in words and "-P" in words
    assert not [word for word in words if "node-config" in word or "allow-runtime" in word]
    assert made["worker"].environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "127.0.0.1" in made["worker"].environment["no_proxy"]


def test_a_request_names_the_key_that_the_supernode_has_whatever_a_crash_left(site: Path) -> None:
    said = (site / "request.json").read_bytes()
    (site / "supernode" / "node.pub").write_text(node_key.generate()[1])  # as if written before another private key
    assert not enrolment.found(site).new
    assert (site / "request.json").read_bytes() == said
    (site / "supernode" / "node.key").write_text("no key")
    with pytest.raises(DataError, match="--new-key"):
        enrolment.found(site)


def test_changes_keep_who_may_read_site_toml(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.toml").write_text(site_toml("folder"), encoding="utf-8")
    (folder / "site.toml").chmod(0o600)
    enrolment.found(folder, name="north", nominal_patients=20)
    assert (folder / "site.toml").stat().st_mode & 0o777 == 0o600
    assert 'name = "north"' in (folder / "site.toml").read_text()
