"""How common the classes are, for a private release: what one patient adds to a noised sum, and how to read the sum."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from common.params import Shapes
from common.tasks.noisy_curves import Array


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Patients by class. An image's vector is 1 at each class that it shows, divided by its length; a patient's is the
    mean over his images. Where images show several classes the values are shares of attention, not numbers of patients.

    Guarantees: an image's vector has norm 1, or 0 where it shows nothing, and a mean of such vectors is no longer.
    """

    classes: tuple[str, ...]

    @property
    def layout(self) -> Shapes:
        """Names and shapes of the released vector."""
        return (("classes", (len(self.classes),)),)

    @property
    def bound(self) -> float:
        """Most that one patient adds, in L2 norm."""
        return 1.0

    def part(self, shown: Sequence[Collection[int]]) -> Array:
        """One patient's vector, from the positions of the classes that each of his images shows."""
        counts = np.zeros(len(self.classes))
        for classes in shown:
            for position in classes:
                counts[position] += 1 / (math.sqrt(len(classes)) * len(shown))
        return counts

    def prior(self, total: Array, *, noise: float) -> tuple[float, ...]:
        """Each class's share, from the sum over the sites with noise of this standard deviation in each value.

        A class that noise could hide counts as much as noise does: taken for rarer than can be known, it would leave
        nothing of the others' weights.

        Guarantees: a function of the release; each share is above 0 and below 1.
        Raises ValueError for a sum or noise from which no such shares can be made.
        """
        counts = np.maximum(total, noise)
        shares = counts / counts.sum()
        if not (0 < noise < math.inf and shares.shape == (len(self.classes),) and ((shares > 0) & (shares < 1)).all()):
            raise ValueError(f"no shares of {len(self.classes)} classes in {total} with noise {noise}")
        return tuple(map(float, shares))
