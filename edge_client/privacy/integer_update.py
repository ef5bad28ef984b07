"""From a ``model_delta`` to what may leave the device: clip, grid, rounding, noise, all the last three in integers.

# Formal guarantee

For any input, the integer vector q before noise satisfies ``norm(q) <= spec.update_bound_units(d)``: checked on the
integers themselves, exactly, after rounding, so that no floating-point error of scaling or clipping can break it.
Leaving one device out of a sum therefore changes it by at most that. Noise is added once, to a q that was accepted
without looking at the noise; the result is reduced modulo 2^32, which is post-processing.

# Edge cases

| input | result |
|---|---|
| NaN or infinity anywhere | ``NonFiniteUpdate``, before anything is computed (a ``>`` clip test would let NaN through) |
| all zero | q = 0, noise as always |
| norm below C | not scaled up: rounded as it is |
| norm above C | scaled to C |
| squares that overflow float32 | norms are taken in float64 |
| rounding that is refused 64 times (never seen; probability below 1e-13) | rounded towards zero, which is within the clip |
"""

import dataclasses
import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.errors import NonFiniteUpdate
from integer_noise.noise_tables import NoiseTable, discrete_gaussian_table, polya_table, skellam_table
from integer_noise.secure_random import SecureRandom
from wire_protocol.integer_updates import IntegerUpdate
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["ClipRule", "RoundedUpdate", "add_noise", "clip_and_round", "make_integer_update", "noise_vector"]

_MAX_TRIES: Final = 64
_TWO_32: Final = 4294967296.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RoundedUpdate:
    """A clipped update on the integer grid. Without noise it must not leave the device."""

    values: npt.NDArray[np.int64]
    """[d] grid units."""
    num_tries: int
    """Roundings drawn until one was short enough."""
    was_clipped: bool
    was_within_clip: bool
    """Whether it was no longer than the round's clip, whatever the owner's cap did to it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipRule:
    """To what an update is clipped."""

    clipping_norm: float
    """C of the round: ``2**grid_bits`` grid units, and what the bit of a clip that adapts is about."""
    owners_cap: float = math.inf
    """No update is longer than this either, by the owner's wish."""


def make_integer_update(
    model_delta: npt.NDArray[np.float32], spec: PrivacySpec, random: SecureRandom, clip: ClipRule | None = None
) -> IntegerUpdate:
    """The whole way: what one device contributes to a round.

    Args:
        model_delta: [d] trained minus received, flat.
        spec: The mechanism.
        random: A generator made for this release.
        clip: The round's clip and the owner's; ``spec.clipping_norm`` and none if left out.

    Returns:
        uint32 [d]: the clipped, rounded update plus this device's noise, modulo 2^32. With a clip that adapts [d + 1]:
        behind it K if the update was within the round's clip, -K if not.

    Raises:
        NonFiniteUpdate: A value is NaN or infinite.
        ValueError: The mechanism does not suit a model of this size (``PrivacySpec.check_for``).
    """
    spec.check_for(len(model_delta))
    rounded = clip_and_round(model_delta, spec, random, clip)
    update = add_noise(rounded, noise_vector(len(model_delta), spec, random))
    if not spec.num_indicators:
        return update
    bit = spec.indicator_units if rounded.was_within_clip else -spec.indicator_units
    return np.append(update, np.array([bit], np.int64).astype(np.uint32))


def clip_and_round(
    model_delta: npt.NDArray[np.float32], spec: PrivacySpec, random: SecureRandom, clip: ClipRule | None = None
) -> RoundedUpdate:
    """Clips to C (and the owner's cap), scales C to 2^grid_bits units, and rounds at random to integers of bounded norm.

    Conditional randomized rounding: Kairouz, Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism",
    algorithm 1, lines 4 to 7. A rounding whose norm is too large is drawn again.

    Raises:
        NonFiniteUpdate: A value is NaN or infinite.
    """
    if not np.isfinite(model_delta).all():
        raise NonFiniteUpdate("the update holds NaN or infinity")
    exact = model_delta.astype(np.float64)
    norm = _norm(exact, spec)
    rule = clip or ClipRule(clipping_norm=spec.clipping_norm)
    longest = min(rule.clipping_norm, rule.owners_cap)
    was_clipped = norm > longest
    scaled = exact * (spec.clip_units / rule.clipping_norm * (longest / norm if was_clipped else 1.0))
    floor = np.floor(scaled)
    # uint32 below fraction * 2^32: the probability is the fraction to 2^-32; privacy does not rest on it, the norm does.
    above = (scaled - floor) * _TWO_32
    lower = floor.astype(np.int64)
    bound = spec.update_bound_units(len(exact))
    was_within_clip = norm <= rule.clipping_norm
    for attempt in range(1, _MAX_TRIES + 1):
        values = lower + (random.uint32(len(exact)) < above)
        if _is_within(values, spec, bound):
            return RoundedUpdate(
                values=values, num_tries=attempt, was_clipped=was_clipped, was_within_clip=was_within_clip
            )
    values = np.trunc(scaled * (1.0 - 2.0**-40)).astype(np.int64)
    if not _is_within(values, spec, bound):
        raise AssertionError("an update rounded towards zero is longer than its clip")
    return RoundedUpdate(values=values, num_tries=_MAX_TRIES, was_clipped=was_clipped, was_within_clip=was_within_clip)


def noise_vector(num_parameters: int, spec: PrivacySpec, random: SecureRandom) -> npt.NDArray[np.int64]:
    """[d] this device's noise in grid units: the whole (local), a share (distributed), or zeros (central)."""
    if spec.mode == "central":
        return np.zeros(num_parameters, np.int64)
    if spec.noise == "geometric":
        num_shares = 1 if spec.mode == "local" else spec.honest_contributors
        table = polya_table(spec.sum_noise_units(num_parameters), num_shares)
        return table.sample(num_parameters, random) - table.sample(num_parameters, random)
    return _gaussian_kind(spec, spec.share_stddev_units(num_parameters)).sample(num_parameters, random)


def add_noise(rounded: RoundedUpdate, noise: npt.NDArray[np.int64]) -> IntegerUpdate:
    """uint32 [d]: the sum modulo 2^32."""
    total: IntegerUpdate = (rounded.values + noise).astype(np.uint32)
    return total


def _gaussian_kind(spec: PrivacySpec, stddev_units: float) -> NoiseTable:
    if spec.noise == "skellam":
        return skellam_table(stddev_units**2)
    return discrete_gaussian_table(stddev_units)


def _norm(values: npt.NDArray[np.float64], spec: PrivacySpec) -> float:
    if spec.clipping == "l1":
        return float(np.abs(values).sum())
    return math.sqrt(float(np.dot(values, values)))


def _is_within(values: npt.NDArray[np.int64], spec: PrivacySpec, bound: float) -> bool:
    """Whether integers are of the norm that the noise was sized for; exact."""
    if spec.clipping == "l1":
        return int(np.abs(values).sum()) <= math.floor(bound)
    return int(np.dot(values, values)) <= math.floor(bound * bound)
