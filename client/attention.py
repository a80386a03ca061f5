"""What a person should look at before a site's images are trained on, in sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from client.annotations import Finding
from client.drops import Drop
from client.quality import CAPTURE, FEW, LOCALIZER, MARKED, RARE, Group, Quality, Seen
from common.page import counted, listed

USED = 0.9  # share of the files below which a person should see what became of the others
DISAGREE = 0.5  # Dice or IoU of readers below which they don't mean the same
KAPPA = 0.4  # agreement up to here is no more than fair: Landis and Koch 1977
_TO_MEND = frozenset(
    {Drop.UNREADABLE, Drop.UNSUPPORTED, Drop.NO_PATIENT_ID, Drop.NO_ANNOTATION, Drop.BAD_ANNOTATION, Drop.CHANGED}
    | {Drop.EMPTY_FILE, Drop.TOO_LARGE, Drop.PACKED_ARCHIVE}
)


def points(quality: Quality, seen: Seen | None) -> list[str]:
    """What a person should look at, in sentences, the gravest first. `seen`: None where nobody looked at the images."""
    counts, found = quality.counts, []
    if quality.share is not None and quality.share < USED:
        found.append(f"Only {quality.share:.1%} of the files are used: see what became of the others, and why.")
    for reason in sorted(_TO_MEND & counts.dropped.keys(), key=lambda reason: -counts.dropped[reason]):
        found.append(f"{counted(counts.dropped[reason], 'file')} not used for this reason: {reason.replace('_', ' ')}.")
    if seen is not None:
        if seen.failed:
            found.append(
                f"{counted(len(seen.failed), 'image')} in the index can't be decoded, though the header is whole."
            )
        if seen.across:
            several = counted(len(seen.across), "group")
            found.append(f"{several} of nearly the same images belong to different patients: see which is whose.")
            parted = sum(len({quality.cards[image].pool for image in group}) > 1 for group in seen.across)
            if parted:
                found.append(
                    f"{counted(parted, 'group')} of these reach from training into validation or test: figures on"
                    " held-out patients would be too good."
                )
        if seen.blank:
            found.append(f"{counted(len(seen.blank), 'image')} show nothing: one brightness all over.")
    same = counts.findings.get(Finding.SAME_IN_TWO_PATIENTS, 0)
    if same:
        found.append(f"{counted(same, 'file')} the same in two patients: which of the two is right?")
    shared = counts.findings.get(Finding.SEVERAL_ISSUERS, 0)
    if shared:
        found.append(
            f"{counted(shared, 'file')} with a PatientID that another authority gave too (IssuerOfPatientID): if these"
            " are two persons, tell them apart in patients.csv."
        )
    flagged = next((group.images for group in quality.burned_in if group.name == "yes"), 0)
    if flagged:
        what = f"{counted(flagged, 'image')} flagged by the scanner for text burned into the pixels"
        found.append(
            f"{what}: this site's policy drops those, so that none is used; client index counts them."
            if quality.drops_burned_in
            else f"{what}: names may stand in them. drop_burned_in in the [policy] of site.toml leaves them out."
        )
    annotated = [card for card in quality.cards.values() if card.classes]
    odd = Counter(card.oddity for card in annotated)
    for what in (LOCALIZER, CAPTURE):
        if odd[what] and (what == LOCALIZER or odd[what] < len(annotated)):  # some archives hold captures alone
            found.append(
                f"{what.capitalize()} by their headers: {odd[what]} of {counted(len(annotated), 'annotated image')}."
                " Are they meant by their labels? An empty label for its path in labels.csv leaves an image out."
            )
    for kind in MARKED:
        found += _unbalanced([group for group in quality.classes if group.kind == kind], counts.patients)
    found += _apart(quality.agreement)
    for finding, number in counts.findings.items():
        if finding not in (Finding.SAME_IN_TWO_PATIENTS, Finding.SEVERAL_ISSUERS):
            found.append(f"{number} × {finding.replace('_', ' ')}: each is named on the page, file by file.")
    return found


def line(quality: Quality) -> tuple[bool, str]:
    """Whether all is well, as far as the index tells, and one line of the figures."""
    counts, found = quality.counts, points(quality, None)
    share = "no file of images" if quality.share is None else f"{quality.share:.1%} of the files used"
    classes = counted(len(quality.classes), "class", "classes")
    text = f"{share} ({counts.images} images, {counts.patients} patients, {classes})"
    return not found, f"{text}; {counted(len(found), 'point')} to look at: client quality" if found else text


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
