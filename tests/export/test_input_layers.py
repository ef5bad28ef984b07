"""Layers that the table of layers cannot measure alone: dropout of channels, and normalisation by constants."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.check_batches import draw_batch
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.lite_model import LiteModel
from model_export.simulated_model import SimulatedModel
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
PLAN = {"batch_size": 4, "learning_rate": 0.1}


def dropping(shape, dropout):
    tf.keras.utils.set_random_seed(2)
    head = [layers.Flatten(), layers.Dense(3)]
    return tf.keras.Sequential([layers.InputLayer(shape), layers.Dense(4, activation="tanh"), dropout, *head])


@pytest.mark.parametrize(
    "model",
    [dropping((5, 3), layers.SpatialDropout1D(0.4)), dropping((4, 3, 2), layers.SpatialDropout2D(0.4))],
    ids=["1D", "2D"],
)
def test_dropout_of_channels_is_exported_and_simulated_with_the_same_masks(model):
    result = build_export(model, **PLAN)
    assert result.plan.has_dropout
    assert result.certificate.max_gradient_error <= 1e-5
    simulated = SimulatedModel(model, **PLAN)
    batch = draw_batch("random", read_graph(model), 4, np.random.default_rng(0))
    file = LiteModel(result.bundle.model)
    file.restore(decode_tensors(result.bundle.checkpoint, result.plan.weights))
    output = simulated.predict(simulated.initial_weights(), batch.x, batch.tickets, training=True)
    expected = float(tf.reduce_sum(simulated.example_loss(output, batch.labels)))
    assert file.train(batch, 0.1)[0] == pytest.approx(expected, rel=1e-5)


def test_all_pixels_of_a_channel_are_dropped_together_and_channels_apart():
    inputs = tf.keras.Input((6, 7, 8))
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.SpatialDropout2D(0.5)(inputs))))
    node = read_graph(model).dropout_nodes[0]
    assert node.mask_shape == (1, 1, 8)
    assert node.shape == (6, 7, 8)


def test_an_adapted_normalization_is_part_of_the_file_and_does_not_travel():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32) * 3 + 5)
    tf.keras.utils.set_random_seed(2)
    model = tf.keras.Sequential([layers.InputLayer((4,)), normalization, layers.Dense(3)])
    result = build_export(model, **PLAN)
    assert [spec.shape for spec in result.plan.weights] == [(4, 3), (3,)]
    file = LiteModel(result.bundle.model)
    file.restore(decode_tensors(result.bundle.checkpoint, result.plan.weights))
    x = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) * 3 + 5
    np.testing.assert_allclose(file.infer(x), model(x), atol=1e-5)
