"""Secure aggregation at a site folder: what an order may make it compute, what it keeps, and who is told first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from secure_cases import RUN, STUDY, order_of, vector_of
from session_cases import SERVER, SUPERNODE, identity_of, names_of
from small import tiny_study

from client import audit, secure
from client.membership import KEY, ROSTER, pin
from client.session import Invitation
from client.site import Site, open_site
from common import secure as encoding
from common import wire
from common.crypto.agreement import KeyPair
from common.crypto.identity import Identity
from common.errors import DataError, MessageError, RunError
from common.masking import MaskedSum
from common.roster import Roster, RosterError, issue, member
from common.session import Keys, Signed, answered
from server.session import Session

COORDINATOR = Identity(bytes(32))
TOLD: list[tuple[str, int, int]] = []  # site, round whose sum opens, sums in its audit log by then


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between messages."""
    yield
    secure._runs.clear()
    TOLD.clear()


def roster_of(count: int, *, before: Roster | None = None) -> Roster:
    sites = [
        member(identity_of(name), name=name, supernode=f"{SUPERNODE} {name}", nominal_patients=100)
        for name in names_of(count)
    ]
    return issue(
        COORDINATOR,
        sites=sites,
        server=SERVER.public,
        colluding=0,
        min_sites=3,
        now=int(time.time()),
        before=before,
        expires=None if before is None else before.expires,
    )


@dataclass
class Hospitals:
    """Site folders that have joined a federation, and an honest server."""

    folder: Path
    policy: str = ""  # of each site.toml
    run: str = RUN
    computed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = roster_of(4)
        for name in names_of(4):
            site = self.folder / name
            (site / "keys").mkdir(parents=True)
            (site / "keys" / "patient.key").write_bytes(bytes(32))
            (site / KEY).write_bytes(identity_of(name).private_bytes())
            (site / KEY).chmod(0o600)
            (site / "site.toml").write_text(f'name = "{name}"\n[policy]\n{self.policy}\n', encoding="utf-8")
            pin(site, self.roster)

    def site(self, name: str) -> Site:
        return open_site(self.folder / name)

    def session(self, number: int) -> Session:
        return Session(key=SERVER, setting=encoding.setting_of(STUDY, self.roster, run=self.run), number=number)

    def order(self, kind: wire.Kind, session: bytes, *, round: int = 1) -> wire.Order:
        return replace(order_of(kind, round=round, session=session), run=self.run)

    def ask(
        self,
        name: str,
        order: wire.Order,
        compute: Callable[[Invitation], wire.Vector] | None = None,
        opened: Callable[[wire.Order], None] | None = None,
    ) -> tuple[dict[str, Signed], wire.Words | None]:
        def computed(_invitation: Invitation) -> wire.Vector:
            self.computed.append(name)
            return vector_of(name)

        def told(order: wire.Order) -> None:
            sums = [entry for entry in audit.entries_of(self.folder / name) if entry.kind == "sum"]
            TOLD.append((name, order.round, len(sums)))

        session, words = secure.respond(self.site(name), STUDY, order, compute or computed, opened or told)
        return answered(session, self.roster, site=name), words

    def set_up(self, number: int) -> Session:
        session = self.session(number)
        for name in names_of(4):
            session.take_keys(self.ask(name, self.order("keys", session.ask_keys()))[0]["keys"])
        for name in names_of(4):
            session.take_shares(self.ask(name, self.order("shares", session.ask_shares()))[0]["shares"])
        return session

    def update(self, session: Session, *, round: int = 1, next: int = 0) -> wire.Order:
        """The order that a session is for."""
        digest = bytes.fromhex(self.order("update", b"", round=round).sha256)
        return self.order("update", session.ask_masked(digest, next=next), round=round)

    def masked(self, number: int, *, round: int = 1, sites: int = 4) -> tuple[Session, MaskedSum]:
        session = self.set_up(number)
        asked = self.update(session, round=round)
        total = MaskedSum(encoding.encoding_of(STUDY, "update", sites=4))
        for name in names_of(sites):
            said, words = self.ask(name, asked)
            assert words is not None
            assert session.take_header(said["header"], vector=sha256(words.astype("<u8").tobytes()).digest())
            total.add(words)
        return session, total


@pytest.fixture
def four(tmp_path: Path) -> Hospitals:
    return Hospitals(tmp_path)


