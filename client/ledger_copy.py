"""Copies of a ledger: a backup, the move to another machine, and what may be restored from either.

A copy is the ledger's lines and, as its last line, the head: so that one cut short is known. It needs the patient key
of the same cohort, which is kept elsewhere. Stored releases are not in it: on the new machine an order costs anew.
"""

from pathlib import Path

from client import chain
from client.chain import Chain
from client.chain_lines import Anchor, ChainError, Contents, head_of, verified
from client.ledger import NAME, state_of
from client.ledger_records import LedgerError, Moved, Restored


def backup(folder: Path, file: Path, *, patient_key: bytes) -> Anchor:
    """Write a copy, also while the client runs; where it stands. Raises ChainError, LedgerError."""
    contents = chain.read(folder, NAME)
    if contents.tail:
        raise ChainError(f"{folder / NAME}.jsonl: its last record is torn or being written; try again")
    state_of(contents.entries, patient_key=patient_key)
    _write(file, contents)
    return contents.entries[-1].anchor


def move(folder: Path, file: Path, *, patient_key: bytes) -> Anchor:
    """Close this ledger for good and write the copy that goes on elsewhere. Once closed, more copies of it may be made.

    Raises ChainError (a client that runs holds the ledger), LedgerError.
    """
    _demand_new(file)
    with Chain(folder, NAME) as ledger:
        state = state_of(ledger.entries, patient_key=patient_key)
        if not state.moved:
            ledger.append(Moved().kind, {})
        anchor = ledger.anchor
    _write(file, chain.read(folder, NAME))
    return anchor


def restore(folder: Path, file: Path, *, patient_key: bytes, anchor: Anchor | None) -> Anchor:
    """Put a copy where no ledger is, and go on from it; where it stands.

    A copy that `move` made is known to be the newest. Any other may be older than what was spent: it is refused
    without an anchor, the newest that server, other sites, audit log or paper remember, and where the anchor is not
    in it. Nothing here can tell that one moved copy is restored on two machines: their heads differ from then on, and
    whoever remembers one of them refuses the other.
    Raises ChainError, LedgerError; nothing is then changed.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ChainError(f"{file}: can't be read ({error.strerror})") from error
    lines, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    contents = verified(file, lines + b"\n")
    if data != _copy(contents) or not last:
        raise ChainError(f"{file}: does not end with its own head: it was cut short or edited")
    state = state_of(contents.entries, patient_key=patient_key)
    if anchor is None and not state.moved:
        raise LedgerError(
            f"{file}: nothing shows that this copy, at {contents.entries[-1].anchor}, is the newest: give the newest "
            "anchor that the server, another site, the audit log or your own note remembers"
        )
    if anchor is not None and not contents.contains(anchor):
        raise LedgerError(f"{file}: does not contain record {anchor}: an older copy, or another ledger's; find a newer")
    if not (folder / f"{NAME}.jsonl").exists() or chain.read(folder, NAME).data != contents.data:
        chain.install(folder, NAME, contents.data)  # refuses where another one is; the same may be left by a crash here
    with Chain(folder, NAME) as ledger:
        ledger.append(Restored().kind, {})
        return ledger.anchor


def _copy(contents: Contents) -> bytes:
    return contents.data + head_of(contents.entries[-1].anchor)


def _write(file: Path, contents: Contents) -> None:
    _demand_new(file)
    try:
        chain.write_privately(file, _copy(contents))
    except OSError as error:
        raise ChainError(f"{file}: can't be written ({error.strerror})") from error


def _demand_new(file: Path) -> None:
    if file.exists():
        raise ChainError(f"{file}: exists already; name a new file")
