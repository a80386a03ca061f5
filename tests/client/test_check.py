"""The preflight: each thing that is wrong has its line, and the exit code says whether the site can take part."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from control_cases import ask, order, settle
from small import private_study, protect, write_site

from client import check, index, membership
from client.drops import Drop, Dropped
from client.finding import Finding, Level, exit_code
from client.site import open_site
from client.surroundings import DAY, Outside
from common import roster
from common.crypto import certificates, node_key
from common.crypto.identity import Identity

NOW = time.time()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital with 24 patients, a ledger, and all keys to itself."""
    made = settle(protect(write_site(tmp_path / "site-0", images=24, seed=0)))
    for path in (made / "keys").iterdir():
        path.chmod(0o600)
    return made


def levels(found: list[Finding], about: str) -> list[str]:
    return [str(finding.level) for finding in found if finding.about == about]


def texts(found: list[Finding], about: str) -> str:
    return " | ".join(finding.text for finding in found if finding.about == about)


def test_a_site_in_order_is_ready(folder: Path) -> None:
    found = check.run(folder, now=NOW)
    assert exit_code(found) == 0 and not [f for f in found if f.level is Level.FAIL]
    assert {"keys", "policy", "data", "quality", "decoders", "disk", "gpu", "ledger", "audit"} == {
        f.about for f in found
    }
    assert "24 images of 24 patients" in texts(found, "data")
    assert "24 of 24 images tried can be read" in texts(found, "decoders")
    assert "100% of train" in texts(found, "ledger")


def readable(folder: Path) -> None:
    (folder / "keys" / "patient.key").chmod(0o644)


def no_index(folder: Path) -> None:
    (folder / "index.sqlite").unlink()


def empty_index(folder: Path) -> None:
    index.write(folder, [], [])


def images_gone(folder: Path) -> None:
    folder.with_suffix(".npz").unlink()


def root_gone(folder: Path) -> None:
    rows = index.read(folder)
    shutil.rmtree(rows[0].source.root) if rows[0].source.root.is_dir() else rows[0].source.root.unlink()


def ledger_cut(folder: Path) -> None:
    path = folder / "state" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-50])


def ledger_gone(folder: Path) -> None:
    shutil.rmtree(folder / "state")


def never_a_ledger(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    (folder / "keys" / "cohort").unlink()


def log_edited(folder: Path) -> None:
    ask(folder, order("propose", private_study()), private_study())
    path = folder / "audit" / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"attempt":1', b'"attempt":3', 1))


def too_few(folder: Path) -> None:
    settle(folder, least_patients=100)


@pytest.mark.parametrize(
    ("harm", "about", "says"),
    [
        (readable, "keys", "chmod 600"),
        (no_index, "data", "python -m client index"),
        (empty_index, "data", "no usable image"),
        (images_gone, "decoders", "can't be read"),
        (ledger_cut, "ledger", "truncated or edited"),
        (ledger_gone, "ledger", "missing"),
        (never_a_ledger, "ledger", "client ledger create"),
        (log_edited, "audit", "edited"),
        (too_few, "policy", "every study is refused"),
    ],
)
def test_what_keeps_a_site_from_taking_part_fails(
    folder: Path, harm: Callable[[Path], None], about: str, says: str
) -> None:
    harm(folder)
    found = check.run(folder, now=NOW)
    assert "FAIL" in levels(found, about) and says in texts(found, about)
    assert exit_code(found) == 1
    assert not any("\n" in finding.text for finding in found)


def test_an_index_that_nothing_can_read_is_said_once(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "index.sqlite")) as database:
        database.execute("PRAGMA user_version = 1")
    found = [each for each in check.run(folder, now=NOW) if "an index of version 1" in each.text]
    assert [(each.level, each.about) for each in found] == [(Level.FAIL, "data")]


def test_files_that_are_not_there_to_be_used_are_no_loss(folder: Path) -> None:
    rows = index.read(folder)
    aside = [Dropped(path=f"{k}.seg", reason=Drop.ANNOTATION_FILE) for k in range(73)]
    away = [Dropped(path=f"{k}.dcm", reason=Drop.OTHER_COHORT) for k in range(9)]
    index.write(folder, rows, [*aside, *away])
    found = check.run(folder, now=NOW)
    assert levels(found, "data") == ["PASS"]
    assert texts(found, "data") == "24 images of 24 patients; 0 of 1 files not usable"  # one .npz holds all images
    index.write(folder, rows, [*aside, *(Dropped(path=f"{k}", reason=Drop.UNREADABLE) for k in range(2))])
    found = check.run(folder, now=NOW)
    assert levels(found, "data") == ["WARN"]
    assert texts(found, "data").endswith("2 of 3 files not usable (2 unreadable)")


def test_a_folder_that_is_no_site_fails(tmp_path: Path) -> None:
    (found,) = check.run(tmp_path, now=NOW)
    assert found.level is Level.FAIL and "client index" in found.text


