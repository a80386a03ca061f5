"""The coordinator's folder, who is in the next roster, and what it takes to put it in force."""

import time
from pathlib import Path

import pytest

from common import body, roster
from common.crypto import certificates, node_key
from common.crypto.identity import Identity
from common.errors import DataError, MessageError
from common.processes import Program
from common.roster import Member, RosterError, accepts
from server import enrolment, folder, superlink
from server.folder import Folder

NOW = 1_800_000_000
VALUES = {
    "name": "test",
    "hosts": ["federation.example.org", "10.0.0.1"],
    "listen": "127.0.0.1",
    "port": 21000,
    "colluding": 1,
    "min_sites": 3,
    "loopback": 21001,
}


@pytest.fixture
def made(tmp_path: Path) -> Folder:
    return folder.found(tmp_path / "federation", tmp_path / "keys", values=VALUES, now=NOW)


def request(name: str, *, key: Identity | None = None, patients: int = 100) -> bytes:
    """What a site sends."""
    said = roster.member(key or Identity.new(), name=name, supernode=node_key.generate()[1], nominal_patients=patients)
    return to_request(said)


def to_request(said: Member) -> bytes:
    return body.write(
        {
            "name": said.name,
            "identity": said.identity.hex(),
            "supernode": said.supernode,
            "nominal_patients": said.nominal_patients,
            "signature": said.signature.hex(),
        }
    )


def test_keys_are_for_their_owner_alone_and_signing_keys_elsewhere(made: Folder, tmp_path: Path) -> None:
    private = {
        path for path in (*made.path.rglob("*"), *(tmp_path / "keys").iterdir()) if path.suffix in (".key", ".secret")
    }
    assert len(private) == 6
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["ca.key", "ca.pem", "roster.key"]
    assert not list(made.path.rglob("roster.key")) and not list(made.path.rglob("ca.key"))


def test_the_certificates_are_for_the_hosts_and_for_loopback(made: Folder) -> None:
    gate, loopback = (made.tls(what)[0].read_bytes() for what in ("gate", "loopback"))
    assert certificates.hosts_of(gate) == ("federation.example.org", "10.0.0.1")
    assert certificates.hosts_of(loopback) == ("localhost", "127.0.0.1")
    assert certificates.issued_by(gate, made.root.read_bytes())


def test_renewal_changes_keys_and_not_the_authority(made: Folder, tmp_path: Path) -> None:
    before, root = made.tls("gate")[1].read_bytes(), made.root.read_bytes()
    folder.certify(made, tmp_path / "keys", now=NOW + 1000)
    assert made.tls("gate")[1].read_bytes() != before and made.root.read_bytes() == root
    other = folder.found(tmp_path / "other", tmp_path / "other-keys", values=VALUES, now=NOW)
    with pytest.raises(DataError, match="another federation"):
        folder.certify(other, tmp_path / "keys", now=NOW)


def test_an_existing_folder_is_not_touched(made: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not empty"):
        folder.found(made.path, tmp_path / "new", values=VALUES, now=NOW)
    with pytest.raises(DataError, match="where the server is not"):
        folder.found(tmp_path / "new", tmp_path / "new" / "keys", values=VALUES, now=NOW)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("port = 21000", "port = 0", "port = 0"),
        ("port = 21000", 'port = "x"', "port = 'x'"),
        ("port = 21000", "", "port"),
        ('listen = "127.0.0.1"', 'listen = "999.1.1.1"', "listen = '999.1.1.1'"),
        ('listen = "127.0.0.1"', 'listen = "[::]"', "IPv6 address"),
        ("port = 21000", "port = 21000\nextra = 1", "extra"),
        ("port = 21000", "port = ", "not valid TOML"),
    ],
)
def test_a_wrong_federation_toml_is_one_clear_line(made: Folder, old: str, new: str, said: str) -> None:
    path = made.path / "federation.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=said) as error:
        folder.open_folder(made.path)
    assert "\n" not in str(error.value)


def test_a_roster_is_signed_when_there_are_enough_sites(made: Folder, tmp_path: Path) -> None:
    for name in ("b", "a"):
        enrolment.add(made, request(name))
    with pytest.raises(RosterError, match="2 sites"):
        enrolment.sign(made, tmp_path / "keys", now=NOW)
    assert made.roster() is None
    enrolment.add(made, request("c"))
    signed = enrolment.sign(made, tmp_path / "keys", now=NOW)
    assert made.roster() == signed and [site.name for site in signed.sites] == ["a", "b", "c"]
    assert signed.server == made.online_key().public
    with pytest.raises(RosterError, match="says the same"):
        enrolment.sign(made, tmp_path / "keys", now=NOW + 1)


