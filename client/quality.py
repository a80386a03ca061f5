"""What a site's data are like, in numbers: how much is used, of whom, by which scanner, in which classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import agreement, cohort, index, looks, similar
from client.annotations import Finding, Remark
from client.drops import Drop, Dropped
from client.index import Counts
from client.looks import Look
from client.records import Row
from client.site import Site, split_position
from client.sources import Source
from common.annotation import Annotation
from common.page import counted, listed

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of patients, unless a study or a ledger says otherwise
RARE = 0.1  # share of patients below which a class is called rare
FEW = 20  # patients of a class below which its figures say little
USED = 0.9  # share of the files below which a person should see what became of the others
DISAGREE = 0.5  # Dice or IoU of readers below which they don't mean the same
KAPPA = 0.4  # agreement up to here is no more than fair: Landis and Koch 1977
UNKNOWN = "not stated"
_TO_MEND = frozenset(
    {Drop.UNREADABLE, Drop.UNSUPPORTED, Drop.NO_PATIENT_ID, Drop.NO_ANNOTATION, Drop.BAD_ANNOTATION, Drop.CHANGED}
    | {Drop.EMPTY_FILE, Drop.TOO_LARGE}
)
_MARKED = {"label": "", "mask": " (outline)", "box": " (box)"}  # added to a class's name where a site has several


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


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All that the index says of a site's images. Groups are in falling order of their images."""

    counts: Counts
    cards: Mapping[str, Card]  # by image
    modalities: tuple[Group, ...]
    scanners: tuple[Group, ...]
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
        return share_of(self.counts)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the images themselves show."""

    looks: Mapping[str, Look]  # by image
    failed: Mapping[str, Drop]
    blank: tuple[str, ...]
    within: tuple[tuple[str, ...], ...]  # nearly the same images of one patient
    across: tuple[tuple[str, ...], ...]  # of several


def gather(site: Site) -> Quality:
    """Read the index. Raises DataError where there is none that can be read."""
    cards: dict[str, Card] = {}
    said = ("modality", "scanner", "class", "pool", "burned", "directions")
    named: dict[str, dict[str, list[str]]] = {kind: {} for kind in said}
    fixed = cohort.shares_of(site.folder, patient_key=site.patient_key)
    official: dict[str, set[str]] = {}
    rows: list[tuple[Row, dict[str, tuple[str, ...]]]] = []
    for row in index.each(site.folder):
        if row.official is not None:
            official.setdefault(row.patient, set()).add(row.official)
        # The mask is done with: of all of them together memory would be full.
        rows.append((replace(row, annotation=Annotation()), present(row)))
    shares = fixed or _left_open(SHARES, {name for names in official.values() for name in names})
    patients: dict[str, str] = {}
    several = len({kind for _, marked in rows for kind in marked}) > 1
    kinds: dict[str, str] = {}
    for row, marked in rows:
        of = {name + (_MARKED[kind] if several else ""): kind for kind, names in marked.items() for name in names}
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
        )
        burned = UNKNOWN if row.burned_in is None else ("yes" if row.burned_in else "no")
        for kind, names in (
            *(("modality", (row.modality or UNKNOWN,)), ("scanner", (scanner,)), ("class", classes)),
            *(("pool", (pool,)), ("burned", (burned,)), ("directions", (row.pose.directions or UNKNOWN,))),
        ):
            for name in names:
                named[kind].setdefault(name, []).append(row.image)
    found = {kind: _groups(names, patients) for kind, names in named.items()}
    each = sorted(Counter(patients.values()).values()) or [0]
    return Quality(
        counts=index.counts(site.folder),
        cards=cards,
        modalities=found["modality"],
        scanners=found["scanner"],
        classes=tuple(replace(group, kind=kinds[group.name]) for group in found["class"]),
        pools=found["pool"],
        burned_in=found["burned"],
        directions=found["directions"],
        drops_burned_in=site.policy.drop_burned_in,
        images_per_patient=(each[0], float(np.median(each)), each[-1]),
        dropped=tuple(index.dropped(site.folder)),
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


def share_of(counts: Counts) -> float | None:
    """Of the files that aren't ASIDE, the share that is used."""
    total = counts.used + sum(counts.lost.values())
    return counts.used / total if total else None


