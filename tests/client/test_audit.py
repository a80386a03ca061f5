"""The audit log: what was asked and decided, on disk before a reply exists, and nothing in it about a patient."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cases import ask, errors, logged, order, send, settle
from flwr.app import ConfigRecord, RecordDict
from PIL import Image
from small import KEY, full_disk, private_study, protect, tiny_study, write_site

from client import app as client_app
from client import approval, audit, chain, index, membership, train
from client.chain import Chain
from client.chain_lines import ChainError, anchor_from
from client.session import Opening
from client.site import open_site, site_toml
from common import wire
from common.anchor import plain
from common.errors import DataError, Reason

STUDY = tiny_study()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    audit._warm.clear()
    made = write_site(tmp_path / "site-0", images=24, seed=0)
    return settle(made, approve="auto", privacy="optional")


def kinds(folder: Path) -> list[str]:
    return [entry.kind for entry in audit.entries_of(folder)]


def test_every_order_and_every_answer_is_a_line(folder: Path) -> None:
    asked = order("update", STUDY)
    ask(folder, order("propose", STUDY), STUDY)
    record = wire.order_record(asked)
    send(folder, record)
    assert kinds(folder) == ["begun", "received", "answered", "received", "answered"]
    received, answered = logged(folder, "received")[1], logged(folder, "answered")[1]
    same = {"order": "update", "round": 1, "attempt": 1, "study": STUDY.sha256, "hash": asked.sha256}
    assert same.items() <= received.items() and same.items() <= answered.items()
    assert received["weights"] == asked.weights_hash and received["bytes"] == wire.size_of(record)


def test_the_digest_in_the_log_is_of_the_very_bytes_that_left(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    reply = send(folder, wire.order_record(order("update", STUDY)))
    data = reply.content["vector"]["vector"].data
    line = logged(folder, "answered")[-1]
    assert line["sent"] == [hashlib.sha256(data).hexdigest()] and line["bytes"] == len(data) > 0
    assert line["reason"] == "ok" and line["why"] == ""


def test_masked_words_and_the_protocols_message_are_in_the_log_too(folder: Path) -> None:
    words, session = np.arange(5, dtype=np.uint64), b"shares"
    answer = wire.Answer(
        site="site-0", kind="update", round=1, attempt=1, study_hash=STUDY.sha256, order_hash="0" * 64,
        reason=Reason.OK, words=words, session=session,
    )  # fmt: skip
    audit.answered(open_site(folder), answer, None)
    line = logged(folder, "answered")[-1]
    assert line["sent"] == [hashlib.sha256(words.tobytes()).hexdigest(), hashlib.sha256(session).hexdigest()]
    assert line["bytes"] == 40 + len(session)


def test_a_sites_answer_states_the_line_that_it_was_written_down_in(folder: Path) -> None:
    membership.make_identity(folder)
    for wanted in (order("propose", STUDY), order("update", STUDY), order("update", STUDY, study_hash="0" * 64)):
        answer = ask(folder, wanted, STUDY)
        stated = plain(answer.audit)
        last = audit.entries_of(folder)[-1]
        assert (last.kind, stated) == ("answered", f"{last.sequence}-{last.anchor.hash}")
        audit.verify(folder, anchor_from(stated))


def test_a_log_that_was_cut_and_closed_again_is_found_by_what_the_coordinator_holds(folder: Path) -> None:
    """The chain of the shortened log is whole, its head fits: nothing at the site could tell."""
    membership.make_identity(folder)
    send(folder, wire.order_record(order("propose", STUDY)))
    kept = {path: path.read_bytes() for path in (folder / "audit").iterdir() if path.is_file()}
    held = anchor_from(plain(ask(folder, order("update", STUDY), STUDY).audit))
    audit.verify(folder, held)
    for path, content in kept.items():
        path.write_bytes(content)
    audit.verify(folder, None)
    with pytest.raises(ChainError, match="does not contain line"):
        audit.verify(folder, held)
    audit._warm.clear()
    send(folder, wire.order_record(order("update", STUDY, attempt=2)))  # the log grows again, past the line
    assert len(audit.entries_of(folder)) > held.sequence
    with pytest.raises(ChainError, match="does not contain line"):
        audit.verify(folder, held)


def test_the_line_is_on_disk_before_the_reply_exists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = wire.answer_record

    def noted(*args: Any) -> RecordDict:
        seen.append(chain.read(folder / audit.FOLDER, audit.NAME).entries[-1].kind)
        return real(*args)

    monkeypatch.setattr(wire, "answer_record", noted)
    send(folder, wire.order_record(order("propose", STUDY)))
    assert seen == ["answered"]


def test_the_order_is_on_disk_before_anything_is_done_about_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    seen: list[str] = []
    monkeypatch.setattr(train, "update", lambda *_, **__: seen.append(kinds(folder)[-1]))
    send(folder, wire.order_record(order("update", STUDY)))
    assert seen == ["received"]


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"attempt":1', b'"attempt":2', 1))


def cut_short(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


@pytest.mark.parametrize("harm", [edited, cut_short, Path.unlink])
@pytest.mark.parametrize("restarted", [True, False])
def test_nothing_leaves_from_a_site_whose_log_was_harmed(folder: Path, harm: Any, restarted: bool) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    if restarted:
        audit._warm.clear()
    harm(folder / "audit" / "audit.jsonl")
    answer = ask(folder, order("update", STUDY), STUDY)
    assert answer.reason is Reason.FAILED and answer.vector is None
    assert "audit" in errors(folder)
    with pytest.raises(ChainError):
        audit.entries_of(folder)


def test_nothing_leaves_that_could_not_be_written_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    real, calls = audit.answered, []

    def full(*args: Any) -> Any:
        calls.append(1)
        size = (folder / "audit" / "audit.jsonl").stat().st_size
        with full_disk(size + 20):
            return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(audit, "answered", full)
        reply = send(folder, wire.order_record(order("update", STUDY)))
    assert calls and set(reply.content) == {"header"}
    assert json.loads(reply.content["header"]["json"])["reason"] == "failed"
    assert "free disk space" in errors(folder)
    again = ask(folder, order("update", STUDY, attempt=2), STUDY)
    assert again.reason is Reason.OK and "repair" in kinds(folder)


def test_a_message_that_is_no_order_is_a_line(folder: Path) -> None:
    send(folder, RecordDict({"header": ConfigRecord({"json": b"{"})}))
    (line,) = logged(folder, "unreadable")
    assert line["reason"] == "malformed" and line["received"] == 1


def test_what_another_party_wrote_is_kept_only_in_the_form_of_a_digest(folder: Path) -> None:
    hostile = "\x1b[2J" + "x" * 5000
    send(folder, wire.order_record(order("propose", STUDY, study_hash=hostile, weights_hash=hostile)))
    text = (folder / "audit" / "audit.jsonl").read_text(encoding="utf-8")
    assert "[2J" not in text and "xxx" not in text
    assert logged(folder, "received")[0]["study"] == ""


def test_an_error_of_the_data_is_named_by_its_kind_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    for error in (DataError("image of DOE^JANE"), ValueError("DOE^JANE"), OSError(2, "no", "/pacs/DOE_JANE.dcm")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(train, "update", fail)
        assert ask(folder, order("update", STUDY), STUDY).reason is Reason.FAILED
        assert logged(folder, "answered")[-1]["why"] == f"{type(error).__name__}: see errors.log"
    assert "DOE" not in (folder / "audit" / "audit.jsonl").read_text(encoding="utf-8")
    assert "DOE_JANE" not in errors(folder) and "(path)" in errors(folder)


def test_the_ledgers_head_is_repeated_in_the_log(tmp_path: Path) -> None:
    study = private_study()
    folder = settle(protect(write_site(tmp_path / "site-0", images=24, seed=0)), approve="auto")
    ask(folder, order("propose", study), study)
    ask(folder, order("update", study), study)
    heads = [anchor_from(line["ledger"]) for line in logged(folder, "answered")]
    contents = chain.read(folder / "state", "ledger")
    assert all(contents.contains(head) for head in heads)
    assert [head.sequence for head in heads] == [1, 3] and contents.entries[-1].sequence == 3


def test_an_anchor_tells_an_older_copy(folder: Path, tmp_path: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    copy = {path.name: path.read_bytes() for path in (folder / "audit").iterdir()}
    ask(folder, order("update", STUDY), STUDY)
    newest = audit.verify(folder, None).entries[-1].anchor
    assert audit.verify(folder, newest)
    for name, data in copy.items():
        (folder / "audit" / name).write_bytes(data)
    audit.verify(folder, None)
    with pytest.raises(ChainError, match="does not contain line"):
        audit.verify(folder, newest)
    with pytest.raises(ChainError, match="nothing was ever logged"):
        audit.verify(tmp_path, None)


def test_a_line_of_another_process_is_seen_and_kept(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    site = open_site(folder)
    script = (
        "import sys; from pathlib import Path; from client import approval; from client.site import open_site;"
        " site = open_site(Path(sys.argv[1])); approval.deny(site, approval.shown(site)[0], by='b', reason='r')"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=Path(client_app.__file__).parents[1])
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.NOT_APPROVED
    approval.approve(site, STUDY, by="a")
    assert ask(folder, order("update", STUDY), STUDY).reason is Reason.OK
    assert audit.verify(folder, None)


def test_a_forked_process_verifies_for_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    assert len(audit.verify(folder, None).entries) == 7


def test_many_writers_take_turns(folder: Path) -> None:
    site = open_site(folder)
    ask(folder, order("propose", STUDY), STUDY)
    threads = [
        threading.Thread(target=approval.deny, args=(site, STUDY), kwargs={"by": str(k), "reason": ""})
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line["by"] for line in logged(folder, "denied")} == {str(k) for k in range(8)}
    audit._warm.clear()
    assert len(audit.verify(folder, None).entries) == 11


def test_a_paused_log_that_somebody_touched_is_verified_again(folder: Path) -> None:
    ask(folder, order("propose", STUDY), STUDY)
    path = folder / "audit" / "audit.jsonl"
    log = audit._warm[os.getpid(), (folder / "audit").resolve()]
    assert isinstance(log, Chain) and not log.usable
    before = path.stat()
    data = path.read_bytes().replace(b'"round":1', b'"round":7', 1)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # what an editor of history would do
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.FAILED


def test_a_hospitals_lines_are_synced_and_a_simulations_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = settle(write_site(tmp_path / "site-0", images=0, seed=0), approve="auto", privacy="optional")
    made_up = write_site(tmp_path / "site-1", images=0, seed=0)
    assert open_site(made_up).simulated and not open_site(hospital).simulated
    for folder in (hospital, made_up):
        ask(folder, order("propose", STUDY), STUDY)
    synced: list[int] = []
    monkeypatch.setattr("client.chain.os.fsync", synced.append)
    ask(hospital, order("propose", STUDY), STUDY)
    assert len(synced) >= 6  # line, head and folder, twice
    synced.clear()
    ask(made_up, order("propose", STUDY), STUDY)
    assert synced == [] and audit.verify(made_up, None)


def test_opened_sums_that_differ_by_one_site_are_found(folder: Path) -> None:
    site = open_site(folder)
    for number, sites in enumerate(["abc", "abcd", "bcd", "ab", "abcd"]):
        missing = tuple(sorted(set("abcd") - set(sites)))
        opening = Opening(session=number, order=bytes(32), survivors=tuple(sites), missing=missing)
        audit.sum_opened(site, STUDY.sha256, opening)
    audit.sum_opened(site, "f" * 64, Opening(session=9, order=bytes(32), survivors=tuple("ac"), missing=()))
    pairs = {
        (one.body["session"], other.body["session"], name)
        for one, other, name in audit.close_sums(audit.entries_of(folder))
    }
    # abc-abcd, abc-ab, abc-abcd again, abcd-bcd, bcd-abcd; another study's sums are no pair of this one's.
    assert pairs == {(0, 1, "d"), (0, 3, "c"), (0, 4, "d"), (1, 2, "a"), (2, 4, "a")}


NAMES = ("DOE^JANE", "Doe_Jane", "19710203", "MRN4711", "Oncology-Ward")


def test_no_name_of_a_patient_or_a_file_is_in_anything_that_a_run_wrote_or_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients' names and numbers as identifiers, in files' and folders' names and in columns; one file is broken, one
    disappears, and training fails with an error that quotes a path. The index alone knows paths, by design.
    """
    images = tmp_path / "archive"
    lines, owners = ["key,label,ward"], ["file,patient"]
    rng = np.random.default_rng(0)
    for number in range(24):
        name = f"Oncology-Ward/Doe_Jane-19710203-MRN4711-{number}.png"
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        grey = rng.integers(0, 120, (20, 20)) + 100 * (number % 2)
        Image.fromarray(grey.astype(np.uint8)).save(images / name)
        lines.append(f"{name},{('dark', 'bright')[number % 2]},Oncology-Ward")
        owners.append(f"{name},DOE^JANE {number}")
    (images / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    (images / "patients.csv").write_text("\n".join(owners), encoding="utf-8")
    site = tmp_path / "site-0"
    (site / "keys").mkdir(parents=True)
    (site / "keys" / "patient.key").write_bytes(KEY)
    (site / "site.toml").write_text(site_toml("site-0", simulated=True), encoding="utf-8")
    counts = index.build("dicom", images, site, patient_key=KEY)
    assert counts.images == counts.patients == 24
    (images / "Oncology-Ward/Doe_Jane-19710203-MRN4711-3.png").write_bytes(b"broken")
    (images / "Oncology-Ward/Doe_Jane-19710203-MRN4711-4.png").unlink()
    sent = []
    orders = [
        order("propose", STUDY),
        order("update", STUDY),
        order("evaluate", STUDY),
        order("update", STUDY, round=9),
    ]
    for asked in orders:
        sent.append(send(site, wire.order_record(asked)).content)
    assert [json.loads(reply["header"]["json"])["reason"] for reply in sent] == ["ok", "ok", "ok", "refused:policy"]

    def fails(*_: Any, **__: Any) -> None:
        Path(images / "Oncology-Ward/Doe_Jane-19710203-MRN4711-4.png").read_bytes()

    monkeypatch.setattr(train, "update", fails)
    sent.append(send(site, wire.order_record(order("update", STUDY))).content)
    index.write(site, [], [])
    (site / "index.sqlite").unlink()
    sent.append(send(site, wire.order_record(order("update", STUDY))).content)
    everything = {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    everything |= {f"reply {number}": reply["header"]["json"] for number, reply in enumerate(sent)}
    assert "errors.log" in everything and "audit/audit.jsonl" in everything and len(sent) == 6
    found = {(where, name) for where, data in everything.items() for name in NAMES if name.encode() in data}
    assert found == set()
