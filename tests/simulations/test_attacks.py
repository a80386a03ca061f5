"""The attacks of a lying server: all refused; and each one reads the victim's update once a check is taken out."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import client.session_masked
import simulations.attacks.loot
from client import app as client_app
from client import ledger, private
from client import secure as site_side
from client.session import Invitation, Sessions
from client.session_masked import Masked
from client.session_setup import Setup
from common import requests, session, transcript
from common.crypto import identity
from common.errors import Reason
from common.session import Confirm, Signed
from common.transcript import KeyList, SenderList, SurvivorList
from simulations.__main__ import app
from simulations.attacks import hospitals, lists, openings, streams, table
from simulations.attacks.finding import Finding, judged
from simulations.attacks.hospitals import Hospitals

WIDE = {"COLUMNS": "200"}
ATTACKS: list[Callable[[], Finding]] = [
    openings.split_survivors,
    openings.both_shares,
    openings.own_sum,
    lists.split_keys,
    lists.split_orders,
    lists.forged_keys,
    lists.strangers,
    streams.replay,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_sites_refuse(attack: Callable[[], Finding]) -> None:
    finding = attack()
    assert finding.outcome == "refused" and finding.error == math.inf
    assert finding.said and all("\n" not in line and ": " in line for line in finding.said)


def succeeds(attack: Callable[[], Finding]) -> None:
    """It reads what no server may read: values between -2 and 2, to within a few steps of the encoding."""
    finding = attack()
    assert finding.outcome == "succeeds" and finding.error < 1e-3 and "read to within" in finding.detail


# One check taken out at a time, or as few as there are in a row.


def unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site opens for whatever list it has confirmed, whoever else has."""
    checked = Masked.confirmed_by

    def confirmed_by(self: Masked, confirms: Sequence[Confirm]) -> SurvivorList:
        return checked(self, confirms) if self.confirmed is None else self.confirmed

    monkeypatch.setattr(Masked, "confirmed_by", confirmed_by)


def test_without_confirmations_two_sites_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    unconfirmed(monkeypatch)
    succeeds(openings.split_survivors)


def test_a_site_that_answers_twice_gives_both_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sessions, "_once", lambda _self, _exchange, _ask, make: make())
    monkeypatch.setattr(Masked, "end", lambda _self, *, opened: None)
    succeeds(openings.both_shares)


def test_without_a_least_number_of_survivors_one_site_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SurvivorList, "__post_init__", lambda _self: None)
    monkeypatch.setattr(Sessions, "_enough", lambda _self, _sites, _what: None)
    assert openings.own_sum().outcome == "refused"  # few survivors can't be confirmed by t of them
    unconfirmed(monkeypatch)
    succeeds(openings.own_sum)


def test_a_site_that_deals_for_two_lists_gives_both_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = Setup.deal

    def again(self: Setup, agreed: Any, *, closed: Any) -> Any:
        secrets = {name: value for name, value in vars(self).items() if name in ("_masking", "_channel", "_seed")}
        first, self.dealt = self.dealt, None
        message = dealt(self, agreed, closed=closed)
        vars(self).update(secrets)
        self.dealt = first or self.dealt
        return message

    def agree(self: Setup, key_list: KeyList) -> Any:
        first, self.dealt = self.dealt, None
        agreed = agreed_for(self, key_list)
        self.dealt = first
        return agreed

    agreed_for = Setup.agree
    monkeypatch.setattr(Setup, "deal", again)
    monkeypatch.setattr(Setup, "agree", agree)
    assert lists.split_keys().outcome == "refused"
    monkeypatch.setattr(Sessions, "_once", lambda _self, _exchange, _ask, make: make())
    succeeds(lists.split_keys)


def test_where_the_order_is_not_agreed_on_the_others_can_be_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_order(self: SenderList) -> bytes:
        messages = transcript._list(shares.signed for shares in self.shares)
        return transcript._hash(2, self.key_list.transcript, messages)

    monkeypatch.setattr(SenderList, "transcript", property(without_order))
    succeeds(lists.split_orders)


def test_where_signatures_are_not_looked_at_the_server_is_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "verify", lambda _public, _name, _body, _signature: None)
    succeeds(lists.forged_keys)
    assert lists.strangers().outcome == "refused"


def test_where_the_roster_is_not_looked_at_the_peers_are_inventions(monkeypatch: pytest.MonkeyPatch) -> None:
    known = session.received

    def received(envelope: Any, name: str, roster: Any) -> Signed:
        if envelope["site"] in roster.identities:
            return known(envelope, name, roster)
        text = envelope["body"].encode("ascii")
        return Signed(name=name, site=envelope["site"], body=text, signature=bytes.fromhex(envelope["signature"]))

    monkeypatch.setattr(requests, "received", received)
    succeeds(lists.strangers)
    assert lists.forged_keys().outcome == "refused"


def test_a_site_that_masks_twice_gives_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, order = Masked.mask, Sessions.order

    def mask(self: Masked, words: Any) -> Any:
        kept = self._streams
        header = masked(self, words)
        self._streams = kept
        return header

    def forgotten(self: Sessions, request: bytes) -> Invitation:
        return Invitation(**{**vars(order(self, request)), "answer": None, "words": None})

    monkeypatch.setattr(Masked, "mask", mask)
    assert streams.replay().outcome == "refused"
    monkeypatch.setattr(Sessions, "order", forgotten)
    succeeds(streams.replay)


def short(secret: bytes, transcript: bytes, *, one: int, other: int) -> bytes:
    """A pair's key of six bits."""
    known = real_pair_key(secret, transcript, one=one, other=other)
    return bytes([known[0] % 64]).ljust(32, b"\0")


real_pair_key = client.session_masked.pair_key


