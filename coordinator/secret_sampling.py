"""Amplification by sampling: what it would take, what it is worth, and why a coordinator that serves devices has none.

A round of central mode whose cohort is a **secret Poisson sample** costs less than one with everybody in it: each
device is in it by a coin of its own, with the same probability, whoever sees the released models knows of no coin, and
what is released does not depend on how many came (no round is filled up, cut short or given up for its size).

# The price

Of continuous Gaussian noise the price is known: Mironov, Talwar, Zhang 2019, "Renyi differential privacy of the sampled
Gaussian mechanism" (dp-accounting). It holds for the coordinator's integers, too. Let ``y ~ N(x, t^2)`` around
an integer x, and draw k from the integers with weights ``exp(-(k - y)^2 / (2 s^2))``. By Poisson summation these weights add
up to ``s sqrt(2 pi) (1 +- 3 e^(-2 pi^2 s^2))`` whatever y is, so that k is a discrete Gaussian around x of parameter
``sqrt(s^2 + t^2)``, each probability up to that factor. With s = 4 the factor is ``1 +- 10^-136``. Discrete Gaussian noise
of parameter sigma therefore is what continuous noise of ``sqrt(sigma^2 - 16)`` becomes by a step that does not look at
the data: whatever is proven for the one holds for the other, mixtures over secret coins included.
"""

import math
from typing import Final

import dp_accounting
import msgspec
from dp_accounting import rdp

from coordinator.errors import InvalidConfig
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["calibrate_sampled", "check_sampling", "refuse_sampling_in_service", "sampled_epsilon"]

_STEP_STDDEV_UNITS: Final = 4.0
_TOLERANCE: Final = 3e-4
_ORDERS: Final = (1.5, 1.75, 2.5, 3.5, *map(float, range(2, 65)), 96.0, 128.0, 256.0, 512.0)
"""Rényi orders. Each gives a bound that holds; fractional ones between take ten times as long and gain a thousandth."""
_LEAST_MULTIPLIER: Final = 0.3
"""With less noise the Rényi orders that are looked at say nothing useful."""


def refuse_sampling_in_service(sampling_rate: float | None) -> None:
    """Refuses the claim where devices are served.

    Raises:
        InvalidConfig: A rate was given; says why there is no such claim.
    """
    if sampling_rate is not None:
        raise InvalidConfig(
            "no amplification by sampling is claimed for devices that are served: they check in by themselves, so who can "
            "be drawn is no coin of the coordinator's; whoever was asked knows it, and so does the broker; and a round is "
            "closed when enough have reported and abandoned when too few have, which no independent draw allows. Leave "
            "sampling_rate out; 'flockwise simulate --privacy-mode central --sampling-rate' shows what it would be worth"
        )


def check_sampling(spec: PrivacySpec, sampling_rate: float) -> None:
    """Refuses a claim that no secret sample could support.

    Raises:
        InvalidConfig: Says what is in the way.
    """
    if not 0 < sampling_rate <= 1:
        raise InvalidConfig(f"a sampling rate is above 0 and at most 1, not {sampling_rate}")
    if spec.mode != "central":
        raise InvalidConfig(
            f"sampling amplifies nothing in {spec.mode} mode: the coordinator is not trusted there, and it sees who takes part"
        )
    if spec.noise != "discrete_gaussian" or spec.num_bands > 1:
        raise InvalidConfig(
            "secret samples are priced with independent discrete_gaussian noise alone: with noise in bands a device has to "
            "keep its distance, which is no coin"
        )


def sampled_epsilon(spec: PrivacySpec, num_parameters: int, num_rounds: int, sampling_rate: float) -> float:
    """What rounds of secret Poisson cohorts cost a device, by RDP, for whoever sees the released models alone.

    Args:
        spec: The mechanism; its ``target_epsilon`` and ``num_rounds`` play no part.
        num_parameters: d.
        num_rounds: T.
        sampling_rate: q: each device's chance of being in a round's cohort.

    Raises:
        InvalidConfig: As ``check_sampling``.
    """
    check_sampling(spec, sampling_rate)
    return _epsilon(_continuous_multiplier(spec, num_parameters), num_rounds, sampling_rate, spec.target_delta)


def calibrate_sampled(spec: PrivacySpec, num_parameters: int, sampling_rate: float) -> PrivacySpec:
    """The least noise that keeps ``num_rounds`` rounds of secret cohorts within ``target_epsilon``.

    Such a specification must not be served: without the secret its rounds cost far more than it says.

    Raises:
        InvalidConfig: As ``check_sampling``.
    """
    check_sampling(spec, sampling_rate)

    def cost(multiplier: float) -> float:
        candidate = msgspec.structs.replace(spec, noise_multiplier=multiplier)
        return sampled_epsilon(candidate, num_parameters, spec.num_rounds, sampling_rate)

    low = high = _LEAST_MULTIPLIER  # if that is enough, it is what is taken
    while cost(high) > spec.target_epsilon:
        low, high = high, 2.0 * high
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if cost(middle) > spec.target_epsilon else (low, middle)
    return msgspec.structs.replace(spec, noise_multiplier=high)


def _continuous_multiplier(spec: PrivacySpec, num_parameters: int) -> float:
    """Z of the continuous noise that the coordinator's integers are made of, as far as what they tell is concerned."""
    sensitivity, sigma = spec.sensitivity_units(num_parameters), spec.sum_noise_units(num_parameters)
    if sigma <= _STEP_STDDEV_UNITS:
        raise InvalidConfig(
            f"the noise is {sigma:.3g} grid units wide, which is too fine for this price: raise grid_bits"
        )
    return math.sqrt(sigma * sigma - _STEP_STDDEV_UNITS**2) / sensitivity


def _epsilon(multiplier: float, num_rounds: int, sampling_rate: float, target_delta: float) -> float:
    one = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(multiplier))
    accountant = rdp.RdpAccountant(sorted(_ORDERS))
    accountant.compose(dp_accounting.SelfComposedDpEvent(one, num_rounds))
    return float(accountant.get_epsilon(target_delta))
