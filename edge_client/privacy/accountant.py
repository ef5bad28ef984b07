"""The device's own accountant: what releases cost together. Standard library only: a Pi pays no scipy for it.

A history is priced by Rényi differential privacy (RDP) at fixed orders, kept as integers of 1e-12 and rounded up, so
that adding is exact and errs on the safe side. For histories of continuous Gaussian noise alone the exact trade-off
(Gaussian differential privacy) is known and used if it is smaller; for histories of Laplace kind alone the sum of their
pure epsilons is, which finite orders do not quite reach.

Checked against dp-accounting 0.4.3 by `tests/contracts/test_accountants.py`.
"""

import dataclasses
import math
from typing import Final

from wire_protocol.geometric_price import geometric_rdp
from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, LaplaceEvent, PrivacyEvent, SkellamEvent

__all__ = [
    "RDP_ORDERS",
    "Cost",
    "cost_of",
    "epsilon_of",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "no_cost",
]

RDP_ORDERS: Final[tuple[float, ...]] = (
    *(1.0 + tenths / 10.0 for tenths in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(128.0, 256.0, 512.0, 1024.0),
)
"""The orders alpha at which RDP is kept: those of dp-accounting, so that coordinator and device name the same price."""

_UNITS: Final = 10**12
_BISECTIONS: Final = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one release, or a history of them, costs. Costs are added with ``+``."""

    rdp: tuple[int, ...]
    """RDP at each of ``RDP_ORDERS``, in units of 1e-12, rounded up."""
    mu_squared: float
    """Sum of ``1 / z^2`` over continuous Gaussian releases: the square of the Gaussian trade-off's mu."""
    is_exact: bool
    """Whether every release is continuous Gaussian, so that ``mu_squared`` says everything."""
    pure_epsilon: float
    """Epsilon at delta 0, by basic composition; infinite as soon as a release has none."""

    def __post_init__(self) -> None:
        if len(self.rdp) != len(RDP_ORDERS) or min(self.rdp) < 0 or not self.mu_squared >= 0:
            raise ValueError("a cost needs a non-negative number for each order")

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            rdp=tuple(a + b for a, b in zip(self.rdp, other.rdp, strict=True)),
            mu_squared=self.mu_squared + other.mu_squared,
            is_exact=self.is_exact and other.is_exact,
            pure_epsilon=self.pure_epsilon + other.pure_epsilon,
        )

    def times(self, count: int) -> "Cost":
        """The cost of ``count`` such releases."""
        return Cost(
            rdp=tuple(count * value for value in self.rdp),
            mu_squared=count * self.mu_squared,
            is_exact=self.is_exact,
            pure_epsilon=count * self.pure_epsilon if count else 0.0,
        )


def no_cost() -> Cost:
    """The cost of nothing."""
    return Cost(rdp=(0,) * len(RDP_ORDERS), mu_squared=0.0, is_exact=True, pure_epsilon=0.0)


def cost_of(event: PrivacyEvent) -> Cost:
    """The price of one release.

    Gaussian and discrete Gaussian: ``alpha / (2 z^2)`` (Mironov 2017, corollary 3; Canonne, Kamath, Steinke 2020,
    theorem 4). Laplace: Mironov 2017, proposition 6, of scale z sensitivities. Two-sided geometric: `geometric_rdp`.
    Skellam: Agarwal, Kairouz, Liu 2021, theorem 3.5.
    """
    pure = math.inf
    match event:
        case GaussianEvent(noise_multiplier=z, is_discrete=is_discrete):
            rdp = [alpha / (2.0 * z * z) for alpha in RDP_ORDERS]
            return Cost(rdp=_rounded_up(rdp), mu_squared=1.0 / (z * z), is_exact=not is_discrete, pure_epsilon=pure)
        case LaplaceEvent(noise_multiplier=scale):
            rdp = [_laplace_rdp(alpha, scale) for alpha in RDP_ORDERS]
            pure = 1.0 / scale
        case GeometricEvent(noise_multiplier=scale, sensitivity_units=units):
            rdp = [geometric_rdp(alpha, noise_multiplier=scale, sensitivity_units=units) for alpha in RDP_ORDERS]
            pure = 1.0 / scale
        case SkellamEvent(variance_units=variance, l2_units=l2, l1_units=l1):
            rdp = [_skellam_rdp(alpha, variance, l1, l2) for alpha in RDP_ORDERS]
    return Cost(rdp=_rounded_up(rdp), mu_squared=0.0, is_exact=False, pure_epsilon=pure)


