"""What lies in a folder: every file once, as images with their annotation or as dropped with a reason."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from client import arrays, dicom
from client.agreement import Agreement
from client.annotations import Finding, Remark, Split, Subject, picture, tables, voc
from client.annotations.folder import Annotations, has_masks, is_coco, open_annotations
from client.dicom import Tags
from client.drops import Drop, Dropped, Unusable
from client.preprocess import Window, to_unit
from client.readers import Fusion, fused
from common.annotation import Annotation
from common.errors import DataError

Format = Literal["medmnist", "voc", "coco", "masks", "dicom"]
Kind = Literal["dicom", "picture", "array"]
Progress = Callable[[int, int], None]  # done, of how many
_WAVE = 256  # files read ahead: what is wasted when a scan is broken off


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
    scanner: str | None = None
    burned_in: bool | None = None
    official: Split | None = None
    annotation: Annotation = field(default_factory=Annotation)
    agreement: Agreement | None = None  # of several readers
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _File:
    """What reading one file's header gave."""

    path: str
    kind: Kind
    digest: str
    tags: Tags


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
    fusion: Fusion = "majority",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Found | Dropped | Remark]:
    """Everything under `path`, in the order of its paths. `fusion` makes one annotation of several readers'.

    Guarantees: each file is the source of at least one Found, or is Dropped once as a whole; of a used file each frame
    is Found or Dropped once. An image that one patient has twice is found once.
    Raises DataError when `path` or a table that speaks for many images can't be read.
    """
    if form not in get_args(Format):
        raise DataError(f"format {form!r}: use auto, {', '.join(get_args(Format))}")
    if form == "medmnist":
        yield from _arrays(path, progress)
    elif not path.is_dir():
        raise DataError(f"{path}: not a folder; format {form} is a folder of files")
    else:
        yield from _folder(path, form, image_is_patient, require_annotation, fusion, jobs, progress)


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
            found = dicom.frames(path, window=window, wanted=[place.item for place in places])
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


def _arrays(path: Path, progress: Progress | None) -> Iterator[Found]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; format medmnist is one .npz file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    for done, part in enumerate(arrays.parts(path)):
        for item, label in enumerate(part.labels):
            yield Found(
                source=Source(root=path.parent, path=path.name, kind="array", array=part.array, item=item),
                patient=f"{part.official}-{item}",
                digest=digest,
                height=part.height,
                width=part.width,
                official=part.official,
                annotation=Annotation(label=str(label)),
            )
        if progress:
            progress(done + 1, len(arrays.PARTS))


def _folder(
    root: Path,
    form: Literal["voc", "coco", "masks", "dicom"],
    image_is_patient: bool,
    require_annotation: bool,
    fusion: Fusion,
    jobs: int | None,
    progress: Progress | None,
) -> Iterator[Found | Dropped | Remark]:
    walked = _walk(root)
    files = [path for path, problem in walked if problem is None]
    if not walked:
        raise DataError(f"{root}: an empty folder")
    annotations = open_annotations(root, form, files, jobs=jobs)
    patients = tables.read_patients(root)
    seen: dict[str, str] = {}
    for outcome in _headers(root, form, walked, annotations.files, jobs, progress):
        if isinstance(outcome, Dropped):
            yield outcome
            continue
        patient = _patient(outcome, form, patients, image_is_patient)
        if patient is None:
            yield Dropped(path=outcome.path, reason=Drop.NO_PATIENT_ID, detail="no PatientID, not in patients.csv")
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
            yield from _images(root, outcome, patient, annotations, require_annotation, fusion)
        except Unusable as error:
            yield Dropped(path=outcome.path, reason=error.reason, detail=str(error))
            continue
        seen.update(dict.fromkeys(names, patient))
    yield from annotations.remarks()


def _walk(root: Path) -> list[tuple[str, Dropped | None]]:
    """Relative paths in order, with why one can't be opened. Each real folder is entered once, so links can't loop."""
    found: list[tuple[str, Dropped | None]] = []
    entered: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(root / folder))
        except OSError as error:
            found.append((folder, Dropped(path=folder, reason=Drop.UNREADABLE, detail=f"folder: {error.strerror}")))
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            mode = _mode(root / path)
            if mode is not None and stat.S_ISDIR(mode[0]):
                folders.append(path)
            else:
                # A name that isn't UTF-8 can't be written down as it is; the file is then counted as unreadable.
                path = path.encode("utf-8", "backslashreplace").decode()
                found.append((path, _problem(path, mode)))
    return sorted(found, key=lambda entry: entry[0])


