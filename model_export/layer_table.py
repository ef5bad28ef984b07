"""Every layer and option that can be exported, one row each: what the table test runs and the layer page lists.

Each row is a small model with trainable layers on both sides of the tested one, so that its input gradient is checked
as the gradient of what comes before it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import tensorflow as tf

__all__ = ["LAYER_ROWS", "row_model"]

_layers = tf.keras.layers
_FEATURES: Final = (6,)
_SEQUENCE: Final = (7, 4)
_SHORT: Final = (4, 3)
_IMAGE: Final = (9, 8, 3)
_WIDE: Final = (9, 8, 8)

_TOKENS: Final = (5,)
"""These examples are token numbers, which Embedding alone can read."""

_Build = Callable[[Any], Any]


def _apply(*layers: Callable[[], Any]) -> _Build:
    def build(x: Any) -> Any:
        for layer in layers:
            x = layer()(x)
        return x

    return build


def _with_branch(merge: Callable[[], Any]) -> _Build:
    """Merges a value with a function of itself."""
    return lambda x: merge()([x, _layers.Dense(x.shape[-1])(x)])


def _squeeze_and_excite(x: Any) -> Any:
    gate = _layers.Dense(x.shape[-1], activation="sigmoid")(_layers.GlobalAveragePooling2D(keepdims=True)(x))
    return _layers.Multiply()([x, gate])


def _hard_swish(x: Any) -> Any:
    gate = _layers.Rescaling(1 / 6)(_layers.ReLU(6.0)(_layers.Rescaling(1.0, 3.0)(x)))
    return _layers.Multiply()([x, gate])


def _operators(x: Any) -> Any:
    y = _layers.Dense(x.shape[-1], activation=tf.nn.leaky_relu)(x)
    return tf.concat([tf.maximum(1.0 - x * 0.5, y) - y, x + y + 2.0, tf.nn.relu6((y - 0.1) / 3.0) * x], axis=-1)


def _inner_model(x: Any) -> Any:
    given = tf.keras.Input(x.shape[1:])
    branches = [_layers.Conv2D(4, 3, activation="relu", name="conv")(given), _layers.Conv2D(4, 3)(given)]
    tower = tf.keras.Model(given, branches[::-1])
    linear, curved = tower(x)
    head = tf.keras.Sequential([_layers.Conv2D(4, 1, name="conv"), _layers.BatchNormalization()])
    return _layers.Concatenate()([linear, head(curved, training=False)])


def _inner_model_twice(x: Any) -> Any:
    shared = tf.keras.Sequential([_layers.Dense(4, activation="tanh"), _layers.Dense(x.shape[-1])])
    return _layers.Subtract()([x, shared(shared(x))])


def _frozen_batch_norm(x: Any) -> Any:
    layer = _layers.BatchNormalization(trainable=False)
    y = layer(x)
    layer.set_weights([np.linspace(start, 1.5, x.shape[-1]) for start in (0.5, -1.0, -0.5, 0.1)])
    return y


def _adapted(x: Any) -> Any:
    layer = _layers.Normalization()
    layer.adapt(np.arange(60, dtype=np.float32).reshape(10, 6) ** 1.5)
    return layer(x)


def _attention(*arguments: Any, causal: bool = False, **options: Any) -> tuple[tuple[int, ...], _Build]:
    call = {"use_causal_mask": True} if causal else {}
    return _SHORT, lambda x: _layers.MultiHeadAttention(*arguments, **options)(x, x, **call)


def _over_another_sequence(x: Any) -> Any:
    other = _layers.Dense(5, activation="tanh")(_layers.Cropping1D((0, 1))(x))
    return _layers.MultiHeadAttention(2, 3)(x, other, key=_layers.Dense(4)(other))


def _transformer_block(x: Any) -> Any:
    attended = _layers.MultiHeadAttention(2, 4)(x, x)
    x = _layers.LayerNormalization()(_layers.Add()([x, attended]))
    widened = _layers.Dense(x.shape[-1])(_layers.Dense(8, activation="gelu")(x))
    return _layers.LayerNormalization()(_layers.Add()([x, widened]))


def _two_tables(x: Any) -> Any:
    return _layers.Add()([_layers.Embedding(7, 4)(x), _layers.Embedding(9, 4)(x)])


def _activation(name: str) -> tuple[tuple[int, ...], _Build]:
    return _FEATURES, _apply(lambda: _layers.Activation(name))


def _on(shape: tuple[int, ...], *layers: Callable[[], Any]) -> tuple[tuple[int, ...], _Build]:
    return shape, _apply(*layers)


def _conv(shape: tuple[int, ...] = _IMAGE, *arguments: Any, **options: Any) -> tuple[tuple[int, ...], _Build]:
    return _on(shape, lambda: _layers.Conv2D(*arguments, **options))


LAYER_ROWS: Final[Mapping[str, tuple[tuple[int, ...], _Build]]] = {
    "Dense": _on(_FEATURES, lambda: _layers.Dense(5)),
    "Dense, no bias": _on(_FEATURES, lambda: _layers.Dense(5, use_bias=False)),
    "Dense on sequences": _on(_SEQUENCE, lambda: _layers.Dense(5)),
    "Dense on images": _on(_IMAGE, lambda: _layers.Dense(5)),
    "Conv2D 3x3 valid": _conv(_IMAGE, 5, 3),
    "Conv2D 3x3 same": _conv(_IMAGE, 5, 3, padding="same"),
    "Conv2D 3x3 stride 2 same": _conv(_IMAGE, 5, 3, strides=2, padding="same"),
    "Conv2D 3x3 stride 2 valid": _conv(_IMAGE, 5, 3, strides=2),
    "Conv2D 3x3 stride 3 valid": _conv(_IMAGE, 5, 3, strides=3),
    "Conv2D 5x5 same": _conv(_IMAGE, 4, 5, padding="same"),
    "Conv2D 3x2 strides 1 and 3": _conv(_IMAGE, 5, (3, 2), strides=(1, 3), padding="same"),
    "Conv2D 3x3 dilation 2": _conv(_IMAGE, 5, 3, dilation_rate=2, padding="same"),
    "Conv2D 1x1": _conv(_IMAGE, 5, 1),
    "Conv2D 1x1 stride 2": _conv(_IMAGE, 5, 1, strides=2, padding="same"),
    "Conv2D 3x3 valid, Winograd": _conv(_WIDE, 8, 3),
    "Conv2D 3x3 same, Winograd": _conv(_WIDE, 8, 3, padding="same"),
    "Conv2D, ReLU, MaxPooling2D, Winograd": _on(
        _WIDE, lambda: _layers.Conv2D(8, 3, activation="relu"), lambda: _layers.MaxPooling2D(2)
    ),
    "Conv1D 5 same": _on(_SEQUENCE, lambda: _layers.Conv1D(5, 5, padding="same")),
    "Conv1D 3 stride 2 valid": _on(_SEQUENCE, lambda: _layers.Conv1D(5, 3, strides=2)),
    "Conv1D 3 dilation 2": _on(_SEQUENCE, lambda: _layers.Conv1D(5, 3, dilation_rate=2)),
    "Conv1D 3 causal, dilation 2": _on(_SEQUENCE, lambda: _layers.Conv1D(5, 3, padding="causal", dilation_rate=2)),
    "Conv1DTranspose 3 stride 2": _on(_SEQUENCE, lambda: _layers.Conv1DTranspose(5, 3, strides=2, padding="same")),
    "Conv2DTranspose 3x3 stride 2 same": _on(
        (4, 5, 3), lambda: _layers.Conv2DTranspose(4, 3, strides=2, padding="same")
    ),
    "Conv2DTranspose 4x4 stride 2 valid": _on((4, 5, 3), lambda: _layers.Conv2DTranspose(4, 4, strides=2)),
    "Conv2DTranspose 3x3 stride 1 same": _on((4, 5, 3), lambda: _layers.Conv2DTranspose(4, 3, padding="same")),
    "Conv2DTranspose 2x2 stride 3 valid": _on((4, 5, 3), lambda: _layers.Conv2DTranspose(4, 2, strides=3)),
    "DepthwiseConv2D 3x3 same": _on(_IMAGE, lambda: _layers.DepthwiseConv2D(3, padding="same")),
    "DepthwiseConv2D 3x3 stride 2 same": _on(_IMAGE, lambda: _layers.DepthwiseConv2D(3, strides=2, padding="same")),
    "DepthwiseConv2D depth multiplier 2": _on(_IMAGE, lambda: _layers.DepthwiseConv2D(3, depth_multiplier=2)),
    "DepthwiseConv2D dilation 2": _on(_IMAGE, lambda: _layers.DepthwiseConv2D(3, dilation_rate=2)),
    "DepthwiseConv1D 3": _on(_SEQUENCE, lambda: _layers.DepthwiseConv1D(3)),
    "SeparableConv2D 3x3 same": _on(_IMAGE, lambda: _layers.SeparableConv2D(5, 3, padding="same")),
    "SeparableConv2D depth multiplier 2": _on(_IMAGE, lambda: _layers.SeparableConv2D(5, 3, depth_multiplier=2)),
    "SeparableConv1D 3": _on(_SEQUENCE, lambda: _layers.SeparableConv1D(5, 3)),
    "MaxPooling2D 2x2": _on(_IMAGE, lambda: _layers.MaxPooling2D(2)),
    "MaxPooling2D 3x3 stride 2 same": _on(_IMAGE, lambda: _layers.MaxPooling2D(3, 2, padding="same")),
    "MaxPooling2D 2x3": _on(_IMAGE, lambda: _layers.MaxPooling2D((2, 3))),
    "MaxPooling1D 2": _on(_SEQUENCE, lambda: _layers.MaxPooling1D(2)),
    "AveragePooling2D 2x2": _on(_IMAGE, lambda: _layers.AveragePooling2D(2)),
    "AveragePooling2D 3x3 stride 2 same": _on(_IMAGE, lambda: _layers.AveragePooling2D(3, 2, padding="same")),
    "AveragePooling1D 2": _on(_SEQUENCE, lambda: _layers.AveragePooling1D(2)),
    "GlobalAveragePooling2D": _on(_IMAGE, _layers.GlobalAveragePooling2D),
    "GlobalAveragePooling2D keepdims": _on(_IMAGE, lambda: _layers.GlobalAveragePooling2D(keepdims=True)),
    "GlobalAveragePooling1D": _on(_SEQUENCE, _layers.GlobalAveragePooling1D),
    "GlobalMaxPooling2D": _on(_IMAGE, _layers.GlobalMaxPooling2D),
    "GlobalMaxPooling1D": _on(_SEQUENCE, _layers.GlobalMaxPooling1D),
    "LayerNormalization": _on(_SEQUENCE, _layers.LayerNormalization),
    "LayerNormalization, no scale": _on(_FEATURES, lambda: _layers.LayerNormalization(scale=False)),
    "LayerNormalization over an image": _on(_IMAGE, lambda: _layers.LayerNormalization(axis=[1, 2, 3])),
    "GroupNormalization": _on(_WIDE, lambda: _layers.GroupNormalization(4)),
    # Straight after Dense the true gradient of its bias is zero, and a relative error would be one of rounding alone.
    "GroupNormalization by channel": _on(
        _WIDE, lambda: _layers.Activation("tanh"), lambda: _layers.GroupNormalization(-1)
    ),
    "GroupNormalization on features": _on(_FEATURES, lambda: _layers.GroupNormalization(2)),
    # After tanh, for the same reason.
    "BatchNormalization on images": _on(
        _IMAGE, lambda: _layers.Activation("tanh"), lambda: _layers.BatchNormalization(momentum=0.9)
    ),
    "BatchNormalization on sequences": _on(
        _SEQUENCE, lambda: _layers.Activation("tanh"), lambda: _layers.BatchNormalization(momentum=0.9)
    ),
    "BatchNormalization on features, no scale": _on(
        _FEATURES, lambda: _layers.Activation("tanh"), lambda: _layers.BatchNormalization(scale=False, momentum=0.8)
    ),
    "BatchNormalization, frozen": (_IMAGE, _frozen_batch_norm),
    "Embedding": _on(_TOKENS, lambda: _layers.Embedding(7, 4)),
    "Embedding, two tables": (_TOKENS, _two_tables),
    "LSTM": _on(_SHORT, lambda: _layers.LSTM(5)),
    "LSTM return_sequences": _on(_SHORT, lambda: _layers.LSTM(5, return_sequences=True)),
    "LSTM, no bias": _on(_SHORT, lambda: _layers.LSTM(5, use_bias=False)),
    "GRU": _on(_SHORT, lambda: _layers.GRU(5)),
    "GRU return_sequences": _on(_SHORT, lambda: _layers.GRU(5, return_sequences=True)),
    "GRU go_backwards": _on(_SHORT, lambda: _layers.GRU(5, go_backwards=True, return_sequences=True)),
    "SimpleRNN": _on(_SHORT, lambda: _layers.SimpleRNN(5)),
    "Bidirectional GRU": _on(_SHORT, lambda: _layers.Bidirectional(_layers.GRU(5))),
    "Bidirectional LSTM return_sequences": _on(
        _SHORT, lambda: _layers.Bidirectional(_layers.LSTM(5, return_sequences=True))
    ),
    "Bidirectional SimpleRNN, merge_mode ave": _on(
        _SHORT, lambda: _layers.Bidirectional(_layers.SimpleRNN(5, return_sequences=True), merge_mode="ave")
    ),
    "MultiHeadAttention": _attention(2, 3),
    "MultiHeadAttention, no bias": _attention(3, 2, use_bias=False),
    "MultiHeadAttention, value_dim and output_shape": _attention(2, 3, value_dim=5, output_shape=6),
    "MultiHeadAttention, causal": _attention(1, 4, causal=True),
    "MultiHeadAttention over another sequence": (_SEQUENCE, _over_another_sequence),
    "Transformer block": (_SEQUENCE, _transformer_block),
    "Normalization": _on(_IMAGE, lambda: _layers.Normalization(mean=[0.5, -1.0, 2.0], variance=[0.25, 4.0, 0.0])),
    "Normalization, adapted": (_FEATURES, _adapted),
    "Rescaling": _on(_FEATURES, lambda: _layers.Rescaling(0.5, 1.0)),
    "Add": (_FEATURES, _with_branch(_layers.Add)),
    "Subtract": (_FEATURES, _with_branch(_layers.Subtract)),
    "Multiply": (_FEATURES, _with_branch(_layers.Multiply)),
    "Multiply by a channel's gate": (_IMAGE, _squeeze_and_excite),
    "Average": (_FEATURES, _with_branch(_layers.Average)),
    "Maximum": (_FEATURES, _with_branch(_layers.Maximum)),
    "Minimum": (_FEATURES, _with_branch(_layers.Minimum)),
    "Concatenate": (_IMAGE, _with_branch(_layers.Concatenate)),
    "Concatenate along another axis": (_IMAGE, _with_branch(lambda: _layers.Concatenate(axis=1))),
    "Flatten": _on(_IMAGE, _layers.Flatten),
    "Reshape": _on(_IMAGE, lambda: _layers.Reshape((8, -1))),
    "Permute": _on(_IMAGE, lambda: _layers.Permute((3, 1, 2))),
    "RepeatVector": _on(_FEATURES, lambda: _layers.RepeatVector(3)),
    "ZeroPadding1D": _on(_SEQUENCE, lambda: _layers.ZeroPadding1D((1, 2))),
    "ZeroPadding2D": _on(_IMAGE, lambda: _layers.ZeroPadding2D(((1, 2), (0, 3)))),
    "Cropping1D": _on(_SEQUENCE, lambda: _layers.Cropping1D((1, 2))),
    "Cropping2D": _on(_IMAGE, lambda: _layers.Cropping2D(((1, 2), (0, 3)))),
    "UpSampling1D": _on(_SEQUENCE, lambda: _layers.UpSampling1D(3)),
    "UpSampling2D": _on((4, 5, 3), lambda: _layers.UpSampling2D((2, 3))),
    "relu": _activation("relu"),
    "ReLU": _on(_FEATURES, _layers.ReLU),
    "ReLU max_value=6": _on(_FEATURES, lambda: _layers.ReLU(6.0)),
    "ReLU max_value=1": _on(_FEATURES, lambda: _layers.ReLU(1.0)),
    "LeakyReLU": _on(_FEATURES, lambda: _layers.LeakyReLU(0.2)),
    "ELU alpha=0.5": _on(_FEATURES, lambda: _layers.ELU(0.5)),
    "elu": _activation("elu"),
    "selu": _activation("selu"),
    "gelu (exact)": _activation("gelu"),
    "swish": _activation("swish"),
    "gelu (tanh form)": (_FEATURES, lambda x: tf.keras.activations.gelu(x, approximate=True)),
    "relu6": _activation("relu6"),
    "leaky_relu": _activation("leaky_relu"),
    "mish": _activation("mish"),
    "hard swish of ReLU6": (_FEATURES, _hard_swish),
    "hard_sigmoid": _activation("hard_sigmoid"),
    "sigmoid": _activation("sigmoid"),
    "tanh": _activation("tanh"),
    "softplus": _activation("softplus"),
    "softsign": _activation("softsign"),
    "exponential": _activation("exponential"),
    "softmax": _activation("softmax"),
    "Softmax": _on(_FEATURES, _layers.Softmax),
    "operators and functions": (_FEATURES, _operators),
    "models as layers": (_IMAGE, _inner_model),
    "a model as a layer, twice": (_FEATURES, _inner_model_twice),
    "Identity": _on(_FEATURES, _layers.Identity),
}
"""Name of the row -> shape of an example, and what is built on a value of that shape."""


def row_model(name: str) -> Any:
    """The model of a row: Dense (but not before Embedding), the tested layers, Flatten, Dense(3)."""
    shape, build = LAYER_ROWS[name]
    inputs = tf.keras.Input(shape)
    tested = build(inputs if shape == _TOKENS else _layers.Dense(shape[-1])(inputs))
    return tf.keras.Model(inputs, _layers.Dense(3)(_layers.Flatten()(tested)))
