"""The partition: patients stay whole, everything is reproducible, and the grammar says what it means."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError, StudyError
from simulations.partition import Partition, assign, figure, parse_partition, shifts, site_names, table
from simulations.scanner import Scanner

CHANCE = ["uniform", "quantity:0.2", "dirichlet:0.3", "quantity:0.5+dirichlet:0.1", "quantity:0.001", "dirichlet:0.001"]


@dataclass(frozen=True)
class Item:
    image: str
    patient: str
    classes: frozenset[int] = frozenset({0})
    modality: str | None = None
    scanner: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def _classes(row: Item) -> frozenset[int]:
    return row.classes


def _assign(rows: list[Item], spec: str, *, sites: int, seed: int = 0) -> dict[str, list[Item]]:
    return assign(rows, parse_partition(spec), sites=sites, seed=seed, classes_of=_classes)


def _one_image_each(patients: int, **columns: list[str]) -> list[Item]:
    return [
        Item(f"i{n:04d}", f"p{n:04d}", columns={name: values[n % len(values)] for name, values in columns.items()})
        for n in range(patients)
    ]


rows_of_patients = st.lists(
    st.lists(st.frozensets(st.integers(0, 3), max_size=2), min_size=1, max_size=4), min_size=0, max_size=25
).map(
    lambda patients: [
        Item(f"i{p}-{i}", f"p{p}", classes=classes, columns={"hospital": f"h{p % 5}"})
        for p, images in enumerate(patients)
        for i, classes in enumerate(images)
    ]
)


@settings(deadline=None)
@given(rows=rows_of_patients, spec=st.sampled_from(CHANCE), sites=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_row_is_at_exactly_one_site_and_no_patient_is_split(
    rows: list[Item], spec: str, sites: int, seed: int
) -> None:
    assignment = _assign(rows, spec, sites=sites, seed=seed)
    assert list(assignment) == [f"site-{n}" for n in range(sites)]
    assert sorted(r.image for own in assignment.values() for r in own) == sorted(r.image for r in rows)
    homes = [(row.patient, site) for site, own in assignment.items() for row in own]
    assert len(set(homes)) == len({row.patient for row in rows})


@settings(deadline=None)
@given(rows=rows_of_patients, spec=st.sampled_from(CHANCE), sites=st.integers(1, 12))
def test_no_site_is_empty_where_there_are_at_least_as_many_patients_as_sites(
    rows: list[Item], spec: str, sites: int
) -> None:
    filled = sum(bool(own) for own in _assign(rows, spec, sites=sites).values())
    assert filled >= min(sites, len({row.patient for row in rows}))


@settings(deadline=None, max_examples=50)
@given(rows=rows_of_patients, spec=st.sampled_from([*CHANCE, "column:hospital"]), order=st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[Item], spec: str, order: random.Random) -> None:
    if spec.startswith("column") and len({row.columns["hospital"] for row in rows}) < 3:
        return
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert _assign(shuffled, spec, sites=3) == _assign(rows, spec, sites=3)


@pytest.mark.parametrize("spec", CHANCE)
def test_the_seed_alone_decides(spec: str) -> None:
    rows = _one_image_each(100)
    assert _assign(rows, spec, sites=5, seed=1) == _assign(rows, spec, sites=5, seed=1)
    assert _assign(rows, spec, sites=5, seed=1) != _assign(rows, spec, sites=5, seed=2)


def test_uniform_sites_differ_by_at_most_one_patient() -> None:
    sizes = [len(own) for own in _assign(_one_image_each(103), "uniform", sites=10).values()]
    assert sorted(sizes) == [10] * 7 + [11] * 3


def _expected_squares(alpha: float, sites: int) -> float:
    """Mean of the sum of squared shares under a symmetric Dirichlet: sum of E[p]^2 + Var[p], in closed form."""
    return (alpha + 1) / (sites * alpha + 1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rule", ["quantity", "dirichlet"])
def test_sizes_are_as_unequal_as_alpha_says(rule: str, alpha: float) -> None:
    # 150 draws: the mean's standard error is below 0.013, and half or twice the ALPHA is more than 4 tolerances away
    # for 0.2 and 1 (0.27 to 0.6 and 0.14 to 0.31 about 0.40 and 0.18), more than 1.5 for 5 (0.11, 0.17 about 0.118).
    rows, sites = _one_image_each(400), 10
    squares = []
    for seed in range(150):
        sizes = np.array([len(own) for own in _assign(rows, f"{rule}:{alpha}", sites=sites, seed=seed).values()])
        squares.append(((sizes / 400) ** 2).sum())
    expected = _expected_squares(alpha, sites)
    assert np.mean(squares) == pytest.approx(expected, rel=0.1 if alpha < 5 else 0.05)


def _shares(assignment: dict[str, list[Item]], position: int) -> np.ndarray:
    """How the patients of one class are spread over the sites."""
    numbers = np.array([sum(position in row.classes for row in own) for own in assignment.values()])
    return numbers / numbers.sum()


def test_dirichlet_skews_each_class_on_its_own_and_quantity_sets_the_mean_sizes() -> None:
    rows = [Item(f"i{n:04d}", f"p{n:04d}", classes=frozenset({n % 2})) for n in range(600)]

    def distance(spec: str) -> float:
        """Mean total variation between the two classes' spreads: 0 alike, 1 disjoint."""
        found = [_assign(rows, spec, sites=4, seed=seed) for seed in range(30)]
        return float(np.mean([np.abs(_shares(a, 0) - _shares(a, 1)).sum() / 2 for a in found]))

    assert distance("dirichlet:1000") < 0.05 < distance("dirichlet:1") < 0.55 < distance("dirichlet:0.1")
    sizes = {site: len(own) for site, own in _assign(rows, "quantity:0.5", sites=4, seed=1).items()}
    both = {site: len(own) for site, own in _assign(rows, "quantity:0.5+dirichlet:1000", sites=4, seed=1).items()}
    assert all(abs(sizes[site] - both[site]) < 40 for site in sizes)
    assert max(sizes.values()) - min(sizes.values()) > 120


