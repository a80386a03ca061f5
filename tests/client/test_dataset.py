"""Patients, pools and batches."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import KEY, tiny_study, write_npz, write_site

from client import index
from client.dataset import Images, batches, open_dataset, patients_of
from client.site import open_site, site_toml


def site_of(tmp_path: Path, *, images: int = 200, official: bool = False) -> Path:
    folder = tmp_path / "site-0"
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "patient.key").write_bytes(KEY)
    (folder / "site.toml").write_text(site_toml("site-0"))
    source = write_npz(tmp_path / "x.npz", images=images, seed=0, official=official)
    index.build("medmnist", source, folder, patient_key=KEY)
    return folder


def test_patients_are_never_split_between_pools(tmp_path: Path) -> None:
    folder = site_of(tmp_path)
    rows = index.read(folder)
    merged = [replace(row, patient=f"patient-{number // 4}") for number, row in enumerate(rows)]
    index.write(folder, merged, [])
    pools = open_dataset(open_site(folder), tiny_study()).pools
    owners = [{row.patient for row in images.rows} for images in pools.values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 50
    assert sum(map(len, pools.values())) == len(rows)


def test_a_patient_stays_in_his_pool_when_others_come_and_go(tmp_path: Path) -> None:
    folder = site_of(tmp_path)

    def pool_of() -> dict[str, str]:
        pools = open_dataset(open_site(folder), tiny_study()).pools
        return {row.patient: pool for pool, images in pools.items() for row in images.rows}

    before = pool_of()
    index.write(folder, index.read(folder)[::3], [])
    after = pool_of()
    assert 60 < len(after) < len(before) and all(before[patient] == pool for patient, pool in after.items())


def test_flagged_images_of_an_older_index_are_not_used_where_the_policy_drops_those(tmp_path: Path) -> None:
    folder = site_of(tmp_path)
    flagged = {row.image for row in index.read(folder)[::5]}
    marks = {True: True, False: None}
    index.write(folder, [replace(row, burned_in=marks[row.image in flagged]) for row in index.read(folder)], [])
    before = open_dataset(open_site(folder), tiny_study())
    assert sum(map(len, before.pools.values())) == 200 and not before.unusable  # kept and flagged, unless told
    settings = folder / "site.toml"
    settings.write_text(settings.read_text().replace("# drop_burned_in = false", "drop_burned_in = true"))
    found = open_dataset(open_site(folder), tiny_study())
    used = {row.image for images in found.pools.values() for row in images.rows}
    assert len(used) == 160 and not used & flagged and found.unusable == {"burned_in": 40}
    assert sum(found.patients.values()) == 160
    index.write(folder, [replace(row, burned_in=True) for row in index.read(folder)], [])
    assert not sum(map(len, open_dataset(open_site(folder), tiny_study()).pools.values()))


def test_the_shares_are_those_of_the_study(tmp_path: Path) -> None:
    folder = site_of(tmp_path, images=2000)
    index.write(folder, [replace(row, official=None) for row in index.read(folder)], [])
    pools = open_dataset(open_site(folder), tiny_study(study={"split": [0.5, 0.2, 0.3]})).pools
    # 2,000 patients: one standard deviation is at most 23
    for pool, share in (("train", 1000), ("validation", 400), ("test", 600)):
        assert abs(len(pools[pool]) - share) < 100  # type: ignore[index]


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    pools = open_dataset(open_site(site_of(tmp_path, official=True)), tiny_study()).pools
    assert {pool: len(images) for pool, images in pools.items()} == {"train": 200, "validation": 50, "test": 50}
    for pool, images in pools.items():
        assert {row.official for row in images.rows} == {pool}


def test_where_only_the_test_images_are_elsewhere_no_patient_is_taken_for_testing(tmp_path: Path) -> None:
    folder = site_of(tmp_path, official=True)
    index.write(folder, [row for row in index.read(folder) if row.official == "train"], [])
    pools = open_dataset(open_site(folder), tiny_study()).pools
    assert not len(pools["test"]) and 10 < len(pools["validation"]) < 50


def test_images_without_a_usable_annotation_are_counted(tmp_path: Path) -> None:
    dataset = open_dataset(open_site(site_of(tmp_path)), tiny_study(study={"classes": ["2", "3"]}))
    assert sum(map(len, dataset.pools.values())) + sum(dataset.unusable.values()) == 200


def test_an_image_that_can_not_be_decoded_is_dropped_and_counted(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site-0", images=20, seed=0)
    rows = index.read(folder)
    broken = replace(rows[0], source=replace(rows[0].source, item=10_000))
    index.write(folder, [broken, *rows[1:]], [])
    dataset = open_dataset(open_site(folder), tiny_study())
    assert sum(map(len, dataset.pools.values())) == 19 and sum(dataset.unusable.values()) == 1
    assert len(index.read(folder)) == 19 and len(index.dropped(folder)) == 1


def test_a_batch_holds_normalised_pixels_and_labels(tmp_path: Path) -> None:
    study = tiny_study(preprocessing={"mean": 0.5, "std": 0.25})
    images = open_dataset(open_site(site_of(tmp_path)), study).pools["train"]
    batch = images.batch([0, 3, 5])
    with np.load(tmp_path / "x.npz") as stored:
        row = images.rows[3]
        pixels = stored["train_images"][row.source.item] / 255
        label = int(stored["train_labels"][row.source.item, 0])
    assert batch.images.shape == (3, 1, 20, 20) and batch.labels is not None
    assert np.abs(batch.images[1, 0].numpy() - (pixels - 0.5) / 0.25).max() < 4e-3  # float16 in the cache
    assert int(batch.labels[1]) == label


def images_of(classes: list[int]) -> Images:
    return Images(study=tiny_study(), rows=(None,) * len(classes), truths=tuple(classes), cache=None)  # type: ignore[arg-type]


@given(classes=st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_balance_weighs_all_classes_that_occur_alike_with_mean_one(classes: list[int]) -> None:
    balance = images_of(classes).balance
    assert balance.mean() == pytest.approx(1)
    totals = [balance[np.array(classes) == c].sum() for c in set(classes)]
    assert totals == pytest.approx([totals[0]] * len(totals))


@given(n=st.integers(0, 30), size=st.integers(1, 40), epochs=st.integers(1, 3))
def test_epochs_take_every_image_once_a_pass(n: int, size: int, epochs: int) -> None:
    taken = list(
        batches(images_of([0] * n), size=size, steps=None, epochs=epochs, sampler=False, rng=np.random.default_rng(0))
    )
    assert Counter(int(i) for batch in taken for i in batch) == dict.fromkeys(range(n), epochs)
    assert all(len(batch) <= size for batch in taken) and len(taken) == epochs * -(-n // size)


@given(n=st.integers(1, 30), size=st.integers(1, 40), steps=st.integers(1, 50))
def test_steps_are_exactly_as_many_as_asked_for(n: int, size: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    taken = list(batches(images_of([0] * n), size=size, steps=steps, epochs=None, sampler=False, rng=rng))
    assert len(taken) == steps


def test_the_sampler_draws_classes_alike() -> None:
    classes = [0] * 950 + [1] * 50
    images = images_of(classes)
    rng = np.random.default_rng(0)
    drawn = np.concatenate(list(batches(images, size=100, steps=None, epochs=4, sampler=True, rng=rng)))
    # 4,000 draws, half of class 1: standard deviation 32; without balance there would be 200
    assert abs(sum(classes[i] for i in drawn) - 2000) < 160


def test_patients_come_in_an_order_of_their_own(tmp_path: Path) -> None:
    rows = index.read(site_of(tmp_path, images=20))
    assert patients_of(rows) == patients_of(rows[::-1])
