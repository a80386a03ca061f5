"""SITE/quality.html: what a site's data are like, for its own people: figures, pictures, and what to look at."""

from collections.abc import Sequence

from client import quality_sections as sections
from client.annotations import Finding
from client.attention import points
from client.drops import ASIDE, Drop, Dropped
from client.quality import CAPTURE, LOCALIZER, Quality, Seen
from client.site import Site
from common import page
from common.page import Block, Fold, Note, Numbers, Section, Table, Text

# What the reason means, and what can be done.
WHY: dict[Drop, tuple[str, str]] = {
    Drop.ANNOTATION_FILE: ("read for labels, masks, boxes, splits or patients; not an image", ""),
    Drop.NOT_AN_IMAGE: ("neither a DICOM image nor a picture", "nothing, unless images are among them"),
    Drop.PACKED_ARCHIVE: ("a zip, gz, tar, 7z or the like: nothing in it was looked at", "unpack it and index again"),
    Drop.EMPTY_FILE: ("no bytes at all", "export it again"),
    Drop.UNREADABLE: ("cut off, damaged, or not allowed to be read", "check permissions; export it again"),
    Drop.NO_PIXELS: ("a DICOM file without pixels: a report, a plan", ""),
    Drop.UNSUPPORTED: ("a compression or a kind of pixels that nothing here decodes", "export it uncompressed"),
    Drop.TOO_LARGE: ("larger than the limits, or than memory", "export single frames or regions"),
    Drop.CHANGED: ("another size than when it was indexed", "index again"),
    Drop.NO_PATIENT_ID: ("nothing says whose image it is", "add patients.csv, or --image-is-patient"),
    Drop.NO_ANNOTATION: ("no label, mask or box for it", "add it to labels.csv, if it shall be used"),
    Drop.BAD_ANNOTATION: ("its annotation contradicts itself or doesn't fit the image", "see the file's line below"),
    Drop.DUPLICATE: ("the same content or SOPInstanceUID as another file of the patient", ""),
    Drop.OTHER_COHORT: ("its patient is in another cohort of this hospital, whose ledger counts for him", ""),
    Drop.BURNED_IN: ("flagged for text in the pixels, and this site drops those", ""),
}
_FOUND: dict[Finding, str] = {
    Finding.BOX_WITHOUT_AREA: "A box has no area inside the image and was left out.",
    Finding.LABEL_WITHOUT_IMAGE: "A label, mask or entry fits no image that was found.",
    Finding.ANNOTATION_NOT_USABLE: "A DICOM object can't be read, or not be laid onto an image.",
    Finding.OWN_RESULT: "A result of Fedward's own lies beside the images; it was left out.",
    Finding.MADE_BY_A_PROGRAM: "A program drew it alone; left out, unless `client index --automatic keep` asks for it.",
    Finding.OVERLAPPING_CLASSES: "Two segments cover the same pixels; the later one counts.",
    Finding.NOT_COMPARABLE: "Beside mask pictures, whose classes are numbers, masks with names were left out.",
    Finding.OUTVOTED: "A reader drew a class that the others' votes left nothing of: kept without it.",
    Finding.SEVERAL_ISSUERS: "One PatientID that two authorities gave (IssuerOfPatientID) is one patient here; if these"
    " are two persons, say so in patients.csv (file,patient).",
    Finding.SAME_IN_TWO_PATIENTS: "The same image under two patients; both are used.",
}


def render(site: Site, quality: Quality, seen: Seen | None) -> str:
    """The whole page. Without `seen` nothing that needs the images themselves is on it; with it `quality` was gathered
    without the images that failed.
    """
    shown = [
        _answer(quality, seen),
        _attention(quality, seen),
        sections.classes(quality),
        *sections.readers(quality.agreement),
        sections.split(quality),
        sections.machines(quality, seen),
        *sections.alike(quality, seen),
        *sections.examples(site, quality, seen),
        _files(quality),
    ]
    return page.render(
        f"Data quality at {site.name}",
        "What was found in this site's folder of images, what of it can be used, and what a person should look at.",
        shown,
        footer=(
            "Written by Fedward for this site alone. Images and patients are named by keyed hashes, which mean nothing"
            " without the site's own key. For checking data, not for diagnosis: pictures are small, in the window that"
            " their files ask for. Research software, not a medical device."
        ),
    )


