"""From the sum of the sites' noised histograms to each class's share, once before round 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import guarantee
from common.study import Study
from server.private_metrics import noise_of


def class_counts(total: NDArray[np.float64], study: Study, *, sites: int) -> dict[str, Any]:
    """What an event says of it: counts by class as they were released, the noise in each (standard deviation), and the
    shares by which all sites balance their classes. `total`: the sum over so many sites.

    Guarantees: a function of the release and public numbers.
    """
    what, event = guarantee.counts_of(study), guarantee.event_of(study, "count")
    noise = noise_of(what, [event.noise_multiplier] * sites)
    shares = what.prior(total, noise=noise)
    return {
        "classes": dict(zip(what.classes, map(float, total), strict=True)),
        "noise": noise,
        "prior": list(shares),
    }
