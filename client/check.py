"""The preflight: is this site ready to take part? A PASS, WARN or FAIL line for each thing that can be looked at here.

For the operator's eyes: counts of images and patients, no names of files, nothing is sent.
"""

import importlib.util
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from client import (
    allowance,
    approval,
    attention,
    audit,
    chain,
    cohort,
    halves,
    heads,
    index,
    known,
    ledger,
    membership,
    quality,
    siblings,
    sources,
    surroundings,
)
from client.drops import Drop, Unusable
from client.finding import Finding, Level, Look, finding, gathered
from client.records import Row
from client.site import Site, open_site
from client.supernode import open_connection
from client.surroundings import Outside
from common.errors import FederationError

OFF = 1.5  # factor by which the index may differ from nominal_patients before somebody should look
SAMPLE = 24  # images that are decoded, spread over the index
SOON = 14.0  # days before a roster's end from which on somebody should look
LOW, LEAST = 5e9, 5e8  # bytes of disk: look at it; too little
_DECODERS = {
    "pydicom": "DICOM files",
    "PIL": "pictures and baseline JPEG",
    "openjpeg": "JPEG 2000",
    "jpeg_ls": "JPEG-LS",
    "gdcm": "lossless JPEG",
}


def run(folder: Path, *, now: float, outside: Outside | None = None) -> list[Finding]:
    """All findings. `now`: seconds since 1970. Never raises for what is wrong with the site."""
    try:
        site = open_site(folder)
    except FederationError as error:
        return [Finding(level=Level.FAIL, about="site", text=str(error))]
    seen = outside or Outside()
    parts: dict[str, Look] = {
        "keys": lambda: _keys(site),
        "policy": lambda: _policy(site),
        "data": lambda: _data(site),
        "quality": lambda: _quality(site),
        "decoders": lambda: _decoders(site),
        "disk": lambda: _disk(site),
        "gpu": _gpu,
        "ledger": lambda: _ledger(site),
        "cohorts": lambda: _cohorts(site),
        "audit": lambda: _audit(site),
        "studies": lambda: _studies(site),
        "connection": lambda: _connection(site),
        "roster": lambda: _roster(site, now),
    }
    return gathered(parts) + surroundings.judged(seen, now=now)


def _keys(site: Site) -> Iterator[Finding]:
    files = _private_files(site.folder)
    missing, open_to_others = [path for path, _ in files if not path.exists()], halves.open_to_others(files)
    if missing:
        text = f"missing: {', '.join(map(str, missing))}; restore it from your backup, or ask anew with `client init`"
        yield finding(Level.FAIL, "keys", text)
    if open_to_others:
        text = f"others may read {', '.join(path.name for path in open_to_others)}"
        yield finding(Level.FAIL, "keys", f"{text}: chmod 600 {' '.join(map(str, open_to_others))}")
    elif not missing:
        yield finding(Level.PASS, "keys", "readable for their owner alone")


def _private_files(folder: Path) -> list[halves.Closed]:
    """What others may not read: all of SITE/keys and, where this user may look into it, the SuperNode's half."""
    found = halves.of_worker(folder)
    supernode, identity = folder / "supernode", folder / membership.KEY
    if supernode.is_dir() and not identity.exists():
        found.append((identity, 0o077))
    if supernode.is_dir() and os.access(supernode, os.X_OK):
        found += halves.of_supernode(folder)
    return found


def _policy(site: Site) -> Iterator[Finding]:
    policy = site.policy
    if policy.approve == "auto":
        text = "approve = 'auto': studies that keep to the policy run without anybody having read them"
        yield finding(Level.WARN, "policy", text)
    if policy.privacy == "optional":
        text = "privacy = 'optional': a study may use patients without differential privacy"
        yield finding(Level.WARN, "policy", text)
    if policy.unprotected:
        text = "unprotected = true: a study without [privacy] ends the ledger's promise, for good"
        yield finding(Level.WARN, "policy", text)
    if not (site.nominal_patients or 0) >= policy.least_patients:
        text = f"nominal_patients = {site.nominal_patients} is below least_patients = {policy.least_patients}"
        yield finding(Level.FAIL, "policy", f"{text}: every study is refused")
    yield finding(Level.PASS, "policy", f"approve = '{policy.approve}', privacy = '{policy.privacy}'")


