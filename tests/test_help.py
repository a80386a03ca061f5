"""What both command lines say of themselves: every command, every option, in a terminal of 80 columns."""

import inspect
from collections.abc import Iterator

import click
import pytest
import typer

from client.__main__ import app as client
from server.__main__ import app as server

WIDTH = 78  # of 80 columns


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for inner, one in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(one, f"{name} {inner}")


ALL = [*commands(typer.main.get_command(client), "client"), *commands(typer.main.get_command(server), "server")]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_command_option_and_argument_says_what_it_is(name: str, command: click.Command) -> None:
    assert command.help and command.help.strip()
    silent = [str(p.name) for p in command.params if not (getattr(p, "help", "") or "").strip() and p.name != "help"]
    assert silent == []


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_tables_fit(name: str, command: click.Command) -> None:
    tables = [text for text in inspect.cleandoc(command.help or "").split("\n\n") if text.startswith("\b")]
    assert [line for table in tables for line in table.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize(
    "option", ["--json", "--out", "--keys", "--folder", "--loopback", "--host", "--nominal-patients"]
)
def test_an_option_takes_the_same_kind_of_value_everywhere(option: str) -> None:
    """`--host` may be several names at a server."""
    kinds = {
        type(p.type).__name__.replace("IntRange", "IntParamType") for _, c in ALL for p in c.params if option in p.opts
    }
    assert len(kinds) == 1