def epsilon_of(cost: Cost, target_delta: float) -> float:
    """The smallest epsilon that this accountant can prove at ``target_delta``.

    From RDP by Canonne, Kamath, Steinke 2020, proposition 12 (as dp-accounting has it):
    ``min over alpha of rdp + log(1 - 1/alpha) - log(delta alpha) / (alpha - 1)``, and 0 at the least.

    Raises:
        ValueError: ``target_delta`` is not in (0, 1).
    """
    if not 0 < target_delta < 1:
        raise ValueError(f"target_delta must be in (0, 1), not {target_delta}")
    if not any(cost.rdp):
        return 0.0
    by_rdp = min(
        value / _UNITS + math.log1p(-1.0 / alpha) - math.log(target_delta * alpha) / (alpha - 1.0)
        for alpha, value in zip(RDP_ORDERS, cost.rdp, strict=True)
    )
    if cost.is_exact:
        by_rdp = min(by_rdp, gaussian_epsilon(math.sqrt(cost.mu_squared), target_delta))
    return max(0.0, min(by_rdp, cost.pure_epsilon))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of a Gaussian mechanism with ``mu = sensitivity / stddev``: Balle, Wang 2018, theorem 8."""
    # exp(epsilon) overflows and its factor underflows together; the product is what counts.
    log_tail = _log_normal_tail(mu / 2.0 + epsilon / mu)
    return max(0.0, _normal_cdf(mu / 2.0 - epsilon / mu) - math.exp(min(epsilon + log_tail, 700.0)))


def gaussian_epsilon(mu: float, target_delta: float) -> float:
    """The epsilon with ``gaussian_delta(epsilon, mu) == target_delta``, rounded up in the last bisection."""
    if mu <= 0 or gaussian_delta(0.0, mu) <= target_delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > target_delta:
        high *= 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if gaussian_delta(middle, mu) > target_delta else (low, middle)
    return high


def gaussian_mu(epsilon: float, target_delta: float) -> float:
    """The largest mu that stays within (epsilon, target_delta): T rounds of it need ``z = sqrt(T) / mu``."""
    low, high = 1e-9, 100.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if gaussian_delta(epsilon, middle) > target_delta else (middle, high)
    return low


def _rounded_up(values: list[float]) -> tuple[int, ...]:
    return tuple(math.ceil(value * _UNITS) for value in values)


def _laplace_rdp(alpha: float, scale: float) -> float:
    grown = math.log(alpha / (2.0 * alpha - 1.0)) + (alpha - 1.0) / scale
    shrunk = math.log((alpha - 1.0) / (2.0 * alpha - 1.0)) - alpha / scale
    larger, smaller = max(grown, shrunk), min(grown, shrunk)
    return min(1.0 / scale, (larger + math.log1p(math.exp(smaller - larger))) / (alpha - 1.0))


def _skellam_rdp(alpha: float, variance: float, l1: float, l2: float) -> float:
    first = ((2.0 * alpha - 1.0) * l2 * l2 + 6.0 * l1) / (4.0 * variance * variance)
    return alpha * l2 * l2 / (2.0 * variance) + min(first, 3.0 * l1 / (2.0 * variance))


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _log_normal_tail(x: float) -> float:
    """Log P(N(0, 1) > x); by an asymptotic bound from above where erfc underflows."""
    tail = 0.5 * math.erfc(x / math.sqrt(2.0))
    if tail > 1e-300:  # noqa: PLR2004 - the smallest normal doubles
        return math.log(tail)
    return -x * x / 2.0 - math.log(x) - 0.5 * math.log(2.0 * math.pi)
