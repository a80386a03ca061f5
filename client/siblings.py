"""Which site folders are cohorts of one hospital: those that name each other, directly or through others."""

from collections.abc import Sequence
from pathlib import Path

from client import known
from client.site import Site, named_cohorts, open_site
from common.errors import DataError, FederationError


def of(folder: Path, named: Sequence[Path] = ()) -> tuple[Path, ...]:
    """All other cohorts that names lead to from a site folder, which need not be there yet, and from `named`.

    Raises DataError where one of them can't be read.
    """
    waiting = [*(path.resolve() for path in named), *named_cohorts(folder)]
    found: list[Path] = []
    while waiting:
        other = waiting.pop(0)
        if other not in (folder.resolve(), *found):
            found.append(other)
            waiting += opened(folder, other).other_cohorts
    return tuple(sorted(found))


def opened(folder: Path, other: Path) -> Site:
    """Another cohort of this folder's hospital. Raises DataError where it can't be read."""
    try:
        return open_site(other)
    except FederationError as error:
        raise unreadable(folder, other, error) from None


def unreadable(folder: Path, other: Path, error: FederationError) -> DataError:
    """What the operator reads where another cohort can't be looked into."""
    return DataError(
        f"{folder}: its other cohort {other} can't be read, and without it nobody can tell whose patient is whose:"
        f" mount or restore it; where it has moved, correct paths.other_cohorts in site.toml ({error})"
    )


def demand_apart(site: Site) -> tuple[Path, ...]:
    """The other cohorts, to none of which a patient of this site's index belongs.

    Raises DataError where one can't be read or does not name this site, or the index was not compared with it.
    """
    others, index = of(site.folder), known.indexed(site.folder)
    for folder in others:
        other = opened(site.folder, folder)
        is_compared = index is None or known.mark(other.patient_key) in index.compared
        if not is_compared or site.folder.resolve() not in other.other_cohorts:
            raise DataError(
                f"{site.folder}: not compared with {folder}, another cohort of this hospital: whoever is in both would"
                f" have two budgets. First: client index … --out {site.folder}"
            )
    return others
