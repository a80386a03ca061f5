"""`python -m client policy`: the hospital's own limits, shown and changed."""

import contextlib
import json
import textwrap
from typing import Annotated, Any

import typer

from client import policy_text
from client.options import JsonOption, SiteArgument
from client.policy import Policy
from client.site import limit, open_site
from common.errors import DataError


def command(
    site: SiteArgument,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change this limit; may be given several times. KEY= alone: as if it had never been set. Of a list all"
            " values, with commas between.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What this hospital allows, a sentence for each limit; no server can change it. With --set: change it.

    \b
    client policy SITE
    client policy SITE --set approve=auto --set rounds=50
    client policy SITE --set tasks=classification,segmentation
    client policy SITE --set hours=20:00-06:00
    client policy SITE --set rounds=                  no limit any more

    Writes the policy table of SITE/site.toml, and leaves whatever else stands there. Where one change is refused none
    is made. Holds from the next order on, also of a study that runs.
    """
    before = open_site(site).policy
    wanted = dict(_change(text) for text in changes or [])
    after = limit(site, wanted) if wanted else before
    names = [name for name in Policy.model_fields if getattr(after, name) != getattr(before, name)]
    if as_json:
        print(json.dumps({"schema": 1, "policy": after.model_dump(mode="json"), "changed": names}))
        return
    if not changes:
        _show(after)
    for name in names:
        was, now = policy_text.written(before, name), policy_text.written(after, name)
        print(f"{name} is {now}, was {was}; from the next order on")
    if changes and not names:
        print("nothing to change: it is so already")


def _change(text: str) -> tuple[str, Any]:
    """A key and its value, None where it is to be taken out. Whether the value may be is for the policy to say."""
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or name not in Policy.model_fields:
        known = ", ".join(Policy.model_fields)
        raise DataError(f"--set {text}: give KEY=VALUE with one of the keys {known}")
    default = Policy.model_fields[name].default
    if not value:
        return name, None
    if isinstance(default, tuple):
        return name, tuple(part.strip() for part in value.split(","))
    if isinstance(default, str):
        return name, value
    with contextlib.suppress(ValueError):
        number = json.loads(value, parse_constant=str)
        return name, number if isinstance(number, bool | int | float) else value
    return name, value


def _show(policy: Policy) -> None:
    for name, field in Policy.model_fields.items():
        print(f"{name} = {policy_text.written(policy, name)}")
        print(textwrap.indent(textwrap.fill(field.description or "", 100), "    "))
