"""The preflight: is this site ready to take part? A PASS, WARN or FAIL line for each thing that can be looked at here.

For the operator's eyes: counts of images and patients, no names of files, nothing is sent.
"""

import importlib.util
import math
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from client import allowance, approval, audit, cohort, index, sources
from client.drops import Unusable
from client.records import Row
from client.site import Site, open_site
from common.crypto import certificates
from common.errors import FederationError

OFF = 1.5  # factor by which the index may differ from nominal_patients before somebody should look
AHEAD = 3.0  # seconds that this clock may be ahead of the server's: Flower refuses at 5
BEHIND = 60.0
SAMPLE = 24  # images that are decoded, spread over the index
LOW, LEAST = 5e9, 5e8  # bytes of disk: look at it; too little
DAY = 86400
_DECODERS = {
    "pydicom": "DICOM files",
    "PIL": "pictures and baseline JPEG",
    "openjpeg": "JPEG 2000",
    "jpeg_ls": "JPEG-LS",
    "gdcm": "lossless JPEG",
}


class Level(StrEnum):
    """How a finding counts: a FAIL keeps the site from taking part, or would."""

    PASS = "PASS"  # noqa: S105 - a verdict
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the preflight."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}  {self.about:<12} {self.text}"


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What is known of the world beyond the site folder; None or empty where nobody looked."""

    clock_ahead: float | None = None  # seconds by which this machine's clock is ahead of the server's
    certificates: tuple[tuple[str, bytes], ...] = ()  # what each is for, and its PEM
    connection: str | None = None  # "" where the server answered, else why not


def run(folder: Path, *, now: float, outside: Outside | None = None) -> list[Finding]:
    """All findings. `now`: seconds since 1970. Never raises for what is wrong with the site."""
    try:
        site = open_site(folder)
    except FederationError as error:
        return [Finding(level=Level.FAIL, about="site", text=str(error))]
    seen = outside or Outside()
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "keys": lambda: _keys(site),
        "policy": lambda: _policy(site),
        "data": lambda: _data(site),
        "decoders": lambda: _decoders(site),
        "disk": lambda: _disk(site),
        "gpu": _gpu,
        "ledger": lambda: _ledger(site),
        "audit": lambda: _audit(site),
        "studies": lambda: _studies(site),
        "clock": lambda: _clock(seen),
        "certificate": lambda: _certificates(seen, now),
        "connection": lambda: _connection(seen),
    }
    found: list[Finding] = []
    for about, look in parts.items():
        try:
            found += look()
        except (FederationError, OSError) as error:
            text = str(error) if isinstance(error, FederationError) else f"can't be looked at ({error.strerror})"
            found.append(Finding(level=Level.FAIL, about=about, text=text))
    return found


def exit_code(found: list[Finding], *, strict: bool = False) -> int:
    """0 where nothing fails, 1 where something does; `strict` counts warnings too."""
    bad = {Level.FAIL, Level.WARN} if strict else {Level.FAIL}
    return int(any(finding.level in bad for finding in found))


def _finding(level: Level, about: str, text: str) -> Finding:
    return Finding(level=level, about=about, text=text)


def _keys(site: Site) -> Iterator[Finding]:
    open_to_others = [
        path.name for path in sorted((site.folder / "keys").iterdir()) if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if open_to_others:
        text = f"others may read {', '.join(open_to_others)}: chmod 600 the files in {site.folder / 'keys'}"
        yield _finding(Level.FAIL, "keys", text)
    else:
        yield _finding(Level.PASS, "keys", "readable for their owner alone")


def _policy(site: Site) -> Iterator[Finding]:
    policy = site.policy
    if policy.approve == "auto":
        text = "approve = 'auto': studies that keep to the policy run without anybody having read them"
        yield _finding(Level.WARN, "policy", text)
    if policy.privacy == "optional":
        text = "privacy = 'optional': a study may use patients without differential privacy"
        yield _finding(Level.WARN, "policy", text)
    if policy.unprotected:
        text = "unprotected = true: a study without [privacy] ends the ledger's promise, for good"
        yield _finding(Level.WARN, "policy", text)
    if not (site.nominal_patients or 0) >= policy.least_patients:
        text = f"nominal_patients = {site.nominal_patients} is below least_patients = {policy.least_patients}"
        yield _finding(Level.FAIL, "policy", f"{text}: every study is refused")
    yield _finding(Level.PASS, "policy", f"approve = '{policy.approve}', privacy = '{policy.privacy}'")


def _data(site: Site) -> Iterator[Finding]:
    counts = index.counts(site.folder)
    lost = sum(counts.dropped.values())
    reasons = ", ".join(f"{number} {reason}" for reason, number in counts.dropped.items())
    text = f"{counts.images} images of {counts.patients} patients; {lost} of {counts.files} files not usable"
    if not counts.images:
        yield _finding(Level.FAIL, "data", f"no usable image ({reasons or 'nothing was found'}): `client index --help`")
        return
    level = Level.WARN if 2 * lost > counts.files else Level.PASS
    yield _finding(level, "data", f"{text}{f' ({reasons})' if lost else ''}")
    declared = site.nominal_patients
    if declared is None:
        yield _finding(Level.WARN, "data", "nominal_patients is not declared: studies with [privacy] need it")
    elif not declared / OFF <= counts.patients <= declared * OFF:
        text = f"nominal_patients = {declared}, the index has {counts.patients}: the guarantee holds, training suffers"
        yield _finding(Level.WARN, "data", f"{text}; changing the number is a new roster")


def _decoders(site: Site) -> Iterator[Finding]:
    lacking = [what for name, what in _DECODERS.items() if importlib.util.find_spec(name) is None]
    if lacking:
        yield _finding(Level.WARN, "decoders", f"none for {', '.join(lacking)}: pip install 'fedward[client]'")
    rows = index.read(site.folder)
    missing = [root for root in {row.source.root for row in rows} if not root.is_dir()]
    if missing:
        yield _finding(Level.FAIL, "decoders", "the images' folder is not there: mount it, or index its new place")
        return
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    failed = Counter(reason for reason in map(_decoded, sample) if reason)
    if not failed:
        yield _finding(Level.PASS, "decoders", f"{len(sample)} of {len(sample)} images tried can be read")
        return
    reasons = ", ".join(f"{number} {reason}" for reason, number in failed.items())
    level = Level.FAIL if failed.total() == len(sample) else Level.WARN
    yield _finding(level, "decoders", f"{failed.total()} of {len(sample)} images tried can't be read ({reasons})")


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
        yield _finding(Level.FAIL, "disk", f"{text}; studies shown need up to {needed / 1e9:,.1f} GB: free some")
    else:
        yield _finding(Level.WARN if free < LOW + needed else Level.PASS, "disk", text)


def _gpu() -> Iterator[Finding]:
    import torch  # here, as nothing else in this module needs it

    if not torch.cuda.is_available():
        yield _finding(Level.WARN, "gpu", "none: training runs on the CPU, which is slow for large images")
        return
    free, total = torch.cuda.mem_get_info()
    level = Level.PASS if free > 4e9 else Level.WARN
    name = torch.cuda.get_device_name()
    yield _finding(level, "gpu", f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")


def _ledger(site: Site) -> Iterator[Finding]:
    if not cohort.exists(site.folder):
        level = Level.WARN if site.policy.privacy == "optional" else Level.FAIL
        yield _finding(level, "ledger", "none: studies with [privacy] are refused; `client ledger create`")
        return
    state = allowance.state_of(site)
    if state is None or state.moved:
        yield _finding(Level.FAIL, "ledger", "was moved to another machine: use it there")
        return
    shares = {pool: amount / state.genesis.limit for pool, amount in allowance.left(site.policy, state).items()}
    left = ", ".join(f"{max(0.0, share):.0%} of {pool}" for pool, share in shares.items())
    level = Level.WARN if state.unprotected or min(shares.values()) <= 0 else Level.PASS
    yield _finding(level, "ledger", f"left: {left}. {state.statement}")
    if site.anchor is None:
        yield _finding(Level.WARN, "ledger", "paths.anchor is not set: an old copy of all files could not be told")


def _audit(site: Site) -> Iterator[Finding]:
    contents = audit.read(site.folder)
    if contents is None:
        yield _finding(Level.PASS, "audit", "nothing was asked as yet")
    else:
        where = contents.entries[-1].anchor
        yield _finding(Level.PASS, "audit", f"{len(contents.entries)} lines, whole; the last is {where}")


def _studies(site: Site) -> Iterator[Finding]:
    entries = audit.entries_of(site.folder)
    waiting = [s for s in approval.shown(site) if "waits" in approval.missing(site, s.sha256, entries)]
    if waiting:
        yield _finding(Level.WARN, "studies", f"{len(waiting)} wait for a decision: `client studies`")


def _clock(seen: Outside) -> Iterator[Finding]:
    ahead = seen.clock_ahead
    if ahead is None:
        return
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if not ahead < AHEAD:
        yield _finding(Level.FAIL, "clock", f"{text}: set it by NTP; answers are refused")
    else:
        yield _finding(Level.PASS if ahead > -BEHIND else Level.WARN, "clock", text)


def _certificates(seen: Outside, now: float) -> Iterator[Finding]:
    for what, pem in seen.certificates:
        days = (certificates.expires(pem) - now) / DAY
        if not days > 0:
            yield _finding(Level.FAIL, "certificate", f"{what}: expired {-days:.0f} days ago; ask for the new one")
        else:
            level = Level.PASS if days > 30 else Level.WARN
            yield _finding(level, "certificate", f"{what}: good for {days:.0f} more days")


def _connection(seen: Outside) -> Iterator[Finding]:
    if seen.connection is not None:
        level = Level.FAIL if seen.connection else Level.PASS
        yield _finding(level, "connection", seen.connection or "the server answers")
