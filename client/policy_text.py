"""The `[policy]` table of site.toml as text: what is set, or every key with its meaning."""

import json
from typing import Any

from client.policy import Policy


def to_toml(policy: Policy) -> str:
    """The `[policy]` table with what is not as it would be anyway; `approve` always."""
    kept = {name for name in Policy.model_fields if getattr(policy, name) != Policy.model_fields[name].default}
    return "[policy]\n" + "".join(f"{name} = {_value(policy, name)}\n" for name in sorted({*kept, "approve"}))


def template() -> str:
    """The `[policy]` table of a hospital: every key with its meaning, the safe value written out or left off."""
    policy, lines = Policy(), ["[policy]"]
    for name, field in Policy.model_fields.items():
        value = _value(policy, name)
        lines.append(f"# {field.description}")
        lines.append(f"{'' if name == 'approve' else '# '}{name} = {value or ' (not set: no limit)'}".rstrip())
    return "\n".join(lines) + "\n"


def _value(policy: Policy, name: str) -> str:
    """A value as TOML, which for strings, numbers, truth values and lists of them is what JSON says; "" for none."""
    value: Any = getattr(policy, name)
    return "" if value is None else json.dumps(value)
