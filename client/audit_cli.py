"""`python -m client audit`: the log of what was asked, decided and sent; whole, and in words."""

import json
from typing import Annotated

import typer

from client import audit
from client.chain_lines import Entry, anchor_from
from client.options import JsonOption, SiteArgument
from client.site import demand_site

app = typer.Typer(help="The log of what was asked, decided and sent: whole, and in words.", no_args_is_help=True)


@app.command()
def verify(
    site: SiteArgument,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="What somebody remembers of this log, as `status` prints it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every line; exit code 1 where one was edited, is missing, or the anchor is not among them."""
    demand_site(site)
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
    demand_site(site)
    entries = [e for e in audit.entries_of(site) if study is None or str(e.body.get("study", "")).startswith(study)]
    shown = entries[-last:] if last else entries
    if as_json:
        lines = [{"sequence": e.sequence, "time": e.time, "kind": e.kind, **e.body} for e in shown]
        print(json.dumps({"schema": 1, "lines": lines}))
        return
    for entry in shown:
        print(plain(_words(entry)))
    if not shown:
        print("nothing was asked here as yet" if study is None else f"no line about study {plain(study)}")


@app.command()
def sets(site: SiteArgument, as_json: JsonOption = False) -> None:
    """Opened sums of one study whose sites differ by one: subtracted, they come near to that one site's answer.

    Exit code 0 also where there are some: they happen when a site drops out; differential privacy or `min_change` is
    what protects then.
    """
    demand_site(site)
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
