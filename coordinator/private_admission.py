"""How long a private update of an honest device can be: what is longer is no clipped update with its noise.

A device that does not clip could otherwise move the sum by 2^31 grid units in every number, a hundred thousand clips.
With this bound it can move the sum by about as much as its own honest noise would. In central mode updates come without
noise, and the bound is exact: the sensitivity itself, which then holds whatever a device sends. An honest update is refused with
probability below ``e^-40``, which is added to delta nowhere because it is below any delta in use.
"""

import math
from typing import Final

import numpy as np

from wire_protocol.integer_updates import IntegerUpdate
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["honest_l2_bound", "honest_max_bound", "is_overlong"]

_LOG_ODDS: Final = 40.0


def is_overlong(update: IntegerUpdate, spec: PrivacySpec) -> bool:
    """Whether no honest device would ever send this update.

    Args:
        update: uint32 [d] (with a clip that adapts [d + 1]), one device's contribution, read as signed integers.
        spec: The mechanism.
    """
    if spec.mode == "central":
        return _is_longer_than_its_clip(update, spec)
    signed = update.view(np.int32).astype(np.float64)
    if spec.noise in {"gaussian", "discrete_gaussian"}:
        return math.sqrt(float(np.dot(signed, signed))) > honest_l2_bound(spec, len(update))
    return float(np.abs(signed).max(initial=0.0)) > honest_max_bound(spec, len(update))


def _is_longer_than_its_clip(update: IntegerUpdate, spec: PrivacySpec) -> bool:
    """Whether an update without noise is longer than the sensitivity; in integers, without rounding."""
    signed = update.view(np.int32).astype(np.int64)
    if spec.num_indicators and abs(int(signed[-1])) != spec.indicator_units:
        return True
    # The bit is of one size: what is left of the sensitivity is the update's, whichever it is.
    sizes = np.abs(signed[: len(signed) - spec.num_indicators])
    bound = spec.update_bound_units(len(sizes))
    # First each number alone: what is left has squares whose sum stays within 64 bits.
    if len(sizes) and int(sizes.max()) > bound:
        return True
    if spec.clipping == "l1":
        return int(sizes.sum()) > math.floor(bound)
    return int(np.dot(sizes, sizes)) > math.floor(bound * bound)


def honest_l2_bound(spec: PrivacySpec, num_parameters: int) -> float:
    """Grid units: ``B + sigma sqrt(d + 2 sqrt(d t) + 2 t)`` with t = 40.

    Discrete Gaussian noise is sub-Gaussian with its own sigma (Canonne, Kamath, Steinke 2020, corollary 17), and the
    norm of such a vector is longer with probability at most ``e^-t`` (Hsu, Kakade, Zhang 2012, theorem 2.1).

    Args:
        spec: A mechanism of Gaussian kind.
        num_parameters: d.
    """
    d, t = num_parameters, _LOG_ODDS
    noise = spec.share_stddev_units(d) * math.sqrt(d + 2.0 * math.sqrt(d * t) + 2.0 * t)
    return spec.sensitivity_units(d) + noise


def honest_max_bound(spec: PrivacySpec, num_parameters: int) -> float:
    """Grid units that no single number exceeds: ``B + m``, m from the tail of one number and a union over d.

    Geometric noise of scale b: ``P(|X| > m) <= 2 e^(-m/b)``. Skellam of variance v: Bernstein's inequality,
    ``P(|X| > m) <= 2 exp(-m^2 / (2 (v + m/3)))``.

    Args:
        spec: A mechanism of geometric or Skellam noise.
        num_parameters: d.
    """
    odds = _LOG_ODDS + math.log(2.0 * max(1, num_parameters))
    share = spec.share_stddev_units(num_parameters)
    if spec.noise == "skellam":
        return (
            spec.sensitivity_units(num_parameters) + odds / 3.0 + math.sqrt((odds / 3.0) ** 2 + 2.0 * odds * share**2)
        )
    return spec.sensitivity_units(num_parameters) + share * odds
