"""`python -m client status` and `studies`: how this site is, and what it was asked to take part in."""

import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from client import allowance, approval, audit, executors, summary
from client.approval import Decision
from client.audit_cli import plain
from client.chain_lines import Entry
from client.options import JsonOption, SiteArgument
from client.site import Site, open_site
from client.supernode import open_connection
from common import processes
from common.study import Study


def status(site: SiteArgument, as_json: JsonOption = False) -> None:
    """Whether this site is connected, what was asked of it lately, what it answered, what is left of its budget.

    Exit code 0; 1 where the site has joined a federation and its SuperNode does not serve (`client up`).
    """
    own = open_site(site)
    entries, state = audit.entries_of(site), allowance.state_of(own)
    answers = [entry for entry in entries if entry.kind == "answered"]
    values: dict[str, Any] = {
        "schema": 1,
        "site": own.name,
        **_connected(site),
        "asked": sum(entry.kind == "received" for entry in entries),
        "last": answers[-1].time if answers else None,
        "answers": dict(Counter(entry.body["reason"] for entry in answers)),
        "bytes_sent": sum(entry.body["bytes"] for entry in answers),
        "last_round": _last_round(own, entries),
        "studies": [_study_line(own, study, entries) for study in approval.shown(own)],
        "left": None
        if state is None
        else {pool: amount / state.genesis.limit for pool, amount in allowance.left(own.policy, state).items()},
        "audit": str(entries[-1].anchor) if entries else None,
    }
    if as_json:
        print(json.dumps(values))
    else:
        _print_status(values)
    raise typer.Exit(int(values["supernode"] == "not serving"))


def _connected(site: Path) -> dict[str, Any]:
    """The SuperNode's health as gRPC has it, and how many workers run."""
    none = not (site / "supernode" / "supernode.toml").exists()
    if none or not (connection := open_connection(site)).server:
        return {"server": None, "supernode": "none", "workers": 0}
    health = "serving" if processes.serving(connection.health) else "not serving"
    return {"server": connection.server, "supernode": health, "workers": len(executors.workers(site))}


def _last_round(site: Site, entries: tuple[Entry, ...]) -> dict[str, Any] | None:
    """Bytes in and out in the round that was asked about last, and the policy's limit of them."""
    asked = [entry for entry in entries if entry.kind == "received" and entry.body["study"]]
    if not asked:
        return None
    study, number = asked[-1].body["study"], asked[-1].body["round"]
    return {"round": number, "bytes": audit.moved(entries, study=study, round=number), "limit": site.policy.round_bytes}


def _print_status(values: dict[str, Any]) -> None:
    if values["server"]:
        workers = f"{values['workers']} worker" + ("" if values["workers"] == 1 else "s")
        print(f"SuperNode: {values['supernode']}, {workers}; server {values['server']}")
    else:
        print("in no federation as yet: `client init`, then `client join` with what the coordinator sends back")
    print(f"site {values['site']}: {values['asked']} orders received, the last answered {values['last'] or 'never'}")
    for reason, number in values["answers"].items():
        print(f"  {number} x {reason}")
    print(f"sent: {values['bytes_sent'] / 1e6:,.1f} MB")
    if (last := values["last_round"]) is not None:
        limit = "no limit" if last["limit"] is None else f"limit {last['limit'] / 1e6:,.1f} MB"
        print(f"round {last['round']}: {last['bytes'] / 1e6:,.1f} MB in and out ({limit}: policy.round_bytes)")
    for pool, share in (values["left"] or {}).items():
        print(f"privacy budget left, {pool}: {share:.1%}")
    for line in values["studies"]:
        print(f"study {line['hash'][:16]} {line['name']}: {plain(line['state'])}")
    if values["audit"]:
        print(f"audit log at {values['audit']}: write it down, or compare it with what the server remembers")


def studies(
    site: SiteArgument,
    study: Annotated[str | None, typer.Argument(help="Show this one in full.", metavar="[HASH]")] = None,
    as_json: JsonOption = False,
) -> None:
    """The studies that this site was shown, and where each stands; with HASH, one of them in plain English.

    A study that waits runs only after `approve`. The hash covers every setting: a study of which anything was changed
    has another hash, and waits again.
    """
    own = open_site(site)
    entries = audit.entries_of(site)
    if study is not None:
        found = approval.find(own, study)
        if as_json:
            print(json.dumps({**_study_line(own, found, entries), "study": json.loads(found.canonical)}))
        else:
            _print_summary(own, found, entries)
        return
    lines = [_study_line(own, found, entries) for found in approval.shown(own)]
    if as_json:
        print(json.dumps({"schema": 1, "studies": lines}))
        return
    if not lines:
        print("no study was ever proposed to this site")
    for line in lines:
        print(f"{line['hash'][:16]}  {line['name']}: {plain(line['state'])}")


def _study_line(site: Site, study: Study, entries: tuple[Entry, ...]) -> dict[str, Any]:
    decision = approval.decision_of(entries, study.sha256)
    against, missing = summary.objections(site, study), approval.missing(site, study.sha256, entries)
    rounds = {
        entry.body["round"]
        for entry in entries
        if entry.kind == "answered"
        and entry.body["study"] == study.sha256
        and entry.body["order"] == "update"
        and entry.body["reason"] == "ok"
    }
    state = f"refused: {'; '.join(against)}" if against else missing or f"may run; {len(rounds)} rounds answered"
    return {
        "name": study.study.name,
        "hash": study.sha256,
        "state": state,
        "may_run": not against and not missing,
        "rounds": len(rounds),
        "decision": None if decision is None else _decision(decision),
    }


def _decision(decision: Decision) -> dict[str, str]:
    values = {"decision": decision.decision, "by": decision.by, "reason": decision.reason, "time": decision.time}
    return {name: str(value) for name, value in values.items()}


def _print_summary(site: Site, study: Study, entries: tuple[Entry, ...]) -> None:
    found = summary.of(site, study)
    print(found.title)
    for paragraph in found.paragraphs:
        print("\n" + textwrap.fill(plain(paragraph), 100))
    print(f"\nNow: {plain(_study_line(site, study, entries)['state'])}")
