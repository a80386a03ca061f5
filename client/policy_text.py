"""The tables of site.toml as text: what `[policy]` sets, every key with its meaning, or one changed."""

import json
import re
import tomllib
from typing import Any

from client.policy import Policy

_TABLE = re.compile(r"\s*\[")  # what begins a table, and ends the one before


def to_toml(policy: Policy) -> str:
    """The `[policy]` table with what is not as it would be anyway; `approve` always."""
    kept = {name for name in Policy.model_fields if getattr(policy, name) != Policy.model_fields[name].default}
    return "[policy]\n" + "".join(f"{name} = {_value(policy, name)}\n" for name in sorted({*kept, "approve"}))


def template() -> str:
    """The `[policy]` table of a hospital: every key with its meaning, the safe value written out or left off."""
    lines = ["[policy]"]
    for name, field in Policy.model_fields.items():
        lines += [
            f"# {field.description}",
            f"approve = {_value(Policy(), name)}" if name == "approve" else _unset(name),
        ]
    return "\n".join(lines) + "\n"


def changed(text: str, name: str, value: Any) -> str:
    """The text of a site.toml with this key of its `[policy]` set, or taken out where the value is None; whatever else
    stands there stays as it is, comments too. What was written in a way that is not seen here (`policy = {…}`) stays as
    well: whoever calls this reads the result.
    """
    if value is not None:
        return with_value(text, "policy", name, value)
    lines, begin, end = _table(text, "policy")
    first, last, _ = _place(lines, begin + 1, end, name)
    new = []
    if f"# {Policy.model_fields[name].description}" in lines[begin:first]:
        new = [_unset(name)]
    lines[first:last] = new
    return "\n".join(lines) + "\n"


def with_value(text: str, table: str, name: str, value: Any) -> str:
    """The text of a site.toml with this key of a table set, as `changed` does it."""
    lines, begin, end = _table(text, table)
    first, last, comment = _place(lines, begin + 1, end, name)
    lines[first:last] = [f"{name} = {json.dumps(value, ensure_ascii=False)}{comment}"]
    return "\n".join(lines) + "\n"


def written(policy: Policy, name: str) -> str:
    """A value as a person reads and types it."""
    return _value(policy, name) or "not set: no limit"


def _table(text: str, table: str) -> tuple[list[str], int, int]:
    """The text's lines, which of them begins the table (one is added where none does), and where it ends."""
    lines = text.removesuffix("\n").split("\n")
    begin = next((n for n, line in enumerate(lines) if re.fullmatch(rf"\s*\[\s*{table}\s*\]\s*(#.*)?", line)), None)
    if begin is None:
        lines += ["", f"[{table}]"]
        begin = len(lines) - 1
    return lines, begin, next((n for n in range(begin + 1, len(lines)) if _TABLE.match(lines[n])), len(lines))


def _place(lines: list[str], begin: int, end: int, name: str) -> tuple[int, int, str]:
    """The lines that hold this key, or that the template has in its place, or where the table ends; and the comment
    behind the value.
    """
    for first in range(begin, end):
        if re.match(rf"\s*{name}\s*=", lines[first]):
            last = next((n for n in range(first + 1, end) if _reads("\n".join(lines[first:n]))), end)
            return first, last, _comment(lines[last - 1])
    for first in range(begin, end):
        if name in Policy.model_fields and lines[first].rstrip() == _unset(name):
            return first, first + 1, ""
    while end > begin and not lines[end - 1].strip():
        end -= 1
    return end, end, ""


def _comment(line: str) -> str:
    """What stands behind a value, from its # on; "" for nothing, or a line that ends in the middle of a value."""
    cuts = [cut for cut, sign in enumerate(line) if sign == "#"]
    cut = next((cut for cut in cuts if _reads(line[:cut]) or line[:cut].strip() == "]"), None)
    return "" if cut is None else f"  {line[cut:]}"


def _reads(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _unset(name: str) -> str:
    """The template's line for a key that nobody has set."""
    return f"# {name} = {_value(Policy(), name) or ' (not set: no limit)'}".rstrip()


def _value(policy: Policy, name: str) -> str:
    """A value as TOML, which for strings, numbers, truth values and lists of them is what JSON says; "" for none."""
    value: Any = getattr(policy, name)
    return "" if value is None else json.dumps(value)
