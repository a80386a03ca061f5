"""What privacy events add up to: a study's epsilon, the noise multiplier that keeps it, and noise over signal.

Every figure is on the safe side: epsilon and noise rounded up, mu down.
"""

import bisect
import functools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.prv import Domain, compose_heterogeneous, discretize
from scipy.fft import next_fast_len
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from common.event import (
    EPSILON_LIMIT,
    GRID,
    LEAST_DELTA,
    LEAST_NOISE,
    MOST_DELTA,
    MOST_NOISE,
    MOST_STEPS,
    AccountingError,
    Event,
    Pool,
    check_count,
    check_limits,
    check_number,
)
from common.renyi import composed_epsilon

ACCOUNTANT = "PRV"

_MARGIN = 1e-6  # relative: a plan calibrated on one machine fits on another whose last bits differ
_MOST_MU = 12.0  # a Gaussian of this parameter is beyond EPSILON_LIMIT at any delta allowed
_ROUNDING = 3e-14  # of delta, per step: floating-point error of the Fourier transforms; 2e-14 is the most seen


def epsilon_of(events: Iterable[Event], *, delta: float) -> float:
    """The epsilon at `delta` of all these events together, fixed in advance: an upper bound. No events: 0.

    Renyi composition first: where that is above EPSILON_LIMIT it refuses. Events of sample rate 1 alone are one
    Gaussian, in closed form. Everything else is the distribution of the privacy loss, composed by Fourier transforms
    once for a patient removed and once for a patient added, and the larger figure counts: that one of the two is
    always the worse is proved for one step, not for many.

    Error terms, all added: `eps_error` (half a per cent of the Renyi figure, at most 0.01) and delta / 1000 for mesh
    and truncation; 3e-14 of delta per step for floating point. Mesh and matched means are those for which the source
    proves these errors; the domain is a little longer than it asks for.

    Guarantees: never below the true epsilon; at most 2 % above it in what studies use (epsilon 0.3 to 10); equal
    for any order of the events and for any way of cutting them into pieces.

    Raises: AccountingError above EPSILON_LIMIT, for more than a million steps, events of two pools, a delta out of
    range, or one so small that rounding would drown it.

    Source: Gopi, Lee, Wutschitz 2021, "Numerical composition of differential privacy", Theorem 5.5 and Remark 5.6.
    Zhu, Dong, Wang 2022, "Optimal accounting of differential privacy via characteristic function", Theorems 10, 11
    (the pair of distributions, adaptive composition). Lebeda, Regehr, Kamath, Steinke 2025, "Avoiding pitfalls for
    privacy accounting of subsampled mechanisms under composition" (both directions).
    """
    check_number("delta", delta, LEAST_DELTA, MOST_DELTA)
    epsilon = _epsilon(_merged(events), delta)
    if not epsilon <= EPSILON_LIMIT:
        raise AccountingError(
            f"epsilon is above {EPSILON_LIMIT:g} at delta {delta:g}, which protects nobody: more noise or fewer steps"
        )
    return epsilon


