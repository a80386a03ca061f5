"""What goes wrong at hospitals while a study runs: one clear line where it happened, a reason code elsewhere, nothing
overwritten, nothing lost; and what the coordinator holds of a site's log when that log is changed afterwards.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from control_cases import settle
from enrolled import enrolled
from small import private_study, protect, tiny_study, write_site

from client import approval, audit, index, membership
from client.chain_lines import ChainError, anchor_from
from client.site import open_site
from common.crypto.identity import Identity
from common.errors import RunError
from common.roster import LIFE, issue
from server import federation
from server.events import anchors, read, summary
from simulations.faults import Faults
from simulations.inprocess import SimulatedClock, run

NONE = Faults(scripted={})


def hospitals(base: Path) -> list[Path]:
    """Three sites that have declared 20 patients and run what keeps to a lax policy."""
    made = [write_site(base / f"site-{number}", images=24, seed=number) for number in range(3)]
    return [settle(site, approve="auto", privacy="optional") for site in made]


def options(out: Path, sites: list[Path], **changes: object) -> federation.Options:
    roster = frozenset(site.name for site in sites)
    nominal = dict.fromkeys(sorted(roster), 20)
    nodes = dict(enumerate((site.name for site in sites), 1))
    values = {"roster": roster, "nominal": nominal, "sites_of": lambda: nodes, **changes}
    return federation.Options(out=out, backend="inprocess", **values)  # type: ignore[arg-type]


def absent(out: Path) -> list[dict[str, str]]:
    return [event["absent"] for event in read(out / "events.jsonl") if event["event"] in ("round", "retry")]


def test_a_study_that_no_site_approves_stops_says_so_and_goes_on_when_they_do(tmp_path: Path) -> None:
    sites, out = hospitals(tmp_path), tmp_path / "out"
    for site in sites:
        settle(site, privacy="optional")  # approve = "ask"
    study = tiny_study(study={"round_retries": 1})
    with pytest.raises(RunError, match="site-0 refused:not_approved, site-1 refused:not_approved") as caught:
        run(study, options(out, sites), sites, NONE)
    assert "\n" not in str(caught.value) and "continue with resume" in str(caught.value)
    assert absent(out) == [dict.fromkeys(("site-0", "site-1", "site-2"), "refused:not_approved")] * 2
    for site in sites:
        opened = open_site(site)
        assert [waiting.sha256 for waiting in approval.shown(opened)] == [study.sha256]
        approval.approve(opened, study, by="anna")
    run(study, options(out, sites, resume=True), sites, NONE)
    assert [entry["absent"] for entry in summary(read(out / "events.jsonl"))["rounds"]] == [{}, {}]


def test_approvals_are_waited_for_as_long_as_sites_that_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two approve after a quarter of an hour: the first attempt fails at once, each later one has its deadline."""
    sites, out, study = hospitals(tmp_path), tmp_path / "out", tiny_study()
    for site in sites[1:]:
        settle(site, privacy="optional")
    sleep, pauses = SimulatedClock.sleep, list[float]()

    def slept(clock: SimulatedClock, seconds: float) -> None:
        sleep(clock, seconds)
        pauses.append(seconds)
        if clock.now() > 900:
            for site in sites[1:]:
                approval.approve(open_site(site), study, by="anna")

    monkeypatch.setattr(SimulatedClock, "sleep", slept)
    run(study, options(out, sites), sites, NONE)
    waiting = dict.fromkeys(("site-1", "site-2"), "refused:not_approved")
    assert absent(out) == [waiting, waiting, {}, {}]  # 600 s each
    assert max(pauses) == 30 and sum(seconds > 1 for seconds in pauses) < 60


def test_a_site_whose_images_disappear_is_named_and_forgets_none_of_them(tmp_path: Path) -> None:
    """A share that is not mounted when a study begins: the index stays, and the site is back with its share."""
    sites, out, images = hospitals(tmp_path), tmp_path / "out", tmp_path / "site-1.npz"
    images.rename(tmp_path / "elsewhere.npz")
    before = [row.image for row in index.read(sites[1])]
    run(tiny_study(), options(out, sites), sites, NONE)
    assert absent(out) == [{"site-1": "failed"}] * 2
    assert "24 of 24 images can't be read" in (sites[1] / "errors.log").read_text(encoding="utf-8")
    assert [row.image for row in index.read(sites[1])] == before and len(before) == 24
    (tmp_path / "elsewhere.npz").rename(images)
    run(tiny_study(study={"name": "again"}), options(tmp_path / "again", sites), sites, NONE)
    assert absent(tmp_path / "again") == [{}, {}]


