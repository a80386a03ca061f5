"""A command's end: one line where it is refused, and JSON alone on standard output where JSON was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from common import command_line
from common.errors import DataError

app = typer.Typer()


@app.command()
def one(
    how: str,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Ends as it is told.

    What is written
    in two lines.

    \b
    a   first
    b   second
    """
    if "print" in how:
        typer.echo(json.dumps({"schema": 1}) if as_json else "something")
    if "plain" in how:
        print("something")
    if "refuse" in how:
        raise DataError("what: is\nwrong \u202e here")
    if "open" in how:
        Path("/nowhere/at/all").read_bytes()
    if "exit" in how:
        raise typer.Exit(1)


def ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[object, list[str], list[str]]:
    """Exit code, and the lines of both streams."""
    monkeypatch.setattr(sys, "argv", ["one", *words])
    with pytest.raises(SystemExit) as end:
        command_line.run(app, "one")
    out, err = capsys.readouterr()
    return end.value.code, out.splitlines(), err.splitlines()


def test_a_refusal_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(capsys, monkeypatch, "refuse") == (1, [], ["error: what: is wrong ? here"])
    assert ended(capsys, monkeypatch, "open") == (1, [], ["error: /nowhere/at/all: No such file or directory"])
    assert ended(capsys, monkeypatch, "print-refuse") == (1, ["something"], ["error: what: is wrong ? here"])


def test_with_json_standard_output_has_one_line_of_json_whatever_happens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for how in ("refuse", "open", "print-refuse", "print", "print-exit"):
        code, out, err = ended(capsys, monkeypatch, how, "--json")
        (line,) = out
        assert code == (0 if how == "print" else 1) and len(err) == (how not in ("print", "print-exit"))
        assert ("error" in json.loads(line)) == (how in ("refuse", "open")) and json.loads(line)["schema"] == 1


def test_help_flows_and_tables_stand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = ended(capsys, monkeypatch, "--help")
    lines = [line.strip() for line in out]
    assert (code, err) == (0, []) and "What is written in two lines." in lines
    assert lines[lines.index("a   first") + 1] == "b   second" and not any("\b" in line for line in lines)


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = ended(capsys, monkeypatch, "print", "--nonsense")
    assert code == 2 and out == [] and "--nonsense" in " ".join(err)


@pytest.mark.parametrize("how", ["print", "plain", "plain-refuse"])
def test_a_reader_who_has_gone_is_no_traceback(how: str) -> None:
    """As with `... | head -1`."""
    program = "from test_command_line import app, command_line; command_line.run(app, 'one')"
    reading, writing = os.pipe()
    os.close(reading)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program, how],
        cwd=here,
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.stderr, done.returncode) == ("", 1)
