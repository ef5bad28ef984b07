"""The device's accountant against dp-accounting, and both against published values."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.privacy.accountant import (
    cost_of,
    epsilon_of,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    no_cost,
)
from wire_protocol.privacy_spec import GaussianEvent, LaplaceEvent, SkellamEvent

DELTA = 1e-5


def _gaussian(z, *, is_discrete=True):
    return cost_of(GaussianEvent(noise_multiplier=z, is_discrete=is_discrete))


def _oracle(accountant, event, count):
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, count))
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    ("z", "count", "by_rdp", "exact"),
    [(10.0, 25, 2.1657, 1.99309), (0.7, 2, 10.8602036, 10.1224946), (1.0, 1, 4.7285, 4.3772), (4.0, 1, 1.0126, 0.9263)],
)
def test_gaussian_rounds_cost_what_is_published(z, count, by_rdp, exact):
    assert epsilon_of(_gaussian(z).times(count), DELTA) == pytest.approx(by_rdp, rel=6e-3)
    assert epsilon_of(_gaussian(z).times(count), DELTA) >= exact
    assert epsilon_of(_gaussian(z, is_discrete=False).times(count), DELTA) == pytest.approx(exact, abs=6e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.6, 60.0), st.integers(1, 300))
def test_the_device_is_never_below_the_exact_price_and_as_near_as_dp_accounting(z, count):
    ours = epsilon_of(_gaussian(z).times(count), DELTA)
    theirs = _oracle(rdp.RdpAccountant(), dp_accounting.GaussianDpEvent(z), count)
    assert ours >= gaussian_epsilon(math.sqrt(count) / z, DELTA)
    # Two sets of orders, each a valid bound: either may be the smaller by a little.
    assert ours == pytest.approx(theirs, rel=0.02, abs=1e-3)


@settings(max_examples=5, deadline=None)
@given(st.floats(2.0, 30.0), st.integers(1, 50))
def test_the_exact_gaussian_price_is_that_of_privacy_loss_distributions(z, count):
    theirs = _oracle(pld.PLDAccountant(), dp_accounting.GaussianDpEvent(z), count)
    assert gaussian_epsilon(math.sqrt(count) / z, DELTA) == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize(("scale", "count"), [(10.0, 100), (1.0, 1), (5.0, 10), (20.0, 3)])
def test_laplace_rounds_cost_no_less_than_dp_accounting_says(scale, count):
    ours = epsilon_of(cost_of(LaplaceEvent(noise_multiplier=scale)).times(count), DELTA)
    theirs = _oracle(pld.PLDAccountant(), dp_accounting.LaplaceDpEvent(scale), count)
    assert theirs - 1e-6 <= ours <= max(theirs * 1.15, count / scale + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 100.0), st.integers(1, 20))
def test_releases_of_pure_epsilon_never_cost_more_than_their_sum_and_lose_that_beside_others(scale, count):
    pure = cost_of(LaplaceEvent(noise_multiplier=scale)).times(count)
    assert epsilon_of(pure, DELTA) <= count / scale * (1 + 1e-12)
    assert epsilon_of(pure + _gaussian(5.0), DELTA) > epsilon_of(_gaussian(5.0), DELTA)


def test_a_mixed_history_costs_what_was_measured_before():
    mixed = _gaussian(10.0).times(25) + cost_of(LaplaceEvent(noise_multiplier=20.0)).times(3)
    assert epsilon_of(mixed, DELTA) == pytest.approx(2.204, abs=0.006)


def test_skellam_noise_costs_a_little_more_than_gaussian_noise_of_the_same_variance():
    fine = SkellamEvent(variance_units=(5 * 16384.0) ** 2, l2_units=16384.0, l1_units=16384.0 * 60)
    gaussian = epsilon_of(_gaussian(5.0).times(10), DELTA)
    assert gaussian < epsilon_of(cost_of(fine).times(10), DELTA) < gaussian * 1.01


@pytest.mark.parametrize(
    ("epsilon", "mu"), [(0.5, 0.142211), (1.0, 0.268051), (2.0, 0.501552), (4.0, 0.924931), (8.0, 1.666031)]
)
def test_the_noise_for_a_target_is_in_closed_form(epsilon, mu):
    assert gaussian_mu(epsilon, DELTA) == pytest.approx(mu, abs=1e-6)
    assert gaussian_delta(epsilon, gaussian_mu(epsilon, DELTA)) <= DELTA


def test_nothing_costs_nothing_and_costs_only_grow():
    assert epsilon_of(no_cost(), DELTA) == 0
    costs = [epsilon_of(_gaussian(10.0).times(count), DELTA) for count in (1, 2, 5, 50, 500)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="target_delta"):
        epsilon_of(_gaussian(1.0), bad)


@given(st.floats(0.01, 50.0), st.floats(0.01, 20.0))
def test_delta_is_a_probability_whatever_is_asked(epsilon, mu):
    assert 0 <= gaussian_delta(epsilon, mu) <= 1
