"""A bundle for a bug report: what runs here, how it is set up, what went wrong last; nothing about a patient, no names.

One JSON file that a person can read to the end before he sends it. Numbers of patients and images are rounded to one
digit; of errors only words remain that are Fedward's own (`client.redaction`).
"""

import json
import platform
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from client import allowance, approval, audit, index
from client.policy import Policy
from client.redaction import redacted
from client.site import Site, demand_site, one_digit, open_site
from common.errors import DataError, FederationError

LINES = 100  # of errors.log, from its end
PACKAGES = ("fedward", "flwr", "torch", "numpy", "opacus", "pydantic", "cryptography", "pydicom", "pillow")
_NEVER = ("approvers",)  # settings that name somebody


def bundle(folder: Path) -> dict[str, Any]:
    """What goes into the file, as plain JSON. Whatever can't be read is named by the kind of its error alone."""
    return {
        "schema": 1,
        "versions": _versions(),
        "settings": _part(lambda: _settings(open_site(folder))),
        "index": _part(lambda: _index(folder)),
        "ledger": _part(lambda: _ledger(open_site(folder))),
        "audit": _part(lambda: _audit(folder)),
        "studies": _part(lambda: len(approval.shown(open_site(folder)))),
        "errors": _part(lambda: _errors(folder)),
    }


def write(folder: Path, file: Path) -> list[str]:
    """The bundle as a new file, readable by its owner; the names of its parts that could not be read.

    Raises DataError where the file exists or can't be written, and where there is no site at all.
    """
    demand_site(folder)
    parts = bundle(folder)
    text = json.dumps(parts, indent=1, ensure_ascii=True)
    try:
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(text + "\n", encoding="ascii")
    except FileExistsError:
        raise DataError(f"{file}: exists already; name a new file") from None
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error.strerror})") from error
    return [name for name, part in parts.items() if isinstance(part, dict) and "error" in part]


def _part(look: Any) -> Any:
    try:
        return look()
    except (FederationError, OSError, ValueError) as error:
        return {"error": type(error).__name__, "text": redacted(str(error))}


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "system": platform.system(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _settings(site: Site) -> dict[str, Any]:
    """The policy without those who sign, and whether the rest is set: no name, no path, no key."""
    policy = {name: getattr(site.policy, name) for name in Policy.model_fields if name not in _NEVER}
    return {
        "policy": policy,
        "approvers": len(site.policy.approvers),
        "nominal_patients": site.nominal_patients is not None,
        "anchor": site.anchor is not None,
        "simulated": site.simulated,
    }


def _index(folder: Path) -> dict[str, Any]:
    counts = index.counts(folder)
    rough = {"files": counts.files, "used": counts.used, "images": counts.images, "patients": counts.patients}
    return {
        **{name: one_digit(number) for name, number in rough.items()},
        "dropped": {str(reason): one_digit(number) for reason, number in counts.dropped.items()},
        "findings": {str(finding): one_digit(number) for finding, number in counts.findings.items()},
    }


def _ledger(site: Site) -> dict[str, Any] | None:
    state = allowance.state_of(site)
    if state is None:
        return None
    left = {pool: round(state.available(pool) / state.genesis.limit, 3) for pool in state.genesis.pools}
    return {"left": left, "unprotected": len(state.unprotected), "moved": state.moved, "waiting": len(state.pending)}


def _audit(folder: Path) -> dict[str, Any]:
    entries = audit.entries_of(folder)
    reasons = Counter(entry.body["reason"] for entry in entries if entry.kind == "answered")
    return {"lines": len(entries), "kinds": Counter(entry.kind for entry in entries), "reasons": reasons}


def _errors(folder: Path) -> list[str]:
    path = folder / "errors.log"
    if not path.exists():
        return []
    return [_line(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]]


def _line(line: str) -> str:
    """The time as the log begins with it, and the rest redacted."""
    time, _, text = line.partition(" ")
    return f"{time} {redacted(text)}" if len(time) == 25 and time[:4].isdigit() else redacted(line)
