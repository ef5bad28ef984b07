"""Noise that is correlated over rounds (DP-FTRL family): the matrix C, exactly, and what follows from it in closed form.

C is lower triangular and Toeplitz with ``b`` bands, ``c_j = prod_{i<=j} (2i - 1) / (2i)``: the square root of the matrix
of prefix sums, cut off (Fichtenberger, Henzinger, Upadhyay 2023; banded: Choquette-Choo et al. 2023, "(Amplified) banded
matrix factorization"). The mechanism releases ``C x + Z`` with one row per round, and from it the sums
``x + C^-1 Z``. One device that takes part at most k times, at least b rounds apart, touches each row once, and changes
``C x`` by at most ``sqrt(k) ||c||`` sensitivities: so each part it takes costs ``||c||^2`` single releases.

The coefficients are fractions over ``4^(b-1)``, so that integers times C are integers on a grid that much finer: noise
on a grid protects only sums that lie on it.
"""

import functools
import math
from typing import Final

__all__ = ["MAX_BANDS", "band_denominator", "band_numerators", "band_price", "num_participations"]

MAX_BANDS: Final = 12
"""With more, sums times numerators could leave 64-bit integers."""


def band_denominator(num_bands: int) -> int:
    """M = 4^(b-1)."""
    return int(4 ** (num_bands - 1))


@functools.lru_cache
def band_numerators(num_bands: int) -> tuple[int, ...]:
    """``M c_j`` for j = 0 .. b-1: ``c_j = binomial(2j, j) / 4^j``.

    Raises:
        ValueError: ``num_bands`` is not in 1 .. MAX_BANDS.
    """
    if not 1 <= num_bands <= MAX_BANDS:
        raise ValueError(f"num_bands must be in 1 .. {MAX_BANDS}, not {num_bands}")
    return tuple(math.comb(2 * j, j) * 4 ** (num_bands - 1 - j) for j in range(num_bands))


def band_price(num_bands: int) -> float:
    """``||c||^2``: what taking part once costs, in releases with independent noise of the same size."""
    squares = sum(value * value for value in band_numerators(num_bands))
    return squares / band_denominator(num_bands) ** 2


def num_participations(num_rounds: int, num_bands: int) -> int:
    """k: how often a device can be in ``num_rounds`` rounds, at least ``num_bands`` apart."""
    return -(-num_rounds // num_bands)