def _data(site: Site) -> Iterator[Finding]:
    counts = index.counts(site.folder)
    lost = sum(counts.lost.values())
    files = counts.used + lost
    text = f"{counts.images} images of {counts.patients} patients; {lost} of {files} files not usable"
    if not counts.images:
        reasons = _reasons(counts.dropped) or "nothing was found"
        yield finding(Level.FAIL, "data", f"no usable image ({reasons}): `client index --help`")
        return
    level = Level.WARN if 2 * lost > files else Level.PASS
    yield finding(level, "data", f"{text}{f' ({_reasons(counts.lost)})' if lost else ''}")
    declared = site.nominal_patients
    if declared is None:
        yield finding(Level.WARN, "data", "nominal_patients is not declared: studies with [privacy] need it")
    elif not declared / OFF <= counts.patients <= declared * OFF:
        text = f"nominal_patients = {declared}, the index has {counts.patients}: the guarantee holds, training suffers"
        yield finding(Level.WARN, "data", f"{text}; changing the number is a new roster")


def _reasons(files: Mapping[Drop, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in files.items())


def _quality(site: Site) -> Iterator[Finding]:
    """A report and no verdict: what keeps a site away is said by the other lines."""
    try:
        fine, text = attention.line(quality.gather(site))
    except FederationError:
        return
    yield finding(Level.PASS if fine else Level.WARN, "quality", text)


def _decoders(site: Site) -> Iterator[Finding]:
    lacking = [what for name, what in _DECODERS.items() if importlib.util.find_spec(name) is None]
    if lacking:
        yield finding(Level.WARN, "decoders", f"none for {', '.join(lacking)}: pip install 'fedward[client]'")
    rows = index.read(site.folder)
    missing = [root for root in {row.source.root for row in rows} if not root.is_dir()]
    if missing:
        yield finding(Level.FAIL, "decoders", "the images' folder is not there: mount it, or index its new place")
        return
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    failed = Counter(reason for reason in map(_decoded, sample) if reason)
    if not failed:
        yield finding(Level.PASS, "decoders", f"{len(sample)} of {len(sample)} images tried can be read")
        return
    reasons = ", ".join(f"{number} {reason}" for reason, number in failed.items())
    level = Level.FAIL if failed.total() == len(sample) else Level.WARN
    yield finding(level, "decoders", f"{failed.total()} of {len(sample)} images tried can't be read ({reasons})")


def _decoded(row: Row) -> str:
    """Why this image can't be read; "" where it can."""
    (pixels,) = sources.images([row.source], window="dicom")
    return str(pixels.reason) if isinstance(pixels, Unusable) else ""


def _disk(site: Site) -> Iterator[Finding]:
    place = site.cache if site.cache.exists() else site.folder
    free = min(shutil.disk_usage(site.folder).free, shutil.disk_usage(place).free)
    images = index.counts(site.folder).images
    sizes = [(study.model.channels, *study.model.image_size) for study in approval.shown(site)]
    needed = max((2 * images * math.prod(size) for size in sizes), default=0)  # of the cache: float16
    text = f"{free / 1e9:,.1f} GB free"
    if free < LEAST + needed:
        yield finding(Level.FAIL, "disk", f"{text}; studies shown need up to {needed / 1e9:,.1f} GB: free some")
    else:
        yield finding(Level.WARN if free < LOW + needed else Level.PASS, "disk", text)


def _gpu() -> Iterator[Finding]:
    import torch  # here, as nothing else in this module needs it

    if not torch.cuda.is_available():
        yield finding(Level.WARN, "gpu", "none: training runs on the CPU, which is slow for large images")
        return
    free, total = torch.cuda.mem_get_info()
    level = Level.PASS if free > 4e9 else Level.WARN
    name = torch.cuda.get_device_name()
    yield finding(level, "gpu", f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")


def _ledger(site: Site) -> Iterator[Finding]:
    if not cohort.exists(site.folder):
        level = Level.WARN if site.policy.privacy == "optional" else Level.FAIL
        yield finding(level, "ledger", "none: studies with [privacy] are refused; `client ledger create`")
        return
    state = allowance.state_of(site)
    if state is None or state.moved:
        yield finding(Level.FAIL, "ledger", "was moved to another machine: use it there")
        return
    key = membership.speaks_as(site.folder)
    contents = chain.read(site.folder / ledger.FOLDER, ledger.NAME)
    for heard in () if key is None else heads.own(site, key.public):
        if not contents.contains(heard):
            text = f"does not contain record {heard}, which other sites have heard of: an older copy"
            yield finding(Level.FAIL, "ledger", f"{text}; nothing is reserved; restore the newest")
            return
    shares = {pool: amount / state.genesis.limit for pool, amount in allowance.left(site.policy, state).items()}
    left = ", ".join(f"{max(0.0, share):.0%} of {pool}" for pool, share in shares.items())
    level = Level.WARN if state.unprotected or min(shares.values()) <= 0 else Level.PASS
    yield finding(level, "ledger", f"left: {left}. {state.statement}")
    if site.anchor is None:
        others = "by nobody" if key is None else "by the server and the other sites alone"
        yield finding(Level.WARN, "ledger", f"paths.anchor is not set: an old copy of all files could be told {others}")


def _cohorts(site: Site) -> Iterator[Finding]:
    """Whether the list of patients is whole, said where it isn't, and how this site stands to other cohorts."""
    found = known.indexed(site.folder)
    if known.exists(site.folder) or (found is not None and found.listed is not None):
        known.read(site.folder, patient_key=site.patient_key)
    others = siblings.demand_apart(site)
    for other in others:
        own = siblings.opened(site.folder, other)
        try:
            known.read(other, patient_key=own.patient_key)
        except FederationError as error:
            raise siblings.unreadable(site.folder, other, error) from None
    if others:
        names = ", ".join(map(str, others))
        yield finding(Level.PASS, "cohorts", f"no patient of this index is in another cohort ({names})")


def _audit(site: Site) -> Iterator[Finding]:
    contents = audit.read(site.folder)
    if contents is None:
        yield finding(Level.PASS, "audit", "nothing was asked as yet")
    else:
        where = contents.entries[-1].anchor
        yield finding(Level.PASS, "audit", f"{len(contents.entries)} lines, whole; the last is {where}")


def _studies(site: Site) -> Iterator[Finding]:
    entries = audit.entries_of(site.folder)
    waiting = [s for s in approval.shown(site) if "waits" in approval.missing(site, s.sha256, entries)]
    if waiting:
        yield finding(Level.WARN, "studies", f"{len(waiting)} wait for a decision: `client studies`")


def _connection(site: Site) -> Iterator[Finding]:
    """Whether the settings are whole, where this user may look; what lies behind them is looked at from outside."""
    folder = site.folder / "supernode"
    if os.access(folder, os.X_OK) and (folder / "supernode.toml").exists():
        open_connection(site.folder)
    yield from ()


def _roster(site: Site, now: float) -> Iterator[Finding]:
    pinned = membership.pinned(site.folder)
    if pinned is None:
        if (site.folder / membership.KEY).exists():
            text = "roster.json is missing, so no order is followed: `client join`, or restore it from your backup"
            yield finding(Level.FAIL, "roster", text)
        return
    own = site.policy
    membership.membership(site.folder, name=site.name, now=int(now), colluding=own.colluding, min_sites=own.min_sites)
    days = (pinned.expires - now) / surroundings.DAY
    text = f"version {pinned.version}, {len(pinned.sites)} sites, good for {days:.0f} more days"
    yield finding(Level.PASS if days > SOON else Level.WARN, "roster", text)
