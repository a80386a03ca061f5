"""Sites that are enrolled, for runs without processes: identities, a roster pinned everywhere, the server's key."""

from collections.abc import Sequence
from pathlib import Path

from client import membership
from common.study import Study
from server.exchange import Credentials
from simulations.sites import enrol


def enrolled(sites: Sequence[Path], study: Study, folder: Path) -> Credentials:
    """Enrol them; what the coordinator, whose folder this is, then has."""
    return credentials(enrol(sites, study, folder))


def credentials(folder: Path) -> Credentials:
    """Of a coordinator who has enrolled sites before."""
    roster = membership.pinned(folder)
    assert roster is not None
    return Credentials(key=membership.identity_of(folder), roster=roster)
