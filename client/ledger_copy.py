"""Copies of a ledger: a backup, the move to another machine, and what may be restored from either.

A copy is the lines of the site's list of known patients (client/known.py), where it has one, and its head; then the
ledger's lines and, as its last line, that head: so that one cut short is known. It needs the patient key of the same
cohort, which is kept elsewhere. Stored releases are not in it: on the new machine an order costs anew.
"""

from pathlib import Path

from client import chain, known
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
    _write(file, _listed(folder, patient_key) + _copy(contents))
    return contents.entries[-1].anchor


def move(folder: Path, file: Path, *, patient_key: bytes) -> Anchor:
    """Close this ledger for good and write the copy that goes on elsewhere. Once closed, more copies of it may be made.

    Raises ChainError (a client that runs holds the ledger), LedgerError.
    """
    _demand_new(file)
    listed = _listed(folder, patient_key)  # before anything is closed
    with Chain(folder, NAME) as ledger:
        state = state_of(ledger.entries, patient_key=patient_key)
        if not state.moved:
            ledger.append(Moved().kind, {})
        anchor = ledger.anchor
    _write(file, listed + _copy(chain.read(folder, NAME)))
    return anchor


def restore(folder: Path, file: Path, *, patient_key: bytes, anchor: Anchor | None) -> Anchor:
    """Put a copy where no ledger is, and go on from it; where it stands. The list of patients is there before it, or
    the one that is there already contains the copy's.

    A copy that `move` made is known to be the newest. Any other may be older than what was spent: it is refused
    without an anchor, the newest that server, other sites, audit log or paper remember, and where the anchor is not
    in it. Nothing here can tell that one moved copy is restored on two machines: their heads differ from then on, and
    whoever remembers one of them refuses the other.
    Raises ChainError, LedgerError; no ledger is then changed, and at most the list was put where none was.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ChainError(f"{file}: can't be read ({error.strerror})") from error
    listed, contents = _contents(file, data)
    state = state_of(contents.entries, patient_key=patient_key)
    if anchor is None and not state.moved:
        raise LedgerError(
            f"{file}: nothing shows that this copy, at {contents.entries[-1].anchor}, is the newest: give the newest "
            "anchor that the server, another site, the audit log or your own note remembers"
        )
    if anchor is not None and not contents.contains(anchor):
        raise LedgerError(f"{file}: does not contain record {anchor}: an older copy, or another ledger's; find a newer")
    if listed is not None:
        _restore_list(folder.parent, listed, patient_key)
    if not (folder / f"{NAME}.jsonl").exists() or chain.read(folder, NAME).data != contents.data:
        chain.install(folder, NAME, contents.data)  # refuses where another one is; the same may be left by a crash here
    with Chain(folder, NAME) as ledger:
        ledger.append(Restored().kind, {})
        return ledger.anchor


def _copy(contents: Contents) -> bytes:
    return contents.data + head_of(contents.entries[-1].anchor)


def _contents(file: Path, data: bytes) -> tuple[Contents | None, Contents]:
    """The list of patients and the ledger that a copy holds. Raises ChainError."""
    parts, begun = [], b""
    for line in data.splitlines(keepends=True):
        if line.startswith(b"{"):
            begun += line
            continue
        contents = verified(file, begun)
        if begun + line != _copy(contents):
            break
        parts.append(contents)
        begun = b""
    if begun or not 1 <= len(parts) <= 2:
        raise ChainError(f"{file}: does not end with its own head: it was cut short or edited")
    return (parts[0] if len(parts) == 2 else None), parts[-1]


def _listed(folder: Path, patient_key: bytes) -> bytes:
    """The copy of the list of patients beside a ledger's folder; nothing where there never was one."""
    site = folder.parent
    if not known.exists(site):
        return b""
    contents = chain.read(site / known.FOLDER, known.NAME)
    if contents.tail:
        raise ChainError(
            f"{site / known.FOLDER}: its last line is torn or being written; `client index`, then try again"
        )
    known.known_of(contents, patient_key=patient_key, where=site / known.FOLDER)
    return _copy(contents)


def _restore_list(site: Path, listed: Contents, patient_key: bytes) -> None:
    known.known_of(listed, patient_key=patient_key, where=site / known.FOLDER)
    if not known.exists(site):
        chain.install(site / known.FOLDER, known.NAME, listed.data)
    elif not chain.read(site / known.FOLDER, known.NAME).contains(listed.entries[-1].anchor):
        raise ChainError(
            f"{site / known.FOLDER}: the list of patients in the copy is a newer one: put this folder aside"
        )


def _write(file: Path, data: bytes) -> None:
    _demand_new(file)
    try:
        chain.write_privately(file, data)
    except OSError as error:
        raise ChainError(f"{file}: can't be written ({error.strerror})") from error


def _demand_new(file: Path) -> None:
    if file.exists():
        raise ChainError(f"{file}: exists already; name a new file")