def refused(call: Callable[[], object], text: str, error: type[Exception] = MessageError) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_sites_answers_are_masked_and_add_up_to_the_sum(four: Hospitals) -> None:
    session, total = four.masked(1)
    with pytest.raises(MessageError, match="masks"):
        encoding.from_sum(total, STUDY, "update", four.roster, sites=4)
    for name in names_of(4):
        session.take_opened(four.ask(name, four.order("open", session.ask_opening()))[0]["opened"])
    total.unmask(session.streams())
    found, _ = encoding.from_sum(total, STUDY, "update", four.roster, sites=4)
    expected = sum(vector_of(name).astype(np.float64) for name in names_of(4))
    assert np.abs(found - expected).max() < 4 * 2**-16


def test_where_somebody_is_missing_a_site_confirms_first_and_opens_when_asked_to_reveal(four: Hospitals) -> None:
    session, _ = four.masked(1, sites=3)
    for name in names_of(3):
        said, _ = four.ask(name, four.order("open", session.ask_opening()))
        assert set(said) == {"confirm"}
        session.take_confirm(said["confirm"])
    assert TOLD == []
    said, words = four.ask("site-0", four.order("reveal", session.ask_reveal()))
    assert set(said) == {"opened"} and words is None and TOLD == [("site-0", 1, 1)]


def test_audit_log_and_ledger_hear_of_an_opening_before_it_exists_and_can_stop_it(four: Hospitals) -> None:
    session, _ = four.masked(1)
    asked = four.order("open", session.ask_opening(), round=7)  # what an order to open calls itself says nothing

    def full(_order: wire.Order) -> None:
        raise RunError("the ledger can't be written")

    refused(lambda: four.ask("site-0", asked, opened=full), "ledger", RunError)
    assert four.ask("site-0", asked)[0].keys() == {"opened"}
    assert TOLD == [("site-0", 1, 2)]  # in the log both times, the ledger after it
    (line, _) = [entry for entry in audit.entries_of(four.folder / "site-0") if entry.kind == "sum"]
    assert line.body["survivors"] == names_of(4) and line.body["study"] == STUDY.sha256


def test_an_order_that_is_not_the_session_s_is_refused_before_anything_is_computed(four: Hospitals) -> None:
    session = four.set_up(1)
    asked = four.update(session)
    other = four.order("update", asked.session, round=2)
    refused(lambda: four.ask("site-0", other), "another order")
    refused(lambda: secure.invited(four.site("site-0"), STUDY, other), "another order")
    refused(lambda: four.ask("site-0", four.order("update", session.ask_shares())), "signature")
    assert four.computed == []
    assert four.ask("site-0", asked)[1] is not None


def test_the_same_order_is_computed_once_and_gets_the_same_bytes(four: Hospitals) -> None:
    session = four.set_up(1)
    asked = four.update(session)
    (first, words), (again, same) = four.ask("site-0", asked), four.ask("site-0", asked)
    assert first == again and words is same and four.computed == ["site-0"]


def test_an_order_that_failed_at_the_site_may_come_again(four: Hospitals) -> None:
    asked = four.update(four.set_up(1))

    def broken(_invitation: Invitation) -> wire.Vector:
        raise DataError("no images")

    refused(lambda: four.ask("site-0", asked, broken), "no images", DataError)
    assert four.ask("site-0", asked)[1] is not None


def test_the_key_of_the_rounding_is_fresh_for_each_vector(four: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    real = encoding.to_words

    def noted(*args: object, key: bytes) -> wire.Words:
        keys.append(key)
        return real(*args, key=key)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "to_words", noted)
    asked = four.update(four.set_up(1))
    for name in names_of(4):
        four.ask(name, asked)
    assert len(set(keys)) == 4 and {len(key) for key in keys} == {32}


def test_a_proposal_and_an_order_without_its_run_are_no_part_of_it(four: Hospitals) -> None:
    refused(lambda: four.ask("site-0", four.order("propose", b"x")), "proposal")
    four.run = ""
    refused(lambda: four.ask("site-0", four.order("keys", b"x")), "without its run")


