"""Writes the simulated hospitals: one shared index and cache, and a site folder each whose index points into them."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client import cache as caches
from client import chain, cohort, index, ledger
from client.membership import ROSTER, described, make_identity, pin
from client.records import Row
from client.site import Site, one_digit, open_site, site_toml
from common import guarantee
from common.budget import Filter
from common.crypto.identity import Identity
from common.errors import DataError
from common.randomness import derive, stream
from common.roster import issue
from common.study import Study
from common.tasks import task_of
from simulations.datasets import materialise, parse_spec
from simulations.partition import Count, Partition, assign, shifts, table
from simulations.scanner import Scanner, apply

Say = Callable[[str], None]
_WAVE = 500  # images changed between two writes to the cache


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Site folders of one simulation, and what only a simulation may know about them."""

    folders: tuple[Path, ...]  # OUT/sites/site-0 …
    unprotected: tuple[Path, ...]  # the same without ledgers, for what a private study is compared with
    nominal: Mapping[str, int]  # patients that each site declares; {} without [privacy]
    credentials: Path | None  # the server's key and the roster, for studies with secure aggregation
    pooled: Path  # a site folder with every site's rows
    central: Path | None  # a site folder with the official test images, where there is an official split
    counts: tuple[Count, ...]
    unusable: Mapping[str, int]  # images of the index that no site got, by reason


def prepare(
    study: Study,
    *,
    source_study: Study,
    data: str,
    partition: Partition,
    sites: int,
    shared: Path,
    folder: Path,
    say: Say,
    quiet: bool,
) -> Federation:
    """Index and preprocess the data once (in `shared`, for all seeds), divide it among sites (in `folder`) by the
    study's seed.

    Guarantees: equal arguments give equal folders; no image is copied, but where a scanner shift changes it.
    Raises DataError where there is no usable image, StudyError or DataError for a wrong SPEC.
    """
    source = master(source_study, data=data, folder=shared, say=say, quiet=quiet)
    rows, unusable = usable(source, study)
    task = task_of(study)
    truths = {row.image: task.present(task.truth(row.annotation)) for row in rows}
    official = [row for row in rows if row.official == "test"]
    assignment = assign(
        [row for row in rows if row.official != "test"],
        partition,
        sites=sites,
        seed=study.study.seed,
        classes_of=lambda row: truths[row.image],
    )
    counts = table(assignment, classes=study.study.classes, classes_of=lambda row: truths[row.image])
    scanners = shifts(partition, sites=sites, seed=study.study.seed)
    shifted = {site: _shifted(source, study, site, own, scanners[site]) for site, own in assignment.items()}
    key = derive(study.study.seed, "patient key").to_bytes(32, "big")
    everything = [row for own in shifted.values() for row in own]
    nominal = {site: declared(len({row.patient for row in own})) for site, own in shifted.items()}

    def written(parent: Path, numbers: Mapping[str, int]) -> tuple[Path, ...]:
        return tuple(
            write_site(parent / site, rows=own, cache=source.cache, key=key, nominal_patients=numbers.get(site))
            for site, own in shifted.items()
        )

    if study.privacy is None:
        folders = unprotected = written(folder, nominal := {})
    else:
        guarantee.check_nominal(study, nominal)
        folders, unprotected = written(folder, nominal), written(folder / "unprotected", {})
        shares = _shares(study, everything)
        for site in folders:
            protect(site, study, shares=shares)
    return Federation(
        credentials=enrol(folders, study, folder / "federation") if study.aggregation.secure else None,
        folders=folders,
        unprotected=unprotected,
        nominal=nominal,
        pooled=write_site(folder / "pooled", rows=everything, cache=source.cache, key=key),
        central=write_site(folder / "central", rows=official, cache=source.cache, key=key) if official else None,
        counts=tuple(counts),
        unusable=unusable,
    )


def master(study: Study, *, data: str, folder: Path, say: Say, quiet: bool) -> Site:
    """A site folder that holds all of the data, indexed once; found again when data and seed are the same."""
    spec = parse_spec(data)
    folder.mkdir(parents=True, exist_ok=True)
    format, path = materialise(spec, folder, seed=study.study.seed)
    key = derive(study.study.seed, "master patient key").to_bytes(32, "big")
    stamp = folder / "source.json"
    wanted = json.dumps({"data": str(spec), "files": _fingerprint(path), "seed": study.study.seed})
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and (folder / "index.sqlite").exists()):
        say(f"Indexing {spec} …")
        _write_identity(folder, cache="cache", key=key)
        index.build(format, path, folder, patient_key=key, quiet=quiet)
        stamp.write_text(wanted, encoding="utf-8")
    return replace(open_site(folder), name="pooled")


def _fingerprint(path: Path) -> str:
    """Changes when a file below the path does: SHA-256 over names, sizes and times of modification."""
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        status = file.lstat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def usable(source: Site, study: Study) -> tuple[list[Row], dict[str, int]]:
    """Rows that the study's task can use, with their images in the cache, and why the others can't be used."""
    rows, task = index.read(source.folder), task_of(study)
    cache = caches.open_cache(source.cache, study)
    undecodable = cache.ensure(rows)
    if undecodable:
        index.remove(source.folder, undecodable)
    reasons = Counter(str(reason) for reason in undecodable.values())
    fit = []
    for row in rows:
        if row.image in undecodable:
            continue
        if task.truth(row.annotation) is None:
            reasons["no annotation for this task and its classes"] += 1
        else:
            fit.append(row)
    if not fit:
        raise DataError(
            f"no usable image for {study.study.task} of {', '.join(study.study.classes)}"
            f" ({', '.join(f'{n} {why}' for why, n in reasons.items()) or 'the folder is empty'})"
        )
    return fit, dict(reasons)


