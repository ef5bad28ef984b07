"""The device's accountant against dp-accounting, and both against published values."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.privacy_accounting import forecast
from edge_client.privacy.accountant import (
    cost_of,
    epsilon_of,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    no_cost,
)
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from wire_protocol.geometric_price import geometric_rdp
from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, LaplaceEvent, PrivacySpec, SkellamEvent

DELTA = 1e-5


def _gaussian(z, *, is_discrete=True):
    return cost_of(GaussianEvent(noise_multiplier=z, is_discrete=is_discrete))


def _to_digits(value, published):
    """As many digits after the point as were published."""
    return f"{value:.{len(published.partition('.')[2])}f}"


def _oracle(accountant, event, count):
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, count))
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    ("z", "count", "by_rdp", "exact"),
    [
        (10.0, 25, "2.1657", "1.99309"),
        (0.7, 2, "10.8602036", "10.1224946"),
        (1.0, 1, "4.7285", "4.3772"),
        (4.0, 1, "1.0126", "0.9263"),
    ],
)
def test_gaussian_rounds_cost_what_is_published_to_the_digits_given(z, count, by_rdp, exact):
    assert _to_digits(epsilon_of(_gaussian(z).times(count), DELTA), by_rdp) == by_rdp
    assert _to_digits(epsilon_of(_gaussian(z, is_discrete=False).times(count), DELTA), exact) == exact


def test_laplace_rounds_cost_what_is_published_to_the_digits_given():
    assert _to_digits(epsilon_of(cost_of(LaplaceEvent(noise_multiplier=10.0)).times(100), DELTA), "4.5327") == "4.5327"


@pytest.mark.parametrize(
    ("epsilon", "z"), [(0.5, "35.159"), (1.0, "18.653"), (2.0, "9.969"), (4.0, "5.406"), (8.0, "3.001")]
)
def test_the_exact_noise_of_25_rounds_is_what_is_published_to_the_digits_given(epsilon, z):
    assert _to_digits(math.sqrt(25) / gaussian_mu(epsilon, DELTA), z) == z


def test_the_oracle_is_the_one_whose_values_are_published():
    sampled = dp_accounting.PoissonSampledDpEvent(150 / 60_000, dp_accounting.GaussianDpEvent(1.3))
    assert _to_digits(_oracle(rdp.RdpAccountant(), sampled, 15 * 400), "0.7242234026") == "0.7242234026"
    assert _to_digits(_oracle(pld.PLDAccountant(), sampled, 15 * 400), "0.6401") == "0.6401"


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


def _moment_summed(alpha, scale_units, shift):
    """E[(P/Q)^alpha] of geometric noise, term by term."""
    reach = int(shift + 60 * scale_units)
    k = np.arange(-reach, reach + shift + 1)
    logs = (-alpha * np.abs(k) + (alpha - 1.0) * np.abs(k - shift)) / scale_units
    return math.log(np.tanh(0.5 / scale_units)) + np.log(np.exp(logs - logs.max()).sum()) + logs.max()


@pytest.mark.parametrize(("z", "units"), [(1.0, 1), (0.5, 7), (1.0, 64), (5.0, 64), (2.0, 256)])
@pytest.mark.parametrize("alpha", [1.1, 2.0, 8.0, 64.0])
def test_the_price_of_geometric_noise_is_the_sum_over_all_integers(z, units, alpha):
    summed = _moment_summed(alpha, z * units, units) / (alpha - 1.0)
    found = geometric_rdp(alpha, noise_multiplier=z, sensitivity_units=units)
    assert found == pytest.approx(min(summed, 1.0 / z), rel=1e-9)


@given(st.floats(1.01, 1024.0), st.floats(0.1, 200.0), st.integers(1, 2**14))
def test_geometric_noise_costs_more_than_laplace_noise_and_less_on_a_finer_grid(alpha, z, units):
    prices = [geometric_rdp(alpha, noise_multiplier=z, sensitivity_units=units * factor) for factor in (1, 2, 4)]
    a, b = alpha, z
    laplace = math.log(a / (2 * a - 1) + (a - 1) / (2 * a - 1) * math.exp((1 - 2 * a) / b)) / (a - 1) + 1 / b
    slack = 1e-9 / min(1.0, alpha - 1.0)
    assert min(laplace, 1 / z) - slack <= prices[2] <= prices[1] + slack <= prices[0] + 2 * slack <= 1 / z + 2 * slack


@given(st.floats(1.01, 200.0), st.floats(0.1, 50.0), st.integers(1, 100), st.integers(1, 100))
def test_a_device_that_spreads_its_units_over_two_numbers_costs_no_more(alpha, z, one, other):
    def of(units):
        # The same noise in units, another shift.
        return geometric_rdp(alpha, noise_multiplier=z * 200 / units, sensitivity_units=units)

    assert of(one) + of(other) <= of(one + other) + 1e-9 / min(1.0, alpha - 1.0)


@pytest.mark.parametrize(("z", "units", "count"), [(1.0, 64, 20), (5.0, 64, 100), (2.0, 256, 10)])
def test_geometric_rounds_cost_no_less_than_privacy_loss_distributions_say(z, units, count):
    one = pld.privacy_loss_distribution.from_discrete_laplace_mechanism(1.0 / (z * units), sensitivity=units)
    theirs = one.self_compose(count).get_epsilon_for_delta(DELTA)
    event = GeometricEvent(noise_multiplier=z, sensitivity_units=units)
    ours = epsilon_of(cost_of(event).times(count), DELTA)
    # Their discretisation is pessimistic, by 1e-4 a release.
    assert theirs - 1e-4 * count <= ours <= max(theirs * 1.15, count / z + 1e-9)


@pytest.mark.parametrize("num_rounds", [1, 7, 200])
def test_coordinator_and_device_name_one_price_for_geometric_rounds(num_rounds):
    spec = PrivacySpec(
        mode="distributed", clipping="l1", noise="geometric", clipping_norm=1.0, noise_multiplier=8.0,
        min_contributors=50, num_rounds=num_rounds, target_epsilon=100.0, grid_bits=6,
    )  # fmt: skip
    charged = epsilon_of(cost_of(spec.event(10)).times(num_rounds), spec.target_delta)
    made = forecast(spec, num_rounds)
    assert made.epsilon_by_rdp == pytest.approx(charged, abs=1e-8)
    assert made.epsilon_by_pld <= made.epsilon_by_rdp + 1e-4 * num_rounds


@pytest.mark.parametrize(
    ("z", "rounds", "epsilon", "queries"), [(10.0, 25, 0.1, 3), (20.0, 100, 0.5, 4), (5.0, 5, 1.0, 1)]
)
def test_training_and_questions_on_one_ledger_cost_what_dp_accounting_composes(z, rounds, epsilon, queries):
    def composed(accountant):
        accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(z), rounds))
        accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(1 / epsilon), queries))
        return accountant.get_epsilon(DELTA)

    with PrivacyLedger(None, budget=PrivacyBudget(epsilon=100.0)) as ledger:
        for index in range(rounds):
            event = GaussianEvent(noise_multiplier=z, is_discrete=True)
            ledger.release(f"round/{index}", event, lambda: b"")
            if index < queries:
                question = GeometricEvent(noise_multiplier=1 / epsilon, sensitivity_units=256)
                ledger.release(f"query/{index}", question, lambda: b"")
        spent = ledger.spent_epsilon
    by_rdp, by_pld = composed(rdp.RdpAccountant()), composed(pld.PLDAccountant())
    # dp-accounting 0.4.3 has a looser RDP of Laplace noise than the device.
    assert by_pld - 1e-3 <= spent <= by_rdp * (1 + 1e-4)


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
