"""What secure aggregation has to know of a study: how vectors become words, and what all sessions of a run share."""

import hashlib
from functools import lru_cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from common import masking, params
from common.errors import DataError, StudyError
from common.kinds import Answering
from common.lanes import Encoding
from common.layout import layout_of
from common.roster import Roster
from common.study import Study
from common.transcript import Setting


@lru_cache(maxsize=64)
def encoding_of(study: Study, kind: Answering, *, sites: int) -> Encoding:
    """How the answers to orders of this kind become words, for a roster of so many sites.

    Raises StudyError for more sites than one sum has room for.
    """
    layout, how = layout_of(study, kind), study.aggregation
    try:
        return Encoding(
            values=layout.tensor_length,
            wide=params.length(layout.sums) + 1,
            lanes=how.lanes,
            range_=how.range_,
            sites=sites,
        )
    except ValueError as error:
        raise StudyError(f"aggregation.secure with {sites} sites: {error}") from error


def setting_of(study: Study, roster: Roster, *, run: str) -> Setting:
    """The setting of all sessions of a run (64 hex digits) under this roster."""
    kinds: tuple[Answering, ...] = get_args(Answering)
    encodings = [encoding_of(study, kind, sites=len(roster.sites)).sha256 for kind in kinds]
    layouts = [bytes.fromhex(layout_of(study, kind).sha256) for kind in kinds]
    return Setting(
        roster=roster,
        study=bytes.fromhex(study.sha256),
        layout=hashlib.sha256(b"".join([*encodings, *layouts])).digest(),
        run=bytes.fromhex(run),
        min_sites=max(roster.min_sites, study.study.min_sites),
        most_sites=len(roster.sites),
    )


def weight_cap(study: Study, roster: Roster) -> float:
    """w_cap: the most that a site's weight may be, public."""
    match study.aggregation.weights:
        case "equal":
            return 1.0
        case "nominal":
            return float(max(site.nominal_patients for site in roster.sites))
        case "images" | "patients":
            return study.aggregation.weight_cap or 1.0


def to_words(
    vector: NDArray[np.float32], study: Study, kind: Answering, roster: Roster, *, key: bytes
) -> NDArray[np.uint64]:
    """A site's answer as words, not yet masked. `key`: fresh from the operating system, for the rounding.

    Raises StudyError for a weight above the public cap, DataError for a site that has nothing to give: who it is
    weighs 0 in the sum, and would still be counted among the survivors.
    """
    layout, cap = layout_of(study, kind), weight_cap(study, roster)
    tensors, sums = vector[: layout.tensor_length], vector[layout.tensor_length :].astype(np.float64)
    if layout.sums and layout.sums[0][0] == "weight":
        if not sums[0] <= cap:
            raise StudyError(f"this site's weight is {sums[0]:g}, above aggregation.weight_cap = {cap:g}")
        if not sums[0] > 0:
            raise DataError("no images to train on: nothing to give to the sum")
    encoding = encoding_of(study, kind, sites=len(roster.sites))
    words, _ = masking.encode(tensors / np.float32(cap), sums, encoding, key=key)
    return words


def from_sum(
    found: masking.MaskedSum, study: Study, kind: Answering, roster: Roster, *, sites: int
) -> tuple[NDArray[np.float64], int]:
    """The sum of the sites' answers as `layout_of` lays them out, and how many values were cut off at the range.

    Raises MessageError where it is not the sum of so many vectors without their masks.
    """
    values, wide = found.values(sites)
    values *= weight_cap(study, roster)
    return np.concatenate([values, wide[:-1]]), round(wide[-1])