def test_a_ledger_that_was_damaged_is_left_as_it_is_and_its_site_releases_nothing(tmp_path: Path) -> None:
    sites, out = [protect(site) for site in hospitals(tmp_path)], tmp_path / "out"
    ledger, damaged = sites[2] / "state" / "ledger.jsonl", []

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "round" and not damaged:
            damaged.append(ledger.read_bytes()[:-40])
            ledger.write_bytes(damaged[0])

    run(private_study(study={"rounds": 3}), options(out, sites, watch=watch), sites, NONE)
    assert [set(entry) for entry in absent(out)] == [set(), {"site-2"}, {"site-2"}]
    assert ledger.read_bytes() == damaged[0]
    answers = [entry.body for entry in audit.entries_of(sites[2]) if entry.kind == "answered"]
    assert [answer["bytes"] > 0 for answer in answers if answer["order"] == "update"] == [True, False, False]
    assert "truncated or edited" in (sites[2] / "errors.log").read_text(encoding="utf-8")


@pytest.fixture
def kept(tmp_path: Path) -> tuple[list[Path], Path]:
    """A run of enrolled sites, of which the third signs with a key that the coordinator does not know."""
    sites, out = hospitals(tmp_path), tmp_path / "out"
    credentials = enrolled(sites, tiny_study(), tmp_path / "coordinator")
    (sites[2] / membership.KEY).unlink()
    membership.make_identity(sites[2])
    run(tiny_study(), options(out, sites, credentials=credentials), sites, NONE)
    return sites, out


def test_a_site_that_signs_with_another_key_has_no_part_in_a_round(kept: tuple[list[Path], Path]) -> None:
    _, out = kept
    assert absent(out) == [{"site-2": "malformed"}] * 2


def test_a_site_takes_no_orders_by_another_server_than_its_rosters(tmp_path: Path) -> None:
    sites, study = hospitals(tmp_path), tiny_study()
    enrolled(sites, study, tmp_path / "coordinator")
    stranger = enrolled(hospitals(tmp_path / "elsewhere"), study, tmp_path / "stranger")
    for number, credentials in enumerate((None, stranger)):
        said = "refused:roster" if credentials is None else "malformed"  # whose answers it can't read
        with pytest.raises(RunError, match=f"site-0 {said}, site-1 {said}, site-2 {said}"):
            run(study, options(tmp_path / str(number), sites, credentials=credentials), sites, NONE)
    for site in sites:
        assert {entry.body["reason"] for entry in audit.entries_of(site) if entry.kind == "answered"} == {
            "refused:roster"
        }
        assert not (site / "studies").exists()


def test_a_site_follows_no_order_without_its_roster_and_none_when_that_has_expired(tmp_path: Path) -> None:
    sites, study = hospitals(tmp_path), tiny_study()
    credentials = enrolled(sites, study, tmp_path / "coordinator")
    (sites[0] / membership.ROSTER).unlink()
    old = issue(
        Identity.new(), sites=credentials.roster.sites, server=credentials.roster.server, colluding=0, min_sites=2,
        now=int(time.time()) - LIFE - 1,
    )  # fmt: skip
    membership.pin(sites[1], old)
    (sites[2] / membership.ROSTER).write_bytes(b"x")
    with pytest.raises(RunError, match="site-0 refused:roster, site-1 refused:roster, site-2 malformed"):
        run(study, options(tmp_path / "out", sites, credentials=credentials), sites, NONE)
    for site, why in zip(sites, ("roster.json: missing", "roster: expired", "roster.json"), strict=True):
        assert why in (site / "errors.log").read_text(encoding="utf-8")
        assert not (site / "studies").exists()


def test_a_site_whose_identity_others_may_read_says_nothing_that_counts(tmp_path: Path) -> None:
    sites, out, study = hospitals(tmp_path), tmp_path / "out", tiny_study()
    credentials = enrolled(sites, study, tmp_path / "coordinator")
    (sites[1] / membership.KEY).chmod(0o640)
    run(study, options(out, sites, credentials=credentials), sites, NONE)
    assert absent(out) == [{"site-1": "malformed"}] * 2
    assert "readable for others" in (sites[1] / "errors.log").read_text(encoding="utf-8")


def test_the_coordinator_holds_where_each_sites_log_stood(kept: tuple[list[Path], Path]) -> None:
    sites, out = kept
    events = read(out / "events.jsonl")
    assert all(set(event["audit"]) == {"site-0", "site-1"} for event in events if event["event"] == "round")
    for site in sites[:2]:
        held = anchor_from(anchors(events)[site.name])
        assert held == audit.entries_of(site)[-1].anchor  # the last answer's own line: all before it is covered
        assert audit.verify(site, held)


def test_a_site_that_cut_its_log_after_the_run_is_found_out(kept: tuple[list[Path], Path]) -> None:
    sites, out = kept
    held = anchor_from(anchors(read(out / "events.jsonl"))["site-0"])
    log, head = (sites[0] / "audit" / f"audit.{kind}" for kind in ("jsonl", "head"))
    lines = log.read_bytes().splitlines(keepends=True)
    entries = audit.entries_of(sites[0])
    log.write_bytes(b"".join(lines[:-2]))
    head.write_text(f"{entries[-3].sequence}-{entries[-3].anchor.hash}\n")
    audit._warm.clear()
    assert len(audit.verify(sites[0], None).entries) == len(entries) - 2  # nothing at the site could tell
    with pytest.raises(ChainError, match="does not contain line"):
        audit.verify(sites[0], held)
