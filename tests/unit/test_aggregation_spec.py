"""How updates become the next model, as a value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation_spec import AggregationSpec, decode_aggregation_spec, encode_aggregation_spec
from coordinator.errors import InvalidConfig

RATES = st.floats(1e-6, 1e3)
FRACTIONS = st.floats(0, 1, exclude_max=True)


@given(
    optimizer=st.sampled_from(["sgd", "momentum", "adam", "adagrad", "yogi"]),
    rate=RATES,
    momentum=FRACTIONS,
    clipping=st.sampled_from([("none", None), ("fixed", 0.5), ("adaptive", None)]),
    weighted=st.booleans(),
)
def test_what_is_encoded_is_decoded(optimizer, rate, momentum, clipping, weighted):
    spec = AggregationSpec(
        server_optimizer=optimizer,
        server_learning_rate=rate,
        momentum=momentum,
        clipping=clipping[0],
        clipping_norm=clipping[1],
        weighted=weighted,
    )
    assert decode_aggregation_spec(encode_aggregation_spec(spec)) == spec


@pytest.mark.parametrize(
    "settings",
    [
        {"server_learning_rate": 0.0},
        {"server_learning_rate": math.inf},
        {"epsilon": -1.0},
        {"momentum": 1.0},
        {"beta_2": math.nan},
        {"clipping": "fixed"},
        {"clipping": "fixed", "clipping_norm": 0.0},
        {"clipping_norm": 1.0},
        {"clipping": "adaptive", "clipping_norm": 1.0},
    ],
    ids=str,
)
def test_settings_out_of_range_or_without_effect_are_refused(settings):
    with pytest.raises(InvalidConfig):
        AggregationSpec(**settings)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"server_optimizer": "lion"}', b'{"server_learning_rate": -1}', b'{"speed": 1}', b"[" * 5000],
    ids=["empty", "list", "optimizer", "rate", "field", "deep"],
)
def test_json_that_is_no_specification_is_refused(data):
    with pytest.raises(InvalidConfig):
        decode_aggregation_spec(data)