def test_a_roster_that_only_removes_is_taken_by_sites_themselves(made: Folder, tmp_path: Path) -> None:
    for name in "abcd":
        enrolment.add(made, request(name))
    old = enrolment.sign(made, tmp_path / "keys", now=NOW)
    enrolment.remove(made, "b")
    new = enrolment.sign(made, tmp_path / "keys", now=NOW + 1000)
    assert accepts(old, new, now=NOW + 1000)
    enrolment.add(made, request("e"))
    assert not accepts(new, enrolment.sign(made, tmp_path / "keys", now=NOW + 2000), now=NOW + 2000)
    with pytest.raises(DataError, match="no such site"):
        enrolment.remove(made, "b")


def test_a_supernode_key_that_was_removed_never_comes_back(made: Folder, tmp_path: Path) -> None:
    key = Identity.new()
    requests = {name: request(name) for name in "abc"} | {"d": request("d", key=key)}
    for one in requests.values():
        enrolment.add(made, one)
    enrolment.sign(made, tmp_path / "keys", now=NOW)
    enrolment.remove(made, "d")
    enrolment.add(made, requests["d"])  # nothing was signed yet
    enrolment.remove(made, "d")
    enrolment.sign(made, tmp_path / "keys", now=NOW + 1)
    with pytest.raises(RosterError, match="never let in again"):
        enrolment.add(made, requests["d"])
    enrolment.add(made, request("d", key=key))  # the same site with another SuperNode key
    enrolment.add(made, requests["a"])  # who is in may ask again


def test_a_request_that_was_changed_is_refused(made: Folder) -> None:
    good = request("a", patients=100)
    for bad in (good.replace(b"100", b"900"), good.replace(b'"a"', b'"b"'), good[:-2], b"", b"{}", b"[]", good + b" x"):
        with pytest.raises(MessageError):
            enrolment.add(made, bad)
    assert not made.members()


def test_nobody_takes_anothers_name_identity_or_supernode_key(made: Folder) -> None:
    key = Identity.new()
    first = request("a", key=key)
    enrolment.add(made, first)
    enrolment.add(made, request("a", key=key, patients=200))  # the same site again
    assert [site.nominal_patients for site in made.members()] == [200]
    with pytest.raises(RosterError):
        enrolment.add(made, request("a"))
    with pytest.raises(RosterError):
        enrolment.add(made, request("b", key=key))
    stolen = roster.member(Identity.new(), name="c", supernode=made.members()[0].supernode, nominal_patients=1)
    with pytest.raises(RosterError, match="SuperNode key"):
        enrolment.add(made, to_request(stolen))


def test_another_key_signs_no_roster(made: Folder, tmp_path: Path) -> None:
    for name in "abc":
        enrolment.add(made, request(name))
    enrolment.sign(made, tmp_path / "keys", now=NOW)
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "roster.key").write_bytes(Identity.new().private_bytes())
    with pytest.raises(RosterError, match="not the key"):
        enrolment.sign(made, tmp_path / "forged", now=int(time.time()))
    with pytest.raises(DataError):
        enrolment.sign(made, tmp_path / "nowhere", now=NOW)


def command(programs: list[Program], name: str) -> str:
    return " ".join(next(program.command for program in programs if program.name == name))


def test_the_superlink_is_on_loopback_with_tls_login_and_no_installation(made: Folder) -> None:
    programs = superlink.programs(made)
    started = command(programs, "superlink")
    for part in (
        "--host=127.0.0.1",
        "--port=21001",
        "--enable-supernode-auth",
        "--isolation=process",
        "--disable-runtime-dependency-installation",
        f"--superexec-auth-secret-file={made.secret}",
        f"--database={made.path}/flower/state.sqlite",
        "--health-server-address=127.0.0.1:21002",
    ):
        assert part in started.split(" ")
    assert "--insecure" not in started
    for program in programs:
        assert program.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert program.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert "127.0.0.1" in program.environment["NO_PROXY"] and "-P" in program.command
