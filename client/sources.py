"""What lies in a folder: every file once, as images with their annotation or as dropped with a reason."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from client import arrays, copies, dicom_pixels
from client import headers as looks
from client.agreement import Agreement
from client.annotations import Finding, Remark, Split, Subject, picture, tables, voc
from client.annotations.folder import Annotations, has_masks, is_coco, mask_files, open_annotations
from client.drops import Drop, Dropped, Unusable
from client.headers import File, Format, Look, Progress
from client.memory import Kind
from client.pose import STORED, Pose
from client.preprocess import Window, to_unit
from client.readers import Fusion, fused, outvoted
from common.annotation import Annotation
from common.errors import DataError

VERSION = 3  # of what is made of annotations: raise it when equal files give another index


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the pixels of one image are: `path`, relative to `root`, holds a DICOM file, a picture, or arrays."""

    root: Path
    path: str
    kind: Kind
    array: str = ""  # name of the array in an .npz file
    item: int = 0  # frame, or position in the array


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """One image. `patient` is in clear, so this value never reaches a disk."""

    source: Source
    patient: str
    digest: str  # SHA-256 of the file
    height: int
    width: int
    study_uid: str | None = None
    modality: str | None = None
    image_kind: str | None = None  # as in Tags
    scanner: str | None = None
    burned_in: bool | None = None
    official: Split | None = None
    annotation: Annotation = field(default_factory=Annotation)
    agreement: Agreement | None = None  # of several readers
    pose: Pose = STORED
    columns: dict[str, str] = field(default_factory=dict)


def detect(path: Path) -> Format:
    """The format of a folder or file, from its layout. Raises DataError when there is nothing."""
    if path.is_file():
        return "medmnist"
    if (path / voc.FOLDER).is_dir() and (path / voc.IMAGES).is_dir():
        return "voc"
    if (path / "images").is_dir() and has_masks(path):
        return "masks"
    return "coco" if any(map(is_coco, (*path.glob("*.json"), *path.glob("annotations/*.json")))) else "dicom"


def scan(
    path: Path,
    form: Format,
    *,
    image_is_patient: bool = False,
    require_annotation: bool = True,
    drop_burned_in: bool = False,
    keeps_automatic: bool = False,
    fusion: Fusion | None = "majority",
    jobs: int | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
    elsewhere: Callable[[str], bool] | None = None,
) -> Iterator[Found | Dropped | Remark]:
    """Everything under `path`, in the order of its paths. `fusion` makes one annotation of several readers'; with None
    a folder's annotations are not looked at. `drop_burned_in`: images are dropped whose header says that text
    is burned into the pixels. `keeps_automatic`: DICOM objects that a program made alone are annotations too. `look` is
    one that was made of the same path and format. `elsewhere` says whether a patient, in clear, is another cohort's.

    Guarantees: each file is the source of at least one Found, or is Dropped once as a whole; of a used file each frame
    is Found or Dropped once. An image that one patient has twice is found once, in the first file that can be decoded
    if there are several of its SOPInstanceUID.
    Raises DataError when `path` or a table that speaks for many images can't be read.
    """
    if form not in get_args(Format):
        raise DataError(f"format {form!r}: use auto, {', '.join(get_args(Format))}")
    if form == "medmnist":
        yield from _arrays(path, progress, elsewhere)
    elif not path.is_dir():
        raise DataError(f"{path}: not a folder; format {form} is a folder of files")
    else:
        own = look or looks.look(path, form, jobs=jobs)
        yield from _folder(
            own,
            form,
            image_is_patient,
            require_annotation,
            drop_burned_in,
            keeps_automatic,
            fusion,
            progress,
            elsewhere,
        )


def pixels(source: Source, *, window: Window) -> NDArray[np.float32]:
    """One image as `images` gives it. Raises Unusable."""
    (found,) = images([source], window=window)
    if isinstance(found, Unusable):
        raise found
    return found


