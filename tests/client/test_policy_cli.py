"""`client policy`: the limits in words, and each of them changed, but nothing that stands beside it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from small import KEY
from typer.testing import CliRunner

from client.__main__ import app
from client.policy import Policy
from client.site import open_site, site_toml
from common.errors import DataError

HAND = """\
name = "north"  # of the hospital
nominal_patients = 20

[policy]   # agreed with the board
# asked by Dr. Example
approve = "ask"  # until May
  hours = [
    "20:00-06:00",  # the night shift
  ]  # no other hours
# rounds = 20 was too few

[paths]
cache = "cache"  # local disk
"""


@pytest.fixture(params=["template", "by hand", "without a table"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "patient.key").write_bytes(KEY)
    text = {"template": site_toml("north", nominal_patients=20), "by hand": HAND, "without a table": 'name = "north"'}
    (tmp_path / "site.toml").write_text(text[request.param], encoding="utf-8")
    (tmp_path / "site.toml").chmod(0o640)
    return tmp_path


def policy(site: Path, *changes: str) -> dict[str, Any]:
    words = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["policy", str(site), *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


CHANGES: dict[str, tuple[str, Any]] = {
    "approve": ("auto", "auto"),
    "approvers": (f"{'0' * 64},{'f' * 64}", ("0" * 64, "f" * 64)),
    "privacy": ("optional", "optional"),
    "unprotected": ("true", True),
    "lifetime_epsilon": ("8", 8.0),
    "study_epsilon": ("2.5", 2.5),
    "evaluation": ("private", "private"),
    "evaluation_epsilon": ("1e-1", 0.1),
    "secure": ("required", "required"),
    "tasks": ("classification, segmentation", ("classification", "segmentation")),
    "models": ("cnn", ("cnn",)),
    "least_patients": ("10", 10),
    "min_sites": ("3", 3),
    "colluding": ("1", 1),
    "min_change": ("2", 2),
    "rounds": ("50", 50),
    "hours": ("08:00-12:00,13:00-17:00", ("08:00-12:00", "13:00-17:00")),
    "round_bytes": ("1000000", 1000000),
    "tensors": ("head.*,body.weight", ("head.*", "body.weight")),
    "parameters": ("1000", 1000),
    "step_pixels": ("1000", 1000),
    "answer_every": ("60", 60.0),
    "drop_burned_in": ("true", True),
}


def test_every_limit_can_be_set_and_taken_back_and_nothing_else_changes(site: Path) -> None:
    assert list(CHANGES) == list(Policy.model_fields)
    file, before = site / "site.toml", open_site(site)
    own = set(tomllib.loads(file.read_text(encoding="utf-8")).get("policy", {}))
    for name, (text, value) in CHANGES.items():
        was = file.read_text(encoding="utf-8")
        assert policy(site, f"{name}={text}")["changed"] == [name]
        assert open_site(site).policy == before.policy.model_copy(update={name: value})
        gone = set(was.splitlines()) - set(file.read_text(encoding="utf-8").splitlines())
        assert len(gone) <= (3 if name in own else 1)  # `hours` stands in three lines
        policy(site, f"{name}=")
        assert getattr(open_site(site).policy, name) == Policy.model_fields[name].default
        if name in own:
            file.write_text(was, encoding="utf-8")
    assert open_site(site) == before and file.stat().st_mode & 0o777 == 0o640


def test_comments_of_a_file_that_was_written_by_hand_stay(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "patient.key").write_bytes(KEY)
    (tmp_path / "site.toml").write_text(HAND, encoding="utf-8")
    policy(tmp_path, "hours=19:00-05:00", "approve=auto", "rounds=30")
    assert (tmp_path / "site.toml").read_text(encoding="utf-8") == HAND.replace(
        '  hours = [\n    "20:00-06:00",  # the night shift\n  ]', 'hours = ["19:00-05:00"]'
    ).replace('approve = "ask"', 'approve = "auto"').replace("too few\n", "too few\nrounds = 30\n")


def test_in_the_template_a_limit_stands_under_its_meaning_and_goes_back_to_it(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "patient.key").write_bytes(KEY)
    (tmp_path / "site.toml").write_text(site_toml("north"), encoding="utf-8")
    policy(tmp_path, "rounds=30")
    lines = (tmp_path / "site.toml").read_text(encoding="utf-8").splitlines()
    assert lines[lines.index("rounds = 30") - 1] == f"# {Policy.model_fields['rounds'].description}"
    policy(tmp_path, "rounds=")
    assert (tmp_path / "site.toml").read_text(encoding="utf-8") == site_toml("north")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["rounds=0"], "policy.rounds = 0; most rounds"),
        (["rounds=2.5"], "policy.rounds = 2.5"),
        (["rounds=many"], "policy.rounds = 'many'"),
        (["study_epsilon=NaN"], "policy.study_epsilon = 'NaN'"),
        (["unprotected=yes"], "policy.unprotected = 'yes'"),
        (["approve=maybe"], "policy.approve = 'maybe'"),
        (["approve=signed"], "needs approvers"),
        (["hours=9-17"], "'9-17' is not like 20:00-06:00"),
        (["models=vgg"], "no model 'vgg'"),
        (["rounds=5", "min_sites=0"], "policy.min_sites = 0"),
        (["aprove=ask"], "--set aprove=ask: give KEY=VALUE with one of the keys approve"),
        (["rounds"], "give KEY=VALUE"),
        (['approve=a"\n[paths]\ncache="/etc'], "policy.approve"),
    ],
)
def test_what_the_policy_refuses_is_one_line_and_changes_nothing(site: Path, changes: list[str], says: str) -> None:
    before = (site / "site.toml").read_bytes()
    with pytest.raises(DataError) as caught:
        policy(site, *changes)
    assert says in str(caught.value) and "\n" not in str(caught.value).replace(changes[0], "")
    assert (site / "site.toml").read_bytes() == before and not list(site.glob(".site.toml*"))


def test_a_table_that_is_written_in_another_way_is_refused_and_not_ignored(site: Path) -> None:
    for text in ('name = "a"\npolicy = {rounds = 3}\n', 'name = "a"\n[policy]\n"rounds" = 3\n'):
        (site / "site.toml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            policy(site, "rounds=4")
        assert (site / "site.toml").read_text(encoding="utf-8") == text


def test_the_limits_are_shown_in_words_and_changes_are_said(site: Path) -> None:
    shown = CliRunner().invoke(app, ["policy", str(site)], catch_exceptions=False).output
    for name, field in Policy.model_fields.items():
        assert f"\n{name} = " in f"\n{shown}" and (field.description or "")[:40] in shown
    assert "rounds = not set: no limit" in shown
    words = ["policy", str(site), "--set", "rounds=3"]
    assert "rounds is 3, was not set: no limit" in CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "nothing to change" in CliRunner().invoke(app, words, catch_exceptions=False).output
