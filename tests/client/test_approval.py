"""Who lets a study run: a person, a signature, or the policy alone; for one hash, until somebody denies it."""

from pathlib import Path
from typing import Any

import pytest
from control_cases import ask, errors, logged, order, settle
from small import private_study, protect, tiny_study, write_site

from client import approval, audit, summary
from client.approval import ApprovalError
from client.chain_lines import ChainError
from client.site import open_site
from common.crypto.identity import Identity
from common.errors import MessageError, Reason

STUDY = tiny_study()
OFFICER, STRANGER = Identity(bytes(range(32))), Identity(bytes(range(1, 33)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital that asks, and allows studies without privacy."""
    return settle(write_site(tmp_path / "site-0", images=24, seed=0), privacy="optional")


def signing(folder: Path, *keys: Identity) -> Path:
    return settle(folder, privacy="optional", approve="signed", approvers=[key.public.hex() for key in keys])


def proposed(folder: Path, study: Any = STUDY) -> Reason:
    return ask(folder, order("propose", study), study).reason


def test_a_new_study_waits_until_somebody_approves_it_and_then_runs(folder: Path) -> None:
    for _ in range(2):
        assert proposed(folder) is Reason.NOT_APPROVED
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.STUDY_CHANGED
    assert "waits for its approval" in errors(folder)
    assert [study.sha256 for study in approval.shown(open_site(folder))] == [STUDY.sha256]
    approval.approve(open_site(folder), STUDY, by="anna")
    assert proposed(folder) is Reason.OK
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.OK
    (decision,) = logged(folder, "approved")
    assert (decision["by"], decision["study"], decision["name"]) == ("anna", STUDY.sha256, "tiny")


def test_a_study_that_was_changed_after_its_approval_is_a_new_one(folder: Path) -> None:
    proposed(folder)
    approval.approve(open_site(folder), STUDY, by="anna")
    for changed in (
        tiny_study(study={"rounds": 3}),
        tiny_study(training={"learning_rate": 0.051}),
        tiny_study(aggregation={"weights": "equal"}),
    ):
        assert proposed(folder, changed) is Reason.NOT_APPROVED
    assert proposed(folder) is Reason.OK


@pytest.mark.parametrize("mode", ["ask", "auto"])
def test_a_study_that_is_denied_stops_at_its_next_order_whatever_the_policy_says(folder: Path, mode: str) -> None:
    settle(folder, privacy="optional", approve=mode)
    proposed(folder)
    approval.approve(open_site(folder), STUDY, by="anna")
    assert proposed(folder) is Reason.OK
    approval.deny(open_site(folder), STUDY, by="ben", reason="the board said no")
    answer = ask(folder, order("update", STUDY), STUDY)
    assert answer.reason is Reason.NOT_APPROVED and answer.vector is None
    assert proposed(folder) is Reason.NOT_APPROVED
    assert "by ben: the board said no" in errors(folder)
    approval.approve(open_site(folder), STUDY, by="anna")
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.OK


def test_approval_sets_the_budget_aside_and_waiting_does_not(tmp_path: Path) -> None:
    study = private_study()
    folder = settle(protect(write_site(tmp_path / "site-0", images=24, seed=0)))
    before = (folder / "state" / "ledger.jsonl").read_bytes()
    assert proposed(folder, study) is Reason.NOT_APPROVED
    assert (folder / "state" / "ledger.jsonl").read_bytes() == before
    approval.approve(open_site(folder), study, by="anna")
    assert proposed(folder, study) is Reason.OK
    assert b'"allocate"' in (folder / "state" / "ledger.jsonl").read_bytes()


def test_under_signed_only_the_signature_of_an_approver_counts(folder: Path) -> None:
    site = open_site(signing(folder, OFFICER))
    assert proposed(folder) is Reason.NOT_APPROVED
    wrong = [
        "",
        "zz",
        approval.sign(STRANGER, site="site-0", study_hash=STUDY.sha256),
        approval.sign(OFFICER, site="site-1", study_hash=STUDY.sha256),
        approval.sign(OFFICER, site="site-0", study_hash=tiny_study(study={"rounds": 3}).sha256),
        OFFICER.sign("roster", STUDY.sha256.encode()).hex(),
    ]
    for signature in wrong:
        with pytest.raises(ApprovalError, match="give --signature"):
            approval.approve(site, STUDY, by="anna", signature=signature)
    assert proposed(folder) is Reason.NOT_APPROVED
    right = approval.sign(OFFICER, site="site-0", study_hash=STUDY.sha256)
    approval.approve(site, STUDY, by="anna", signature=right)
    assert proposed(folder) is Reason.OK
    assert logged(folder, "approved")[-1]["by"] == OFFICER.public.hex()


def test_an_approval_that_nobody_signed_does_not_count_once_signatures_are_asked_for(folder: Path) -> None:
    proposed(folder)
    approval.approve(open_site(folder), STUDY, by=OFFICER.public.hex())  # in the officer's name, without her key
    assert proposed(folder) is Reason.OK
    signing(folder, OFFICER)
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.NOT_APPROVED


def test_an_approver_who_is_taken_off_the_list_no_longer_counts(folder: Path) -> None:
    site = open_site(signing(folder, OFFICER))
    proposed(folder)
    approval.approve(site, STUDY, by="", signature=approval.sign(OFFICER, site="site-0", study_hash=STUDY.sha256))
    assert proposed(folder) is Reason.OK
    signing(folder, STRANGER)
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.NOT_APPROVED
    with pytest.raises(MessageError):
        approval.check_signature(
            open_site(folder).policy, "site-0", STUDY.sha256, public=OFFICER.public.hex(), signature="00" * 64
        )


def test_a_server_can_not_fill_the_disk_with_studies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "MOST_PENDING", 3)
    for seed in range(6):
        assert proposed(folder, tiny_study(study={"seed": seed})) is Reason.NOT_APPROVED
    assert len(list((folder / "pending").iterdir())) == 3
    assert "3 studies wait already" in errors(folder)


def test_a_denial_makes_room_for_another_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "MOST_PENDING", 3)
    studies = [tiny_study(study={"seed": seed}) for seed in range(6)]
    for study in studies[:3]:
        proposed(folder, study)
    for study in (studies[1], studies[0]):
        approval.deny(open_site(folder), study, by="anna", reason="no")
    for number, left in (
        (3, {1, 2, 3}),
        (4, {2, 3, 4}),
        (5, {2, 3, 4}),
    ):  # the one that was kept first makes room first
        assert proposed(folder, studies[number]) is Reason.NOT_APPROVED
        assert {study.study.seed for study in approval.shown(open_site(folder))} == left
    assert "3 studies wait already: decide on some with `client deny`" in errors(folder)


def test_a_pending_file_that_was_changed_is_no_study(folder: Path) -> None:
    proposed(folder)
    path = folder / "pending" / f"{STUDY.sha256}.json"
    path.write_text(tiny_study(study={"rounds": 9}).canonical, encoding="utf-8")
    assert approval.shown(open_site(folder)) == []


def test_a_study_is_found_by_the_beginning_of_its_hash(folder: Path) -> None:
    proposed(folder)
    site = open_site(folder)
    assert approval.find(site, STUDY.sha256[:8]) == STUDY == approval.find(site, STUDY.sha256)
    for wrong in (STUDY.sha256[:7], "", "../keys/patient", "*" * 8, "0" * 64):
        with pytest.raises(ApprovalError):
            approval.find(site, wrong)


def test_an_approval_that_was_written_into_the_log_by_hand_stops_everything(folder: Path) -> None:
    proposed(folder)
    path = folder / "audit" / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"answered"', b'"approved"'))
    with pytest.raises(ChainError):
        audit.entries_of(folder)
    assert proposed(folder) is Reason.FAILED


def test_the_summary_says_what_a_person_must_know(tmp_path: Path) -> None:
    folder = settle(protect(write_site(tmp_path / "site-0", images=24, seed=0)))
    said = summary.of(open_site(folder), private_study())
    text = " ".join(said.paragraphs)
    for part in (
        "classification of dark, bright",
        "2 rounds",
        "epsilon 8, delta 1e-05",
        "3 rounds paid for in advance",
    ):
        assert part in text
    assert "Not covered: A person under two identifiers" in text and "no secure aggregation" in text
    assert "of what is left for train patients" in text and said.objections == ()
    bare = summary.of(open_site(folder), STUDY)
    assert "WITHOUT differential privacy" in " ".join(bare.paragraphs)
    assert "would state no epsilon any more" in " ".join(bare.paragraphs)
    assert any("privacy = 'required'" in objection for objection in bare.objections)
    large = summary.of(open_site(folder), private_study(privacy={"epsilon": 14.0}))
    assert any("of what is left in pool train" in objection for objection in large.objections)
