"""Parts of a batch are for the cache alone: they change no value."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.keras_graph import read_graph
from model_export.lowering import parts
from model_export.lowering.forward import LoweredModel

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
BATCH = 8


def branched_model():
    """Convolutions that keep parts, a sum of two that lie in parts, and layers before and after that join them."""
    inputs = layers.Input((8, 8, 3))
    wide = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    normal = layers.BatchNormalization()(wide)
    left = layers.Conv2D(8, 3, padding="same", activation="tanh")(normal)
    x = layers.Add()([left, wide])
    x = layers.Conv2D(9, 3)(x)
    x = layers.Add()([x, layers.Conv2D(9, 3)(normal)])
    x = layers.MaxPooling2D()(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.Flatten()(x)])
    return tf.keras.Model(inputs, layers.Dense(4)(layers.Dropout(0.3)(x)))


def gradients(graph, rng):
    weights = [rng.standard_normal(shape).astype(np.float32) * 0.3 for shape in graph.weight_shapes]
    stored = [w.T[None] if i in graph.dense_kernels else w for i, w in enumerate(weights)]
    x = tf.constant(rng.standard_normal((BATCH, 8, 8, 3)), tf.float32)
    mask = tf.constant([1.0] * (BATCH - 1) + [0.0])
    lowered = LoweredModel(graph, BATCH)
    run = lowered.forward([tf.constant(w) for w in stored], x, tf.range(BATCH), mask)
    return run.logits, run.weight_gradients(tf.constant(rng.standard_normal((BATCH, 4)), tf.float32))


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_change_neither_logits_nor_gradients(monkeypatch, num_parts):
    graph = read_graph(branched_model())
    whole_logits, whole = gradients(graph, np.random.default_rng(0))
    monkeypatch.setattr(parts, "_MAX_PART_BYTES", 1)
    monkeypatch.setattr(parts, "_MAX_PARTS", num_parts)
    assert parts.count_parts(graph, BATCH) == num_parts
    logits, split = gradients(graph, np.random.default_rng(0))
    np.testing.assert_allclose(logits, whole_logits, rtol=1e-5, atol=1e-5)
    for one, other in zip(split, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max()))


def test_a_batch_is_split_only_where_winograd_products_leave_the_cache():
    def image_model(size, channels):
        return read_graph(
            tf.keras.Sequential([
                layers.InputLayer((size, size, 1)),
                layers.Conv2D(channels, 3),
                layers.Conv2D(channels, 3),
                layers.Flatten(),
                layers.Dense(3),
            ])
        )  # fmt: skip

    big, small = image_model(28, 64), image_model(10, 8)
    assert [parts.count_parts(big, batch) for batch in (32, 16, 8, 4)] == [4, 2, 1, 1]
    assert parts.count_parts(big, 33) == 1  # it does not divide
    assert parts.count_parts(small, 32) == 1
    dense = tf.keras.Sequential([layers.InputLayer((5000,)), layers.Dense(1000), layers.Dense(3)])
    assert parts.count_parts(read_graph(dense), 1024) == 1
