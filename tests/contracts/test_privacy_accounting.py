"""The coordinator's accounting and calibration, against published values and the device's own price."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from coordinator.errors import InvalidConfig
from coordinator.privacy_accounting import calibrate, forecast
from edge_client.privacy.accountant import cost_of, epsilon_of
from flockwise.cli import main
from wire_protocol.privacy_spec import PrivacySpec


def _spec(**changes):
    values = {"mode": "distributed", "clipping_norm": 0.1, "noise_multiplier": 10.0, "min_contributors": 6000}
    return PrivacySpec(**{**values, "num_rounds": 25, "target_epsilon": 2.0, **changes})


@pytest.mark.parametrize(
    ("z", "rounds", "by_rdp", "by_pld"),
    [
        (10.0, 25, 2.1657, 1.99309),
        (0.7, 2, 10.8602036, 10.1224946),
        (1.0, 1, 4.7285, 4.3772),
        (4.0, 1, 1.0126, 0.9263),
    ],
)
def test_a_forecast_is_what_is_published_to_the_digits_given(z, rounds, by_rdp, by_pld):
    made = forecast(_spec(noise_multiplier=z), rounds)
    assert made.epsilon_by_rdp == pytest.approx(by_rdp, abs=6e-5)
    assert made.epsilon_by_pld == pytest.approx(by_pld, abs=6e-5)


def test_laplace_rounds_are_priced_as_published():
    spec = _spec(mode="central", noise="laplace", clipping="l1", noise_multiplier=10.0)
    made = forecast(spec, 100)
    assert made.epsilon_by_pld == pytest.approx(4.2203, abs=6e-4)
    assert made.epsilon_by_rdp == pytest.approx(4.7285, abs=6e-5)


@pytest.mark.parametrize(("epsilon", "z"), [(0.5, 38.337), (1.0, 20.227), (2.0, 10.746), (4.0, 5.788), (8.0, 3.188)])
def test_noise_is_calibrated_to_the_published_values_and_keeps_the_target(epsilon, z):
    spec = calibrate(_spec(target_epsilon=epsilon))
    assert spec.noise_multiplier == pytest.approx(z, abs=5.01e-4)
    assert forecast(spec, 25).epsilon_by_rdp <= epsilon
    assert forecast(spec, 26).epsilon_by_rdp > epsilon


def test_calibrated_laplace_noise_keeps_its_target_too():
    spec = calibrate(_spec(noise="geometric", clipping="l1", grid_bits=6, num_rounds=10))
    assert forecast(spec, 10).epsilon_by_rdp <= 2.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_a_device_prices_calibrated_rounds_within_a_hundredth_of_the_target(epsilon):
    spec = calibrate(_spec(target_epsilon=epsilon))
    assert epsilon_of(cost_of(spec.event(3930)).times(25), 1e-5) == pytest.approx(epsilon, rel=0.01)


def test_what_dp_accounting_cannot_price_is_refused():
    with pytest.raises(InvalidConfig, match="skellam"):
        calibrate(_spec(noise="skellam"))
    with pytest.raises(InvalidConfig, match="skellam"):
        forecast(_spec(noise="skellam"), 1)
    with pytest.raises(InvalidConfig, match="at least one round"):
        forecast(_spec(), 0)


def _explain(*arguments):
    common = ("--rounds", "25", "--clipping-norm", "0.1", "--contributors", "6000", "--parameters", "3930")
    return CliRunner().invoke(main, ["privacy", "explain", *common, *arguments])


def test_explain_prints_the_whole_mechanism():
    result = _explain("--epsilon", "2", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values["noise_multiplier"] == pytest.approx(10.746, rel=2e-3)
    assert values["epsilon_by_rdp"] <= 2.0
    assert values["epsilon_by_pld"] < values["epsilon_by_rdp"]
    assert values["sensitivity"] == pytest.approx(0.1, rel=1e-3)
    assert values["noise_on_the_sum"] == pytest.approx(values["noise_multiplier"] * values["sensitivity"])
    assert values["amplification"].startswith("none")
    text = _explain("--epsilon", "2").output
    assert all(name in text for name in values)


def test_explain_prices_skellam_noise_by_the_device_alone():
    values = json.loads(_explain("--noise", "skellam", "--noise-multiplier", "10.7", "--json").output)
    assert values["epsilon_on_the_device"] == pytest.approx(2.01, abs=0.03)
    assert "epsilon_by_rdp" not in values


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "either --epsilon or --noise-multiplier"),
        (("--epsilon", "1", "--noise-multiplier", "2"), 2, "either --epsilon or --noise-multiplier"),
        (("--epsilon", "-1"), 2, "--epsilon must be positive"),
        (("--epsilon", "2", "--noise", "gaussian"), 1, "floating-point noise never leaves a device"),
        (("--epsilon", "2", "--noise", "skellam"), 1, "use discrete_gaussian"),
        (("--epsilon", "0.1", "--mode", "local"), 1, "lower grid_bits"),
    ],
)
def test_what_cannot_be_explained_says_what_to_do(arguments, code, text):
    result = _explain(*arguments)
    assert (result.exit_code, text in result.output) == (code, True), result.output


def test_a_specification_that_comes_from_outside_is_checked_by_its_decoder():
    good = msgspec.json.encode(_spec())
    assert msgspec.json.decode(good, type=PrivacySpec) == _spec()
    for wrong in (b'"target_delta":0.0', b'"target_delta":1.0'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(good.replace(b'"target_delta":0.00001', wrong), type=PrivacySpec)
