"""From a folder of results to the archive: study by study, each object once, none to a patient who isn't its own."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from client.pull.archive import Archive, Fault, Missing
from client.pull.folder import disk_error
from client.pull.pace import Pace
from client.pull.run import Asking
from client.push.journal import Journal
from client.push.results import Refusal, Result
from common.errors import DataError

Progress = Callable[[int, int], None]  # objects done, of how many


@dataclass(kw_only=True)
class Counts:
    """What became of what. Guarantees: found = present + stored + sum of refused + sum of failed."""

    found: int = 0
    present: int = 0  # this archive took it in an earlier run
    stored: int = 0
    refused: Counter[Fault | Refusal] = field(default_factory=Counter)
    failed: Counter[Fault] = field(default_factory=Counter)  # the next run tries again
    bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether the archive has all of it."""
        return not (self.refused or self.failed)


def push(
    archive: Archive,
    results: Sequence[Result],
    journal: Journal,
    *,
    pace: Pace,
    counts: Counts,
    unasked: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> None:
    """Store what the archive has not taken yet, adding to `counts` as it goes. Results of one study come in a row.

    The archive is asked for each study first: an object is stored only where the study is, under the same PatientID and
    no other, so that every image that it names is of its own patient; and only where no earlier prediction's results,
    which have other UIDs, are there under the same modality and description.
    `unasked`: not so. `again`: also beside those, and also what the journal says was taken.
    Guarantees: what is stored is the file, byte for byte but for the file meta information.
    Raises RunError when the archive is not there or fails ten times in a row; DataError as Archive.
    """
    asking = Asking(archive=archive, pace=pace)
    before = counts.refused.total()  # files that are no results
    counts.found += len(results)
    for study, of_study in groupby(results, key=lambda one: one.instance.study):
        own = list(of_study)
        wanted = [one for one in own if again or one.instance.sop not in journal.taken]
        counts.present += len(own) - len(wanted)
        try:
            there = None if unasked or not wanted else _patients(asking, study)
            is_certain = there is not None and len(there) == 1
            earlier = _series(asking, study, own) if is_certain and not again else set()
        except Missing as error:
            counts.failed[error.fault] += len(wanted)
            continue
        for one in wanted:
            if there is not None and there != {one.patient}:
                counts.refused[_refusal(one.patient, there)] += 1
            elif one.series in earlier:
                counts.refused[Refusal.RESULTS_THERE] += 1
            else:
                _store(asking, one, journal, counts)
            if progress:
                done = counts.present + counts.stored + counts.refused.total() - before + counts.failed.total()
                progress(done, len(results))


def _patients(asking: Asking, study: str) -> set[str]:
    """PatientIDs under which the archive has a study; none where it has no such study. Raises Missing."""
    answers = asking.find("STUDY", {"StudyInstanceUID": study, "PatientID": ""})
    return {answer["PatientID"].strip() for answer in answers if answer["StudyInstanceUID"] == study}


def _series(asking: Asking, study: str, own: Sequence[Result]) -> set[tuple[str, str]]:
    """Modality and description of the study's series in the archive, of others than these results' own. Raises
    Missing.
    """
    names = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription")
    answers = asking.find("SERIES", dict.fromkeys(names, "") | {"StudyInstanceUID": study})
    uids = {one.instance.series for one in own}
    return {
        (answer["Modality"].strip(), answer["SeriesDescription"].strip())
        for answer in answers
        if answer["SeriesInstanceUID"] not in uids
    }


def _refusal(patient: str, there: set[str]) -> Refusal:
    if patient in there:
        return Refusal.TWO_PATIENTS
    return Refusal.OTHER_PATIENT if there else Refusal.NO_STUDY


def _store(asking: Asking, one: Result, journal: Journal, counts: Counts) -> None:
    try:
        asking.again(lambda: asking.archive.store(one.path, one.instance))
    except Missing as error:
        (counts.refused if error.fault.lasting else counts.failed)[error.fault] += 1
        return
    except DataError:
        raise
    except OSError as error:
        raise disk_error(one.path, error) from None
    counts.stored += 1
    counts.bytes += one.path.stat().st_size
    journal.note(one.instance.sop)
