"""How a site asks for membership and pins a roster: what is shown, what is refused, what is kept."""

import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client import enrolment, membership, run_cli, supernode
from client.site import open_site
from common import roster
from common.crypto import certificates, node_key
from common.crypto.identity import Identity
from common.errors import DataError, MessageError
from common.roster import Member, Roster, RosterError

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
