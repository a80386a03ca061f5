"""The site's audit log: what was asked, what was decided and why, what left, who approved it; each line on disk first.

`SITE/audit/audit.jsonl` is a chain (`client.chain`): every line names the hash of the one before. Whoever may write to
the folder could make another chain; what shows that is an anchor that somebody else remembers.

No line says anything of a patient: numbers of orders, digests, reason codes, sentences about study, policy and ledger.
"""

import fcntl
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from client import chain, ledger
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, Contents, Entry, anchor_from, anchor_in, first_line
from client.session import Opening
from client.site import Site
from common.errors import DataError, FederationError, Reason
from common.wire import Answer, Order

FOLDER = NAME = "audit"
PATIENCE = 30.0  # seconds to wait for another process of this site that writes a line
WARM = 256  # logs of which a process remembers what it has verified: all sites of one machine
_LONGEST = 600  # characters of a reason
_HEX = set("0123456789abcdef")
_warm: OrderedDict[tuple[int, Path], Chain] = OrderedDict()  # by process, as a fork inherits what it can't use


@contextmanager
def opened(site: Site) -> Iterator[Chain]:
    """The log, verified from its beginning, to write; made where there is none. One writer at a time, others wait.

    Raises ChainError, one line, where it was edited, cut short or can't be written: then nothing is answered.
    """
    folder = (site.folder / FOLDER).resolve()
    with _turn(folder):
        log = _warm.pop((os.getpid(), folder), None)
        if log is not None and (folder / f"{NAME}.jsonl").exists():
            log.resume()
        else:
            if not (folder / f"{NAME}.jsonl").exists():
                chain.install(folder, NAME, first_line("begun", {"site": site.name}))
            log = Chain(folder, NAME, durable=not site.simulated)
        with log:
            yield log
            log.pause()
        _warm[os.getpid(), folder] = log
        while len(_warm) > WARM:
            _warm.popitem(last=False)


def read(folder: Path) -> Contents | None:
    """The verified log of a site folder; None where nothing was ever logged. Raises ChainError as `opened`."""
    if not (folder / FOLDER).exists():
        return None
    return chain.read(folder / FOLDER, NAME)


def entries_of(folder: Path) -> tuple[Entry, ...]:
    """All lines; none where nothing was ever logged. Raises ChainError."""
    contents = read(folder)
    return () if contents is None else contents.entries


def verify(folder: Path, anchor: Anchor | None) -> Contents:
    """The log, whole, and containing what somebody remembers of it. Raises ChainError."""
    contents = read(folder)
    if contents is None:
        raise ChainError(f"{folder / FOLDER}: nothing was ever logged here, or the log was deleted")
    if anchor is not None and not contents.contains(anchor):
        raise ChainError(f"{folder / FOLDER}: does not contain line {anchor}: an older copy, or another's log")
    return contents


def received(site: Site, order: Order, *, size: int) -> tuple[Entry, ...]:
    """Write down an order before anything is done about it; all lines so far, this one included. `size` in bytes."""
    with opened(site) as log:
        log.append("received", {**_order(order), "weights": _digest(order.asks), "bytes": size})
        return log.entries


def answered(site: Site, answer: Answer, error: BaseException | None) -> Anchor:
    """Write down a decision, before the reply exists, with the digests of what leaves: the vector, in the clear or
    masked, and the message of secure aggregation. Where the log then stands.

    An error of the data, or one that nobody foresaw, is named by its kind alone: its text is for errors.log.
    """
    left = [] if answer.vector is None else [np.ascontiguousarray(answer.vector, "<f4").data]
    left += [] if answer.words is None else [np.ascontiguousarray(answer.words, "<u8").data]
    left += [memoryview(answer.session)] if answer.session else []
    body = {
        **_order(answer),
        "reason": str(answer.reason),
        "why": "" if error is None else _sentence(error),
        "sent": [hashlib.sha256(part).hexdigest() for part in left],
        "bytes": sum(part.nbytes for part in left),
        "ledger": "" if (head := ledger_head(site)) is None else str(head),
    }
    with opened(site) as log:
        return log.append("answered", body).anchor


def unreadable(site: Site, error: BaseException, *, size: int) -> Anchor:
    """Write down a message that is no order, and that `malformed` was answered."""
    with opened(site) as log:
        body = {"reason": str(Reason.MALFORMED), "why": _sentence(error), "received": size, "bytes": 0}
        return log.append("unreadable", body).anchor


