"""`python -m client check`, status, studies, approve, deny, sign, doctor, evaluate: the operator's day."""

import getpass
import json
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from client import allowance, approval, audit, audit_cli, check, doctor, summary
from client.approval import Decision
from client.audit_cli import plain
from client.chain import write_privately
from client.chain_lines import Entry
from client.site import Site, open_site
from common.crypto.identity import KEY_BYTES, Identity
from common.errors import DataError
from common.study import Study, from_json

app = typer.Typer(no_args_is_help=True)
app.add_typer(audit_cli.app, name="audit")

SiteArgument = Annotated[Path, typer.Argument(help="The site's folder.", metavar="SITE")]
HashArgument = Annotated[
    str, typer.Argument(help="The study's hash, or its first 8 digits or more, as `studies` shows it.", metavar="HASH")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decided; your user name unless you say otherwise.")]


@app.command("check")
def check_(
    site: SiteArgument,
    certificate: Annotated[
        list[Path] | None, typer.Option("--certificate", help="A certificate whose expiry to look at (PEM).")
    ] = None,
    clock_ahead: Annotated[
        float | None, typer.Option(help="Seconds by which this clock is ahead of the server's, if you know.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Is this site ready? A line each for data, decoders, disk, GPU, ledger, audit log, policy, keys.

    \b
    PASS  fine
    WARN  look at it; it does not keep the site from taking part
    FAIL  mend it first

    Exit code 0 where nothing fails, else 1. Nothing is sent.
    """
    pems = tuple((path.name, _bytes(path)) for path in certificate or [])
    outside = check.Outside(clock_ahead=clock_ahead, certificates=pems)
    findings = check.run(site, now=time.time(), outside=outside)
    code = check.exit_code(findings, strict=strict)
    if as_json:
        lines = [{"level": str(f.level), "about": f.about, "text": f.text} for f in findings]
        print(json.dumps({"schema": 1, "ready": code == 0, "findings": lines}))
    else:
        for finding in findings:
            print(plain(str(finding)))
    raise typer.Exit(code)


@app.command()
def status(site: SiteArgument, as_json: JsonOption = False) -> None:
    """What was asked of this site lately, what it answered, and what is left of its budget."""
    own = open_site(site)
    entries, state = audit.entries_of(site), allowance.state_of(own)
    answers = [entry for entry in entries if entry.kind == "answered"]
    values: dict[str, Any] = {
        "schema": 1,
        "site": own.name,
        "asked": sum(entry.kind == "received" for entry in entries),
        "last": answers[-1].time if answers else None,
        "answers": dict(Counter(entry.body["reason"] for entry in answers)),
        "bytes_sent": sum(entry.body["bytes"] for entry in answers),
        "studies": [_study_line(own, study, entries) for study in approval.shown(own)],
        "left": None
        if state is None
        else {pool: amount / state.genesis.limit for pool, amount in allowance.left(own.policy, state).items()},
        "audit": str(entries[-1].anchor) if entries else None,
    }
    if as_json:
        print(json.dumps(values))
        return
    print(f"site {own.name}: {values['asked']} orders received, the last answered {values['last'] or 'never'}")
    for reason, number in values["answers"].items():
        print(f"  {number} x {reason}")
    print(f"sent: {values['bytes_sent'] / 1e6:,.1f} MB")
    for pool, share in (values["left"] or {}).items():
        print(f"privacy budget left, {pool}: {share:.1%}")
    for line in values["studies"]:
        print(f"study {line['hash'][:16]} {line['name']}: {plain(line['state'])}")
    if entries:
        print(f"audit log at {values['audit']}: write it down, or compare it with what the server remembers")


@app.command()
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


@app.command()
def approve(
    site: SiteArgument,
    study: HashArgument,
    signature: Annotated[
        str, typer.Option(help="With approve = 'signed': what `sign` printed for one of the approvers.")
    ] = "",
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a study run here, after reading it: `studies SITE HASH` shows it in plain English.

    The decision goes into the audit log, with your name, and holds for this hash alone. It can be taken back with
    `deny`. What the policy in site.toml forbids stays forbidden.
    """
    own = open_site(site)
    found = approval.find(own, study)
    if against := summary.objections(own, found):
        raise approval.ApprovalError(f"could not run here even when approved: {'; '.join(against)}")
    anchor = approval.approve(own, found, by=by or getpass.getuser(), signature=signature)
    _decided(found, "approved", str(anchor), as_json)


@app.command()
def deny(
    site: SiteArgument,
    study: HashArgument,
    reason: Annotated[str, typer.Option(help="Why: kept in the audit log, never sent.")],
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a study, or stop one that runs: from its next order on it gets nothing from here."""
    own = open_site(site)
    found = approval.find(own, study)
    anchor = approval.deny(own, found, by=by or getpass.getuser(), reason=" ".join(reason.split())[:600])
    _decided(found, "denied", str(anchor), as_json)


@app.command()
def sign(
    key: Annotated[Path, typer.Option("--key", help="File of the signer's private key.", metavar="FILE")],
    study: Annotated[
        Path | None, typer.Option("--study", help="The study, as SITE/pending holds it.", metavar="FILE")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="Name of the site for which it is approved.")] = "",
    new: Annotated[bool, typer.Option("--new", help="Make the key; print the line for site.toml.")] = False,
) -> None:
    """Approve a study by signature, on the signer's own machine (a data-protection officer's, say).

    \b
    once:   client sign --new --key officer.key     prints the public key for `approvers` in site.toml
    then:   client sign --key officer.key --study HASH.json --site NAME
            prints the signature for `client approve SITE HASH --signature ...`
    """
    if new:
        if key.exists():
            raise DataError(f"{key}: exists already; name a new file")
        made = Identity.new()
        write_privately(key, made.private_bytes())
        print(f'approvers = ["{made.public.hex()}"]')
        return
    if study is None or not site:
        raise DataError("give --study FILE and --site NAME, or --new to make a key")
    private = _bytes(key)
    if len(private) != KEY_BYTES:
        raise DataError(f"{key}: {len(private)} bytes instead of {KEY_BYTES}: not a key that `client sign --new` made")
    found = from_json(_bytes(study).decode("utf-8", "replace"))
    print(approval.sign(Identity(private), site=site, study_hash=found.sha256))


@app.command("doctor")
def doctor_(
    site: SiteArgument,
    file: Annotated[Path, typer.Option("--out", help="New file for the bundle.", metavar="FILE")],
) -> None:
    """Write a file for a bug report: versions, settings, rough counts, last errors; no names, no paths, no keys.

    It is plain JSON. Read it to the end before you send it.
    """
    doctor.write(site, file)
    print(f"{file}: {file.stat().st_size} bytes; read it before you send it")


@app.command()
def evaluate(
    site: SiteArgument,
    model: Annotated[
        Path, typer.Option("--model", help="Folder with model.safetensors and model.json.", metavar="DIR")
    ],
    pool: Annotated[
        Literal["held-out", "all"], typer.Option("--pool", help="Patients: those never trained on, or all.")
    ] = "held-out",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Judge a finished model on this site's own patients. The figures are exact and stay here: don't send them."""
    from client import evaluation  # here, as it brings in torch

    pools = evaluation.ALL if pool == "all" else evaluation.HELD_OUT
    result = evaluation.evaluate(open_site(site), model, pools=pools, threads=threads)
    if as_json:
        print(json.dumps(result))
        return
    for name, figures in result["metrics"].items():
        print(f"{name}: {figures['patients']} patients, {figures['images']} images")
        for metric, value in figures.items():
            if isinstance(value, float):
                print(f"  {metric:<20} {value:.3f}")
    print("exact figures of this hospital's patients: for its own use, not to be sent")


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


def _decided(study: Study, decision: str, anchor: str, as_json: bool) -> None:
    if as_json:
        values = {"schema": 1, "study": study.sha256, "decision": decision, "audit": anchor}
        print(json.dumps(values))
        return
    print(f"{decision}: {study.study.name}, {study.sha256}; written down as {anchor}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
