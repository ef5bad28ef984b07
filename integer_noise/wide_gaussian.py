"""Discrete Gaussian noise that is too wide for one table: digits of 256, each from a table of its own.

# Formal guarantee

Let ``Y`` and ``W`` be discrete Gaussians with parameters ``s`` and ``t``, and ``X = Y + m W``. Completing the square,
``P(X = x)`` is proportional to ``exp(-x^2 / (2 (s^2 + m^2 t^2)))`` times ``sum_k exp(-(k - c x)^2 / (2 r^2))`` with
``1/r^2 = m^2/s^2 + 1/t^2``. By Poisson summation that sum is the same for every x up to a factor of
``1 +- 3 exp(-2 pi^2 r^2)``; the split is made so that ``r^2 >= 512``, and the factor is ``1 +- 10^-4000``. (The
convolution of Micciancio, Walter 2017, "Gaussian sampling over the integers", theorem 3.3; the bound is that of Kairouz,
Liu, Steinke 2021, theorem 1.) A draw is therefore within the tables' distances (`noise_tables`), one per digit, of a
discrete Gaussian whose parameter is at least the one asked for, and larger by less than one part in 10^14.

# Edge cases

| input | result |
|---|---|
| narrow enough for a table | that table |
| a standard deviation above 2^55 | ``ValueError``: draws would leave 64-bit integers |
| 0, negative, NaN, infinite | ``ValueError`` |
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from integer_noise.noise_tables import discrete_gaussian_table
from integer_noise.secure_random import SecureRandom

__all__ = ["MAX_STDDEV", "sample_discrete_gaussian"]

MAX_STDDEV: Final = 2.0**55
"""Draws are below 13 standard deviations, and so within 64-bit integers."""
_WIDEST_TABLE: Final = 32_768.0
_DIGIT: Final = 256
_DIGIT_STDDEV: Final = 32.0 * _DIGIT


def sample_discrete_gaussian(stddev: float, count: int, random: SecureRandom) -> npt.NDArray[np.int64]:
    """[count] independent draws, of any width.

    Args:
        stddev: The parameter sigma.
        count: How many.
        random: The operating system's.

    Raises:
        ValueError: ``stddev`` is not positive, not finite, or too large.
    """
    if not stddev <= MAX_STDDEV:
        raise ValueError(f"the noise must be finite and at most 2^55 units wide, not {stddev}")
    if stddev <= _WIDEST_TABLE:
        return discrete_gaussian_table(stddev).sample(count, random)
    rest = math.sqrt((stddev - _DIGIT_STDDEV) * (stddev + _DIGIT_STDDEV)) / _DIGIT
    # Rounded up: never less noise than was asked for.
    wide = sample_discrete_gaussian(rest * (1.0 + 2.0**-50), count, random)
    return _DIGIT * wide + discrete_gaussian_table(_DIGIT_STDDEV).sample(count, random)
