"""Wide discrete Gaussian noise: the split against 60-digit arithmetic, the draws against their variance."""

import math

import mpmath
import numpy as np
import pytest

from integer_noise import wide_gaussian
from integer_noise.noise_tables import discrete_gaussian_table
from integer_noise.secure_random import SecureRandom


def _variance_of_the_split(stddev):
    """What the digits' parameters add up to, exactly."""
    variance, factor = mpmath.mpf(0), mpmath.mpf(1)
    while stddev > wide_gaussian._WIDEST_TABLE:
        digit = mpmath.mpf(wide_gaussian._DIGIT_STDDEV)
        variance += factor**2 * digit**2
        factor *= wide_gaussian._DIGIT
        low, high = stddev - wide_gaussian._DIGIT_STDDEV, stddev + wide_gaussian._DIGIT_STDDEV
        stddev = math.sqrt(low * high) / wide_gaussian._DIGIT * (1.0 + 2.0**-50)
    return variance + factor**2 * mpmath.mpf(stddev) ** 2


@pytest.mark.parametrize("stddev", [32_768.01, 40_000.0, 163_840.7, 1e7, 1e9 / 3, 2.0**55])
def test_the_digits_add_up_to_at_least_the_noise_that_was_asked_for(stddev):
    with mpmath.workdps(60):
        made = mpmath.sqrt(_variance_of_the_split(stddev))
        assert stddev <= made <= stddev * (1 + mpmath.mpf(10) ** -14)


def test_two_digits_are_a_discrete_gaussian_as_close_as_the_docstring_says():
    # The same split in small, so that the factor 3 exp(-2 pi^2 r^2) can be seen at all; in use r^2 is 512, not 0.7.
    with mpmath.workdps(60):
        m, s, t = 4, mpmath.mpf(4), mpmath.mpf(1.5)
        r_squared = 1 / (mpmath.mpf(m) ** 2 / s**2 + 1 / t**2)
        bound = 3 * mpmath.exp(-2 * mpmath.pi**2 * r_squared)
        whole = s**2 + m**2 * t**2

        def ratio(x):
            parts = (((x - m * k) ** 2) / s**2 + mpmath.mpf(k) ** 2 / t**2 for k in range(-200, 201))
            return mpmath.fsum(mpmath.exp(-part / 2) for part in parts) / mpmath.exp(
                -(mpmath.mpf(x) ** 2) / (2 * whole)
            )

        ratios = [ratio(x) for x in range(-40, 41)]
        middle = mpmath.sqrt(2 * mpmath.pi * r_squared)
        assert bound / 10 < max(abs(value / middle - 1) for value in ratios) <= bound < 1e-5


@pytest.mark.parametrize("stddev", [50_000.0, 3e6, 1e9])
def test_wide_draws_have_the_variance_of_their_distribution_and_every_remainder(stddev):
    draws = wide_gaussian.sample_discrete_gaussian(stddev, 100_000, SecureRandom())
    # Six standard errors: fails once in 500 million runs.
    assert abs(draws.mean(dtype=float)) < 6 * stddev / math.sqrt(len(draws))
    assert abs((draws.astype(float) ** 2).mean() / stddev**2 - 1) < 6 * math.sqrt(2 / len(draws))
    # Without its lowest digit every draw would be a multiple of 256.
    assert len(np.unique(draws % 256)) == 256


def test_narrow_noise_comes_from_one_table():
    table = discrete_gaussian_table(20.0)
    draws = wide_gaussian.sample_discrete_gaussian(20.0, 1000, SecureRandom())
    assert table._lowest <= draws.min() <= draws.max() <= -table._lowest


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 2.0**56])
def test_noise_that_cannot_be_drawn_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        wide_gaussian.sample_discrete_gaussian(bad, 3, SecureRandom())
