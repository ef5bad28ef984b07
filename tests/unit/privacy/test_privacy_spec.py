import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, LaplaceEvent, PrivacySpec, SkellamEvent


def _spec(**changes):
    values = {"mode": "distributed", "clipping_norm": 0.1, "noise_multiplier": 5.0, "min_contributors": 100}
    return PrivacySpec(**{**values, "num_rounds": 10, "target_epsilon": 4.0, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"noise": "gaussian"}, "floating-point noise never leaves a device"),
        ({"noise": "laplace", "clipping": "l1"}, "floating-point noise never leaves a device"),
        ({"noise": "geometric"}, "l1 norm"),
        ({"clipping": "l1"}, "l2 norm"),
        ({"clipping_norm": math.inf}, "finite"),
        ({"noise_multiplier": math.nan}, "finite"),
        ({"min_contributors": 1, "max_colluding_fraction": 0.5}, "honest"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_what_does(changes, text):
    with pytest.raises(ValueError, match=text):
        _spec(**changes)


def test_a_specification_has_no_sensitivity_to_set():
    fields = {field.name for field in msgspec.structs.fields(PrivacySpec)}
    assert not any("sensitivity" in name or "sigma" in name for name in fields)
    raw = msgspec.json.encode(_spec())
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw[:-1] + b',"sensitivity":1}', type=PrivacySpec)


@pytest.mark.parametrize("claim", ["sampling_probability", "amplification", "is_poisson"])
def test_no_amplification_can_be_claimed_by_a_plan_and_no_price_depends_on_how_many_were_asked(claim):
    for mode in ("local", "distributed", "central"):
        raw = msgspec.json.encode(_spec(mode=mode))
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.json.decode(raw[:-1] + f',"{claim}":0.01}}'.encode(), type=PrivacySpec)
        assert _spec(mode=mode, min_contributors=7).event(10) == _spec(mode=mode).event(10)


def test_shares_of_the_least_honest_cohort_bring_the_whole_noise():
    spec = _spec(min_contributors=100, max_colluding_fraction=0.2)
    assert spec.honest_contributors == 80
    assert math.sqrt(80) * spec.share_stddev_units(1000) == pytest.approx(spec.sum_noise_units(1000))


def test_local_noise_is_whole_and_central_noise_is_not_the_devices():
    assert _spec(mode="local", grid_bits=10).share_stddev_units(500) == _spec(grid_bits=10).sum_noise_units(500)
    assert _spec(mode="central").share_stddev_units(500) == 0


@given(st.integers(1, 10**7), st.floats(0.01, 100), st.integers(6, 16))
def test_the_noise_follows_from_the_clip_alone(num_parameters, clip, bits):
    spec = _spec(clipping_norm=clip, grid_bits=bits)
    assert spec.sum_noise_units(num_parameters) == 5.0 * spec.sensitivity_units(num_parameters)
    assert spec.sensitivity_units(num_parameters) >= spec.clip_units


def test_events_name_what_an_accountant_must_price():
    assert _spec().event(10) == GaussianEvent(noise_multiplier=5.0, is_discrete=True)
    assert _spec(mode="central", noise="gaussian").event(10) == GaussianEvent(noise_multiplier=5.0, is_discrete=False)
    assert _spec(noise="geometric", clipping="l1").event(10) == GeometricEvent(
        noise_multiplier=5.0, sensitivity_units=16384
    )
    assert _spec(mode="central", noise="laplace", clipping="l1").event(10) == LaplaceEvent(noise_multiplier=5.0)
    skellam = _spec(noise="skellam").event(10)
    assert isinstance(skellam, SkellamEvent)
    assert skellam.l1_units <= math.sqrt(10) * skellam.l2_units


@given(st.integers(1, 10**6), st.integers(1, 2000), st.floats(0.5, 30))
def test_a_sum_of_as_many_updates_as_are_allowed_stays_within_its_words(num_parameters, min_contributors, z):
    spec = _spec(noise_multiplier=z, min_contributors=min_contributors)
    largest = spec.max_contributors(num_parameters)
    value = spec.sensitivity_units(num_parameters)
    reach = largest * value + 12 * spec.share_stddev_units(num_parameters) * math.sqrt(largest)
    assert reach <= 2**31


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"noise_multiplier": 0.001}, "raise grid_bits"),
        ({"mode": "local", "noise_multiplier": 100.0}, "lower grid_bits"),
        ({"noise": "geometric", "clipping": "l1"}, "lower grid_bits"),
        ({"min_contributors": 200_000, "noise_multiplier": 60.0}, "lower grid_bits"),
    ],
)
def test_a_mechanism_that_does_not_suit_the_model_says_which_way_to_go(changes, text):
    with pytest.raises(ValueError, match=text):
        _spec(**changes).check_for(4000)
