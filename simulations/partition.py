"""Divides patients among unbalanced sites: the partition SPEC grammar, the assignment, and who got what."""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, StudyError
from common.randomness import stream
from simulations import scanner as scanners
from simulations.scanner import Scanner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = "uniform | quantity:ALPHA | dirichlet:ALPHA | column:NAME | scanner:STRENGTH, joined by +"
ALPHAS = (1e-3, 1e6)
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#333333")


class Placed(Protocol):
    """What a partition looks at in an index row."""

    @property
    def image(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def modality(self) -> str | None: ...
    @property
    def scanner(self) -> str | None: ...
    @property
    def columns(self) -> Mapping[str, str]: ...


R = TypeVar("R", bound=Placed)
ClassesOf = Callable[[R], frozenset[int]]  # class positions present in a row's image: Task.present


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition SPEC, parsed. Without quantity, dirichlet and column patients are spread uniformly."""

    quantity: float | None = None  # Dirichlet ALPHA of the sites' sizes
    dirichlet: float | None = None  # Dirichlet ALPHA of each class over the sites
    column: str | None = None  # each value a site
    scanner: float = 0.0  # STRENGTH of the sites' scanner shifts

    def __str__(self) -> str:
        parts = [f"quantity:{self.quantity!r}"] if self.quantity is not None else []
        parts += [f"dirichlet:{self.dirichlet!r}"] if self.dirichlet is not None else []
        parts += [f"column:{self.column}"] if self.column is not None else []
        parts += [f"scanner:{self.scanner!r}"] if self.scanner else []
        return "+".join(parts) or "uniform"


@dataclass(frozen=True, kw_only=True)
class Count:
    """What one site got. `per_class` counts images that show the class; one with several counts in each of them."""

    site: str
    patients: int
    images: int
    per_class: Mapping[str, int]  # in the order of the study's classes
    without: int  # images that show none of the classes


def parse_partition(text: str) -> Partition:
    """A partition SPEC from what a person typed.

    Guarantees: parse_partition(str(partition)) == partition.
    Raises StudyError, one line that names the spec, what is wrong and the allowed forms.
    """
    found: dict[str, float | str | None] = {}
    for part in text.split("+"):
        kind, colon, value = part.strip().partition(":")
        if kind not in ("uniform", "quantity", "dirichlet", "column", "scanner"):
            raise _wrong(text, f"{kind!r} is not a kind of partition")
        if kind in found:
            raise _wrong(text, f"{kind} appears twice")
        if kind == "uniform":
            if colon:
                raise _wrong(text, "uniform takes no value")
            found[kind] = None
        elif kind == "column":
            if not value or any(unicodedata.category(c)[0] == "C" for c in value):
                raise _wrong(text, "column needs the NAME of a column")
            found[kind] = value
        else:
            lowest, highest = (0.0, scanners.MAX_STRENGTH) if kind == "scanner" else ALPHAS
            found[kind] = _number(text, part.strip(), value, lowest, highest)
    rules = [kind for kind in found if kind != "scanner"]
    if len(rules) > 1 and set(rules) != {"quantity", "dirichlet"}:
        raise _wrong(text, f"{' and '.join(rules)} exclude each other")
    return Partition(**{kind: value for kind, value in found.items() if kind != "uniform"})  # type: ignore[arg-type]


def _number(text: str, part: str, value: str, lowest: float, highest: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not lowest <= number <= highest:
        raise _wrong(text, f"{part!r} needs a number from {lowest:g} to {highest:g}")
    return number


def _wrong(text: str, fault: str) -> StudyError:
    return StudyError(f"partition {text!r}: {fault}; allowed: {FORMS}")


def site_names(sites: int) -> list[str]:
    """`site-0` … in the order of their numbers."""
    return [f"site-{position}" for position in range(sites)]


def shifts(partition: Partition, *, sites: int, seed: int) -> dict[str, Scanner]:
    """The scanner of every site; the identity without a `scanner` part."""
    return {site: scanners.draw(partition.scanner, seed=seed, site=site) for site in site_names(sites)}


def assign(
    rows: Sequence[R], partition: Partition, *, sites: int, seed: int, classes_of: ClassesOf[R]
) -> dict[str, list[R]]:
    """Rows by site, all sites named, possibly empty. Rows of an official test split are the caller's to keep out.

    * uniform: equal numbers of patients, give or take one.
    * quantity: the sites' sizes in patients are drawn from Dirichlet(ALPHA).
    * dirichlet: the patients of each class are spread by a Dirichlet(ALPHA) of its own; a patient counts for the rarest
      of the classes that his images show.
    * quantity and dirichlet: as dirichlet, about the sizes of quantity instead of equal ones.
    * column: each value is a site, `site-0` the largest; more values than sites are dealt out in turn by falling size.
      A patient goes by his most frequent value; those without any are a group of their own. `scanner` and `modality`
      are the image's own unless a column has that name.

    Guarantees: every row at exactly one site; all rows of a patient at the same one; a function of seed, partition,
    sites and the set of rows (their order does not matter); where there are at least as many patients as sites no site
    is empty: the largest gives patients to the empty ones (quantity and dirichlet).
    Raises StudyError for fewer than one site, DataError for a column that is absent or has fewer values than sites.
    """
    if sites < 1:
        raise StudyError(f"sites = {sites}: at least one site is needed")
    by_patient: dict[str, list[R]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.patient, row.image)):
        by_patient[row.patient].append(row)
    if partition.column is not None:
        groups = _by_column(by_patient, partition.column, sites=sites)
    else:
        groups = _by_chance(by_patient, partition, sites=sites, seed=seed, classes_of=classes_of)
    return {
        site: [row for patient in sorted(group) for row in by_patient[patient]]
        for site, group in zip(site_names(sites), groups, strict=True)
    }


def _by_column(by_patient: Mapping[str, Sequence[R]], name: str, *, sites: int) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for patient, rows in by_patient.items():
        values = Counter(value for row in rows if (value := _value(row, name)))
        groups[min(values, key=lambda value: (-values[value], value), default="")].append(patient)
    if not any(groups):
        known = sorted({column for rows in by_patient.values() for row in rows for column in row.columns})
        known = sorted({*known, "scanner", "modality"})
        raise DataError(f"partition column:{name}: no image has a value; known columns: {', '.join(known)}")
    if len(groups) < sites:
        raise DataError(f"partition column:{name}: {len(groups)} values for {sites} sites; use {len(groups)} or fewer")
    dealt: list[list[str]] = [[] for _ in range(sites)]
    for position, value in enumerate(sorted(groups, key=lambda value: (-len(groups[value]), value))):
        dealt[position % sites].extend(groups[value])
    return dealt


def _value(row: Placed, name: str) -> str | None:
    if name in row.columns:
        return row.columns[name]
    return {"scanner": row.scanner, "modality": row.modality}.get(name)


def _by_chance(
    by_patient: Mapping[str, Sequence[R]], partition: Partition, *, sites: int, seed: int, classes_of: ClassesOf[R]
) -> list[list[str]]:
    rng = stream(seed, "partition")
    shares = np.full(sites, 1 / sites)
    if partition.quantity is not None:
        shares = rng.dirichlet(np.full(sites, partition.quantity))
    strata = {0: list(by_patient)}
    if partition.dirichlet is not None:
        strata = _strata(by_patient, classes_of)
    groups: list[list[str]] = [[] for _ in range(sites)]
    for _, stratum in sorted(strata.items()):
        of_class = shares
        if partition.dirichlet is not None:
            # The symmetric Dirichlet(ALPHA, …, ALPHA) with its mean moved to `shares`; a parameter of 0 is undefined.
            of_class = rng.dirichlet(np.maximum(partition.dirichlet * sites * shares, 1e-9))
        order = [stratum[position] for position in rng.permutation(len(stratum))]
        ends = np.cumsum(_whole(of_class, len(stratum), rng))
        for group, start, end in zip(groups, [0, *ends[:-1]], ends, strict=True):
            group.extend(order[start:end])
    while not all(groups) and max(map(len, groups)) > 1:
        largest = max(groups, key=len)
        min(groups, key=len).append(largest.pop(int(rng.integers(len(largest)))))
    return groups


def _strata(by_patient: Mapping[str, Sequence[R]], classes_of: ClassesOf[R]) -> dict[int, list[str]]:
    """Patients by the rarest class that their images show (rarest: shown by fewest patients); -1 for none."""
    present = {patient: frozenset().union(*(classes_of(row) for row in rows)) for patient, rows in by_patient.items()}
    frequency = Counter(position for positions in present.values() for position in positions)
    strata: dict[int, list[str]] = defaultdict(list)
    for patient, positions in present.items():
        strata[min(positions, key=lambda position: (frequency[position], position), default=-1)].append(patient)
    return strata


def _whole(shares: NDArray[np.float64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole numbers with the given sum, nearest to the shares: largest remainders first, ties by chance."""
    exact: NDArray[np.float64] = shares / shares.sum() * total
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.lexsort((rng.random(len(shares)), counts - exact))
    counts[order[: total - counts.sum()]] += 1
    return counts


def table(assignment: Mapping[str, Sequence[R]], *, classes: Sequence[str], classes_of: ClassesOf[R]) -> list[Count]:
    """Who got what, one Count per site in the assignment's order."""
    counts = []
    for site, rows in assignment.items():
        present = [classes_of(row) for row in rows]
        shown = Counter(position for positions in present for position in positions)
        counts.append(
            Count(
                site=site,
                patients=len({row.patient for row in rows}),
                images=len(rows),
                per_class={name: shown[position] for position, name in enumerate(classes)},
                without=sum(not positions for positions in present),
            )
        )
    return counts


def figure(counts: Sequence[Count]) -> "Figure":
    """A picture of who got what: one horizontal bar per site, stacked by class, in images.

    Readable from one site to some hundreds: bars grow thinner and names fewer. No sites give an empty picture.
    """
    from matplotlib.figure import Figure

    classes = list(counts[0].per_class) if counts else []
    parts = [(name, _COLOURS[i % len(_COLOURS)], [c.per_class[name] for c in counts]) for i, name in enumerate(classes)]
    if any(count.without for count in counts):
        parts.append(("none of these", "0.8", [count.without for count in counts]))
    picture = Figure(figsize=(7.5, min(1.5 + 0.3 * len(counts), 11)), layout="constrained")
    axes = picture.add_subplot()
    places = np.arange(len(counts))
    left = np.zeros(len(counts))
    for name, colour, images in parts:
        # A label that begins with an underscore would be hidden.
        axes.barh(places, images, left=left, height=0.8 if len(counts) <= 40 else 1.0, color=colour, label=f" {name}")
        left += images
    step = math.ceil(len(counts) / 40) or 1
    axes.set_yticks(places[::step], [f"{count.site} ({count.patients})" for count in counts[::step]], fontsize=8)
    axes.set_ylim(len(counts) - 0.4, -0.6)  # the first site on top
    axes.set_xlabel("images showing each class")
    axes.set_ylabel("site (patients)")
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(parts) <= 24:
        legend = picture.legend(loc="outside upper center", ncols=min(len(parts), 6), fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be called "$"
    return picture