@functools.lru_cache(maxsize=256)
def _epsilon(parts: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """What `epsilon_of` returns; something above EPSILON_LIMIT where it refuses."""
    if not parts:
        return 0.0
    if all(rate == 1 for rate, _, _ in parts):
        return gaussian_epsilon(mu=math.sqrt(math.fsum(n / sigma**2 for _, sigma, n in parts)), delta=delta)
    guard = composed_epsilon(parts, delta=delta)
    if not guard <= EPSILON_LIMIT:
        return guard
    return _composed(parts, delta, guard)


def _composed(parts: tuple[tuple[float, float, int], ...], delta: float, guard: float) -> float:
    eps_error, delta_error = min(0.01, max(0.005 * guard, 1e-4)), delta / 1000
    steps = sum(n for _, _, n in parts)
    if not _ROUNDING * steps <= delta / 10:
        raise AccountingError(f"delta = {delta:g} is too small for {steps} steps: rounding errors would drown it")
    length = max(
        composed_epsilon(parts, delta=delta_error / 4),
        *(composed_epsilon([(q, sigma, 1)], delta=delta_error / (8 * steps)) for q, sigma, _ in parts),
    )
    mesh = eps_error / math.sqrt(steps / 2 * math.log(12 / delta_error))
    # An even number of points, as the composition asks, of small factors.
    half = next_fast_len(math.ceil((length + 3 + eps_error) / mesh) + 1, real=True)
    domain = Domain(t_min=(1 - half) * mesh, t_max=half * mesh, size=2 * half)
    found = []
    for sign in (1, -1):
        losses = [discretize(_Loss(rate=q, sigma=sigma, sign=sign, domain=domain), domain) for q, sigma, _ in parts]
        total = compose_heterogeneous(losses, [n for _, _, n in parts])
        found.append(total.compute_epsilon(delta - _ROUNDING * steps, delta_error, eps_error)[2])
    return max(0.0, *map(float, found))


class _Loss:
    """The privacy loss of one step, conditioned on the domain: what opacus' discretisation asks of a random variable.

    With n = N(0, sigma^2), m = (1 - q) n + q N(1, sigma^2) and l(x) = log(m(x) / n(x)), which grows with x from
    log(1 - q): l under m for a patient removed (sign 1), -l under n for one added (sign -1).
    """

    def __init__(self, *, rate: float, sigma: float, sign: int, domain: Domain) -> None:
        self.rate, self.sigma, self.sign = rate, sigma, sign
        self.t_min, self.t_max = domain.t_min, domain.t_max
        self.below, above = self._whole(np.array([self.t_min, self.t_max]))
        self.mass = above - self.below

    def _place(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """The x at which l(x) = t; -inf below its range."""
        with np.errstate(divide="ignore"):
            inner = np.maximum(np.expm1(t) / self.rate, -1.0)
            return self.sigma**2 * np.log1p(inner) + 0.5

    def _whole(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        x = self._place(self.sign * t)
        if self.sign < 0:
            return np.asarray(ndtr(-x / self.sigma))
        return np.asarray((1 - self.rate) * ndtr(x / self.sigma) + self.rate * ndtr((x - 1) / self.sigma))

    def cdf(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = (self._whole(np.clip(t, self.t_min, self.t_max)) - self.below) / self.mass
        return np.where(t < self.t_min, 0.0, np.where(t < self.t_max, inside, 1.0))

    def mean(self) -> float:
        """Simpson's rule over the noise, to about 1e-12: an error here is multiplied by the number of steps."""
        low, high = np.sort(self._place(np.array([self.sign * self.t_min, self.sign * self.t_max])))
        x, width = np.linspace(max(low, -12 * self.sigma), min(high, 1 + 12 * self.sigma), 40_001, retstep=True)
        loss = np.logaddexp(
            math.log1p(-self.rate) if self.rate < 1 else -math.inf, math.log(self.rate) + (x - 0.5) / self.sigma**2
        )
        density = np.exp(-((x / self.sigma) ** 2) / 2) / (self.sigma * math.sqrt(2 * math.pi))
        values = self.sign * loss * density * (np.exp(loss) if self.sign > 0 else 1.0)
        weights = np.full(x.size, 2.0)
        weights[1::2] = 4.0
        weights[[0, -1]] = 1.0
        return float(width / 3 * (weights @ values) / self.mass)


def calibrate(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, beside: Iterable[Event] = (), grid: float = GRID
) -> Event:
    """All training steps of a study, with the least noise for which they and the events `beside` them are together
    (epsilon, delta)-private. `steps` is what `steps_of` says, so that spare rounds are paid for.

    Guarantees: `epsilon_of([event, *beside], delta=delta) <= epsilon`, so any part of the steps fits as well; the noise
    multiplier has four digits, and one less in the last would not fit (it is at most 0.1 % above the least).

    Raises: AccountingError when a value is out of range, or no noise makes the steps and `beside` fit.
    """
    check_limits(epsilon=epsilon, delta=delta)
    beside = tuple(beside)

    def event(place: int) -> Event:
        return Event(sample_rate=sample_rate, noise_multiplier=_multiplier(place), steps=steps, grid=grid, pool="train")

    @functools.cache
    def excess(place: int) -> float:
        """log(epsilon reached / epsilon aimed at): falls as the place grows."""
        return math.log(max(_epsilon(_merged([event(place), *beside]), delta), 1e-9) / goal)

    goal = epsilon * (1 - _MARGIN)
    first, last = _place(LEAST_NOISE), _place(MOST_NOISE)
    # Renyi composition is quick, and the least noise by it a little above the least by the real figure.
    high = first + bisect.bisect_left(
        range(first, last),
        True,
        key=lambda place: composed_epsilon(_merged([event(place), *beside]), delta=delta) <= goal,
    )
    while excess(high) > 0:
        if high == last:
            more = " and the class histogram" if beside else ""
            raise AccountingError(
                f"epsilon = {epsilon:g} at delta {delta:g} is too small for {steps} steps{more}: raise it"
            )
        high = min(high + 100, last)
    low = high
    while excess(low) <= 0:
        if low == first:
            return event(first)
        high, low = low, max(first, _place(_multiplier(low) * math.exp(excess(low))) - 1)
    # Now `low` has too little noise and `high` enough. False position, whose stale end loses half its weight.
    below, above = excess(low), excess(high)
    while high - low > 1:
        share = below / (below - above) if math.isfinite(below) else 0.5
        middle = min(max(low + math.ceil(share * (high - low)), low + 1), high - 1)
        if excess(middle) > 0:
            low, below, above = middle, excess(middle), above / 2
        else:
            high, below, above = middle, below / 2, excess(middle)
    return event(high)


def gaussian_release(*, epsilon: float, delta: float, releases: int, pool: Pool, grid: float = GRID) -> Event:
    """All `releases` noised sums over a whole pool (sample rate 1) that together are (epsilon, delta)-private.

    Guarantees: the noise multiplier is sqrt(releases) / mu of (epsilon, delta), rounded up to four digits: R
    releases need sqrt(R) times the noise of one.

    Raises: AccountingError when a limit is out of range.

    Source: Dong, Roth, Su 2022, "Gaussian differential privacy", Corollaries 1 and 2 (several Gaussians are one).
    """
    check_count("releases", releases, 1, MOST_STEPS)
    sigma = math.sqrt(releases) / (gaussian_mu(epsilon=epsilon, delta=delta) * (1 - _MARGIN))
    return Event(sample_rate=1.0, noise_multiplier=_multiplier(_place(sigma)), steps=releases, grid=grid, pool=pool)


def gaussian_epsilon(*, mu: float, delta: float) -> float:
    """The epsilon at `delta` of a Gaussian mechanism of parameter `mu` = sqrt(releases) / noise multiplier, rounded up.

    Edge cases: inf for mu above 12, where it is beyond EPSILON_LIMIT.

    Source: Dong, Roth, Su 2022, Corollary 1: delta = Phi(mu / 2 - eps / mu) - e^eps Phi(-mu / 2 - eps / mu).
    """
    if mu > _MOST_MU:
        return math.inf
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0.0, most, xtol=1e-12)) * (1 + 1e-9)


def gaussian_mu(*, epsilon: float, delta: float) -> float:
    """The largest mu for which a Gaussian mechanism is (epsilon, delta)-private, rounded down: 1.67, 0.72, 0.27 at
    epsilon 8, 3, 1 and delta 1e-5.

    Raises: AccountingError when a limit is out of range.
    """
    check_limits(epsilon=epsilon, delta=delta)
    return float(brentq(lambda mu: _gaussian_delta(epsilon, mu) - delta, 1e-4, _MOST_MU, xtol=1e-14)) * (1 - 1e-9)


def _gaussian_delta(epsilon: float, mu: float) -> float:
    high, low = float(log_ndtr(mu / 2 - epsilon / mu)), float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(high) - math.exp(epsilon + low)


def plan_mu(event: Event) -> float:
    """sample_rate x sqrt(steps) / noise_multiplier: what all steps' signal is to their noise, for utility.

    About 1.5, 0.7, 0.26 at epsilon 8, 3, 1 (delta 1e-5), nearly whatever rate and steps are. At sample rate 1 it is the
    Gaussian parameter, and so as large as `gaussian_mu`; below it is smaller.
    """
    return event.sample_rate * math.sqrt(event.steps) / event.noise_multiplier


def noise_over_signal(
    *, mu: float, trained_parameters: int, sites: int, patients: float, shared_noise: bool = False
) -> float:
    """Noise over signal of a whole run: sqrt(trained_parameters x sites) / (mu x patients).

    Below 0.1 all is well, above 0.5 a linear model learns nothing. Of others it says less: a U-Net, whose gradients lie
    in few directions, has learnt at 5, a RetinaNet of the same order has not.

    `patients`: in the training pools of all sites, by their nominal sizes; times the mean class weight where classes
    are weighted. `shared_noise`: the sites share one noise, and the factor sqrt(sites) drops.

    Raises: AccountingError when a value is not above 0, NaN included.
    """
    check_number("mu", mu, 1e-9, 1e9)
    check_number("patients", patients, 1e-9, 1e12)
    check_count("trained_parameters", trained_parameters, 1, 10**15)
    check_count("sites", sites, 1, 10**9)
    return math.sqrt(trained_parameters * (1 if shared_noise else sites)) / (mu * patients)


def _merged(events: Iterable[Event]) -> tuple[tuple[float, float, int], ...]:
    """(sample rate, noise multiplier, steps), each pair once, in order. Refuses events of two pools."""
    steps: dict[tuple[float, float], int] = {}
    pools = set()
    for event in events:
        pair = (event.sample_rate, event.noise_multiplier)
        steps[pair] = steps.get(pair, 0) + event.steps
        pools.add(event.pool)
    if len(pools) > 1:
        raise AccountingError(f"events of the pools {', '.join(sorted(pools))} in one account: one account per pool")
    if sum(steps.values()) > MOST_STEPS:
        raise AccountingError(f"more than {MOST_STEPS} steps in one account: fewer rounds or local steps")
    return tuple((rate, sigma, n) for (rate, sigma), n in sorted(steps.items()))


def _multiplier(place: int) -> float:
    """The noise multipliers with four digits, counted upwards: 0.01 is number 0."""
    return float(f"{1000 + place % 9000}e{place // 9000 - 5}")


def _place(noise_multiplier: float) -> int:
    """The first number of `_multiplier` that is not below."""
    decade = math.floor(math.log10(noise_multiplier) + 1e-12)
    place = 9000 * (decade + 2) + math.floor(noise_multiplier / 10.0 ** (decade - 3)) - 1000 - 1
    while _multiplier(place) < noise_multiplier:
        place += 1
    return place