@pytest.mark.parametrize(("declared", "warns"), [(16, False), (15, True), (24, False), (36, False), (37, True)])
def test_an_index_that_is_off_by_more_than_a_factor_of_1_5_is_a_warning(
    folder: Path, declared: int, warns: bool
) -> None:
    settle(folder, nominal_patients=declared)
    found = check.run(folder, now=NOW)
    assert levels(found, "data") == (["PASS", "WARN"] if warns else ["PASS"])
    assert exit_code(found) == 0 and exit_code(found, strict=True) == 1  # no GPU, or no anchor


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.1, "PASS"), (2.9, "PASS"), (3.0, "FAIL"), (90.0, "FAIL"), (-30.0, "PASS"), (-61.0, "WARN")]
)
def test_a_clock_that_is_3_s_ahead_fails(folder: Path, ahead: float, level: str) -> None:
    found = check.run(folder, now=NOW, outside=Outside(clock_ahead=ahead))
    assert levels(found, "clock") == [level]


@pytest.mark.parametrize(("days", "level"), [(-1, "PASS"), (334.5, "PASS"), (336, "WARN"), (366, "FAIL")])
def test_a_certificate_is_looked_at_before_it_expires(folder: Path, days: float, level: str) -> None:
    root = certificates.authority("consortium", now=int(NOW))
    made = certificates.server(root, ["example.org"], now=int(NOW))
    outside = Outside(certificates=(("server", made.certificate),))
    assert levels(check.run(folder, now=NOW + days * DAY, outside=outside), "certificate") == [level]


def test_the_connection_is_as_somebody_found_it(folder: Path) -> None:
    for outcome, level in (("", ["PASS"]), ("refused by the proxy", ["FAIL"]), (None, [])):
        assert levels(check.run(folder, now=NOW, outside=Outside(connection=outcome)), "connection") == level


@pytest.mark.parametrize(("days", "level"), [(0, "PASS"), (75.9, "PASS"), (76.1, "WARN"), (90, "FAIL")])
def test_a_roster_is_looked_at_before_it_expires(folder: Path, days: float, level: str) -> None:
    assert levels(check.run(folder, now=NOW), "roster") == []
    join(folder, name="site-0")
    assert levels(check.run(folder, now=NOW + days * DAY), "roster") == [level]


@pytest.mark.parametrize(
    ("limits", "level"),
    [({}, "PASS"), ({"min_sites": 2}, "PASS"), ({"min_sites": 3}, "FAIL"), ({"colluding": 1}, "FAIL")],
)
def test_a_roster_below_the_sites_own_limits_fails(folder: Path, limits: dict[str, int], level: str) -> None:
    join(settle(folder, **limits), name="site-0")
    found = check.run(folder, now=NOW)
    assert levels(found, "roster") == [level]
    assert ("refuses every order of secure aggregation" in texts(found, "roster")) is (level == "FAIL")


def test_a_roster_without_this_site_fails(folder: Path) -> None:
    join(folder, name="another")
    found = check.run(folder, now=NOW)
    assert levels(found, "roster") == ["FAIL"] and "site-0 is not in it" in texts(found, "roster")


def join(folder: Path, *, name: str) -> None:
    """Pin a roster in which this site's identity goes by this name."""
    own = membership.described(folder, name=name, supernode=node_key.generate()[1], nominal_patients=20)
    other = roster.member(Identity.new(), name="b", supernode=node_key.generate()[1], nominal_patients=20)
    values = {"server": Identity.new().public, "colluding": 0, "min_sites": 2, "now": int(NOW)}
    membership.pin(folder, roster.issue(Identity.new(), sites=[own, other], **values))  # type: ignore[arg-type]


def test_a_study_that_waits_and_a_lax_policy_are_warnings(folder: Path) -> None:
    ask(folder, order("propose", private_study()), private_study())
    assert "1 wait for a decision" in texts(check.run(folder, now=NOW), "studies")
    settle(folder, approve="auto", privacy="optional", unprotected=True)
    found = check.run(folder, now=NOW)
    assert levels(found, "policy") == ["WARN", "WARN", "WARN", "PASS"] and exit_code(found) == 0
    assert levels(found, "studies") == []


def test_a_disk_without_room_for_the_studies_cache_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**6

    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage)
    assert levels(check.run(folder, now=NOW), "disk") == ["FAIL"]
    Usage.free = 10**9
    assert levels(check.run(folder, now=NOW), "disk") == ["WARN"]
    Usage.free = 10**11
    assert levels(check.run(folder, now=NOW), "disk") == ["PASS"]


def test_no_line_names_a_file_of_the_archive(folder: Path) -> None:
    images_gone(folder)
    assert open_site(folder).name == "site-0"
    assert not any(".npz" in finding.text for finding in check.run(folder, now=NOW))