def attention(quality: Quality, seen: Seen | None) -> list[str]:
    """What a person should look at, in sentences, the gravest first. `seen`: None where nobody looked at the images."""
    counts, points = quality.counts, []
    if quality.share is not None and quality.share < USED:
        points.append(f"Only {quality.share:.1%} of the files are used: see what became of the others, and why.")
    for reason in sorted(_TO_MEND & counts.dropped.keys(), key=lambda reason: -counts.dropped[reason]):
        points.append(
            f"{counted(counts.dropped[reason], 'file')} not used for this reason: {reason.replace('_', ' ')}."
        )
    if seen is not None:
        if seen.failed:
            points.append(f"{counted(len(seen.failed), 'image')} in the index can't be decoded.")
        if seen.across:
            several = counted(len(seen.across), "group")
            points.append(f"{several} of nearly the same images belong to different patients: see which is whose.")
            parted = sum(len({quality.cards[image].pool for image in group}) > 1 for group in seen.across)
            if parted:
                points.append(
                    f"{counted(parted, 'group')} of these reach from training into validation or test: figures on"
                    " held-out patients would be too good."
                )
        if seen.blank:
            points.append(f"{counted(len(seen.blank), 'image')} show nothing: one brightness all over.")
    same = counts.findings.get(Finding.SAME_IN_TWO_PATIENTS, 0)
    if same:
        points.append(f"{counted(same, 'file')} the same in two patients: which of the two is right?")
    flagged = next((group.images for group in quality.burned_in if group.name == "yes"), 0)
    if flagged:
        what = f"{counted(flagged, 'image')} flagged by the scanner for text burned into the pixels"
        points.append(
            f"{what}: this site's policy drops those, so that none is used; client index counts them."
            if quality.drops_burned_in
            else f"{what}: names may stand in them. drop_burned_in in the [policy] of site.toml leaves them out."
        )
    for kind in _MARKED:
        points += _unbalanced([group for group in quality.classes if group.kind == kind], counts.patients)
    points += _apart(quality.agreement)
    for finding, number in counts.findings.items():
        if finding != Finding.SAME_IN_TWO_PATIENTS:
            points.append(f"{number} × {finding.replace('_', ' ')}: each is named on the page, file by file.")
    return points


def line(quality: Quality) -> tuple[bool, str]:
    """Whether all is well, as far as the index tells, and one line of the figures."""
    counts, points = quality.counts, attention(quality, None)
    share = "no file of images" if quality.share is None else f"{quality.share:.1%} of the files used"
    classes = counted(len(quality.classes), "class", "classes")
    text = f"{share} ({counts.images} images, {counts.patients} patients, {classes})"
    return not points, f"{text}; {counted(len(points), 'point')} to look at: client quality" if points else text


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


def _unbalanced(classes: Sequence[Group], patients: int) -> list[str]:
    rare = [group for group in classes if group.patients < RARE * patients or group.patients < FEW]
    if not rare or len(classes) < 2:
        return []
    names = listed(f"{group.name} ({counted(group.patients, 'patient')})" for group in rare)
    return [f"Few patients of {names}: weigh the classes (class_balance in the study), and don't trust single figures."]


def _apart(agreement: Mapping[str, Any]) -> list[str]:
    low = [
        f"{name} ({what} {found['mean']:.2f}, {counted(found['images'], 'image')})"
        for what, key in (("Dice", "dice"), ("IoU of boxes", "iou"))
        for name, found in agreement[key].items()
        if found["mean"] < DISAGREE
    ]
    low += [
        f"labels of {listed(name or 'unnamed' for name in pair['readers'])} (kappa {pair['kappa']:.2f})"
        for pair in agreement["cohen_kappa"]
        if pair["kappa"] is not None and pair["kappa"] <= KAPPA
    ]
    return [f"Readers agree little on {listed(low)}: do they mean the same?"] if low else []


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