def _shifted(source: Site, study: Study, site: str, rows: Sequence[Row], scanner: Scanner) -> list[Row]:
    """The rows as this site's scanner would have seen them: images of their own in the cache, unless nothing
    changes.
    """
    if scanner == Scanner():
        return list(rows)
    cache = caches.open_cache(source.cache, study)
    changed = [replace(row, image=f"{row.image}-{site}-{study.study.seed}") for row in rows]
    for start in range(0, len(rows), _WAVE):
        images = {}
        for row, own in zip(rows[start : start + _WAVE], changed[start : start + _WAVE], strict=True):
            rng = stream(study.study.seed, "scanner noise", site=own.image)
            # float16 as in the cache: half the memory, the same bits.
            images[own.image] = apply(cache.images([row.image]), scanner, rng)[0].astype(np.float16)
        cache.add_many(images)
    return changed


def write_site(
    folder: Path, *, rows: Sequence[Row], cache: Path, key: bytes, nominal_patients: int | None = None
) -> Path:
    """A site folder with these rows; its name is the folder's. What an earlier run left there stays, but for the
    index.
    """
    _write_identity(folder, cache=str(cache), key=key, nominal_patients=nominal_patients)
    index.write(folder, rows, [])
    return folder


def enrol(folders: Sequence[Path], study: Study, folder: Path) -> Path:
    """Give each site an identity and pin the same roster everywhere, as a coordinator and operators would by hand.

    Keys and roster of an earlier start are kept. The folder that is returned holds the server's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = make_identity(folder)
    if not (folder / ROSTER).exists():
        quorum = max(2, study.study.min_sites)
        members = [
            described(site, name=site.name, supernode="simulated", nominal_patients=_nominal(site)) for site in folders
        ]
        roster = issue(
            Identity.new(),
            sites=members,
            server=server.public,
            colluding=min(1, quorum - 2),
            min_sites=quorum,
            now=int(time.time()),
        )
        pin(folder, roster)
        for site in folders:
            pin(site, roster)
    return folder


def _nominal(site: Path) -> int:
    own = open_site(site).nominal_patients
    return own if own is not None else declared(len({row.patient for row in index.read(site)}))


def declared(number: int) -> int:
    """What a hospital of so many patients would declare: one significant digit, at least 1."""
    return max(1, one_digit(number))


def protect(folder: Path, study: Study, *, shares: Mapping[str, float]) -> None:
    """Give a simulated site a privacy ledger that is just large enough for the study, unless it has one."""
    nominal = open_site(folder).nominal_patients
    if nominal is not None and not cohort.exists(folder):
        limits = lifetime(study)
        cohort.found(folder, epsilon=limits.epsilon, delta=limits.delta, nominal_patients=nominal, shares=shares)


def lifetime(study: Study) -> Filter:
    """The smallest ledger that admits the study, its epsilon with three digits: what hospitals would have to allow."""
    delta, pools = guarantee.privacy_of(study).delta, guarantee.plans_by_pool(study)
    whole = [[replace(event, steps=event.steps * orders) for event, orders in parts] for parts in pools.values()]
    epsilon = max(guarantee.claim(study, pool)[0] for pool in pools)
    while True:
        found = Filter.of(epsilon=epsilon, delta=delta)
        if all(found.admits(events, spent=()) for events in whole):
            return found
        epsilon = float(f"{epsilon * 1.01:.2e}") + 0.01


def charged(study: Study, nominal_patients: int, folder: Path) -> dict[str, Any]:
    """What stands beside epsilon for one simulated site, with the steps and histograms that its ledger has charged."""
    contents = chain.read(folder / ledger.FOLDER, ledger.NAME)
    state = ledger.state_of(contents.entries, patient_key=open_site(folder).patient_key)
    reserves = [entry.body for entry in contents.entries if entry.kind == "reserve" and entry.body["pool"] == "train"]
    steps = sum(body["event"]["steps"] for body in reserves if body["round"])  # round 0 is the class histogram
    found = guarantee.statement(
        study,
        nominal_patients=nominal_patients,
        rounds_charged=steps // (study.training.local_steps or 1),
        counts_charged=sum(body["round"] == 0 for body in reserves),
    )
    genesis = state.genesis
    left = {pool: state.available(pool) / genesis.limit for pool in genesis.pools}
    return {**found, "ledger": {"epsilon": genesis.epsilon, "delta": genesis.delta, "left": left}}


def _shares(study: Study, rows: Sequence[Row]) -> dict[str, float]:
    """The pools' shares of patients: those of the official split where there is one, else the study's."""
    train, validation, test = study.study.split
    patients = {row.patient: row.official for row in rows}
    if any(patients.values()):
        held_out = sum(official == "validation" for official in patients.values()) / len(patients)
        validation = round(held_out, 2) if held_out else validation
        train, test = 1 - validation, 0.0
    return {"train": train, "validation": validation, "test": test}


def _write_identity(folder: Path, *, cache: str, key: bytes, nominal_patients: int | None = None) -> None:
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    text = site_toml(folder.name, cache=cache, nominal_patients=nominal_patients, simulated=True)
    (folder / "site.toml").write_text(text, encoding="utf-8")
    path = folder / "keys" / "patient.key"
    path.touch(mode=0o600)
    path.write_bytes(key)


def summary_of(counts: Sequence[Count]) -> dict[str, Any]:
    """The `sites` part of summary.json."""
    return {
        count.site: {"patients": count.patients, "images": count.images, "per_class": dict(count.per_class)}
        for count in counts
    }