def images(
    places: Sequence[Source], *, window: Window, array: Callable[[Path, str], NDArray[np.uint8]] | None = None
) -> Iterator[NDArray[np.float32] | Unusable]:
    """Images of one file and array, [H, W] or [H, W, 3] float32 in [0, 1] on the grid as stored; or what is wrong.

    `array` reads an array of an .npz file: one that remembers spares unpacking it again.
    """
    first = places[0]
    path = first.root / first.path
    done = 0
    try:
        if first.kind == "dicom":
            found = dicom_pixels.frames(path, window=window, wanted=[place.item for place in places])
        elif first.kind == "picture":
            found = iter([picture.pixels(path.read_bytes(), window=window)])
        else:
            values = (array or arrays.read_array)(path, first.array)
            found = (to_unit(values[place.item], window, limits=(0, 255)) for place in places)
        for image in found:
            yield image
            done += 1
    except Unusable as error:
        yield from [error] * (len(places) - done)
    except (OSError, DataError, IndexError) as error:
        problem = Unusable(Drop.UNREADABLE, f"can't be read ({type(error).__name__})")
        yield from [problem] * (len(places) - done)


def _arrays(
    path: Path, progress: Progress | None, elsewhere: Callable[[str], bool] | None
) -> Iterator[Found | Dropped]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; format medmnist is one .npz file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    for done, part in enumerate(arrays.parts(path)):
        for item, label in enumerate(part.labels):
            patient = f"{part.official}-{item}"
            if elsewhere is not None and elsewhere(patient):
                yield Dropped(path=path.name, reason=Drop.OTHER_COHORT, array=part.array, item=item)
                continue
            yield Found(
                source=Source(root=path.parent, path=path.name, kind="array", array=part.array, item=item),
                patient=patient,
                digest=digest,
                height=part.height,
                width=part.width,
                official=part.official,
                annotation=Annotation(label=str(label)),
            )
        if progress:
            progress(done + 1, len(arrays.PARTS))


def _folder(
    look: Look,
    form: Literal["voc", "coco", "masks", "dicom"],
    image_is_patient: bool,
    require_annotation: bool,
    drop_burned_in: bool,
    keeps_automatic: bool,
    fusion: Fusion | None,
    progress: Progress | None,
    elsewhere: Callable[[str], bool] | None,
) -> Iterator[Found | Dropped | Remark]:
    root, files = look.root, look.files
    if not look.entries:
        raise DataError(f"{root}: an empty folder")
    annotations = Annotations(readers=())
    if fusion is not None:
        annotations = open_annotations(root, form, files, keeps_automatic=keeps_automatic, jobs=look.jobs)
    patients = None if fusion is None else tables.read_patients(root)
    seen: dict[str, str] = {}
    issuers: dict[str, tuple[str, str]] = {}  # by patient, with the first file that says so
    aside = mask_files(files) if fusion is None else annotations.files

    def whose(file: File) -> str | None:
        patient = _patient(file, form, patients, image_is_patient)
        burned = drop_burned_in and file.tags.burned_in
        return None if burned or patient is None or (elsewhere is not None and elsewhere(patient)) else patient

    spoiled = copies.spoiled(look.images(aside, progress), whose, lambda file: _faults(root, file), jobs=look.jobs)
    for outcome in look.images(aside, None):
        if isinstance(outcome, Dropped):
            yield outcome
            continue
        if drop_burned_in and outcome.tags.burned_in:
            yield Dropped(path=outcome.path, reason=Drop.BURNED_IN, detail="its header says so")
            continue
        patient = _patient(outcome, form, patients, image_is_patient)
        if patient is None:
            yield Dropped(path=outcome.path, reason=Drop.NO_PATIENT_ID, detail="no PatientID, not in patients.csv")
            continue
        if elsewhere is not None and elsewhere(patient):
            with suppress(Unusable):  # or its labels would be said to fit no image
                deque(_images(root, outcome, patient, annotations, require_annotation, fusion or "majority"), maxlen=0)
            yield Dropped(path=outcome.path, reason=Drop.OTHER_COHORT, detail="its patient is another cohort's")
            continue
        if (why := spoiled.get((patient, outcome.digest))) is not None:
            detail = f"{why}; another file of its SOPInstanceUID is used"
            yield Dropped(path=outcome.path, reason=why.reason, detail=detail)
            continue
        names = [f"content {outcome.digest}"] + ([f"uid {outcome.tags.sop_uid}"] if outcome.tags.sop_uid else [])
        others = {seen[name] for name in names if name in seen}
        if patient in others:
            yield Dropped(
                path=outcome.path, reason=Drop.DUPLICATE, detail="same content or SOPInstanceUID as an earlier file"
            )
            continue
        if others:
            yield Remark(finding=Finding.SAME_IN_TWO_PATIENTS, place=outcome.path)
        try:
            yield from _images(root, outcome, patient, annotations, require_annotation, fusion or "majority")
        except Unusable as error:
            yield Dropped(path=outcome.path, reason=error.reason, detail=str(error))
            continue
        seen.update(dict.fromkeys(names, patient))
        issuer = outcome.tags.issuer
        if issuer is not None and outcome.path not in (patients or {}):
            first = issuers.setdefault(patient, (issuer, outcome.path))
            if first[0] != issuer:
                place = f"{outcome.path} (another than {first[1]})"
                yield Remark(finding=Finding.SEVERAL_ISSUERS, place=place)
    yield from annotations.remarks()


