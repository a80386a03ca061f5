"""Files of one image that differ, as after a damaged transfer: which of them can be decoded."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from client import dicom
from client.drops import Dropped, Unusable
from client.headers import File


def spoiled(
    files: Iterable[File | Dropped],
    whose: Callable[[File], str | None],
    faults: Callable[[File], list[Unusable]],
    *,
    jobs: int | None,
) -> dict[tuple[str, str], Unusable]:
    """By patient and digest, the contents before that copy of an image which has the fewest frames with faults, the
    first of several; with a fault of theirs. Copies are files of one patient and SOPInstanceUID. `whose` is None for
    files that don't matter.

    Guarantees: nothing is decoded but where a patient has one SOPInstanceUID with several contents, and there nothing
    after the first copy without a fault.
    """
    first: dict[tuple[str, str], File] = {}
    several: dict[tuple[str, str], list[File]] = {}
    for file in files:
        if isinstance(file, Dropped) or file.tags.sop_uid is None or (patient := whose(file)) is None:
            continue
        known = first.setdefault((patient, file.tags.sop_uid), file)
        copies = several.get((patient, file.tags.sop_uid), [known])
        if all(file.digest != copy.digest for copy in copies):
            several[patient, file.tags.sop_uid] = [*copies, file]

    def before_the_best(copies: list[File]) -> dict[str, Unusable]:
        passed: dict[str, Unusable] = {}
        best, least = {}, None
        for copy in copies:
            found = faults(copy)
            if least is None or len(found) < least:
                best, least = dict(passed), len(found)
            if not found:
                break
            passed[copy.digest] = found[0]
        return best

    with dicom.quiet(), ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool:
        found = zip(several, pool.map(before_the_best, several.values()), strict=True)
        return {(patient, digest): why for (patient, _), lost in found for digest, why in lost.items()}
