"""Which studies may run here: each waits for a person, a signature or nobody, as the policy says.

A decision is a line of the audit log and holds for one study's hash: a study of which anything was changed is another
study. A denial holds whatever the policy says; of several decisions the last one counts.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client import audit
from client.chain import write_privately
from client.chain_lines import Anchor, Entry
from client.policy import Policy
from client.site import Site, known_study
from common import body
from common.crypto import identity
from common.crypto.identity import Identity
from common.errors import FederationError, MessageError, Reason, StudyError
from common.study import Study, from_json

FOLDER = "pending"
MOST_PENDING = 100  # studies that wait: a server can't fill the disk with more
_TYPE = "approval"
_HEX = set("0123456789abcdef")


class ApprovalError(FederationError):
    """The study may not run here, or not yet: the site's operator decides."""

    code = Reason.NOT_APPROVED


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about a study, by whom, and when (the time is only shown)."""

    decision: Literal["approved", "denied"]
    by: str  # whom the operator's machine knows him as, or the public key of who signed
    reason: str
    signature: str  # hex; "" where nobody signed
    time: str


def decision_of(entries: Sequence[Entry], study_hash: str) -> Decision | None:
    """The last decision about a study; None where there was none."""
    for entry in reversed(entries):
        if entry.kind in ("approved", "denied") and entry.body["study"] == study_hash:
            kept = {name: entry.body[name] for name in ("by", "reason", "signature")}
            return Decision(decision="approved" if entry.kind == "approved" else "denied", time=entry.time, **kept)
    return None


def demand(site: Site, study_hash: str, entries: Sequence[Entry]) -> None:
    """Raises ApprovalError, with a sentence for the operator, unless the study may run here now."""
    if why := missing(site, study_hash, entries):
        raise ApprovalError(f"study {study_hash[:16]} {why}")


def missing(site: Site, study_hash: str, entries: Sequence[Entry]) -> str:
    """What keeps the study from running, as the end of a sentence; "" where nothing does."""
    found = decision_of(entries, study_hash)
    if found is not None and found.decision == "denied":
        return f"was denied on {found.time} by {found.by}: {found.reason or 'no reason given'}"
    if site.policy.approve == "auto":
        return ""
    if found is None:
        who = "one of `approvers` to sign it" if site.policy.approve == "signed" else "its approval"
        return f"waits for {who}: read and decide with `client studies` and `client approve`"
    if site.policy.approve == "signed":
        try:
            check_signature(site.policy, site.name, study_hash, public=found.by, signature=found.signature)
        except MessageError:
            return "is approved, but not signed by one of the approvers that the policy names now"
    return ""


def keep(site: Site, study: Study, entries: Sequence[Entry]) -> None:
    """Keep a study that may not run yet, so that a person can read it; in the place of one that was denied, the oldest
    first, where there are many. Raises ApprovalError where too many wait.
    """
    folder = site.folder / FOLDER
    path = folder / f"{study.sha256}.json"
    if path.exists():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = list(folder.glob("*.json"))
    if len(kept) >= MOST_PENDING:
        denied = [file for file in kept if _denied(entries, file.stem)]
        if not denied:
            raise ApprovalError(f"{folder}: {MOST_PENDING} studies wait already: decide on some with `client deny`")
        min(denied, key=lambda file: file.stat().st_mtime_ns).unlink()
    write_privately(path, study.canonical.encode())


def _denied(entries: Sequence[Entry], study_hash: str) -> bool:
    found = decision_of(entries, study_hash)
    return found is not None and found.decision == "denied"


def settle(site: Site, study: Study) -> None:
    """The study runs: it no longer waits."""
    with contextlib.suppress(FileNotFoundError):
        (site.folder / FOLDER / f"{study.sha256}.json").unlink()


def shown(site: Site) -> list[Study]:
    """Every study that this site was shown and has kept, by name and hash; a file that was changed is left out."""
    hashes = {path.stem for folder in (FOLDER, "studies") for path in (site.folder / folder).glob("*.json")}
    found = [study for study in (_kept(site, hash) for hash in hashes) if study is not None]
    return sorted(found, key=lambda study: (study.study.name, study.sha256))


def find(site: Site, start: str) -> Study:
    """The study whose hash begins with these digits, at least 8. Raises ApprovalError for none or several."""
    if len(start) < 8 or not set(start) <= _HEX:
        raise ApprovalError(
            f"{start[:80]!r} is no study hash: give its first 8 hex digits or more, see `client studies`"
        )
    found = [study for study in shown(site) if study.sha256.startswith(start)]
    if len(found) != 1:
        raise ApprovalError(f"{len(found)} studies begin with {start}: see `client studies`")
    return found[0]


def approve(site: Site, study: Study, *, by: str, signature: str = "") -> Anchor:
    """Write down that the study may run. Under `signed` the signature must be by one of the policy's approvers, who
    then stands in `by`'s place. Raises ApprovalError, ChainError.
    """
    if site.policy.approve == "signed":
        by = _signer(site, study, signature)
    values = {"study": study.sha256, "name": study.study.name, "by": by, "reason": "", "signature": signature}
    return audit.decided(site, "approved", values)


def deny(site: Site, study: Study, *, by: str, reason: str) -> Anchor:
    """Write down that the study may not run, or not go on. Raises ChainError."""
    values = {"study": study.sha256, "name": study.study.name, "by": by, "reason": reason, "signature": ""}
    return audit.decided(site, "denied", values)


def sign(key: Identity, *, site: str, study_hash: str) -> str:
    """The signature, in hex, with which the key's holder approves this study at this site and nothing else."""
    return key.sign(_TYPE, _statement(site, study_hash)).hex()


def check_signature(policy: Policy, site: str, study_hash: str, *, public: str, signature: str) -> None:
    """Raises MessageError unless one of the policy's approvers, `public`, has signed this study's approval here."""
    if public not in policy.approvers:
        raise MessageError("the signer is not among policy.approvers")
    signed = body.binary(signature, identity.SIGNATURE_BYTES)
    identity.verify(bytes.fromhex(public), _TYPE, _statement(site, study_hash), signed)


def _statement(site: str, study_hash: str) -> bytes:
    return body.write({"decision": "approved", "site": site, "study": study_hash})


def _signer(site: Site, study: Study, signature: str) -> str:
    for public in site.policy.approvers:
        with contextlib.suppress(MessageError):
            check_signature(site.policy, site.name, study.sha256, public=public, signature=signature)
            return public
    raise ApprovalError(
        "policy.approve = 'signed': give --signature with what `client sign` printed for one of the approvers, for this"
        " very study and site"
    )


def _kept(site: Site, study_hash: str) -> Study | None:
    known = known_study(site, study_hash)
    return known if known is not None else _pending(site.folder / FOLDER / f"{study_hash}.json")


def _pending(path: Path) -> Study | None:
    try:
        study = from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StudyError):
        return None
    return study if study.sha256 == path.stem else None
