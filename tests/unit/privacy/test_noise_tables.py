"""The tables against 60-digit arithmetic, and the sampler against its own thresholds."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from integer_noise.noise_tables import NoiseTable, discrete_gaussian_table, polya_table, skellam_table
from integer_noise.secure_random import SecureRandom


def _probabilities(table):
    """What the table really draws, as exact fractions of 2^128."""
    thresholds = [int(high) << 64 | int(low) for high, low in zip(table._high, table._low, strict=True)]
    ends = [0, *thresholds, 1 << 128]
    return [mpmath.mpf(after - before) / mpmath.mpf(2) ** 128 for before, after in itertools.pairwise(ends)]


def _total_variation(table, weight):
    values = [mpmath.mpf(weight(table._lowest + index)) for index in range(table.num_entries)]
    total = mpmath.fsum(values)
    drawn = _probabilities(table)
    drawn += [mpmath.mpf(0)] * (len(values) - len(drawn))
    return mpmath.fsum(abs(p - value / total) for p, value in zip(drawn, values, strict=True)) / 2


@pytest.mark.parametrize(
    ("table", "weight"),
    [
        (lambda: discrete_gaussian_table(20.0), lambda k: mpmath.exp(-(mpmath.mpf(k) ** 2) / 800)),
        (
            lambda: discrete_gaussian_table(3.2),
            lambda k: mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * mpmath.mpf(3.2) ** 2)),
        ),
        (lambda: skellam_table(400.0), lambda k: mpmath.besseli(abs(k), 400)),
        (lambda: polya_table(3.0, 1), lambda k: mpmath.exp(-mpmath.mpf(k) / 3)),
        (
            lambda: polya_table(3.0, 10),
            lambda k: mpmath.exp(-mpmath.mpf(k) / 3) * mpmath.rf(mpmath.mpf(1) / 10, k) / mpmath.factorial(k),
        ),
    ],
)
def test_a_table_is_within_the_documented_distance_of_its_distribution(table, weight):
    with mpmath.workdps(60):
        made = table()
        assert _total_variation(made, weight) < mpmath.mpf(2) ** -105


def test_the_tails_that_are_cut_weigh_nothing():
    with mpmath.workdps(60):
        table = discrete_gaussian_table(20.0)
        beyond = mpmath.fsum(mpmath.exp(-(mpmath.mpf(k) ** 2) / 800) for k in range(-table._lowest + 1, 400))
        assert beyond < mpmath.mpf(2) ** -118
        skellam = skellam_table(400.0)
        cut = 2 * mpmath.fsum(mpmath.besseli(k, 400) for k in range(-skellam._lowest + 1, -skellam._lowest + 200))
        assert cut * mpmath.exp(-400) < mpmath.mpf(2) ** -118


def _search_by_hand(table, high, low):
    word = high << 64 | low
    thresholds = [int(h) << 64 | int(lo) for h, lo in zip(table._high, table._low, strict=True)]
    return table._lowest + sum(threshold <= word for threshold in thresholds)


class _Words(SecureRandom):
    """Hands out chosen words, to hit the places that chance hits once in 10^14 draws."""

    def __init__(self, *batches):
        super().__init__()
        self._batches = [np.array(batch, np.uint64) for batch in batches]

    def uint64(self, count):
        batch = self._batches.pop(0)
        assert len(batch) == count
        return batch


@pytest.mark.parametrize("low_offset", [-1, 0, 1])
def test_a_word_that_ties_with_a_threshold_is_decided_by_the_lower_bits(low_offset):
    table = discrete_gaussian_table(3.2)
    for index in range(5, len(table._high), 7):
        high, low = int(table._high[index]), int(table._low[index])
        chosen = min(max(low + low_offset, 0), 2**64 - 1)
        drawn = table.sample(1, _Words([high], [chosen]))
        assert drawn[0] == _search_by_hand(table, high, chosen)


def test_words_at_both_ends_give_the_ends_of_the_table():
    table = discrete_gaussian_table(3.2)
    most = 2**64 - 1
    drawn = table.sample(2, _Words([0, most], [0], [most]))
    assert drawn.tolist() == [_search_by_hand(table, 0, 0), _search_by_hand(table, most, most)]
    assert table._lowest <= drawn[0] <= table._lowest + 2


@pytest.mark.parametrize(
    ("table", "variance"),
    [
        (lambda: discrete_gaussian_table(2000.0), 2000.0**2),
        (lambda: skellam_table(2000.0**2), 2000.0**2),
        (lambda: discrete_gaussian_table(1.7), 1.7**2),
    ],
)
def test_draws_have_the_mean_and_variance_of_their_distribution(table, variance):
    draws = table().sample(200_000, SecureRandom()).astype(float)
    # Five standard errors: fails once in about two million runs.
    assert abs(draws.mean()) < 5 * math.sqrt(variance / len(draws))
    assert abs(draws.var() / variance - 1) < 5 * math.sqrt(2 / len(draws))


def test_shares_of_a_cohort_add_up_to_two_sided_geometric_noise():
    table, random, num_shares = polya_table(1.0, 50), SecureRandom(), 50
    total = sum(table.sample(100_000, random) - table.sample(100_000, random) for _ in range(num_shares))
    a = math.exp(-1.0)
    for k in range(4):
        expected = (1 - a) / (1 + a) * a**k
        assert abs((total == k).mean() - expected) < 5 * math.sqrt(expected / len(total))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_is_none_is_refused(bad):
    for make in (discrete_gaussian_table, skellam_table, lambda scale: polya_table(scale, 2)):
        with pytest.raises(ValueError, match="positive and finite"):
            make(bad)


def test_a_table_that_no_small_device_could_hold_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="fewer grid_bits"):
        discrete_gaussian_table(1e6)
    with pytest.raises(ValueError, match="all zero"):
        NoiseTable(0, [0, 0])


def test_no_draws_are_an_empty_array():
    assert discrete_gaussian_table(3.2).sample(0, SecureRandom()).shape == (0,)


def test_two_generators_never_repeat_each_other():
    assert SecureRandom().uint64(4).tolist() != SecureRandom().uint64(4).tolist()