def _faults(root: Path, file: File) -> list[Unusable]:
    """What is wrong with the frames that can't be decoded."""
    places = [Source(root=root, path=file.path, kind=file.kind, item=frame) for frame in range(file.tags.frames)]
    return [one for one in images(places, window="dicom") if isinstance(one, Unusable)]


def _patient(file: File, form: Format, patients: dict[str, str] | None, image_is_patient: bool) -> str | None:
    """In clear. Where an image stands for a patient its content is the identifier: a copy is the same patient."""
    if patients is not None and file.path in patients:
        return patients[file.path]
    if file.kind == "dicom" and file.tags.patient_id is not None:
        return file.tags.patient_id
    return f"image {file.digest}" if image_is_patient or (form != "dicom" and patients is None) else None


def _images(
    root: Path,
    file: File,
    patient: str,
    annotations: Annotations,
    require_annotation: bool,
    fusion: Fusion,
) -> Iterator[Found | Dropped | Remark]:
    """The frames of a file. Raises Unusable when none of them can be used."""
    tags = file.tags
    dropped: dict[int, Unusable] = {}
    for frame in range(tags.frames):
        subject = Subject(
            path=file.path,
            height=tags.height,
            width=tags.width,
            frames=tags.frames,
            frame=frame,
            sop_uid=tags.sop_uid,
            study_uid=tags.study_uid,
            patient_id=tags.patient_id,
            patient=patient,
        )
        try:
            readings = annotations.readings(subject)
            annotation, agreement = fused(readings, fusion, path=file.path, item=frame)
            known = annotation.label, annotation.mask, annotation.boxes
            if require_annotation and all(one is None for one in known):
                raise Unusable(Drop.NO_ANNOTATION, "nothing is known about it")
        except Unusable as error:
            dropped[frame] = error
            continue
        if outvoted(readings, annotation):
            where = file.path if tags.frames == 1 else f"{file.path} ({frame + 1})"
            yield Remark(finding=Finding.OUTVOTED, place=where)
        yield Found(
            source=Source(root=root, path=file.path, kind=file.kind, item=frame),
            patient=patient,
            digest=file.digest,
            height=tags.height,
            width=tags.width,
            study_uid=tags.study_uid,
            modality=tags.modality,
            image_kind=tags.image_kind,
            scanner=tags.scanner,
            burned_in=tags.burned_in,
            official=annotations.official(subject),
            annotation=annotation,
            agreement=agreement,
            pose=tags.pose,
            columns=annotations.columns(subject),
        )
    if len(dropped) == tags.frames:
        raise dropped[0]
    for frame, why in dropped.items():
        yield Dropped(path=file.path, reason=why.reason, detail=str(why), item=frame)