def _answer(quality: Quality, seen: Seen | None) -> Section:
    counts = quality.counts
    lost = sum(counts.lost.values())
    aside, away = (counts.dropped.get(reason, 0) for reason in ASIDE)
    fewest, median, most = quality.images_per_patient
    share = quality.share
    tiles = (
        (
            "Files used",
            page.DASH if share is None else sections.percent(share),
            f"{page.number(counts.used)} of {page.number(counts.used + lost)} that aren't annotations"
            + " or of another cohort" * bool(away)
            + ", as far as their headers tell: no image was decoded" * (seen is None),
        ),
        ("Not used", page.number(lost), "files, each with its reason"),
        ("Images", page.number(counts.images), "a file of several frames has several"),
        ("Patients", page.number(counts.patients), f"{fewest} to {most} images each, median {median:g}"),
    )
    rows: list[tuple[page.Cell, ...]] = [("used", counts.used, f"{page.number(counts.images)} images", "")]
    for reason, number in sorted(counts.dropped.items(), key=lambda item: -item[1]):
        rows.append((reason.replace("_", " "), number, *WHY[reason]))
    single = [(reason.replace("_", " "), number) for reason, number in counts.dropped_images.items()]
    blocks: list[Block] = [Note(text=_private(seen), tone="warning")] if seen is not None else []
    blocks += [
        Numbers(items=tiles),
        Table(
            caption="Every file found, once",
            columns=("Outcome", "Files", "What that means", "What to do"),
            rows=tuple(rows),
            totals=(("All files found", counts.files, "", ""),),
            align="lrll",
        ),
    ]
    if single:
        text = page.listed(f"{page.counted(number, 'image')} ({reason})" for reason, number in single)
        blocks.append(Text(paragraphs=(f"Besides, single images of files with several are not used: {text}.",)))
    lead = f"{page.counted(counts.files, 'file')} found; {page.number(aside)} of them hold annotations and no image. "
    if away:
        lead += f"{page.number(away)} belong to patients of another cohort of this hospital. "
    return Section(
        title="Is all my data used?",
        lead=lead + ("Every other file is used." if not lost else "The rest is used, or listed with a reason."),
        blocks=tuple(blocks),
    )


def _private(seen: Seen) -> str:
    return (
        "This page shows patients' images. It is for this site's own people: don't send it, don't put it on a shared"
        " drive. The file can be read by its owner alone."
    )


def _attention(quality: Quality, seen: Seen | None) -> Section:
    found = points(quality, seen)
    blocks: list[Block] = [Text(paragraphs=tuple(found), listed=True) if found else Note(text="Nothing was found.")]
    if seen is None:
        text = "The images themselves were not looked at: nothing is said on brightness, near-duplicates or damage."
        blocks.append(Note(text=text))
    return Section(
        title="What needs attention",
        lead="Nothing below is mended, merged or deleted by a program: a person decides.",
        blocks=tuple(blocks),
    )


def _part(one: Dropped) -> str:
    """Which image of a file with several: frames are counted from 1, as `client predict` does; arrays as they are."""
    if one.item is None:
        return ""
    return f" ({one.array}[{one.item}])" if one.array else f" ({one.item + 1})"


def _listed(summary: str, text: str, places: Sequence[str]) -> Fold:
    listed = Text(paragraphs=tuple(places[: sections.LISTED]), listed=True)
    said = (Text(paragraphs=(text,)),) if text else ()
    return Fold(summary=summary, blocks=(*said, listed, *sections.more(len(places))))


def _files(quality: Quality) -> Section:
    lost = [one for one in quality.dropped if one.reason not in ASIDE]
    rows = tuple((one.path + _part(one), one.reason.replace("_", " "), one.detail) for one in lost[: sections.LISTED])
    blocks: list[Block] = []
    if rows:
        table = Table(caption="By path", columns=("File", "Reason", "What was wrong"), rows=rows, align="lll")
        summary = f"{page.counted(len(lost), 'file or image', 'files and images')} not used"
        blocks.append(Fold(summary=summary, blocks=(table, *sections.more(len(lost)))))
    for what in (LOCALIZER, CAPTURE):
        paths = sorted({card.source.path for card in quality.cards.values() if card.oddity == what})
        if paths:
            blocks.append(_listed(f"{what.capitalize()}: {page.number(len(paths))}", "", paths))
    for finding, text in _FOUND.items():
        places = [remark.place for remark in quality.remarks if remark.finding == finding]
        if places:
            blocks.append(_listed(f"{page.number(len(places))} × {finding.replace('_', ' ')}", text, places))
    return Section(
        title="File by file",
        lead="What isn't used and what is odd, by name. The same lists are in the tables `dropped` and `remark` of"
        " index.sqlite.",
        blocks=tuple(blocks) or (Note(text="All files are used, and nothing is odd."),),
    )
