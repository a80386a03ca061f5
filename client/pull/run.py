"""From a selection to files: studies, their series, their images, each asked for once and only when it is not here."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from client import dicom
from client.drops import Unusable
from client.pull.archive import Answer, Archive, Fault, Instance, Level, Missing, Unreached, is_uid
from client.pull.folder import Folder, disk_error
from client.pull.pace import Pace
from client.pull.selection import Selection
from common.errors import DataError, RunError

T = TypeVar("T")
Progress = Callable[[int, int], None]  # images done, of how many known so far
PAUSES = (2.0, 10.0)  # seconds before an archive that failed is asked again
IN_A_ROW = 10  # images or questions without success: then the archive is down, or this machine is not welcome
_LITTLE_DISK = 64 * 2**20  # bytes


@dataclass(kw_only=True)
class Counts:
    """What became of what. Guarantees: found = present + fetched + sum of refused + sum of failed."""

    absent: int = 0  # entries of the list of which the archive has no study (of these dates)
    studies: int = 0
    series: int = 0
    found: int = 0  # images that the archive lists, or says that its series have
    present: int = 0  # were here before
    fetched: int = 0
    refused: Counter[Fault] = field(default_factory=Counter)  # for good
    failed: Counter[Fault] = field(default_factory=Counter)  # the next run asks again
    questions_failed: Counter[Fault] = field(default_factory=Counter)
    unmatched: int = 0  # answers to other questions than the one asked
    bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is here."""
        return not (self.absent or self.refused or self.failed or self.questions_failed)


@dataclass(kw_only=True)
class Survey:
    """What an archive has, without fetching any of it."""

    absent: int = 0  # as in Counts
    studies: int = 0
    series: int = 0
    images: int = 0
    untold: int = 0  # series whose number of images the archive does not tell
    by: dict[str, Counter[str]] = field(default_factory=dict)  # modality -> year -> images
    questions_failed: Counter[Fault] = field(default_factory=Counter)
    unmatched: int = 0


