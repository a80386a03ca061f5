"""Keeps the cohorts of one hospital apart while one of them is indexed: no patient is ever in two of them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client import cohort, index_file, known, siblings
from client.known import Known, hashed
from client.site import Site, name_cohorts
from common.errors import DataError, FederationError


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another cohort, as it stands while its folder is locked."""

    site: Site
    known: Known


@dataclass(kw_only=True)
class Cohorts:
    """A site's own list of patients and those of its hospital's other cohorts, for one index; all folders are locked.

    Guarantees: a patient who is listed in another cohort is `elsewhere`, whichever folder named the other. When `enter`
    returns, all folders name each other and each patient is listed, on disk.
    Edge cases: a patient without identifier is known by his image's content alone, as within one site. Who is listed
    both here and there, by folders that did not name each other at the time, is elsewhere for both; so that nobody is
    lost unseen, `enter` refuses as long as such patients are in this site's index, unless `gives_up_shared`.
    Raises ChainError, DataError.
    """

    site: Site
    others: tuple[Other, ...] = ()
    gives_up_shared: bool = False
    taken_up: int = 0  # patients of an index that was made before there were lists
    in_index: frozenset[str] = frozenset()
    _shared: set[str] = field(default_factory=set)

    def elsewhere(self, patient: str) -> bool:
        """Whether a patient, in clear, is another cohort's."""
        found = any(hashed(o.site.patient_key, "patient", patient) in o.known.patients for o in self.others)
        if found and (own := hashed(self.site.patient_key, "patient", patient)) in self.in_index:
            self._shared.add(own)
        return found

    def fingerprint(self) -> list[str]:
        """Changes when another cohort is named, or has a new patient."""
        return [str(other.known.anchor) for other in self.others]

    def enter(self, patients: Collection[str]) -> dict[str, str]:
        """List these patients, by hash, as this site's; what their index is to keep of it."""
        if self._shared and not self.gives_up_shared:
            raise DataError(
                f"{self.site.folder}: {len(self._shared)} of its patients are in another cohort too, and both budgets"
                " count for them. Index with --give-up-shared: they leave this index for good, and the other's when it"
                " is indexed. Or, where one of the two folders has no ledger, delete that one and index it anew, naming"
                " the other"
            )
        self.record()
        own = known.add(self.site.folder, patients, patient_key=self.site.patient_key)
        return known.meta(own, compared=[known.mark(other.site.patient_key) for other in self.others])

    def record(self) -> None:
        """Have each folder name all others; this one first, so that its next index goes on where a kill ended it."""
        group = [self.site.folder.resolve(), *(other.site.folder.resolve() for other in self.others)]
        for folder in group:
            name_cohorts(folder, [other for other in group if other != folder])


@contextmanager
def locked(folder: Path, named: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Keeps other indexers out of a site folder, which is made, and out of its other cohorts', which it yields.

    The order is one for all: of two that begin at once one goes on. Raises DataError where another indexer is at work,
    or another cohort can't be read.
    """
    if folder.resolve() in [path.resolve() for path in named]:
        raise DataError(f"{folder}: is the folder to index, and can't be another cohort too")
    group = siblings.of(folder, named)
    with ExitStack() as stack:
        for each in sorted({folder.resolve(), *group}):
            stack.enter_context(index_file.alone(each))
        if siblings.of(folder, named) != group:
            raise DataError(f"{folder}: another cohort was named meanwhile; try again")
        yield group


def gather(site: Site, group: Sequence[Path], *, gives_up_shared: bool = False) -> Cohorts:
    """The lists of a site and of its other cohorts, all locked. Raises ChainError, DataError."""
    _, taken_up = _ensured(site)
    others = tuple(_other(site.folder, folder) for folder in group)
    if any(other.site.patient_key == site.patient_key for other in others):
        raise DataError(f"{site.folder}: has the patient key of another cohort: is it a copy of that folder?")
    index = known.indexed(site.folder)
    return Cohorts(
        site=site,
        others=others,
        gives_up_shared=gives_up_shared,
        taken_up=taken_up,
        in_index=index.patients if index else frozenset(),
    )


def _other(folder: Path, other: Path) -> Other:
    site = siblings.opened(folder, other)
    try:
        return Other(site=site, known=_ensured(site)[0])
    except FederationError as error:
        raise siblings.unreadable(folder, other, error) from None


def _ensured(site: Site) -> tuple[Known, int]:
    return known.ensured(site.folder, patient_key=site.patient_key, has_ledger=cohort.exists(site.folder))
