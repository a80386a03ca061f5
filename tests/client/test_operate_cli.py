"""The operator's commands: what they say, their exit codes, and that every refusal is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cases import ask, order, settle
from small import private_study, protect, tiny_study, write_site
from typer.testing import CliRunner

from client import supernode
from client.__main__ import app as whole
from client.approval import ApprovalError
from client.chain_lines import ChainError
from client.operate_cli import app
from client.site import open_site
from common import params, processes
from common.errors import DataError, FederationError, Reason, StudyError
from common.models import build_model
from server.model_card import save_model

STUDY = tiny_study()
COMMANDS = ("check", "status", "studies", "approve", "deny", "sign", "doctor", "evaluate", "audit verify", "audit show")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital that asks, with a study that waits."""
    made = settle(write_site(tmp_path / "site-0", images=24, seed=0), privacy="optional")
    ask(made, order("propose", STUDY), STUDY)
    return made


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_a_study_is_read_approved_and_then_runs(folder: Path) -> None:
    assert "tiny: waits for its approval" in run("studies", folder)
    text = run("studies", folder, STUDY.sha256[:10])
    assert "WITHOUT differential privacy" in text and STUDY.sha256 in text and "Now: waits" in text
    assert "written down as" in run("approve", folder, STUDY.sha256[:10], "--by", "anna")
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    ask(folder, order("update", STUDY), STUDY)
    (line,) = json.loads(run("studies", folder, "--json"))["studies"]
    assert (line["may_run"], line["rounds"], line["decision"]["by"]) == (True, 1, "anna")
    shown = json.loads(run("studies", folder, STUDY.sha256[:10], "--json"))
    assert shown["study"]["study"]["name"] == "tiny"


def test_a_denial_says_why_and_stops_the_study(folder: Path) -> None:
    run("approve", folder, STUDY.sha256)
    run("deny", folder, STUDY.sha256[:8], "--reason", "not now\n", "--by", "ben")
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.NOT_APPROVED
    assert "by ben: not now" in run("studies", folder)
    assert run("deny", folder, STUDY.sha256, code=2)  # no reason given


def test_what_the_policy_forbids_can_not_be_approved(folder: Path) -> None:
    settle(folder)
    with pytest.raises(ApprovalError, match="could not run here even when approved: it has no \\[privacy\\]"):
        run("approve", folder, STUDY.sha256)
    assert "refused: it has no [privacy]" in run("studies", folder)


def test_an_officer_signs_on_her_own_machine(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "officer.key"
    said = run("sign", "--new", "--key", key).splitlines()
    assert key.stat().st_mode & 0o077 == 0 and said[0].startswith("public key: ")
    words = said[1].partition("client policy SITE ")[2].split()
    CliRunner().invoke(whole, ["policy", str(folder), *words], catch_exceptions=False)
    assert open_site(folder).policy.approvers == (said[0].split()[-1],)
    with pytest.raises(ApprovalError, match="--signature"):
        run("approve", folder, STUDY.sha256)
    pending = folder / "pending" / f"{STUDY.sha256}.json"
    signature = run("sign", "--key", key, "--study", pending, "--site", "site-0").strip()
    told = json.loads(run("sign", "--key", key, "--study", pending, "--site", "site-0", "--json"))
    assert told == {"schema": 1, "site": "site-0", "study": STUDY.sha256, "signature": signature}
    run("approve", folder, STUDY.sha256, "--signature", signature)
    assert ask(folder, order("propose", STUDY), STUDY).reason is Reason.OK
    for wrong in (("--new", "--key", key), ("--key", key), ("--key", pending, "--study", pending, "--site", "a")):
        with pytest.raises(DataError):
            run("sign", *wrong)
    with pytest.raises(StudyError, match=r"site\.toml: the study sent is not JSON"):
        run("sign", "--key", key, "--study", folder / "site.toml", "--site", "site-0")
    made = json.loads(run("sign", "--new", "--key", tmp_path / "another.key", "--json"))
    assert made["key"] == str(tmp_path / "another.key") and len(made["public"]) == 64


def test_status_says_what_was_asked_answered_and_sent(tmp_path: Path) -> None:
    study = private_study()
    folder = settle(protect(write_site(tmp_path / "site-0", images=24, seed=0)), approve="auto")
    assert "0 orders received, the last answered never" in run("status", folder)
    ask(folder, order("propose", study), study)
    ask(folder, order("update", study), study)
    found = json.loads(run("status", folder, "--json"))
    assert found["answers"] == {"ok": 2} and found["asked"] == 2 and found["bytes_sent"] > 0
    assert 0 < found["left"]["train"] < found["left"]["test"] == 1.0
    text = run("status", folder)
    assert "2 x ok" in text and "may run; 1 rounds answered" in text and found["audit"] in text


def test_status_says_whether_the_site_is_connected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(run("status", folder, "--json"))["supernode"] == "none"
    assert "in no federation as yet: `client init`" in run("status", folder)
    (folder / "supernode").mkdir()
    settings = supernode.toml(server="federation.test:9092", runtime="127.0.0.1:1", health="127.0.0.1:1")
    (folder / "supernode" / "supernode.toml").write_text(settings)
    assert json.loads(run("status", folder, "--json", code=1))["supernode"] == "not serving"
    monkeypatch.setattr(processes, "serving", lambda _address: True)
    found = json.loads(run("status", folder, "--json"))
    assert (found["supernode"], found["server"], found["workers"]) == ("serving", "federation.test:9092", 0)
    text = run("status", folder)
    assert "SuperNode: serving, 0 workers; server federation.test:9092" in text and "in no federation" not in text


def test_status_shows_a_rounds_bytes_beside_their_limit(folder: Path) -> None:
    run("approve", folder, STUDY.sha256)
    settle(folder, privacy="optional", round_bytes=10_000_000)
    ask(folder, order("propose", STUDY), STUDY)
    ask(folder, order("update", STUDY), STUDY)
    last = json.loads(run("status", folder, "--json"))["last_round"]
    assert last["round"] == 1 and last["limit"] == 10_000_000 and 0 < last["bytes"] < 10_000_000
    assert "(limit 10.0 MB: policy.round_bytes)" in run("status", folder)


def test_the_log_is_verified_and_shown(folder: Path) -> None:
    anchor = json.loads(run("audit", "verify", folder, "--json"))["anchor"]
    run("approve", folder, STUDY.sha256, "--by", "anna")
    assert run("audit", "verify", folder, "--anchor", anchor).startswith("ok: 4 lines")
    text = run("audit", "show", folder)
    assert "asked     propose round 1 attempt 1" in text and "refused:not_approved (study" in text
    assert "approved  tiny" in text and "by anna" in text
    assert len(run("audit", "show", folder, "--last", 1, "--study", STUDY.sha256[:8]).splitlines()) == 1
    shown = json.loads(run("audit", "show", folder, "--json"))
    assert shown["schema"] == 1 and [line["sequence"] for line in shown["lines"]] == [0, 1, 2, 3]
    assert json.loads(run("audit", "show", folder, "--json", "--study", "f" * 64)) == {"schema": 1, "lines": []}
    assert "no line about study f" in run("audit", "show", folder, "--study", "f" * 64)
    assert run("audit", "sets", folder).startswith("0 pairs")
    path = folder / "audit" / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"anna", b"otto"))
    with pytest.raises(ChainError):
        run("audit", "verify", folder)