@dataclass(kw_only=True)
class Asking:
    """An archive asked politely: paced, again after a pause, and no longer when it fails in a row, or was not there at
    the first question.
    """

    archive: Archive
    pace: Pace
    in_a_row: int = 0
    reached: bool = False

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Answer]:
        """Raises Missing, RunError."""
        return self.again(lambda: self.archive.find(level, keys))

    def fetch(self, instance: Instance, path: Path, limit: int) -> None:
        """Raises Missing, RunError."""

        def once() -> None:
            path.unlink(missing_ok=True)
            self.archive.fetch(instance, path, limit=limit)
            check(path, instance)

        self.again(once)

    def again(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, asked up to three times. Raises Missing, RunError."""
        for pause in (*PAUSES, None):
            self.pace.wait()
            try:
                answer = ask()
            except Missing as error:
                if isinstance(error, Unreached) and not self.reached:
                    raise RunError(
                        f"{error.place}: no connection; check the archive's host and port, that it is up, and what"
                        " stands between"
                    ) from None
                self.reached = True
                if pause is not None and error.fault in (Fault.FAILED, Fault.BROKE_OFF, Fault.LATE):
                    self.pace.pause(pause)
                    continue
                self.in_a_row += 1
                if self.in_a_row >= IN_A_ROW:
                    raise RunError(
                        f"the archive failed {IN_A_ROW} times in a row (the last: {error.fault.replace('_', ' ')}); "
                        "what is done stays; run again when it is well"
                    ) from None
                raise
            self.reached = True
            self.in_a_row = 0
            return answer
        raise Missing(Fault.FAILED)


@dicom.quiet()
def pull(
    archive: Archive,
    selection: Selection,
    folder: Folder,
    *,
    pace: Pace,
    counts: Counts,
    limit: int,
    again: bool = False,
    progress: Progress | None = None,
) -> None:
    """Fetch what is selected and not here, adding to `counts` as it goes.

    `limit`: bytes of one image. `again`: ask anew for what earlier runs refused.
    Guarantees: images that the archive counts in a series and does not list are failed, as some archives cut long
    answers short without a word; so is one where it tells no number and lists none.
    Raises RunError when the archive is not there, fails IN_A_ROW times or the disk is full; DataError as Archive. What
    was fetched stays, and a further run goes on from there.
    """
    asking = Asking(archive=archive, pace=pace)

    def report() -> None:
        if progress:
            done = counts.present + counts.fetched + counts.refused.total() + counts.failed.total()
            progress(done, counts.found)

    for study, series in _series(asking, selection, counts):
        name = f"{study['StudyInstanceUID']}/{series['SeriesInstanceUID']}"
        told = _number(series.get("NumberOfSeriesRelatedInstances", ""))
        known = None if told is None or again else folder.known(name, told)
        if told is not None and known is not None:
            counts.found += told
            counts.refused += known
            counts.present += told - known.total()
            report()
            continue
        try:
            instances = _instances(asking, study, series)
        except Missing as error:
            counts.questions_failed[error.fault] += 1
            continue
        unlisted = max(0, (1 if told is None else told) - len(instances))
        counts.found += len(instances) + unlisted
        if unlisted:
            counts.failed[Fault.NOT_LISTED] += unlisted
        whole = True
        for instance in instances:
            whole &= _one(asking, instance, folder, counts, limit, again)
            report()
        if whole and instances and (told is None or len(instances) == told):
            folder.finish(name, len(instances))


@dicom.quiet()
def survey(archive: Archive, selection: Selection, *, pace: Pace) -> Survey:
    """Count what is selected. Raises as `pull`."""
    found = Survey()
    for study, series in _series(Asking(archive=archive, pace=pace), selection, found):
        number = _number(series.get("NumberOfSeriesRelatedInstances", ""))
        found.untold += number is None
        found.images += number or 0
        modality = series.get("Modality", "")
        modality = modality if modality.isascii() and modality.isalnum() and len(modality) <= 16 else "other"
        year = study.get("StudyDate", "")[:4]
        year = year if year.isascii() and year.isdigit() and len(year) == 4 else "unknown"
        found.by.setdefault(modality, Counter())[year] += number or 0
    return found


def check(path: Path, instance: Instance) -> None:
    """Whether a file is the image that was asked for. Raises Missing."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    try:
        with dicom.refusing(), dicom.opened(path) as file:
            dataset = dicom.read_tags(file, list(names), pixels=False)
            found = tuple(dicom.text(dataset, name) for name in names)
    except Unusable:
        raise Missing(Fault.MALFORMED) from None
    if found != (instance.study, instance.series, instance.sop):
        raise Missing(Fault.WRONG_UID)


def _series(asking: Asking, selection: Selection, counts: Counts | Survey) -> Iterator[tuple[Answer, Answer]]:
    """Each wanted series with its study; what an archive adds to its answer is counted and not followed."""
    for question in selection.questions():
        try:
            studies = asking.find("STUDY", question)
        except Missing as error:
            counts.questions_failed[error.fault] += 1
            continue
        answering = [study for study in studies if selection.answers(question, study)]
        counts.unmatched += len(studies) - len(answering)
        counts.absent += bool(selection.entries) and not answering
        for study in answering:
            if not selection.holds_study(study):
                continue
            try:
                answers = asking.find("SERIES", selection.series_question(study["StudyInstanceUID"]))
            except Missing as error:
                counts.questions_failed[error.fault] += 1
                continue
            wanted = [series for series in answers if selection.holds_series(series)]
            counts.studies += bool(wanted)
            for series in wanted:
                counts.series += 1
                yield study, series


def _instances(asking: Asking, study: Answer, series: Answer) -> list[Instance]:
    keys = {"StudyInstanceUID": study["StudyInstanceUID"], "SeriesInstanceUID": series["SeriesInstanceUID"]}
    answers = asking.find("IMAGE", keys | {"SOPInstanceUID": "", "SOPClassUID": ""})
    return [
        Instance(
            study=keys["StudyInstanceUID"],
            series=keys["SeriesInstanceUID"],
            sop=answer["SOPInstanceUID"],
            sop_class=answer["SOPClassUID"] if is_uid(answer.get("SOPClassUID", "")) else "",
        )
        for answer in answers
    ]


def _one(asking: Asking, instance: Instance, folder: Folder, counts: Counts, limit: int, again: bool) -> bool:
    """Whether nothing more is to be done about an image: it is here, or refused for good."""
    if folder.place_of(instance).exists():
        counts.present += 1
        return True
    why = folder.refused.get(f"{instance.study}/{instance.series}", {}).get(instance.sop)
    if why is not None and not again:
        counts.refused[why] += 1
        return True
    path = folder.incoming / "image"
    try:
        asking.fetch(instance, path, limit)
        size = path.stat().st_size
    except Missing as error:
        _clear(folder)
        if error.fault.lasting:
            counts.refused[error.fault] += 1
            folder.refuse(instance, error.fault)
        else:
            counts.failed[error.fault] += 1
        return error.fault.lasting
    except DataError:
        raise
    except OSError as error:
        raise disk_error(folder.path, error) from None
    folder.keep(path, instance)
    counts.fetched += 1
    counts.bytes += size
    return True


def _clear(folder: Folder) -> None:
    """Remove what an image that failed has left. Raises RunError when it failed because the disk is full."""
    try:
        for left in folder.incoming.iterdir():
            left.unlink()
        free = shutil.disk_usage(folder.path).free
    except OSError as error:
        raise disk_error(folder.path, error) from None
    if free < _LITTLE_DISK:
        raise RunError(
            f"{folder.path}: less than {_LITTLE_DISK // 2**20} MiB left on this disk; make room, then run again"
        )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
