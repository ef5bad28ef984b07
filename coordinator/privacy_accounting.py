"""What a task's rounds cost each device, by dp-accounting; and how much noise a target needs.

Every device is taken to be in every round: devices check in by themselves, which is no secret and no Poisson sample,
so **no amplification by sampling is claimed**. With noise correlated over b rounds, a device is in every b-th of them.
The number published is the one by Rényi DP, which is a theorem for the integer noise that is added; the privacy loss
distribution of continuous noise is shown beside it as its equivalent.
"""

import dataclasses
import math
from typing import Final

import dp_accounting
import msgspec
from dp_accounting import pld, rdp

from coordinator.errors import InvalidConfig
from wire_protocol.band_matrix import band_price
from wire_protocol.geometric_price import geometric_rdp
from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, LaplaceEvent, PrivacySpec

__all__ = ["PrivacyForecast", "calibrate", "claimed_epsilon", "forecast"]

_TOLERANCE: Final = 1e-6
_BRACKET_FACTOR: Final = 2.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyForecast:
    """What some rounds of a mechanism cost a device that takes part in all of them."""

    num_rounds: int
    target_delta: float
    epsilon_by_rdp: float
    """The claim."""
    epsilon_by_pld: float
    """By privacy loss distributions, nearly exact, and not what is promised: of continuous noise of this scale, which
    discrete noise is made of (`coordinator.secret_sampling`); for geometric noise of that noise itself."""


def forecast(spec: PrivacySpec, num_rounds: int) -> PrivacyForecast:
    """Prices ``num_rounds`` rounds of a mechanism.

    Raises:
        InvalidConfig: ``num_rounds`` is below 1, or the noise is one that dp-accounting cannot price (``skellam``).
    """
    if num_rounds < 1:
        raise InvalidConfig(f"a forecast needs at least one round, not {num_rounds}")
    event = spec.event(1)
    if isinstance(event, GeometricEvent):
        by_pld = _geometric_pld(event, spec.num_participations(num_rounds), spec.target_delta)
    else:
        by_pld = _epsilon(pld.PLDAccountant(), _rounds_event(spec, num_rounds), spec.target_delta)
    return PrivacyForecast(
        num_rounds=num_rounds,
        target_delta=spec.target_delta,
        epsilon_by_rdp=claimed_epsilon(spec, num_rounds),
        epsilon_by_pld=by_pld,
    )


def claimed_epsilon(spec: PrivacySpec, num_rounds: int) -> float:
    """The claim alone: ``forecast(...).epsilon_by_rdp`` without the other accountant, which takes a second.

    For noise of Laplace kind the sum of the rounds' pure epsilons, if that is smaller: finite orders do not reach it.

    Raises:
        InvalidConfig: As ``forecast``.
    """
    if num_rounds < 1:
        raise InvalidConfig(f"a claim needs at least one round, not {num_rounds}")
    event = spec.event(1)
    if isinstance(event, GeometricEvent):
        by_rdp = _geometric_epsilon(event, spec.num_participations(num_rounds), spec.target_delta)
    else:
        by_rdp = _epsilon(rdp.RdpAccountant(), _rounds_event(spec, num_rounds), spec.target_delta)
    return min(by_rdp, num_rounds / spec.noise_multiplier) if spec.clipping == "l1" else by_rdp


def calibrate(spec: PrivacySpec) -> PrivacySpec:
    """The same mechanism with the least noise that keeps ``num_rounds`` rounds within ``target_epsilon`` by RDP.

    The search is between a bound in closed form (Bun, Steinke 2016, proposition 1.3, for Gaussian noise; basic
    composition for Laplace noise) and a fraction of it: a wide bracket takes minutes.

    Raises:
        InvalidConfig: As ``forecast``.
    """
    enough, step = _enough(spec), 0.0

    def event(noise_multiplier: float) -> dp_accounting.DpEvent:
        return _rounds_event(msgspec.structs.replace(spec, noise_multiplier=noise_multiplier), spec.num_rounds)

    found: float = dp_accounting.calibrate_dp_mechanism(
        rdp.RdpAccountant,
        event,
        spec.target_epsilon,
        spec.target_delta,
        bracket_interval=dp_accounting.ExplicitBracketInterval(enough / _BRACKET_FACTOR, enough),
        tol=_TOLERANCE * enough,
    )
    # A root found to a tolerance may lie on the wrong side of the target; that of geometric noise is a hair beyond.
    while claimed_epsilon(made := msgspec.structs.replace(spec, noise_multiplier=found + step), spec.num_rounds) > (
        spec.target_epsilon
    ):
        step = 2.0 * step + _TOLERANCE * enough
    return made


def _enough(spec: PrivacySpec) -> float:
    """Noise that is certainly enough, in closed form."""
    epsilon, log_delta = spec.target_epsilon, math.log(1.0 / spec.target_delta)
    num_releases = spec.num_participations(spec.num_rounds)
    match spec.event(1):
        case GaussianEvent():
            # rho-zCDP gives epsilon = rho + 2 sqrt(rho log(1/delta)); rho = T / (2 z^2)
            root_rho = math.sqrt(log_delta + epsilon) - math.sqrt(log_delta)
            return math.sqrt(band_price(spec.num_bands) * num_releases / 2.0) / root_rho
        case LaplaceEvent() | GeometricEvent():
            # Half as much again: finite orders do not quite reach the pure epsilon.
            return 1.5 * num_releases / epsilon
        case _:
            raise InvalidConfig(f"dp-accounting has no price for {spec.noise} noise; use discrete_gaussian")


def _rounds_event(spec: PrivacySpec, num_rounds: int) -> dp_accounting.DpEvent:
    """What so many rounds cost a device that takes part as often as it may."""
    multiplier = spec.noise_multiplier / math.sqrt(band_price(spec.num_bands))
    return dp_accounting.SelfComposedDpEvent(_event(spec.noise, multiplier), spec.num_participations(num_rounds))


def _event(noise: str, noise_multiplier: float) -> dp_accounting.DpEvent:
    if noise in {"gaussian", "discrete_gaussian"}:
        return dp_accounting.GaussianDpEvent(noise_multiplier)
    if noise in {"laplace", "geometric"}:
        return dp_accounting.LaplaceDpEvent(noise_multiplier)
    raise InvalidConfig(f"dp-accounting has no price for {noise} noise; use discrete_gaussian")


def _geometric_epsilon(event: GeometricEvent, num_releases: int, delta: float) -> float:
    """By the exact RDP of geometric noise, for which dp-accounting has no event; the conversion is dp-accounting's."""
    orders = rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    costs = [
        num_releases
        * geometric_rdp(alpha, noise_multiplier=event.noise_multiplier, sensitivity_units=event.sensitivity_units)
        for alpha in orders
    ]
    return float(rdp.rdp_privacy_accountant.compute_epsilon(orders, costs, delta)[0])


def _geometric_pld(event: GeometricEvent, num_releases: int, delta: float) -> float:
    """Of a device that puts all its units into one number, which costs most (`geometric_rdp`)."""
    scale = event.noise_multiplier * event.sensitivity_units
    one = pld.privacy_loss_distribution.from_discrete_laplace_mechanism(1.0 / scale, event.sensitivity_units)
    return float(one.self_compose(num_releases).get_epsilon_for_delta(delta))


def _epsilon(accountant: dp_accounting.PrivacyAccountant, event: dp_accounting.DpEvent, delta: float) -> float:
    accountant.compose(event)
    return float(accountant.get_epsilon(delta))
