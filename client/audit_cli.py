"""`python -m client audit`: the log of what was asked, decided and sent; whole, and in words."""

import json
from pathlib import Path
from typing import Annotated

import typer

from client import audit
from client.chain_lines import Entry, anchor_from

app = typer.Typer(help="The log of what was asked, decided and sent: whole, and in words.", no_args_is_help=True)

SiteArgument = Annotated[Path, typer.Argument(help="The site's folder.", metavar="SITE")]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]


@app.command()
def verify(
    site: SiteArgument,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="What somebody remembers of this log, as `status` prints it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every line; exit code 1 where one was edited, is missing, or the anchor is not among them."""
    contents = audit.verify(site, None if anchor is None else anchor_from(anchor))
    last = contents.entries[-1].anchor
    if as_json:
        print(json.dumps({"schema": 1, "lines": len(contents.entries), "anchor": str(last)}))
        return
    print(f"ok: {len(contents.entries)} lines, the last is {last}")


@app.command()
def show(
    site: SiteArgument,
    study: Annotated[str | None, typer.Option("--study", help="Only of this study (first digits of its hash).")] = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many lines, from the end.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The log in words: orders, answers with their reasons, bytes and digests, decisions with their names."""
    entries = [e for e in audit.entries_of(site) if study is None or str(e.body.get("study", "")).startswith(study)]
    for entry in entries[-last:] if last else entries:
        if as_json:
            print(json.dumps({"sequence": entry.sequence, "time": entry.time, "kind": entry.kind, **entry.body}))
        else:
            print(plain(_words(entry)))


@app.command()
def sets(site: SiteArgument, as_json: JsonOption = False) -> None:
    """Opened sums of one study whose sites differ by one: subtracted, they come near to that one site's answer.

    Exit code 0 also where there are some: they happen when a site drops out; differential privacy or `min_change` is
    what protects then.
    """
    found = audit.close_sums(audit.entries_of(site))
    if as_json:
        pairs = [{"sessions": [a.body["session"], b.body["session"]], "site": name} for a, b, name in found]
        print(json.dumps({"schema": 1, "pairs": pairs}))
        return
    for one, other, name in found:
        print(f"sessions {one.body['session']} and {other.body['session']} differ by {name}")
    print(f"{len(found)} pairs of opened sums differ by one site")


def _words(entry: Entry) -> str:
    body, start = entry.body, f"{entry.sequence:>6} {entry.time} "
    match entry.kind:
        case "received":
            order = f"{body['order']} round {body['round']} attempt {body['attempt']}"
            return f"{start}asked     {order}, study {body['study'][:16]}, {body['bytes']} bytes"
        case "answered":
            sent = f", sent {body['bytes']} bytes {' '.join(d[:16] for d in body['sent'])}" if body["sent"] else ""
            why = f" ({body['why']})" if body["why"] else ""
            return f"{start}answered  {body['order']} round {body['round']}: {body['reason']}{why}{sent}"
        case "approved" | "denied":
            return (
                f"{start}{entry.kind:<9} {body['name']} {body['study'][:16]} by {body['by']} {body['reason']}".rstrip()
            )
        case "sum":
            missing = f", without {', '.join(body['missing'])}" if body["missing"] else ""
            return f"{start}opened    session {body['session']}: sum of {', '.join(body['survivors'])}{missing}"
        case _:
            return f"{start}{entry.kind}"


def plain(text: str) -> str:
    """For a terminal: no control or direction characters, whoever wrote them."""
    return "".join(c if c.isprintable() else "?" for c in text)
