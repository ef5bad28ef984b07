"""Integer noise from exact tables: the distribution's cumulative weights, to 128 bits, searched with random words.

All weights are computed in integers (192-bit fixed point), so that a table is the same on every machine, and no
floating-point number touches what leaves the device.

# Formal guarantee

Let ``P`` be the distribution, ``K`` the number of a table's entries. A draw compares a 128-bit uniform word with
thresholds that are ``floor(2^128 * cdf)`` up to the error of the weights. Then the total variation distance of a draw
from ``P`` is at most ``K * 2^-127`` (rounding of thresholds, and of weights at 2^-160 and below) plus the tail that was
cut, at most ``2^-120``: for K <= 2^21 less than ``2^-105``. For d draws in each of T releases it adds at most
``d * T * 2^-105 * (1 + e^epsilon)`` to delta, which is below 1e-15 for d = 10^7, T = 10^4 and epsilon = 8.

Only the upper 64 bits are drawn for all; the lower ones for those few draws that hit a threshold's upper half exactly.

# Edge cases

| input | result |
|---|---|
| ``count`` = 0 | an empty array |
| standard deviation 0, negative, NaN, infinite | ``ValueError`` |
| a table of more than 2^21 entries | ``ValueError``: ask for fewer grid bits |
"""

import decimal
import functools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from integer_noise.secure_random import SecureRandom

__all__ = ["NoiseTable", "discrete_gaussian_table", "polya_table", "skellam_table"]

_BITS: Final = 192
_ONE: Final = 1 << _BITS
_THRESHOLD_BITS: Final = 128
_HALF_BITS: Final = 64
_HALF_MASK: Final = (1 << _HALF_BITS) - 1
_CUT_LOG: Final = 120 * math.log(2.0)
"""Tails are cut where what is left weighs less than 2^-120."""
_MAX_ENTRIES: Final = 1 << 21
_PREFIX_BITS: Final = 16
_DIGITS: Final = 80
_CACHED_TABLES: Final = 4


class NoiseTable:
    """A distribution over consecutive integers.

    Args:
        lowest: The first integer.
        weights: Weights of ``lowest``, ``lowest + 1``, ...; non-negative integers, not all zero.
    """

    __slots__ = ("_high", "_low", "_lowest", "_sure", "num_entries")

    def __init__(self, lowest: int, weights: Sequence[int]) -> None:
        if len(weights) > _MAX_ENTRIES:
            raise ValueError(f"a noise table of {len(weights)} entries; at most {_MAX_ENTRIES}: use fewer grid_bits")
        self._lowest = lowest
        self.num_entries = len(weights)
        thresholds = _thresholds(weights)
        self._high = np.array([value >> _HALF_BITS for value in thresholds], dtype=np.uint64)
        self._low = np.array([value & _HALF_MASK for value in thresholds], dtype=np.uint64)
        self._sure = self._prefixes()

    def sample(self, count: int, random: SecureRandom) -> npt.NDArray[np.int64]:
        """[count] independent draws."""
        words = random.uint64(count)
        index = self._sure[(words >> np.uint64(64 - _PREFIX_BITS)).astype(np.int64)]
        unsure = np.nonzero(index < 0)[0]
        if len(unsure):
            index[unsure] = self._search(words[unsure], random)
        return index + self._lowest

    def _search(self, words: npt.NDArray[np.uint64], random: SecureRandom) -> npt.NDArray[np.int64]:
        """How many thresholds are at or below each 128-bit word of which ``words`` are the upper halves."""
        index = np.searchsorted(self._high, words, side="left").astype(np.int64)
        last = np.searchsorted(self._high, words, side="right")
        for position in np.nonzero(last > index)[0]:
            lower = random.uint64(1)[0]
            reached = self._low[index[position] : last[position]] <= lower
            index[position] += int(np.count_nonzero(reached))
        return index

    def _prefixes(self) -> npt.NDArray[np.int64]:
        """For each 16-bit beginning of a word the index that all such words have, or -1 if they differ."""
        begins = np.arange(1 << _PREFIX_BITS, dtype=np.uint64) << np.uint64(64 - _PREFIX_BITS)
        first = np.searchsorted(self._high, begins, side="left").astype(np.int64)
        ends = begins | np.uint64((1 << (64 - _PREFIX_BITS)) - 1)
        beyond = np.searchsorted(self._high, ends, side="right").astype(np.int64)
        sure: npt.NDArray[np.int64] = np.where(first == beyond, first, np.int64(-1))
        return sure


