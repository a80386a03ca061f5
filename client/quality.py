"""What a site's data are like, in numbers: how much is used, of whom, by which scanner, in which classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import agreement, cohort, index, looks, similar
from client.annotations import Remark
from client.drops import Dropped
from client.index import Counts
from client.looks import Look
from client.records import Row
from client.site import Site, split_position
from client.sources import Source
from common.annotation import Annotation

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of patients, unless a study or a ledger says otherwise
RARE = 0.1  # share of patients below which a class is called rare
FEW = 20  # patients of a class below which its figures say little
UNKNOWN = "not stated"
LOCALIZER, CAPTURE = "localizers", "secondary captures or screen saves"
MARKED = {"label": "", "mask": " (outline)", "box": " (box)"}  # added to a class's name where a site has several


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that have something in common, and how many patients they are of. `kind`: a class is of labels, masks or
    boxes.
    """

    name: str
    images: int
    patients: int
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the report keeps of one image. `classes` are those that its annotation names."""

    image: str
    patient: str
    source: Source
    size: tuple[int, int]  # height, width
    scanner: str
    pool: str
    classes: tuple[str, ...]
    kind: str = ""  # SOP class and ImageType

    @property
    def oddity(self) -> str:
        """What its header says it belongs to instead of an examination's image; "" where nothing."""
        name, _, codes = self.kind.partition(": ")
        if "LOCALIZER" in codes.split(", "):
            return LOCALIZER
        return CAPTURE if "Secondary Capture" in name or "SCREEN SAVE" in codes.split(", ") else ""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All that the index says of a site's images. Groups are in falling order of their images."""

    counts: Counts
    cards: Mapping[str, Card]  # by image
    modalities: tuple[Group, ...]
    scanners: tuple[Group, ...]
    kinds: tuple[Group, ...]  # of SOP class and ImageType
    classes: tuple[Group, ...]
    pools: tuple[Group, ...]
    burned_in: tuple[Group, ...]  # "yes", "no", UNKNOWN
    directions: tuple[Group, ...]  # as in Pose, UNKNOWN
    drops_burned_in: bool  # the site's policy, which the index may be older than
    images_per_patient: tuple[int, float, int]  # fewest, median, most
    dropped: tuple[Dropped, ...]
    remarks: tuple[Remark, ...]
    agreement: Mapping[str, Any]  # as client/agreement.py's summary

    @property
    def share(self) -> float | None:
        """Of the files that aren't ASIDE, those that are used; None where there is none."""
        total = self.counts.used + sum(self.counts.lost.values())
        return self.counts.used / total if total else None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the images themselves show."""

    looks: Mapping[str, Look]  # by image
    failed: Mapping[str, Dropped]  # can't be decoded, though their headers are whole
    blank: tuple[str, ...]
    within: tuple[tuple[str, ...], ...]  # nearly the same images of one patient
    across: tuple[tuple[str, ...], ...]  # of several


def gather(site: Site, *, failed: Mapping[str, Dropped] = {}) -> Quality:
    """Read the index. Images of it that were seen not to be decodable (Seen.failed) count as not used.

    Raises DataError where there is none that can be read.
    """
    cards: dict[str, Card] = {}
    said = ("modality", "scanner", "kind", "class", "pool", "burned", "directions")
    named: dict[str, dict[str, list[str]]] = {kind: {} for kind in said}
    fixed = cohort.shares_of(site.folder, patient_key=site.patient_key)
    official: dict[str, set[str]] = {}
    rows: list[tuple[Row, dict[str, tuple[str, ...]]]] = []
    for row in index.each(site.folder):
        if row.official is not None:
            official.setdefault(row.patient, set()).add(row.official)
        if row.image in failed:
            continue
        # The mask is done with: of all of them together memory would be full.
        rows.append((replace(row, annotation=Annotation()), present(row)))
    shares = fixed or _left_open(SHARES, {name for names in official.values() for name in names})
    patients: dict[str, str] = {}
    several = len({kind for _, marked in rows for kind in marked}) > 1
    kinds: dict[str, str] = {}
    for row, marked in rows:
        of = {name + (MARKED[kind] if several else ""): kind for kind, names in marked.items() for name in names}
        kinds |= of
        classes = tuple(of)
        pool = _pool(site, row.patient, official.get(row.patient, set()), shares)
        patients[row.image] = row.patient
        scanner = row.scanner or UNKNOWN
        cards[row.image] = Card(
            image=row.image,
            patient=row.patient,
            source=row.source,
            size=(row.height, row.width),
            scanner=scanner,
            pool=pool,
            classes=classes,
            kind=row.image_kind or UNKNOWN,
        )
        burned = UNKNOWN if row.burned_in is None else ("yes" if row.burned_in else "no")
        for kind, names in (
            *(("modality", (row.modality or UNKNOWN,)), ("scanner", (scanner,)), ("class", classes)),
            ("kind", (row.image_kind or UNKNOWN,)),
            *(("pool", (pool,)), ("burned", (burned,)), ("directions", (row.pose.directions or UNKNOWN,))),
        ):
            for name in names:
                named[kind].setdefault(name, []).append(row.image)
    found = {kind: _groups(names, patients) for kind, names in named.items()}
    each = sorted(Counter(patients.values()).values()) or [0]
    used = {card.source.path for card in cards.values()}
    whole = {one.path: replace(one, array="", item=None) for one in failed.values() if one.path not in used}
    lost = [*whole.values(), *(one for one in failed.values() if one.path in used)]
    return Quality(
        counts=_without(index.counts(site.folder), lost, cards),
        cards=cards,
        modalities=found["modality"],
        scanners=found["scanner"],
        kinds=found["kind"],
        classes=tuple(replace(group, kind=kinds[group.name]) for group in found["class"]),
        pools=found["pool"],
        burned_in=found["burned"],
        directions=found["directions"],
        drops_burned_in=site.policy.drop_burned_in,
        images_per_patient=(each[0], float(np.median(each)), each[-1]),
        dropped=(*index.dropped(site.folder), *lost),
        remarks=tuple(index.remarks(site.folder)),
        agreement=agreement.summary(index.agreements(site.folder)),
    )


def see(site: Site, quality: Quality, *, jobs: int | None = None, quiet: bool = True) -> Seen:
    """Look at all images. Raises DataError when the images' folder is not there."""
    wanted = [(card.image, card.source) for card in quality.cards.values()]
    found, failed = looks.look(site.folder, wanted, jobs=jobs, quiet=quiet)
    alike = similar.groups({image: one.tiny for image, one in found.items()})
    apart = [{quality.cards[image].patient for image in group} for group in alike]
    return Seen(
        looks=found,
        failed=failed,
        blank=tuple(sorted(image for image, one in found.items() if similar.blank(one.tiny))),
        within=tuple(tuple(group) for group, whose in zip(alike, apart, strict=True) if len(whose) == 1),
        across=tuple(tuple(group) for group, whose in zip(alike, apart, strict=True) if len(whose) > 1),
    )


