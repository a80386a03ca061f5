"""A site whose files were all put back to an earlier day reserves nothing: the server and every other site remember."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from control_cases import settle
from enrolled import credentials, enrolled
from small import KEY, private_study, protect, write_site
from typer.testing import CliRunner

from client import app as client_app
from client import audit, chain, check, heads, ledger, ledger_cli, ledger_copy, membership, private
from client.finding import Level
from client.ledger_records import LedgerError
from client.site import open_site
from common import wire
from common.anchor import Head
from common.errors import Reason, RunError
from common.study import Study
from server import federation
from server.events import read
from server.heads import NAME, Heads
from simulations.faults import Faults
from simulations.inprocess import run

STUDY = private_study(study={"name": "first"}, privacy={"spare_rounds": 4})
LATER = private_study(study={"name": "later", "rounds": 1}, privacy={"epsilon": 1.0})


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    client_app._datasets.clear()
    audit._warm.clear()


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    """Three enrolled hospitals whose ledgers have room for both studies."""
    made = [protect(write_site(tmp_path / f"site-{number}", images=24, seed=number)) for number in range(3)]
    made = [settle(site, approve="auto") for site in made]
    enrolled(made, STUDY, tmp_path / "coordinator")
    return made


def go(sites: list[Path], study: Study, name: str) -> list[dict[str, str]]:
    """Run a study under the coordinator's memory; who was absent, attempt by attempt."""
    base = sites[0].parent
    options = federation.Options(
        out=base / name,
        backend="inprocess",
        roster=frozenset(site.name for site in sites),
        nominal=dict.fromkeys((site.name for site in sites), 20),
        credentials=credentials(base / "coordinator"),
        heads=base / NAME,
    )
    run(study, options, sites, Faults(scripted={}))
    return [event["absent"] for event in read(base / name / "events.jsonl") if event["event"] in ("round", "retry")]


def put_back(site: Path, before: Path) -> None:
    shutil.rmtree(site)
    shutil.copytree(before, site)
    audit._warm.clear()


def records(site: Path) -> list[str]:
    return [entry.kind for entry in chain.read(site / ledger.FOLDER, ledger.NAME).entries]


