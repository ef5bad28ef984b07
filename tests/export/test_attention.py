"""Attention: a whole text model through the export, a key bias that cannot learn, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.check_batches import draw_batch
from model_export.errors import UnsupportedLayer
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.layer_check import measure_row
from model_export.lite_model import LiteModel
from model_export.lowering import attention
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers


def text_transformer():
    """Token numbers, their order by a convolution, one causal block, and the next token."""
    tf.keras.utils.set_random_seed(4)
    inputs = tf.keras.Input((6,))
    x = layers.Conv1D(8, 3, padding="same")(layers.Embedding(11, 8)(inputs))
    attended = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    return tf.keras.Model(inputs, layers.Dense(11)(layers.Flatten()(x)))


def test_a_text_transformer_is_exported_and_its_key_bias_does_not_move():
    model = text_transformer()
    result = build_export(model, batch_size=4, learning_rate=0.5)
    assert result.certificate.max_gradient_error <= 1e-5
    names = [weight.name for weight in model.trainable_weights]
    key_bias = next(i for i, name in enumerate(names) if name.endswith("key/bias:0"))
    file = LiteModel(result.bundle.model)
    weights = decode_tensors(result.bundle.checkpoint, result.plan.weights)
    file.restore(weights)
    rng = np.random.default_rng(0)
    file.train(draw_batch("random", read_graph(model), 4, rng), 0.5)
    moves = [float(np.abs(after - before).max()) for after, before in zip(file.save(), weights, strict=True)]
    assert moves[key_bias] < 1e-7
    assert min(move for i, move in enumerate(moves) if i != key_bias) > 1e-5


def test_a_causal_position_sees_nothing_after_it():
    inputs = tf.keras.Input((5, 4))
    attended = layers.MultiHeadAttention(2, 3)(inputs, inputs, use_causal_mask=True)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Cropping1D((0, 3))(attended))))
    result = build_export(model, batch_size=2, learning_rate=0.1)
    file = LiteModel(result.bundle.model)
    file.restore(decode_tensors(result.bundle.checkpoint, result.plan.weights))
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    changed = x.copy()
    changed[:, 2:] += 1
    np.testing.assert_array_equal(file.infer(x), file.infer(changed))
    changed[:, 1] += 1
    assert np.abs(file.infer(x) - file.infer(changed)).max() > 1e-3


@pytest.mark.parametrize("fault", ["heads mixed up", "softmax passed straight through", "mask of the wrong side"])
def test_a_wrong_attention_is_seen_by_its_row(monkeypatch, fault):
    if fault == "heads mixed up":
        monkeypatch.setattr(
            attention, "_split_heads", lambda x, heads: tf.reshape(x, [x.shape[0], heads, x.shape[1], -1])
        )
    elif fault == "mask of the wrong side":
        monkeypatch.setattr(attention, "_causal_mask", lambda s: np.tril(np.full(s.shape[2:], -1e9, np.float32), -1))
    else:
        right = attention.softmax
        monkeypatch.setattr(attention, "softmax", lambda x: (right(x)[0], lambda dy: right(x)[0] * dy))
    row = measure_row("MultiHeadAttention" if fault == "heads mixed up" else "MultiHeadAttention, causal")
    assert max(row.output_error, row.gradient_error) > 1e-3


def model_with(layer, shape=(4, 3), **call):
    inputs = tf.keras.Input(shape)
    return tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs, inputs, **call))))


def masked(positional):
    inputs = tf.keras.Input((4, 3))
    mask = layers.Reshape((4, 4))(layers.Dense(16)(layers.Flatten()(inputs)))
    layer = layers.MultiHeadAttention(1, 2)
    x = layer(inputs, inputs, inputs, mask) if positional else layer(inputs, inputs, attention_mask=mask)
    return tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def scored():
    inputs = tf.keras.Input((4, 3))
    x, _ = layers.MultiHeadAttention(1, 2)(inputs, inputs, return_attention_scores=True)
    return tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


REFUSED = {
    "dropout": (lambda: model_with(layers.MultiHeadAttention(1, 2, dropout=0.1)), "Put a Dropout layer after it"),
    "a mask by name": (lambda: masked(positional=False), "is called with attention_mask"),
    "a mask by position": (lambda: masked(positional=True), "is called with an attention mask.*use_causal_mask"),
    "an image": (lambda: model_with(layers.MultiHeadAttention(1, 2), (4, 5, 3)), "put Reshape before it"),
    "two output axes": (lambda: model_with(layers.MultiHeadAttention(1, 2, output_shape=(2, 3))), "Use one number"),
    "channels that attend": (lambda: model_with(layers.MultiHeadAttention(1, 2, attention_axes=2)), "attention_axes"),
    "the scores": (scored, "is called with return_attention_scores"),
    "a regularizer": (lambda: model_with(layers.MultiHeadAttention(1, 2, kernel_regularizer="l2")), "Build the layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_attention_that_cannot_be_exported_is_refused_with_what_to_use(name):
    build, advice = REFUSED[name]
    with pytest.raises(UnsupportedLayer, match=advice):
        read_graph(build())
