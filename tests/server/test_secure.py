"""The server's rounds under secure aggregation: whom it asks for what, what it takes, and what it keeps."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from secure_cases import RUN, STUDY, Hospitals, order_of, vector_of
from session_cases import identity_of

from common import wire
from common.errors import Reason
from common.layout import Answering, layout_of
from common.session import Header, answer, answered
from server import secure
from server.gathering import Gathered
from server.secure import GRACE, Secure
from server.session import Session, SessionFailed

START = ["keys", "shares", "update", "open"]


def begun(hospitals: Hospitals) -> Secure:
    return Secure(hospitals, STUDY, hospitals.credentials, run=RUN)  # type: ignore[arg-type]


def gather(run: Secure, hospitals: Hospitals, kind: Answering = "update", *, round: int = 1) -> Gathered:
    return run.gather(hospitals.nodes, order_of(kind, round=round), hospitals.begin(kind))


def is_sum_of(gathered: Gathered, hospitals: Hospitals, sites: list[str], kind: Answering = "update") -> bool:
    expected = sum(vector_of(site, kind).astype(np.float64) for site in sites)
    close = np.abs(gathered.total - expected).max() < len(sites) * 2**-16  # what a sum beside the tensors is rounded to
    return gathered.round.participants == tuple(sites) and bool(close)


def spoil(hospitals: Hospitals, change: Callable[[wire.Answer], wire.Answer], kind: str = "update") -> None:
    hospitals.spoilt[kind, "site-1"] = change


THE_OTHERS = ["site-0", "site-2", "site-3"]


def test_a_round_is_the_sum_over_all_and_the_next_one_needs_no_set_up() -> None:
    hospitals = Hospitals()
    run = begun(hospitals)
    assert is_sum_of(gather(run, hospitals), hospitals, list(hospitals.sites))
    assert hospitals.kinds() == START
    evaluated = gather(run, hospitals, "evaluate", round=2)
    assert is_sum_of(evaluated, hospitals, list(hospitals.sites), "evaluate")
    assert hospitals.kinds() == [*START, "evaluate", "open"]
    assert gathered_sessions(hospitals) == sorted(set(gathered_sessions(hospitals)))


def gathered_sessions(hospitals: Hospitals) -> list[int]:
    """The sessions that the first site has opened, in order."""
    return [opening.session for site, opening in hospitals.openings if site == "site-0"]


def test_the_model_goes_out_once_a_round_with_the_order_that_asks_for_an_answer() -> None:
    hospitals = Hospitals()
    gather(begun(hospitals), hospitals)
    for asked in hospitals.asked:
        for order in asked.orders.values():
            carries = order.kind == "update"
            assert (order.weights is not None) == carries == bool(order.weights_hash) and order.session


def test_who_is_missing_is_left_out_and_only_survivors_open() -> None:
    hospitals = Hospitals(away={("update", "site-1")})
    gathered = gather(begun(hospitals), hospitals)
    assert is_sum_of(gathered, hospitals, THE_OTHERS)
    assert gathered.round.absent == {"site-1": Reason.LATE}
    # It is back with keys for the next session before the opening, so that it misses this round alone.
    assert hospitals.kinds() == ["keys", "shares", "update", "keys", "open+shares", "reveal"]
    assert hospitals.asked[3].kinds == {"site-1": "keys"}
    assert hospitals.asked[4].kinds == {**dict.fromkeys(THE_OTHERS, "open"), "site-1": "shares"}
    assert list(hospitals.asked[5].kinds) == THE_OTHERS
    assert {opening.missing for _, opening in hospitals.openings} == {("site-1",)}


def test_shares_of_the_missing_are_asked_of_those_who_confirmed_alone() -> None:
    hospitals = Hospitals(5, away={("update", "site-1"), ("open", "site-4")})
    gathered = gather(begun(hospitals), hospitals)
    assert is_sum_of(gathered, hospitals, [*THE_OTHERS, "site-4"])
    assert hospitals.asked[-1].kinds == dict.fromkeys(THE_OTHERS, "reveal")


def test_a_site_that_was_away_at_the_set_up_is_absent_and_in_the_next_session() -> None:
    hospitals = Hospitals(away={("keys", "site-1")})
    run = begun(hospitals)
    original = hospitals.answer

    def back(site: str, order: wire.Order) -> wire.Answer | None:
        if order.kind == "update":
            hospitals.away.clear()
        return original(site, order)

    hospitals.answer = back  # type: ignore[method-assign]
    first = gather(run, hospitals)
    assert is_sum_of(first, hospitals, THE_OTHERS)
    assert first.round.absent == {"site-1": Reason.LATE} and not first.round.waiting
    assert hospitals.asked[2].kinds == {**dict.fromkeys(THE_OTHERS, "update"), "site-1": "keys"}
    assert is_sum_of(gather(run, hospitals, round=2), hospitals, list(hospitals.sites))
    assert hospitals.kinds()[4:] == ["update", "open"]


def test_a_site_that_comes_back_between_rounds_is_absent_once_more() -> None:
    hospitals = Hospitals(away={("keys", "site-1")})
    run = begun(hospitals)
    gather(run, hospitals)
    hospitals.away.clear()
    second = gather(run, hospitals, round=2)
    assert is_sum_of(second, hospitals, THE_OTHERS) and second.round.absent == {"site-1": Reason.LATE}
    assert is_sum_of(gather(run, hospitals, round=3), hospitals, list(hospitals.sites))


def test_what_comes_twice_counts_once() -> None:
    hospitals = Hospitals(twice=True)
    assert is_sum_of(gather(begun(hospitals), hospitals), hospitals, list(hospitals.sites))


def other_words(found: wire.Answer) -> wire.Answer:
    assert found.words is not None
    return replace(found, words=found.words + np.uint64(1))


def other_name(found: wire.Answer) -> wire.Answer:
    return replace(found, site="site-2")


def no_header(found: wire.Answer) -> wire.Answer:
    return replace(found, session=b"{}")


def refused(found: wire.Answer) -> wire.Answer:
    return replace(found, reason=Reason.BUDGET, words=None, session=b"")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_words, Reason.MALFORMED),
        (other_name, Reason.MALFORMED),
        (no_header, Reason.MALFORMED),
        (refused, Reason.BUDGET),
    ],
)
def test_an_answer_that_is_refused_is_not_in_the_sum(
    change: Callable[[wire.Answer], wire.Answer], reason: Reason
) -> None:
    hospitals = Hospitals()
    spoil(hospitals, change)
    gathered = gather(begun(hospitals), hospitals)
    assert is_sum_of(gathered, hospitals, THE_OTHERS)
    assert gathered.round.absent == {"site-1": reason}


def test_a_message_of_another_site_is_nobody_s() -> None:
    """site-1 hands over the keys of site-0 as its own: it has sent none."""
    hospitals = Hospitals()
    sent: list[bytes] = []

    def keep(found: wire.Answer) -> wire.Answer:
        sent.append(found.session)
        return found

    hospitals.spoilt["keys", "site-0"] = keep
    spoil(hospitals, lambda found: replace(found, session=sent[0]), "keys")
    gathered = gather(begun(hospitals), hospitals)
    assert is_sum_of(gathered, hospitals, THE_OTHERS)
    assert gathered.round.absent == {"site-1": Reason.MALFORMED}


def test_a_garbage_vector_spoils_the_round_and_nothing_else() -> None:
    """Its header fits: nobody can see whose it is."""
    hospitals = Hospitals()

    def garbage(found: wire.Answer) -> wire.Answer:
        words = np.arange(1, 1 + np.size(found.words), dtype=np.uint64) << np.uint64(40)
        said = answered(found.session, hospitals.roster, site="site-1")
        header = Header.sign(
            identity_of("site-1"),
            "site-1",
            transcript=Header.of(said["header"]).transcript,
            vector=sha256(words.tobytes()).digest(),
            misfits=(),
        )
        return replace(found, words=words, session=answer(header.signed, said["keys"]))

    # What the site's own session signed is not what was sent: it refuses the survivors, and three others open.
    spoil(hospitals, garbage)
    gathered = gather(begun(hospitals), hospitals)
    assert gathered.round.outcome == "abandoned" and "vectors" in gathered.round.failed
    assert gathered.total.size == 0


def test_too_few_vectors_close_the_session_and_the_next_one_is_ready() -> None:
    hospitals = Hospitals(away={("update", "site-1"), ("update", "site-2")})
    run = begun(hospitals)
    gathered = gather(run, hospitals)
    assert gathered.round.outcome == "abandoned" and gathered.total.size == 0
    assert hospitals.kinds() == ["keys", "shares", "update", "keys", "open+shares"]
    # Who has masked closes the session; who has not knows nothing of it that could be closed.
    assert hospitals.asked[4].kinds == {"site-0": "open", "site-1": "shares", "site-2": "shares", "site-3": "open"}
    assert hospitals.openings == []
    hospitals.away.clear()
    assert is_sum_of(gather(run, hospitals), hospitals, list(hospitals.sites))
    assert hospitals.kinds()[5:] == ["update", "open"]


def test_a_round_without_enough_keys_or_openings_has_failed() -> None:
    without_keys = Hospitals(away={("keys", "site-1"), ("keys", "site-2")})
    gathered = gather(begun(without_keys), without_keys)
    assert gathered.round.outcome == "abandoned" and "keys of 2 sites" in gathered.round.failed
    assert without_keys.kinds() == ["keys"]
    unopened = Hospitals(away={("open", "site-1"), ("open", "site-2")})
    gathered = gather(begun(unopened), unopened)
    assert gathered.round.outcome == "abandoned" and "shares of" in gathered.round.failed
    assert gathered.total.size == 0


def test_a_session_that_is_not_ready_is_set_up_anew_under_a_new_number() -> None:
    """Nobody sent shares for the next session with the opening."""
    hospitals = Hospitals()
    run = begun(hospitals)

    def without_shares(found: wire.Answer) -> wire.Answer:
        said = answered(found.session, hospitals.roster, site=found.site)
        return replace(found, session=answer(said["opened"]))

    for site in ("site-0", "site-1"):
        hospitals.spoilt["open", site] = without_shares
    gather(run, hospitals)
    assert is_sum_of(gather(run, hospitals, round=2), hospitals, list(hospitals.sites))
    assert hospitals.kinds() == START + START
    first, second = gathered_sessions(hospitals)
    assert second > first


def test_a_session_that_failed_is_not_taken_up_again() -> None:
    hospitals = Hospitals()
    run = begun(hospitals)
    gather(run, hospitals)
    hospitals.away = {("open", "site-1"), ("open", "site-2")}
    assert gather(run, hospitals, round=2).round.outcome == "abandoned"
    hospitals.away.clear()
    hospitals.asked.clear()
    assert is_sum_of(gather(run, hospitals, round=3), hospitals, list(hospitals.sites))
    assert hospitals.kinds() == START


def test_who_dealt_false_shares_is_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals()
    run = begun(hospitals)

    def blamed(_self: Session) -> Any:
        raise SessionFailed("session 1: site-1 dealt false shares", blamed=("site-1",))

    with monkeypatch.context() as false:
        false.setattr(Session, "streams", blamed)
        assert "site-1 dealt false shares" in gather(run, hospitals).round.failed
    hospitals.asked.clear()
    gathered = gather(run, hospitals)
    assert is_sum_of(gathered, hospitals, THE_OTHERS)
    assert gathered.round.absent == {"site-1": Reason.MALFORMED}
    assert not any("site-1" in asked.kinds for asked in hospitals.asked)


def test_an_exchange_ends_at_the_deadline_and_re_entry_after_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals(away={("update", "site-1")})
    gather(begun(hospitals), hospitals)
    deadline = STUDY.study.round_deadline
    assert deadline > GRACE
    assert [asked.deadline for asked in hospitals.asked] == [*[deadline] * 3, GRACE, *[deadline] * 2]
    assert {asked.grace for asked in hospitals.asked} == {GRACE}


def test_nobody_is_waited_for_once_the_sum_can_be_opened_or_the_round_is_lost() -> None:
    opened = Hospitals(5)
    gather(begun(opened), opened)
    assert [asked.wanted for asked in opened.asked] == [5, 5, 5, 2]  # t = 3: the third makes it enough
    missing = Hospitals(5, away={("update", "site-1")})
    gather(begun(missing), missing)
    assert [asked.wanted for asked in missing.asked] == [5, 5, 4, 1, 2, 2]
    lost = Hospitals(4)
    for site in ("site-0", "site-1"):
        lost.spoilt["update", site] = refused
    gather(begun(lost), lost)
    assert lost.asked[2].wanted == 1


def test_bytes_and_seconds_are_those_of_all_exchanges() -> None:
    hospitals = Hospitals()
    tally = gather(begun(hospitals), hospitals).tally
    assert tally.bytes_up == dict.fromkeys(hospitals.sites, 80)
    assert tally.bytes_down == dict.fromkeys(hospitals.sites, 40)
    assert tally.seconds == dict.fromkeys(hospitals.sites, 1.0)


def test_a_session_and_its_secrets_are_gone_after_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals()
    run = begun(hospitals)
    made: list[weakref.ref[Session]] = []

    class Watched(Session):
        def __init__(self, **values: Any) -> None:
            super().__init__(**values)
            made.append(weakref.ref(self))

    monkeypatch.setattr(secure, "Session", Watched)
    gather(run, hospitals)
    assert sum(one() is not None for one in made) == 1  # the next one, which has no order yet
    gather(run, hospitals, round=2)
    assert sum(one() is not None for one in made) == 1


def test_a_resumed_run_uses_no_number_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals()
    monkeypatch.setattr(secure.time, "time", lambda: 1_900_000_000.0)
    first = begun(hospitals)
    gather(first, hospitals)
    monkeypatch.setattr(secure.time, "time", lambda: 1_900_000_001.0)
    resumed = begun(hospitals)
    assert resumed.new_session().number > first.new_session().number
    assert is_sum_of(gather(resumed, hospitals), hospitals, list(hospitals.sites))


def test_the_words_that_are_waited_for_are_those_of_the_layout() -> None:
    hospitals = Hospitals()
    gather(begun(hospitals), hospitals)
    values = layout_of(STUDY, "update").tensor_length
    assert [asked.length >= values / 3 for asked in hospitals.asked] == [False, False, True, False]