@functools.lru_cache(maxsize=_CACHED_TABLES)
def discrete_gaussian_table(stddev: float) -> NoiseTable:
    """P(k) proportional to ``exp(-k^2 / (2 stddev^2))``: Canonne, Kamath, Steinke 2020, definition 1.

    Args:
        stddev: The parameter sigma; the standard deviation is at most that.

    Raises:
        ValueError: Not positive and finite, or too large for a table.
    """
    _check_positive(stddev)
    largest = math.ceil(stddev * math.sqrt(2.0 * _CUT_LOG)) + 1
    _check_length(2 * largest + 1)
    # exp(-(k+1)^2/2s^2) = exp(-k^2/2s^2) * q * (q^2)^k with q = exp(-1/2s^2)
    step = _fixed_exp_minus_inverse(2.0, stddev, stddev)
    square = step * step >> _BITS
    half = [_ONE]
    for _ in range(largest):
        half.append(half[-1] * step >> _BITS)
        step = step * square >> _BITS
    return NoiseTable(-largest, [*half[:0:-1], *half])


@functools.lru_cache(maxsize=_CACHED_TABLES)
def skellam_table(variance: float) -> NoiseTable:
    """The difference of two Poisson variables of mean ``variance / 2``: P(k) = e^-v I_|k|(v), v the variance.

    The ratios ``I_k / I_{k-1} = 1 / (2k/v + I_{k+1}/I_k)`` are taken backwards, which is stable (Gautschi 1967).

    Raises:
        ValueError: Not positive and finite, or too large for a table.
    """
    _check_positive(variance)
    # Sub-Gaussian in the middle and sub-exponential far out: P(|X| > t) <= 2 exp(-t^2 / (2 (v + t/3))) (Bernstein).
    largest = math.ceil(_CUT_LOG / 3.0 + math.sqrt((_CUT_LOG / 3.0) ** 2 + 2.0 * _CUT_LOG * variance)) + 2
    _check_length(2 * largest + 1)
    two_over_variance = 2 * _ONE * _denominator(variance) // _numerator(variance)
    ratio = 0
    ratios = [0] * (largest + 1)
    # Each step shrinks the error of the beginning by ratio^2, about exp(-2k/v).
    run_in = math.ceil(_CUT_LOG * variance / largest) + 64
    for k in range(largest + run_in, 0, -1):
        ratio = _ONE * _ONE // (k * two_over_variance + ratio)
        if k <= largest:
            ratios[k] = ratio
    half = [_ONE]
    for k in range(1, largest + 1):
        half.append(half[-1] * ratios[k] >> _BITS)
    return NoiseTable(-largest, [*half[:0:-1], *half])


@functools.lru_cache(maxsize=_CACHED_TABLES)
def polya_table(scale: float, num_shares: int) -> NoiseTable:
    """A share of two-sided geometric noise: NB(1/n, 1 - a) with ``a = exp(-1 / scale)``.

    The difference of two such variables, summed over ``n`` devices, is exactly two-sided geometric:
    P(k) = (1-a)/(1+a) a^|k| (Ghosh, Roughgarden, Sundararajan 2009; the shares: Goryczka, Xiong 2015, section 4).

    Args:
        scale: Of the sum: P(k) is proportional to ``exp(-|k| / scale)``.
        num_shares: n.

    Raises:
        ValueError: ``scale`` is not positive and finite, or too large for a table; ``num_shares`` is below 1.
    """
    _check_positive(scale)
    if num_shares < 1:
        raise ValueError(f"num_shares must be at least 1, not {num_shares}")
    # For r = 1/n <= 1 the tail is lighter than the geometric one: P(X > t) <= a^t.
    largest = math.ceil(_CUT_LOG * scale) + 1
    _check_length(largest + 1)
    factor = _fixed_exp_minus_inverse(scale)
    weights = [_ONE]
    for k in range(largest):
        # p_{k+1} = p_k * a * (k + 1/n) / (k + 1)
        weights.append((weights[-1] * factor >> _BITS) * (k * num_shares + 1) // ((k + 1) * num_shares))
    return NoiseTable(0, weights)


def _thresholds(weights: Sequence[int]) -> list[int]:
    """``floor(2^128 * cdf)`` of every entry but the last, which takes what is left."""
    total = sum(weights)
    if total <= 0:
        raise ValueError("the weights of a noise table are all zero")
    thresholds, reached = [], 0
    for weight in weights[:-1]:
        reached += weight
        thresholds.append((reached << _THRESHOLD_BITS) // total)
    # A threshold of 2^128 itself is reached by no word; its upper half would not fit.
    return [value for value in thresholds if value >> _THRESHOLD_BITS == 0]


def _fixed_exp_minus_inverse(*factors: float) -> int:
    """exp(-1 / (product of the factors)) in fixed point; a float is taken for exactly the number it is."""
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        product = decimal.Decimal(1)
        for factor in factors:
            product *= decimal.Decimal(factor)
        return int((-1 / product).exp() * _ONE)


def _numerator(value: float) -> int:
    return value.as_integer_ratio()[0]


def _denominator(value: float) -> int:
    return value.as_integer_ratio()[1]


def _check_positive(value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the noise must be positive and finite, not {value}")


def _check_length(length: int) -> None:
    if length > _MAX_ENTRIES:
        raise ValueError(f"a noise table of {length} entries; at most {_MAX_ENTRIES}: use fewer grid_bits")