def _mode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # a broken link, or a loop of links
        return None
    return status.st_mode, status.st_size


def _problem(path: str, mode: tuple[int, int] | None) -> Dropped | None:
    if mode is None:
        return Dropped(path=path, reason=Drop.UNREADABLE, detail="a broken link")
    if not stat.S_ISREG(mode[0]):
        return Dropped(path=path, reason=Drop.NOT_AN_IMAGE, detail="not a regular file")
    return Dropped(path=path, reason=Drop.EMPTY_FILE) if mode[1] == 0 else None


def _headers(
    root: Path,
    form: Format,
    walked: Sequence[tuple[str, Dropped | None]],
    aside: frozenset[str],
    jobs: int | None,
    progress: Progress | None,
) -> Iterator[_File | Dropped]:
    """One outcome per file, in order. Threads: hashing, reading and decoding of pictures leave the interpreter free."""

    def outcome(entry: tuple[str, Dropped | None]) -> _File | Dropped:
        path, problem = entry
        if problem is not None:
            return problem
        if path in aside:
            return Dropped(path=path, reason=Drop.ANNOTATION_FILE)
        try:
            return _header(root, path, form)
        except Unusable as error:
            return Dropped(path=path, reason=error.reason, detail=str(error))
        except OSError as error:
            return Dropped(path=path, reason=Drop.UNREADABLE, detail=type(error).__name__)

    with dicom.quiet(), ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(walked), _WAVE):
            yield from pool.map(outcome, walked[start : start + _WAVE])
            if progress:
                progress(min(start + _WAVE, len(walked)), len(walked))


def _header(root: Path, path: str, form: Format) -> _File:
    file = root / path
    with file.open("rb") as stream:
        head = stream.read(132)
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    pure = PurePosixPath(path)
    if dicom.looks_like_dicom(head):
        return _File(path=path, kind="dicom", digest=digest, tags=dicom.header(file))
    outside = {"voc": voc.IMAGES, "masks": "images"}.get(form)
    if pure.suffix.lower() not in picture.SUFFIXES or (outside and not pure.is_relative_to(outside)):
        kind = Drop.UNREADABLE if pure.suffix.lower() in (".dcm", ".dicom") else Drop.NOT_AN_IMAGE
        raise Unusable(kind, "neither a DICOM file nor a picture" if not outside else f"no image in {outside}")
    height, width = picture.size(file.read_bytes())
    return _File(path=path, kind="picture", digest=digest, tags=Tags(height=height, width=width))


def _patient(file: _File, form: Format, patients: dict[str, str] | None, image_is_patient: bool) -> str | None:
    """In clear. Where an image stands for a patient its content is the identifier: a copy is the same patient."""
    if patients is not None and file.path in patients:
        return patients[file.path]
    if file.kind == "dicom" and file.tags.patient_id is not None:
        return file.tags.patient_id
    return f"image {file.digest}" if image_is_patient or (form != "dicom" and patients is None) else None


def _images(
    root: Path,
    file: _File,
    patient: str,
    annotations: Annotations,
    require_annotation: bool,
    fusion: Fusion,
) -> Iterator[Found | Dropped]:
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
        )
        try:
            annotation, agreement = fused(annotations.readings(subject), fusion, path=file.path, item=frame)
            known = annotation.label, annotation.mask, annotation.boxes
            if require_annotation and all(one is None for one in known):
                raise Unusable(Drop.NO_ANNOTATION, "nothing is known about it")
        except Unusable as error:
            dropped[frame] = error
            continue
        yield Found(
            source=Source(root=root, path=file.path, kind=file.kind, item=frame),
            patient=patient,
            digest=file.digest,
            height=tags.height,
            width=tags.width,
            study_uid=tags.study_uid,
            modality=tags.modality,
            scanner=tags.scanner,
            burned_in=tags.burned_in,
            official=annotations.official(subject),
            annotation=annotation,
            agreement=agreement,
            columns=annotations.columns(subject),
        )
    if len(dropped) == tags.frames:
        raise dropped[0]
    for frame, why in dropped.items():
        yield Dropped(path=file.path, reason=why.reason, detail=str(why), item=frame)
