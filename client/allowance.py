"""How much of a privacy budget a study needs: of what the ledger has left, within the policy's own lifetime limit.

Only reads the ledger; that a study is never charged more than was set aside for it is the ledger's own matter.
"""

from collections.abc import Mapping

from client import chain, cohort, ledger
from client.ledger_records import BudgetError, limit_of, spent
from client.ledger_state import State, share
from client.policy import Policy
from client.site import Site
from common import guarantee
from common.budget import rdp_of
from common.renyi import renyi_limit
from common.study import Study


def state_of(site: Site) -> State | None:
    """The ledger as it stands; None where the site never had one. Raises ChainError, LedgerError."""
    if not cohort.exists(site.folder):
        return None
    contents = chain.read(site.folder / ledger.FOLDER, ledger.NAME)
    return ledger.state_of(contents.entries, patient_key=site.patient_key)


def needs(policy: Policy, study: Study, state: State) -> dict[str, float]:
    """By pool, the share of what is left that the study takes, spare rounds included: more than 1 is too much. Without
    the pools in which its budget is set aside already.
    """
    order = state.genesis.order
    found: dict[str, float] = {}
    for pool, parts in guarantee.plans_by_pool(study).items():
        if (study.sha256, pool) not in state.allocations:
            amount = sum(orders * spent(rdp_of(event.to_json(), order=order)) for event, orders in parts)
            amount -= state.closed.get((study.sha256, pool), 0)
            found[pool] = share(amount, left(policy, state)[pool])
    return found


def left(policy: Policy, state: State) -> Mapping[str, int]:
    """What a new study may be allocated, by pool: under the ledger's limit, or the policy's where that is lower."""
    genesis, less = state.genesis, 0
    if policy.lifetime_epsilon is not None and policy.lifetime_epsilon < genesis.epsilon:
        most = renyi_limit(epsilon=policy.lifetime_epsilon, delta=genesis.delta, order=genesis.order)
        less = genesis.limit - min(genesis.limit, limit_of(most) if most > 0 else 0)
    return {pool: state.available(pool) - less for pool in genesis.pools}


def demand(site: Site, study: Study) -> None:
    """Raises BudgetError where the study needs more than the policy's `lifetime_epsilon` leaves of the ledger."""
    if site.policy.lifetime_epsilon is None or study.privacy is None:
        return
    state = state_of(site)
    for pool, part in ({} if state is None else needs(site.policy, study, state)).items():
        if not part <= 1:
            raise BudgetError(
                f"study {study.study.name!r} needs {part:.4g} of what policy.lifetime_epsilon ="
                f" {site.policy.lifetime_epsilon:g} leaves in pool {pool}"
            )