def test_a_patient_counts_for_the_rarest_class_of_his_images() -> None:
    # ALPHA 0.001 puts nearly all of a class at one site, drawn for each class. The rare class's patients also show the
    # common one: counted as common they would never be elsewhere. (Each may be the one that fills an empty site.)
    common = [Item(f"c{n}", f"c{n}", classes=frozenset({0})) for n in range(60)]
    rare = [Item(f"r{n}{k}", f"r{n}", classes=frozenset({0} if k else {0, 1})) for n in range(12) for k in (0, 1)]
    elsewhere = 0
    for seed in range(40):
        assignment = _assign(common + rare, "dirichlet:0.001", sites=2, seed=seed)
        alone = np.array([len({r.patient for r in own if r.patient < "r"}) for own in assignment.values()])
        shown = np.array([len({r.patient for r in own if r.patient > "r"}) for own in assignment.values()])
        assert alone.max() >= 59 and shown.max() >= 11
        elsewhere += alone.argmax() != shown.argmax()
    assert 8 <= elsewhere <= 32  # 20 expected; standard deviation 3.2


def test_column_values_become_sites_by_falling_size_and_are_dealt_out_where_there_are_more() -> None:
    rows = _one_image_each(10, hospital=["a", "b", "b", "b", "c", "c", "d", "d", "d", "d"])
    four = _assign(rows, "column:hospital", sites=4)
    assert [{r.columns["hospital"] for r in own} for own in four.values()] == [{"d"}, {"b"}, {"c"}, {"a"}]
    two = _assign(rows, "column:hospital", sites=2)
    assert [{r.columns["hospital"] for r in own} for own in two.values()] == [{"d", "c"}, {"b", "a"}]


def test_column_takes_a_patients_most_frequent_value_and_groups_those_without() -> None:
    rows = [
        Item("1", "p", columns={"hospital": "a"}),
        Item("2", "p", columns={"hospital": "b"}),
        Item("3", "p", columns={"hospital": "b"}),
        Item("4", "q", columns={"hospital": "a"}),
        Item("5", "r"),
        Item("6", "s", columns={"hospital": ""}),
    ]
    groups = [{row.patient for row in own} for own in _assign(rows, "column:hospital", sites=3).values()]
    assert sorted(map(sorted, groups)) == [["p"], ["q"], ["r", "s"]]


def test_column_may_name_the_images_scanner_or_modality() -> None:
    rows = [Item(f"{n}", f"p{n}", modality=("CR", "DX")[n % 2], scanner=("x", "y", "z")[n % 3]) for n in range(12)]
    assert [{r.modality for r in own} for own in _assign(rows, "column:modality", sites=2).values()] == [{"CR"}, {"DX"}]
    assert all(len({r.scanner for r in own}) == 1 for own in _assign(rows, "column:scanner", sites=3).values())