def test_a_key_of_few_bits_is_found_and_one_of_256_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = streams.search_key(6)
    assert finding.outcome == "fails" and "256 bits" in finding.detail and " 0 are alike" in finding.detail
    assert 60 < float(finding.brief.split("10^")[1].split()[0]) < 70  # 2^256 / (10^4 … 10^7 a second) in years
    for module in (client.session_masked, simulations.attacks.loot):
        monkeypatch.setattr(module, "pair_key", short)
    succeeds(lambda: streams.search_key(6))


def test_masks_that_are_the_same_in_two_sessions_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(secret: bytes, _transcript: bytes, *, one: int, other: int) -> bytes:
        return real_pair_key(bytes(32), bytes(32), one=one, other=other)

    for module in (client.session_masked, simulations.attacks.loot):
        monkeypatch.setattr(module, "pair_key", alike)
    finding = streams.search_key(0)
    assert finding.outcome == "succeeds" and " 37 are alike" in finding.detail


# The whole client


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    yield Hospitals(tmp_path_factory.mktemp("attacked"))
    site_side._runs.clear()
    client_app._datasets.clear()
    client_app._models.clear()


@pytest.mark.e2e
def test_a_client_that_answers_in_the_clear_is_found_out(sites: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hospitals.clear_order(sites).outcome == "refused"

    def clear(site: Any, study: Any, order: Any, message: Any) -> Any:
        return replace(
            client_app.verdict(site, order, Reason.OK), vector=client_app.vector(site, study, order, message)
        )

    monkeypatch.setattr(client_app, "_masked", clear)
    finding = hospitals.clear_order(sites)
    assert finding.outcome == "succeeds" and finding.error == 0


@pytest.mark.e2e
def test_clients_that_send_the_same_again_are_subtracted(sites: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "opened_sum", lambda _site, _study, _order: None)
    monkeypatch.setattr(Invitation, "proves_closed", lambda _self, _earlier: True)
    finding = hospitals.mask_again(sites)
    assert finding.outcome == "succeeds" and finding.error < 0.1 and finding.said == ()


@pytest.mark.parametrize("last", ["0", "e"])
def test_what_a_site_has_stored_is_found_whatever_its_name_ends_in(tmp_path: Path, last: str) -> None:
    store = tmp_path / ledger.FOLDER / "released"
    store.mkdir(parents=True)
    name = f"{'a' * 32}-1-{'b' * 63}{last}"
    (store / name).write_bytes(b"update")
    (store / f"{name}.note").write_bytes(b"note")
    made: Any = SimpleNamespace(sites={"site-0": SimpleNamespace(folder=tmp_path)})
    assert Hospitals.released(made, "site-0") == b"update"


# The table


@pytest.mark.e2e
def test_the_command_carries_all_out_and_shows_the_answers() -> None:
    done = CliRunner().invoke(app, ["attack", "--bits", "8", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = found["attacks"]
    assert found["passed"] is True and len(rows) == 11
    assert [row["fedward"]["outcome"] for row in rows] == ["refused"] * 10 + ["fails"]
    assert all(row["fedward"]["said"] for row in rows[:10]) and all(row["gain"] for row in rows)
    flower = [row["flower"] for row in rows if row["flower"] is not None]
    assert len(flower) == 6 and all(each["outcome"] == "succeeds" for each in flower)
    site_side._runs.clear()


@pytest.mark.e2e
def test_the_command_fails_where_a_check_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    unconfirmed(monkeypatch)
    done = CliRunner().invoke(app, ["attack", "--bits", "8", "--json"])
    rows = json.loads(done.stdout)["attacks"]
    assert done.exit_code == 1
    assert [row["fedward"]["outcome"] for row in rows] == ["succeeds"] + ["refused"] * 9 + ["fails"]
    assert rows[0]["fedward"]["error"] < 1e-3
    site_side._runs.clear()


def found_with(finding: Finding, flower: Finding | None = None) -> table.Found:
    return table.Found(rows=(table.Row(attack="an attack", gain="a gain", fedward=finding, flower=flower),))


def test_the_exit_code_is_1_where_an_attack_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "carry_out", lambda bits: found_with(lists.forged_keys()))
    refused = CliRunner(env=WIDE).invoke(app, ["attack", "--verbose"])
    assert refused.exit_code == 0 and "refused by 2 answers" in refused.stdout
    assert "whose signature is not by" in refused.stdout and "No attack on Fedward succeeds" in refused.stdout
    monkeypatch.setattr(identity, "verify", lambda _public, _name, _body, _signature: None)
    planted = CliRunner(env=WIDE).invoke(app, ["attack"])
    assert planted.exit_code == 1 and "succeeds; read to within" in planted.stdout and "FAILED" in planted.stdout
    assert "whose signature is not by" not in planted.stdout


def test_without_flwrs_functions_its_column_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simulations.attacks.flower", None)
    monkeypatch.delattr(sys.modules["simulations.attacks"], "flower", raising=False)
    finding = table._flower("replace_keys")
    assert finding.outcome == "not tried" and finding.detail.startswith("not tried: ")
    assert found_with(lists.forged_keys(), finding).passed


def test_only_the_victims_numbers_are_a_success() -> None:
    truth, said = np.array([1.0, 2.0]), ("site-0: no",)
    for read in (None, [1.0, 2.2], [1.0, math.nan], [1.0, math.inf]):
        for answers, outcome in ((said, "refused"), ((), "fails")):
            assert judged(read, truth, tolerance=0.1, against="x", detail="y", said=answers).outcome == outcome
    assert judged([1.0, 2.05], truth, tolerance=0.1, against="x", detail="y", said=said).outcome == "succeeds"
    assert not found_with(judged([1.0], [1.0], tolerance=0, against="x", detail="y")).passed