def test_runs_are_apart_and_only_so_many_are_kept(four: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "RUNS", 2)
    orders = []
    for run in ("one", "two", "three"):
        four.run = sha256(run.encode()).hexdigest()
        session = four.session(1)
        session.take_keys(four.ask("site-0", four.order("keys", session.ask_keys()))[0]["keys"])
        for name in names_of(4)[1:]:
            masking, channel = KeyPair.new().public, KeyPair.new().public
            transcript = session.setting.transcript(1)
            keys = Keys.sign(identity_of(name), name, transcript=transcript, masking=masking, channel=channel)
            session.take_keys(keys.signed)
        orders.append(four.order("shares", session.ask_shares()))
    for order in orders[1:]:
        assert set(four.ask("site-0", order)[0]) == {"shares"}
    refused(lambda: four.ask("site-0", orders[0]), "is not the one that this site sets up")


def test_a_machine_may_have_any_number_of_sites(four: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "RUNS", 1)
    session, _ = four.masked(1)
    assert set(four.ask("site-0", four.order("open", session.ask_opening()))[0]) == {"opened"}


def test_a_session_of_one_study_answers_no_order_of_another(four: Hospitals) -> None:
    """Its own min_sites would not count there, and the log would name the wrong study."""
    other = tiny_study(study={"min_sites": 4}, aggregation={"secure": True, "weights": "equal", "range": 0.5})
    session = four.set_up(1)
    order = replace(four.order("update", b""), study_hash=other.sha256)
    asked = replace(order, session=session.ask_masked(bytes.fromhex(order.sha256)))

    def never(_invitation: Invitation) -> wire.Vector:
        raise AssertionError("computed")

    refused(lambda: secure.respond(four.site("site-0"), other, asked, never, lambda _: None), "sets up")


def test_only_the_order_whose_session_is_open_is_kept(four: Hospitals) -> None:
    """It holds all weights of the model."""
    four.masked(1, round=1)
    four.masked(2, round=2)
    for run in (run for runs in secure._runs.values() for run in runs.values()):
        assert [order.round for order in run.orders.values()] == [2]


def test_sessions_end_with_the_roster_that_they_began_under(four: Hospitals) -> None:
    session, _ = four.masked(1)
    opening = four.order("open", session.ask_opening())
    pin(four.folder / "site-0", roster_of(3, before=four.roster))
    refused(lambda: four.ask("site-0", opening), "site-3, who is not in the roster")
    (left,) = secure._runs[four.folder / "site-0"].values()  # nothing is left of the sessions under the old one
    assert left.sessions._current is None
    assert set(four.ask("site-1", opening)[0]) == {"opened"}


def test_a_roster_that_has_expired_or_is_gone_ends_everything(four: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    request = four.order("keys", four.session(1).ask_keys())
    with monkeypatch.context() as later:
        later.setattr(secure.time, "time", lambda: float(four.roster.expires))
        refused(lambda: four.ask("site-0", request), "expired", RosterError)
    (four.folder / "site-0" / ROSTER).unlink()
    refused(lambda: four.ask("site-0", request), "pinned no roster", RosterError)


@pytest.mark.parametrize("policy", ["min_sites = 4", "colluding = 1"])
def test_a_roster_below_the_site_s_own_policy_is_refused(tmp_path: Path, policy: str) -> None:
    four = Hospitals(tmp_path, policy=policy)
    refused(
        lambda: four.ask("site-0", four.order("keys", four.session(1).ask_keys())), "asks for at least", RosterError
    )


@pytest.mark.parametrize("restart", [False, True])
def test_survivors_that_differ_by_too_few_sites_are_not_opened(tmp_path: Path, restart: bool) -> None:
    four = Hospitals(tmp_path, policy="min_change = 2")
    session, _ = four.masked(1)
    assert set(four.ask("site-0", four.order("open", session.ask_opening()))[0]) == {"opened"}
    if restart:
        secure._runs.clear()
    session, _ = four.masked(2, round=2, sites=3)
    refused(lambda: four.ask("site-0", four.order("open", session.ask_opening())), "differ by fewer than 2")
    assert set(four.ask("site-1", four.order("open", session.ask_opening()))[0]) == {"confirm"}  # has opened nothing


def test_after_a_restart_a_site_has_left_its_sessions(four: Hospitals) -> None:
    session, _ = four.masked(1)
    secure._runs.clear()
    refused(lambda: four.ask("site-0", four.order("open", session.ask_opening())), "newest")