def _without(counts: Counts, lost: Sequence[Dropped], cards: Mapping[str, Card]) -> Counts:
    """The index's counts, where these files and images can't be decoded and the cards' are all that is used."""
    files = Counter(one.reason for one in lost if one.item is None)
    images = Counter(one.reason for one in lost if one.item is not None)
    return replace(
        counts,
        used=counts.used - files.total(),
        dropped=dict(sorted((Counter(counts.dropped) + files).items())),
        images=len(cards),
        dropped_images=dict(sorted((Counter(counts.dropped_images) + images).items())),
        patients=len({card.patient for card in cards.values()}),
    )


def present(row: Row) -> dict[str, tuple[str, ...]]:
    """The classes that an image's label, mask and boxes name, each kind apart; "nothing marked" where it was looked at
    and nothing found.
    """
    known = row.annotation
    found: dict[str, tuple[str, ...]] = {}
    if known.label is not None:
        found["label"] = (known.label,)
    if known.mask is not None:
        values = [int(value) for value in np.unique(known.mask) if value]
        naming = known.mask_names
        names = [naming[v - 1] if naming and v <= len(naming) else f"mask value {v}" for v in values]
        found["mask"] = tuple(dict.fromkeys(names)) or ("nothing marked",)
    if known.boxes is not None:
        found["box"] = tuple(dict.fromkeys(box.name for box in known.boxes)) or ("nothing marked",)
    return found


def brightness(seen: Seen, images: Sequence[str]) -> NDArray[np.float32]:
    """Mean share of pixels by step of brightness [BINS] over the images of these that could be looked at."""
    found = [seen.looks[image].brightness for image in images if image in seen.looks]
    return np.mean(found, axis=0) if found else np.zeros(looks.BINS, np.float32)


def _groups(named: Mapping[str, Sequence[str]], patients: Mapping[str, str]) -> tuple[Group, ...]:
    found = [
        Group(name=name, images=len(images), patients=len({patients[image] for image in images}))
        for name, images in named.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.images, group.name)))


def _left_open(shares: Mapping[str, float], officials: set[str]) -> dict[str, float]:
    """Shares of the pools among patients without an official one: what the data's makers gave is not given again."""
    left = dict(shares)
    if officials:
        left["test"] = 0.0
    if "validation" in officials:
        left["validation"] = 0.0
    return left


def _pool(site: Site, patient: str, official: set[str], shares: Mapping[str, float]) -> str:
    for held_out in ("test", "validation"):
        if held_out in official:
            return held_out
    place = split_position(site, patient) * sum(shares.values())
    for pool in ("train", "validation"):
        place -= shares[pool]
        if place < 0:
            return pool
    return "test"
