"""What came of an attack, judged by one rule: it succeeds when the numbers that were read are the victim's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Outcome = Literal["refused", "fails", "succeeds", "not tried"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack on one protocol, carried out.

    outcome  refused: a site did not do what it was asked; fails: all was done, and nothing could be read
    brief    the most important figure, for a table
    detail   what was asked and read, in figures
    said     what the sites answered where they refused, one line each
    error    where it succeeds, the largest difference between what was read and the truth; else infinite
    """

    against: str
    outcome: Outcome
    detail: str
    brief: str = ""
    said: tuple[str, ...] = ()
    error: float = math.inf


def judged(
    read: ArrayLike | None,
    truth: ArrayLike,
    *,
    tolerance: float,
    against: str,
    detail: str,
    brief: str = "",
    said: Sequence[str] = (),
) -> Finding:
    """The finding for what was read, None where nothing could be.

    Guarantees: `succeeds` only for numbers that are all within `tolerance` of the truth; NaN is not.
    """
    error = math.inf
    if read is not None:
        error = float(np.abs(np.asarray(read, np.float64) - np.asarray(truth, np.float64)).max())
    outcome: Outcome = "refused" if said else "fails"
    if error <= tolerance:
        outcome, detail = "succeeds", f"{detail}; read to within {error:.1g}"
    else:
        error = math.inf
    return Finding(against=against, outcome=outcome, detail=detail, brief=brief, said=tuple(said), error=error)
