"""A cohort: patients who share one privacy ledger for good, and the key of their hashes. One without the other is void.

`SITE/keys/cohort` says that the site has one: a ledger that was deleted, folder and all, is missed.
"""

from collections.abc import Mapping
from pathlib import Path

from client import chain, index_file, known, ledger, siblings
from client.ledger_records import LedgerError
from client.site import declare, open_site
from common.budget import Filter
from common.errors import DataError

POOLS = ("train", "validation", "test")


def found(
    site: Path, *, epsilon: float, delta: float | None, nominal_patients: int, shares: Mapping[str, float]
) -> str:
    """Make the cohort of a site's patients, now and later: its ledger, its pools, its declared size; the identifier.

    `epsilon`, `delta`: limits of all studies together; delta is 1 / (10 x nominal_patients) unless given. `shares` of
    patients by pool: no study can move them.
    Guarantees: the list of known patients (client/known.py) is there before the ledger is, so that a ledger without one
    has lost it.
    Raises: AccountingError, LedgerError for numbers that promise nothing; ChainError, LedgerError where the site has a
    cohort; DataError where its index was not compared with the hospital's other cohorts.
    """
    own = open_site(site)
    if exists(site):
        raise LedgerError(f"{site}: its patients have a ledger already; a second one would forget what was spent")
    if own.nominal_patients not in (None, nominal_patients):
        raise LedgerError(f"{site / 'site.toml'}: nominal_patients = {own.nominal_patients} already: give the same")
    if nominal_patients < 1:
        raise LedgerError(f"nominal_patients = {nominal_patients}; declare at least 1")
    if not shares["train"] > 0:
        raise LedgerError("no patients are to train: give the first of the three shares a part")
    most = 1 / (10 * nominal_patients) if delta is None else delta
    limits = Filter.of(epsilon=epsilon, delta=most)
    with index_file.alone(site):
        if not own.simulated:
            siblings.demand_apart(own)
            known.ensured(site, patient_key=own.patient_key, has_ledger=False)
        cohort = ledger.create(
            site / ledger.FOLDER,
            patient_key=own.patient_key,
            pools=shares,
            order=limits.order,
            limit=limits.limit,
            epsilon=epsilon,
            delta=most,
            nominal_patients=nominal_patients,
        )
    chain.write_privately(site / "keys" / "cohort", f"{cohort}\n".encode())
    if own.nominal_patients is None:
        declare(site, nominal_patients)
    return cohort


def exists(site: Path) -> bool:
    """Whether the site's patients were ever given a ledger, whatever became of it."""
    return (site / ledger.FOLDER).exists() or (site / "keys" / "cohort").exists()


def shares_of(site: Path, *, patient_key: bytes) -> dict[str, float] | None:
    """The pools' shares of patients, fixed by the ledger's first record; None where no ledger was ever made.

    Raises LedgerError, ChainError where what is there is not this key's whole ledger.
    """
    if not exists(site):
        return None
    contents = chain.read(site / ledger.FOLDER, ledger.NAME)
    return ledger.state_of(contents.entries, patient_key=patient_key).genesis.pools


def demand_key(site: Path) -> None:
    """Raises DataError where a new patient key would part the site's patients from their ledger or their list."""
    if (site / "keys" / "patient.key").exists():
        return
    if exists(site):
        raise DataError(
            f"{site}: has a privacy ledger and no keys/patient.key: restore the key from your backup; with a new one"
            " nobody could tell what was spent on whom"
        )
    if known.exists(site):
        raise DataError(
            f"{site}: has a list of known patients and no keys/patient.key: restore the key from your backup; with a"
            " new one nobody could tell who is on the list"
        )
