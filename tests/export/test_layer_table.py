"""Every layer that can be exported, run in LiteRT, against Keras; and every other Keras layer refused with a remedy."""

import inspect
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from model_export import layer_check
from model_export.layer_check import measure_row
from model_export.layer_rules import SUPPORTED_LAYERS
from model_export.layer_table import LAYER_ROWS, row_model
from model_export.lowering import layers as lowered_layers
from model_export.lowering.normalization import layer_normalize
from model_export.remedies import remedy_for

pytestmark = pytest.mark.tensorflow

TOLERANCE = 1e-5
LAYERS_THAT_LEAVE_XNNPACK = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "ADD_N", "SELECT_V2"}


@pytest.mark.parametrize("name", LAYER_ROWS)
def test_a_row_in_litert_gives_the_output_and_all_gradients_of_keras(name):
    row = measure_row(name)
    assert row.output_error <= TOLERANCE
    assert row.gradient_error <= TOLERANCE
    assert row.native_error <= TOLERANCE
    assert not any("CUSTOM" in op or "FLEX" in op.upper() for op in row.op_counts)
    assert LAYERS_THAT_LEAVE_XNNPACK.isdisjoint(row.op_counts)
    assert "CALL_ONCE" not in row.op_counts


def test_every_layer_that_can_be_exported_has_a_row():
    used = {type(layer) for name in LAYER_ROWS for layer in row_model(name).layers}
    dropouts = {tf.keras.layers.Dropout, tf.keras.layers.SpatialDropout1D, tf.keras.layers.SpatialDropout2D}
    assert SUPPORTED_LAYERS - used == dropouts  # tests/export/test_trained_file.py, test_input_layers.py


def keras_layers():
    found = {value for _, value in inspect.getmembers(tf.keras.layers, inspect.isclass)}
    return sorted(found - {tf.keras.layers.InputLayer}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", keras_layers(), ids=lambda kind: kind.__name__)
def test_every_keras_layer_is_either_exported_or_refused_with_a_remedy(kind):
    assert (kind in SUPPORTED_LAYERS) != bool(remedy_for(kind.__name__))


def test_a_wrong_gradient_of_a_layer_is_seen_by_its_row(monkeypatch):
    def without_mean(x, num_axes, epsilon):
        y, pullback = layer_normalize(x, num_axes, epsilon)
        return y, lambda dy: pullback(dy) + 1e-3

    monkeypatch.setattr(lowered_layers, "layer_normalize", without_mean)
    assert measure_row("LayerNormalization").gradient_error > TOLERANCE


def test_a_result_that_is_not_finite_is_an_infinite_error():
    ones = np.ones(3, np.float32)
    assert layer_check._relative_error([ones * np.nan], [ones]) == float("inf")


def test_the_layer_page_lists_exactly_the_rows_of_the_table():
    page = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "layers.md"
    lines = page.read_text().partition("|---|")[2].splitlines()[1:]
    assert [line.split("|")[1].strip() for line in lines] == list(LAYER_ROWS)
