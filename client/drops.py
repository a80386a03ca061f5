"""Why a file or an image is not used: each one that is found is used, or has one reason of a closed list."""

from dataclasses import dataclass
from enum import StrEnum

from common.errors import DataError


class Drop(StrEnum):
    """Why a file or an image of it is not used. Closed: each file found is used or has one of these."""

    ANNOTATION_FILE = "annotation_file"  # not an image: read for its labels, masks, boxes, splits or patients
    NOT_AN_IMAGE = "not_an_image"  # licence, DICOMDIR, segmentation object, anything foreign
    PACKED_ARCHIVE = "packed_archive"  # zip, gz, tar, 7z: what is in it was not looked at
    EMPTY_FILE = "empty_file"
    UNREADABLE = "unreadable"  # truncated, damaged, no permission
    NO_PIXELS = "no_pixels"  # DICOM report, plan, structure set
    UNSUPPORTED = "unsupported"  # a compression or a kind of pixels that nothing here decodes
    TOO_LARGE = "too_large"
    CHANGED = "changed"  # other size than when it was indexed
    NO_PATIENT_ID = "no_patient_id"
    NO_ANNOTATION = "no_annotation"
    BAD_ANNOTATION = "bad_annotation"  # of another size than the image, contradictory, unreadable
    BURNED_IN = "burned_in"  # flagged for text in the pixels, at a site that drops those
    OTHER_COHORT = "other_cohort"  # its patient is in another cohort of this hospital
    DUPLICATE = "duplicate"  # same content or same SOPInstanceUID as another file of the same patient


ASIDE = (Drop.ANNOTATION_FILE, Drop.OTHER_COHORT)  # files that are not there to be used here: nothing is lost with them


class Unusable(DataError):
    """One file or image that can't be used: the reason is counted, the message says what was wrong with it."""

    def __init__(self, reason: Drop, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A file, or one image of it, that is not used. `detail` says what was wrong, without identifiers."""

    path: str  # relative to the folder
    reason: Drop
    detail: str = ""
    array: str = ""
    item: int | None = None  # None: the whole file