def test_a_log_in_which_nothing_stands_yet_says_so(tmp_path: Path) -> None:
    folder = settle(write_site(tmp_path / "site-0", images=0, seed=0))
    assert run("audit", "show", folder) == "nothing was asked here as yet\n"
    assert json.loads(run("audit", "show", folder, "--json")) == {"schema": 1, "lines": []}


def test_check_prints_a_line_each_and_its_exit_code_is_for_scripts(folder: Path) -> None:
    for path in (folder / "keys").iterdir():
        path.chmod(0o600)
    text = run("check", folder)
    assert all(line[:4] in ("PASS", "WARN", "FAIL") for line in text.splitlines())
    found = json.loads(run("check", folder, "--json", "--clock-ahead", "7", code=1))
    assert not found["ready"] and [f["about"] for f in found["findings"] if f["level"] == "FAIL"] == ["clock"]
    run("check", folder, "--strict", code=1)


def test_the_doctor_writes_a_file(folder: Path, tmp_path: Path) -> None:
    assert "read it before you send it" in run("doctor", folder, "--out", tmp_path / "bundle.json")
    assert json.loads((tmp_path / "bundle.json").read_text())["schema"] == 1


def test_a_model_is_judged_on_the_sites_own_patients(folder: Path, tmp_path: Path) -> None:
    model, out = build_model(STUDY), tmp_path / "model"
    out.mkdir()
    shapes = params.shapes(model, trainable=False)
    weights = np.asarray(params.vector_of(model, trainable=False))
    save_model(out, STUDY, run="0" * 64, shapes=shapes, weights=weights, validation={})
    found = json.loads(run("evaluate", folder, "--model", out, "--json"))
    assert set(found["metrics"]) == {"validation", "test"}
    everything = json.loads(run("evaluate", folder, "--model", out, "--pool", "all", "--json"))["metrics"]
    assert sum(figures["patients"] for figures in everything.values()) == 24
    assert 0 <= everything["train"]["accuracy"] <= 1
    assert "not to be sent" in run("evaluate", folder, "--model", out)
    for harm in ((out / "model.json").write_text, (out / "model.safetensors").write_text):
        harm("{}")
        with pytest.raises(FederationError):
            run("evaluate", folder, "--model", out)
    assert open_site(folder).name == "site-0"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is_for(command: str) -> None:
    text = run(*command.split(), "--help")
    assert len(text.split("Usage:")[1].split()) > 20


@pytest.mark.parametrize("command", ["status", "studies", "audit verify"])
def test_a_folder_that_is_no_site_is_one_line(tmp_path: Path, command: str) -> None:
    with pytest.raises(FederationError) as caught:
        run(*command.split(), tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_from_a_study_reaches_the_terminal_unprintable(folder: Path) -> None:
    hostile = "x\u202eevil\u2069"
    run("approve", folder, STUDY.sha256, "--by", hostile)
    run("deny", folder, STUDY.sha256, "--reason", hostile)
    assert "\u202e" not in run("audit", "show", folder) + run("studies", folder) + run("status", folder)
