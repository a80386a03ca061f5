"""May this study run here, and may this order be carried out now? What policy, approval and budget say, in one place.

Asked before any data is opened, and answered from the study, the order, the audit log, the ledger and numbers that the
hospital has declared.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from client import allowance, approval, audit, membership, policy
from client.chain_lines import Entry
from client.site import Site
from common.errors import FederationError
from common.study import Study
from common.wire import Order


def study(site: Site, study: Study, entries: Sequence[Entry]) -> None:
    """A study that is proposed. `entries`: of the audit log. One that may not run is kept for a person to read.

    Raises PolicyError, ApprovalError, BudgetError, and RosterError or ChainError where roster or ledger can't be read.
    """
    try:
        _both(site, study, entries)
        allowance.demand(site, study)
    except FederationError:
        approval.keep(site, study, entries)
        raise


def order(site: Site, study: Study, order: Order, entries: Sequence[Entry]) -> None:
    """An order of a study that was agreed to: both may have changed their mind since. Raises as `study`."""
    _both(site, study, entries)
    moved = audit.moved(entries, study=study.sha256, round=order.round)
    others = audit.asked(entries, study=study.sha256, kind=order.kind) - {(order.round, order.asks)}
    policy.check_order(
        site.policy,
        study,
        kind=order.kind,
        round=order.round,
        now=datetime.now(UTC).astimezone(),
        moved=moved,
        asked=len(others),
    )


def terms(site: Site, study: Study) -> policy.Terms:
    """What a run of this study would bind itself to here. Raises RosterError for a roster that can't be read."""
    return policy.terms_of(study, membership.pinned(site.folder) if study.aggregation.secure else None)


def _both(site: Site, study: Study, entries: Sequence[Entry]) -> None:
    policy.check(site.policy, study, nominal_patients=site.nominal_patients, terms=terms(site, study))
    approval.demand(site, study.sha256, entries)
