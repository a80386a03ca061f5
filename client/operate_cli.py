"""`python -m client check`, approve, deny, sign, doctor, evaluate, and with status and studies: the operator's day."""

import getpass
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from client import approval, audit_cli, check, doctor, outside, status_cli, summary
from client.audit_cli import plain
from client.chain import write_privately
from client.finding import exit_code
from client.options import JsonOption, SiteArgument
from client.site import open_site
from common.crypto.identity import KEY_BYTES, Identity
from common.errors import DataError, naming
from common.study import Study, from_json

app = typer.Typer(no_args_is_help=True)
app.add_typer(audit_cli.app, name="audit")
for command in (status_cli.status, status_cli.studies):
    app.command()(command)

HashArgument = Annotated[
    str, typer.Argument(help="The study's hash, or its first 8 digits or more, as `studies` shows it.", metavar="HASH")
]
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
    offline: Annotated[
        bool, typer.Option("--offline", help="Don't ask the server for its answer and its time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Is this site ready? A line each for keys, policy, data, decoders, disk, GPU, ledger, audit log; once it has
    joined a federation also for its roster, other executors, the connection, certificates, the clock.

    \b
    PASS  fine
    WARN  look at it; it does not keep the site from taking part
    FAIL  mend it first

    Exit code 0 where nothing fails, else 1. The server is asked for its time, and told nothing.
    """
    pems = tuple((path.name, _bytes(path)) for path in certificate or [])
    seen = outside.look(site, network=not offline)
    seen = replace(seen, certificates=(*seen.certificates, *pems))
    if clock_ahead is not None:
        seen = replace(seen, clock_ahead=clock_ahead)
    findings = check.run(site, now=time.time(), outside=seen)
    code = exit_code(findings, strict=strict)
    if as_json:
        lines = [finding.values() for finding in findings]
        print(json.dumps({"schema": 1, "ready": code == 0, "findings": lines}))
    else:
        for finding in findings:
            print(plain(str(finding)))
    raise typer.Exit(code)


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
    new: Annotated[bool, typer.Option("--new", help="Make the key; print its public half for the site.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Approve a study by signature, on the signer's own machine (a data-protection officer's, say).

    \b
    once:   client sign --new --key officer.key
            prints the public key and, for the site's operator,
            client policy SITE --set approve=signed --set approvers=...
    then:   client sign --key officer.key --study HASH.json --site NAME
            prints the signature for `client approve SITE HASH --signature ...`
    """
    if new:
        if key.exists():
            raise DataError(f"{key}: exists already; name a new file")
        made = Identity.new()
        write_privately(key, made.private_bytes())
        public = made.public.hex()
        if as_json:
            print(json.dumps({"schema": 1, "key": str(key), "public": public}))
            return
        print(f"public key: {public}")
        print(f"at the site: client policy SITE --set approve=signed --set approvers={public}")
        return
    if study is None or not site:
        raise DataError("give --study FILE and --site NAME, or --new to make a key")
    private = _bytes(key)
    if len(private) != KEY_BYTES:
        raise DataError(f"{key}: {len(private)} bytes instead of {KEY_BYTES}: not a key that `client sign --new` made")
    text = _bytes(study).decode("utf-8", "replace")
    with naming(study):
        found = from_json(text)
    signature = approval.sign(Identity(private), site=site, study_hash=found.sha256)
    if as_json:
        values = {"schema": 1, "site": site, "study": found.sha256, "signature": signature}
        print(json.dumps(values))
        return
    print(signature)


@app.command("doctor")
def doctor_(
    site: SiteArgument,
    file: Annotated[Path, typer.Option("--out", help="New file for the bundle.", metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Write a file for a bug report: versions, settings, rough counts, last errors; no names, no paths, no keys.

    It is plain JSON. Read it to the end before you send it. Parts of the site that can't be read are named in it, and
    here; that is no failure, as such a site is what the file is for.
    """
    unread = doctor.write(site, file)
    size = file.stat().st_size
    if as_json:
        print(json.dumps({"schema": 1, "file": str(file), "bytes": size, "not_readable": unread}))
        return
    print(f"{file}: {size} bytes; read it before you send it")
    if unread:
        print(f"not readable: {', '.join(unread)}; `client check {site}` says why")


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