def decided(site: Site, decision: str, body: dict[str, Any]) -> Anchor:
    """Write down what a person decided about a study: `approved` or `denied`."""
    with opened(site) as log:
        return log.append(decision, body).anchor


def sum_opened(site: Site, study: str, opening: Opening) -> Anchor:
    """Write down, before this site helps to open a sum of several sites, whose sum it is."""
    body = {
        "study": _digest(study),
        "session": opening.session,
        "hash": opening.order.hex(),
        "survivors": list(opening.survivors),
        "missing": list(opening.missing),
    }
    with opened(site) as log:
        return log.append("sum", body).anchor


def moved(entries: Sequence[Entry], *, study: str, round: int) -> int:
    """Bytes that a round has moved so far, in and out, all attempts together."""
    return sum(
        entry.body["bytes"]
        for entry in entries
        if entry.kind in ("received", "answered") and entry.body["study"] == study and entry.body["round"] == round
    )


def asked(entries: Sequence[Entry], *, study: str, kind: str) -> set[tuple[int, str]]:
    """Round and digest (`Order.asks`) of every order of this kind that was answered since a person last approved the
    study.
    The same order answered again, in another attempt or after a restart, is one.
    """
    weights: dict[str, str] = {}
    found: set[tuple[int, str]] = set()
    for entry in entries:
        body = entry.body
        if entry.kind == "approved" and body["study"] == study:
            found.clear()
        elif entry.kind in ("received", "answered") and body["study"] == study and body["order"] == kind:
            if entry.kind == "received":
                weights[body["hash"]] = body["weights"]
            elif body["reason"] == Reason.OK:
                found.add((body["round"], weights.get(body["hash"], "")))
    return found


def served(entries: Sequence[Entry]) -> set[str]:
    """Hashes of the studies that were ever given an update or metrics."""
    given = [entry.body for entry in entries if entry.kind == "answered" and entry.body["reason"] == Reason.OK]
    return {body["study"] for body in given if body["order"] in ("update", "evaluate")}


def close_sums(entries: Sequence[Entry]) -> list[tuple[Entry, Entry, str]]:
    """Pairs of opened sums of one study whose sites differ by exactly one, and that site: subtracted from each other
    they come near to what it alone has sent.
    """
    sums = [entry for entry in entries if entry.kind == "sum"]
    found = []
    for one, other in combinations(sums, 2):
        differing = set(one.body["survivors"]) ^ set(other.body["survivors"])
        if one.body["study"] == other.body["study"] and len(differing) == 1:
            found.append((one, other, differing.pop()))
    return found


def survivors(entries: Sequence[Entry], study: str) -> list[frozenset[str]]:
    """The sites of every sum of this study that this site has helped to open."""
    wanted = _digest(study)
    return [
        frozenset(entry.body["survivors"]) for entry in entries if entry.kind == "sum" and entry.body["study"] == wanted
    ]


def ledger_anchor(site: Site) -> Anchor | None:
    """Where the privacy ledger stood when the site last answered; None where no line says so. Raises ChainError."""
    if not (site.folder / FOLDER / f"{NAME}.jsonl").exists():
        return None
    with opened(site) as log:
        said = (entry.body["ledger"] for entry in reversed(log.entries) if entry.kind == "answered")
        newest = next(filter(None, said), "")
    return anchor_from(newest) if newest else None


def _order(of: Order | Answer) -> dict[str, Any]:
    """Which order it is. What another party wrote is kept only where it has the form of a digest."""
    hash = of.sha256 if isinstance(of, Order) else of.order_hash
    study = _digest(of.study_hash)
    return {"order": of.kind, "round": of.round, "attempt": of.attempt, "study": study, "hash": _digest(hash)}


def _digest(text: str) -> str:
    return text if len(text) == 64 and set(text) <= _HEX else ""


def _sentence(error: BaseException) -> str:
    if isinstance(error, DataError) or not isinstance(error, FederationError):
        return f"{type(error).__name__}: see errors.log"
    return " ".join(str(error).split())[:_LONGEST]


def ledger_head(site: Site) -> Anchor | None:
    """Where the privacy ledger stands; None without one. It says nothing of content. Raises ChainError."""
    head = site.folder / ledger.FOLDER / f"{ledger.NAME}.head"
    return anchor_in(head, head.read_bytes()) if head.exists() else None


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread of this site writes; the lock goes with the process."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / f"{NAME}.turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ChainError(f"{folder}: can't be used ({error.strerror or error})") from error
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ChainError(f"{folder}: another process has been writing for {PATIENCE:g} s") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