def said(app: Any, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_site_hears_where_every_ledger_stands(sites: list[Path]) -> None:
    assert go(sites, STUDY, "first") == [{}, {}]
    known = Heads(sites[0].parent / NAME, {})
    for site in sites:
        newest = chain.read(site / ledger.FOLDER, ledger.NAME).entries[-1].anchor
        (told,) = (text for text in known.told() if text.startswith(f"{site.name} "))
        assert f"{newest.sequence:09}-{newest.hash}" in told
        kept = (site / heads.NAME).read_text(encoding="ascii")
        assert all(f"{other.name} " in kept for other in sites)


@pytest.mark.parametrize("server_forgets", [False, True], ids=["the server remembers", "only the other sites remember"])
def test_a_site_that_was_put_back_with_all_its_files_reserves_nothing(sites: list[Path], server_forgets: bool) -> None:
    before = sites[1].parent / "before"
    shutil.copytree(sites[1], before)
    go(sites, STUDY, "first")
    put_back(sites[1], before)
    if server_forgets:
        (sites[0].parent / NAME).unlink()
    absent = go(sites, LATER, "later")
    assert absent[-1] == {"site-1": "failed"}
    assert "reserve" not in records(sites[1])
    assert "older copy" in (sites[1] / "errors.log").read_text(encoding="utf-8")
    assert records(sites[0])[-1] == "commit"
    # The others told the server what it had forgotten, at the cost of one attempt.
    assert absent[:-1] == ([dict.fromkeys(("site-0", "site-2"), "failed")] if server_forgets else [])


def test_a_study_that_is_still_open_gets_nothing_out_of_it_either(sites: list[Path]) -> None:
    """The copy is of a day on which the study had its budget: its orders would be reserved anew."""
    before = sites[1].parent / "before"
    budget: list[Path] = []

    def copied(_: Any) -> None:
        if "allocate" in records(sites[1]) and not budget:
            shutil.copytree(sites[1], before)
            budget.append(before)

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        real = Heads.hear
        patch.setattr(Heads, "hear", lambda self, told, **more: (real(self, told, **more), copied(told)))
        go(sites, STUDY, "first")
    put_back(sites[1], before)
    assert records(sites[1]) == ["genesis", "allocate"]
    absent = go(sites, STUDY, "again")
    assert [set(attempt) for attempt in absent] == [{"site-1"}] * 2
    assert records(sites[1]) == ["genesis", "allocate"]


def test_the_commands_at_a_site_that_was_put_back_say_so_and_change_nothing(sites: list[Path]) -> None:
    site, before = sites[1], sites[1].parent / "before"
    shutil.copytree(site / ledger.FOLDER, before)  # the ledger alone is old; what the site has heard is of today
    go(sites, STUDY, "first")
    shutil.rmtree(site / "audit")
    audit._warm.clear()
    chain_before = chain.read(site / ledger.FOLDER, ledger.NAME)
    copy = site.parent / "copy"
    ledger_copy.backup(site / ledger.FOLDER, copy, patient_key=KEY)
    shutil.rmtree(site / ledger.FOLDER)
    shutil.copytree(before, site / ledger.FOLDER)
    (line,) = (found for found in check.run(site, now=time.time()) if found.about == "ledger")
    heard = chain_before.entries[3].anchor  # the order of round 2 told it
    assert line.level is Level.FAIL and f"does not contain record {heard}, which other sites" in line.text
    with pytest.raises(LedgerError, match="older copy"):
        said(ledger_cli.app, "close", site, STUDY.sha256)
    old = site.parent / "old"
    ledger_copy.backup(site / ledger.FOLDER, old, patient_key=KEY)
    shutil.rmtree(site / ledger.FOLDER)
    with pytest.raises(LedgerError, match="does not contain record"):
        said(ledger_cli.app, "restore", site, old)
    assert "goes on at" in said(ledger_cli.app, "restore", site, copy)
    assert "reserve" in records(site)


def test_a_server_that_hides_where_a_ledger_stands_gets_no_site_to_spend(
    sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(sites, STUDY, "first")
    spent = [records(site) for site in sites]
    only: dict[str, Callable[[str], bool]] = {
        "all": lambda _text: False,
        "one": lambda text: not text.startswith("site-1 "),
    }
    for name, shown in only.items():
        real = Heads.told
        with monkeypatch.context() as patch:
            patch.setattr(Heads, "told", lambda self, real=real, shown=shown: tuple(filter(shown, real(self))))
            with pytest.raises(RunError, match="site-0 failed, site-1 failed, site-2 failed"):
                go(sites, LATER, name)
    assert [records(site) for site in sites] == spent
    for site in sites:
        assert "has forgotten it" in (site / "errors.log").read_text(encoding="utf-8")


def roll_back(sites: list[Path], number: int, name: str) -> list[list[str]]:
    """A site and the server, both as they were when the study began, while the others remember it; their records."""
    site, base = sites[number], sites[0].parent
    taken: list[Path] = []

    def copied() -> None:
        if "allocate" in records(site) and not taken:
            shutil.copytree(site, base / "before")
            shutil.copy(base / NAME, base / "before.json")
            taken.append(site)

    with pytest.MonkeyPatch.context() as patch:
        real = Heads.hear
        patch.setattr(Heads, "hear", lambda self, told, **more: (real(self, told, **more), copied()))
        go(sites, STUDY, name)
    put_back(site, base / "before")
    shutil.copy(base / "before.json", base / NAME)
    return [records(each) for each in sites]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_site_and_the_server_put_back_together_are_told_by_any_other_site(sites: list[Path], number: int) -> None:
    """Whichever answers first: the ledger that goes on from the older copy soon has as many records as the true one, or
    more, and must not take its place in anybody's memory.
    """
    before = roll_back(sites, number, "first")
    for name in ("again", "later"):
        absent = go(sites, STUDY if name == "again" else LATER, name)
        assert set(absent[-1]) == {f"site-{number}"}  # the others go on, and no round is lost for good
        assert records(sites[number]).count("reserve") == before[number].count("reserve")
    assert "older copy" in (sites[number] / "errors.log").read_text(encoding="utf-8")


def test_nobody_is_asked_where_there_are_too_few_to_close_a_round(sites: list[Path]) -> None:
    """What the one site that is there would be charged for would be lost."""
    settle(sites[0], approve="auto")
    for site in sites[1:]:
        settle(site, approve="ask")
    with pytest.raises(RunError, match="not_approved"):
        go(sites, private_study(study={"name": "alone", "round_retries": 1}), "alone")
    assert records(sites[0]) == ["genesis", "allocate"]


def test_a_ledger_must_contain_all_that_others_have_of_it_and_not_the_newest_alone(sites: list[Path]) -> None:
    """What went on from an older copy may have more records than the ledger whose place it took."""
    own, key = open_site(sites[1]), membership.identity_of(sites[1])
    newest = chain.read(own.folder / ledger.FOLDER, ledger.NAME).entries[-1].anchor
    true = Head.sign(key, site=own.name, sequence=newest.sequence, hash=newest.hash)
    with private.opened(own):
        pass
    go(sites, STUDY, "first")
    later = chain.read(own.folder / ledger.FOLDER, ledger.NAME).entries[-1].anchor
    heard = [Head.sign(key, site=own.name, sequence=later.sequence, hash=later.hash), true]
    for older, contained in ((true, True), (replace(true, hash="ab" * 32), False)):
        signed = Head.sign(key, site=own.name, sequence=older.sequence, hash=older.hash)
        (own.folder / heads.NAME).write_text(json.dumps([str(heard[0]), str(signed)]), encoding="ascii")
        with nullcontext() if contained else pytest.raises(LedgerError, match="older copy"), private.opened(own):
            pass


@pytest.mark.parametrize(("reason", "followed"), [(Reason.OK, ("a head",)), (Reason.FAILED, ()), (Reason.BUDGET, ())])
def test_who_refuses_an_order_has_not_followed_what_it_told(reason: Reason, followed: tuple[str, ...]) -> None:
    said: list[Any] = []
    run = SimpleNamespace(_logs={}, _heads=SimpleNamespace(hear=lambda heads, **more: said.append((heads, more))))
    order = wire.Order(kind="update", round=1, attempt=1, study_hash="", heads=("a head",))
    answer = wire.Answer(
        site="site-1", kind="update", round=1, attempt=1, study_hash="", order_hash="", reason=reason, heads=("own",)
    )
    federation._Run._hear(run, order, answer)  # type: ignore[arg-type]
    assert said == [(("own",), {"site": "site-1", "followed": followed})]
