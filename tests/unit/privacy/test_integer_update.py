import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.errors import NonFiniteUpdate
from edge_client.privacy.integer_update import (
    add_noise,
    clip_and_round,
    make_integer_update,
    noise_vector,
)
from integer_noise.secure_random import SecureRandom
from wire_protocol.errors import MalformedMessage, OversizedMessage, TensorMismatch
from wire_protocol.integer_updates import (
    decode_integer_update,
    decode_sum,
    encode_integer_update,
    flatten_tensors,
    num_elements,
    split_vector,
)
from wire_protocol.plan import TensorSpec
from wire_protocol.privacy_spec import PrivacySpec

SPECS = (TensorSpec(shape=(4, 5)), TensorSpec(shape=(5,)))


def _spec(**changes):
    values = {"mode": "distributed", "clipping_norm": 0.5, "noise_multiplier": 5.0, "min_contributors": 40}
    return PrivacySpec(**{**values, "num_rounds": 10, "target_epsilon": 4.0, **changes})


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(["l1", "l2"]),
    st.integers(6, 16),
)
def test_no_input_gets_past_the_norm_that_the_noise_is_sized_for(delta, clipping, bits):
    noise = "geometric" if clipping == "l1" else "discrete_gaussian"
    spec = _spec(clipping=clipping, noise=noise, grid_bits=bits)
    values = [int(value) for value in clip_and_round(delta, spec, SecureRandom()).values]
    norm = sum(map(abs, values)) if clipping == "l1" else math.sqrt(sum(value * value for value in values))
    assert norm <= spec.sensitivity_units(len(delta))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 17, 24])
def test_a_number_that_is_none_is_refused_wherever_it_stands(bad, position):
    delta = np.zeros(25, np.float32)
    delta[position] = bad
    with pytest.raises(NonFiniteUpdate):
        make_integer_update(delta, _spec(), SecureRandom())


def test_an_update_within_the_clip_is_not_scaled_up_and_rounding_is_unbiased():
    delta = np.full(4000, 0.001, np.float32)
    spec = _spec()
    rounded = clip_and_round(delta, spec, SecureRandom())
    assert not rounded.was_clipped
    step = 0.001 * spec.units_per_weight
    assert set(np.unique(rounded.values)) <= {math.floor(step), math.ceil(step)}
    fraction = step - math.floor(step)
    assert abs(rounded.values.mean() - step) < 5 * math.sqrt(fraction * (1 - fraction) / 4000)


def test_an_update_beyond_the_clip_keeps_its_direction():
    delta = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    spec = _spec()
    rounded = clip_and_round(delta, spec, SecureRandom())
    assert rounded.was_clipped
    back = rounded.values / spec.units_per_weight
    expected = delta * (0.5 / np.linalg.norm(delta))
    assert np.abs(back - expected).max() < 1 / spec.units_per_weight


def test_a_sum_of_shares_without_noise_is_the_sum_of_the_updates_and_wraps_back_from_negative():
    spec, random = _spec(), SecureRandom()
    deltas = [np.random.default_rng(i).normal(0, 0.01, 25).astype(np.float32) for i in range(40)]
    rounded = [clip_and_round(delta, spec, random) for delta in deltas]
    total = np.zeros(25, np.uint32)
    for one in rounded:
        total += add_noise(one, np.zeros(25, np.int64))
    assert decode_sum(total).tolist() == sum(one.values for one in rounded).tolist()


@pytest.mark.parametrize(
    ("changes", "stddev_of"),
    [
        ({}, lambda spec, d: spec.share_stddev_units(d)),
        ({"noise": "skellam"}, lambda spec, d: spec.share_stddev_units(d)),
        ({"mode": "local", "grid_bits": 10}, lambda spec, d: spec.sum_noise_units(d)),
        # Two-sided geometric of the whole cohort has variance 2 scale^2 for large scales; a share the n-th part.
        (
            {"noise": "geometric", "clipping": "l1", "grid_bits": 8},
            lambda spec, d: math.sqrt(2 / 40) * spec.sum_noise_units(d),
        ),
    ],
)
def test_a_device_adds_the_noise_that_its_mechanism_says(changes, stddev_of):
    spec, d = _spec(**changes), 100_000
    noise = noise_vector(d, spec, SecureRandom()).astype(float)
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert abs(noise.std() / stddev_of(spec, d) - 1) < 5 * math.sqrt((kurtosis - 1) / (4 * d))


def test_in_central_mode_a_device_clips_and_rounds_and_adds_nothing():
    assert not noise_vector(10, _spec(mode="central"), SecureRandom()).any()


def test_two_releases_of_the_same_update_have_noise_of_their_own():
    delta = np.zeros(100, np.float32)
    first, second = (make_integer_update(delta, _spec(), SecureRandom()) for _ in range(2))
    assert (first != second).any()


def test_an_encoded_update_comes_back_bit_for_bit():
    update = make_integer_update(np.ones(25, np.float32), _spec(), SecureRandom())
    assert (decode_integer_update(encode_integer_update(update), num_elements(SPECS)) == update).all()


def test_what_is_no_integer_update_of_this_model_is_refused():
    update = np.arange(25, dtype=np.uint32)
    good = encode_integer_update(update)
    with pytest.raises(TensorMismatch):
        decode_integer_update(encode_integer_update(update[:24]), num_elements(SPECS))
    with pytest.raises(TensorMismatch):
        decode_integer_update(good.replace(b'"U32"', b'"F32"'), num_elements(SPECS))
    with pytest.raises(MalformedMessage):
        decode_integer_update(good[:20], num_elements(SPECS))
    with pytest.raises(OversizedMessage):
        decode_integer_update(good + bytes(1000), num_elements(SPECS))
    with pytest.raises(TensorMismatch):
        encode_integer_update(update.astype(np.int32))


def test_a_model_comes_back_from_one_vector():
    tensors = (np.arange(20, dtype=np.float32).reshape(4, 5), np.arange(5, dtype=np.float32))
    for got, wanted in zip(split_vector(flatten_tensors(tensors), SPECS), tensors, strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(TensorMismatch):
        split_vector(np.zeros(24, np.float32), SPECS)