def test_a_column_that_is_absent_or_has_too_few_values_is_refused_in_one_line() -> None:
    rows = _one_image_each(10, hospital=["a", "b"])
    with pytest.raises(DataError, match=r"^partition column:ward: no image has a value; known columns: hospital,.*$"):
        _assign(rows, "column:ward", sites=2)
    with pytest.raises(DataError, match=r"^partition column:hospital: 2 values for 3 sites; use 2 or fewer$"):
        _assign(rows, "column:hospital", sites=3)


def test_fewer_than_one_site_is_refused() -> None:
    with pytest.raises(StudyError, match="sites = 0"):
        _assign(_one_image_each(3), "uniform", sites=0)


def test_scanner_leaves_the_assignment_alone_and_gives_each_site_a_shift() -> None:
    rows = _one_image_each(50)
    for rule in ("uniform", "dirichlet:0.3", "quantity:1"):
        assert _assign(rows, f"{rule}+scanner:0.5", sites=4) == _assign(rows, rule, sites=4)
    assert _assign(rows, "scanner:1", sites=4) == _assign(rows, "uniform", sites=4)
    shifted = shifts(parse_partition("scanner:0.5"), sites=4, seed=1)
    assert list(shifted) == site_names(4) and len(set(shifted.values())) == 4
    assert set(shifts(parse_partition("uniform"), sites=4, seed=1).values()) == {Scanner()}


@pytest.mark.parametrize(
    ("text", "partition"),
    [
        ("uniform", Partition()),
        ("quantity:0.5", Partition(quantity=0.5)),
        ("dirichlet:0.3+scanner:0.5", Partition(dirichlet=0.3, scanner=0.5)),
        ("scanner:1e-1 + quantity:2+dirichlet:1", Partition(quantity=2, dirichlet=1, scanner=0.1)),
        ("column:ward: east", Partition(column="ward: east")),
        ("uniform+scanner:0", Partition()),
    ],
)
def test_a_spec_is_parsed_and_printed_back(text: str, partition: Partition) -> None:
    assert parse_partition(text) == partition
    assert parse_partition(str(partition)) == partition


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is not a kind of partition"),
        ("dirichlet", "'dirichlet' needs a number"),
        ("dirichlet:0", "'dirichlet:0' needs a number"),
        ("quantity:nan", "'quantity:nan' needs a number"),
        ("quantity:-1", "needs a number from 0.001"),
        ("scanner:5", "'scanner:5' needs a number from 0 to 4"),
        ("column:", "column needs the NAME"),
        ("column:a\nb", "column needs the NAME"),
        ("uniform:3", "uniform takes no value"),
        ("dirichlet:1+dirichlet:2", "dirichlet appears twice"),
        ("uniform+quantity:1", "uniform and quantity exclude each other"),
        ("column:x+dirichlet:1", "column and dirichlet exclude each other"),
        ("iid", "'iid' is not a kind of partition"),
    ],
)
def test_a_wrong_spec_gets_one_line_that_names_it_the_fault_and_the_allowed_forms(text: str, fault: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_partition(text)
    message = str(caught.value)
    assert message.startswith(f"partition {text!r}: ") and fault in message and "dirichlet:ALPHA" in message
    assert "\n" not in message


def test_the_table_counts_patients_images_and_images_per_class() -> None:
    rows = [
        Item("1", "p", classes=frozenset({0})),
        Item("2", "p", classes=frozenset({0, 1})),
        Item("3", "q", classes=frozenset()),
    ]
    full, empty = table({"site-0": rows, "site-1": []}, classes=["a", "b"], classes_of=_classes)
    assert (full.site, full.patients, full.images, full.without) == ("site-0", 2, 3, 1)
    assert full.per_class == {"a": 2, "b": 1}
    assert (empty.patients, empty.images, empty.without, empty.per_class) == (0, 0, 0, {"a": 0, "b": 0})


@pytest.mark.parametrize("sites", [0, 1, 3, 200])
def test_the_picture_shows_every_site_with_its_number_of_images(sites: int) -> None:
    rows = [Item(f"i{n}", f"p{n}", classes=frozenset({n % 3} if n % 3 < 2 else {})) for n in range(500)]
    assignment = _assign(rows, "dirichlet:0.3", sites=sites) if sites else {}
    picture = figure(table(assignment, classes=["a", "b"], classes_of=_classes))
    widths: Counter[int] = Counter()
    for bar in picture.axes[0].patches:
        widths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert widths == Counter({position: len(own) for position, own in enumerate(assignment.values())})
    picture.draw_without_rendering()
