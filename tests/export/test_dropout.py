"""The hash that stands in for a random number generator."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_export.dropout import dropout_mask, dropout_mask_array

pytestmark = pytest.mark.tensorflow

TICKETS = hnp.arrays(np.int32, st.integers(1, 9), elements=st.integers(-(2**31), 2**31 - 1))


@settings(deadline=None, max_examples=60)
@given(tickets=TICKETS, num_units=st.integers(1, 50), index=st.integers(0, 20), rate=st.floats(0.01, 0.99))
def test_the_graphs_mask_has_the_same_bits_as_numpys(tickets, num_units, index, rate):
    in_graph = dropout_mask(tf.constant(tickets), num_units, index, rate).numpy()
    np.testing.assert_array_equal(in_graph, dropout_mask_array(tickets, num_units, index, rate))


def test_the_mask_in_litert_has_the_same_bits_as_numpys(rng):
    function = tf.function(lambda tickets: dropout_mask(tickets, 333, 2, 0.4))
    concrete = function.get_concrete_function(tf.TensorSpec([6], tf.int32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    for _ in range(20):
        tickets = rng.integers(-(2**31), 2**31, 6).astype(np.int32)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tickets)
        interpreter.invoke()
        mask = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_array_equal(mask, dropout_mask_array(tickets, 333, 2, 0.4))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_of_kept_values_is_one_minus_the_rate(rate):
    mask = dropout_mask_array(np.arange(500, dtype=np.int32), 4000, 0, rate)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / (1 - rate))}
    six_sigma = 6 * np.sqrt(rate * (1 - rate) / mask.size)
    assert abs((mask > 0).mean() - (1 - rate)) < six_sigma


def test_masks_of_neighbouring_tickets_units_and_layers_are_uncorrelated():
    tickets = np.arange(400, dtype=np.int32)
    kept = dropout_mask_array(tickets, 5000, 0, 0.5) - 1
    other_layer = dropout_mask_array(tickets, 5000, 1, 0.5) - 1
    per_pair_of_tickets = (kept[:-1] * kept[1:]).mean(1) * np.sqrt(5000)
    per_pair_of_units = (kept[:, :-1] * kept[:, 1:]).mean(0) * np.sqrt(400)
    per_pair_of_layers = (kept * other_layer).mean(1) * np.sqrt(5000)
    for correlations in (per_pair_of_tickets, per_pair_of_units, per_pair_of_layers):
        assert np.abs(correlations).max() < 5.5
        assert 0.9 < correlations.std() < 1.1


@given(tickets=TICKETS)
def test_an_examples_mask_depends_on_its_own_ticket_alone(tickets):
    together = dropout_mask_array(tickets, 40, 0, 0.5)
    for row, ticket in zip(together, tickets, strict=True):
        np.testing.assert_array_equal(row, dropout_mask_array(np.array([ticket]), 40, 0, 0.5)[0])


def test_all_units_look_independent_by_twos_and_threes():
    num_tickets, num_units = 3000, 784
    kept = dropout_mask_array(np.arange(num_tickets, dtype=np.int32), num_units, 0, 0.5) - 1
    scale = np.sqrt(num_tickets)
    by_twos = (kept.T @ kept)[np.triu_indices(num_units, 1)] / scale
    # Three units of one row of the hash's table, of one column of it, and any three.
    starts = np.arange(num_units)
    by_threes = np.concatenate([
        (kept * kept[:, (starts + a) % num_units] * kept[:, (starts + b) % num_units]).sum(0) / scale
        for a in (1, 2, 28, 29, 56, 301) for b in (3, 5, 57, 84, 500, 28 * 13)
    ])  # fmt: skip
    for correlations, largest in ((by_twos, 6.0), (by_threes, 5.5)):
        assert np.abs(correlations).max() < largest
        assert 0.97 < correlations.std() < 1.03


@pytest.mark.parametrize("rate", [0.1, 0.37])
def test_every_unit_is_dropped_at_the_rate(rate):
    mask = dropout_mask_array(np.arange(20_000, dtype=np.int32), 400, 3, rate)
    deviations = ((mask == 0).mean(0) - rate) / np.sqrt(rate * (1 - rate) / len(mask))
    assert np.abs(deviations).max() < 5
    assert 0.85 < deviations.std() < 1.15
