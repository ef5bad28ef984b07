"""Models of usual sizes for edge devices, with initial weights that depend on the seed alone.

``zoo_presets`` says what each is for and which plan suits it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import tensorflow as tf

from model_export.gradient_features import NUM_FEATURES, SIDE, gradient_features

__all__ = ["ZOO", "digits_cnn", "digits_mlp", "gru", "har", "head", "mlp", "mnist_cnn", "mobile", "private_head"]

_layers = tf.keras.layers


def digits_mlp(seed: int = 0) -> Any:
    """Two Dense layers for the 8x8 UCI digits: x [64] in 0..1, 10 classes, 4 810 parameters."""
    model = tf.keras.Sequential(
        [_layers.InputLayer((64,)), _layers.Dense(64, activation="relu"), _layers.Dense(10)], name="digits_mlp"
    )
    return _seeded(model, seed)


def digits_cnn(seed: int = 0) -> Any:
    """A small convolutional net for the 8x8 UCI digits: x [8, 8, 1] in 0..1, 10 classes."""
    model = tf.keras.Sequential(
        [
            _layers.InputLayer((8, 8, 1)),
            _layers.Conv2D(8, 3, padding="same", activation="relu"),
            _layers.Conv2D(16, 3, padding="same", activation="relu"),
            _layers.MaxPooling2D(2),
            _layers.Flatten(),
            _layers.Dense(10),
        ],
        name="digits_cnn",
    )
    return _seeded(model, seed)


def mlp(seed: int = 0) -> Any:
    """Two Dense layers for flat images of MNIST's size: x [784] in 0..1, 10 classes, 50 890 parameters."""
    model = tf.keras.Sequential(
        [_layers.InputLayer((784,)), _layers.Dense(64, activation="relu"), _layers.Dense(10)], name="mlp"
    )
    return _seeded(model, seed)


def mnist_cnn(seed: int = 0) -> Any:
    """The classic MNIST net: x [28, 28, 1] in 0..1, 10 classes, 1 199 882 parameters, dropout 0.25 and 0.5."""
    model = tf.keras.Sequential(
        [
            _layers.InputLayer((28, 28, 1)),
            _layers.Conv2D(32, 3, activation="relu"),
            _layers.Conv2D(64, 3, activation="relu"),
            _layers.MaxPooling2D(2),
            _layers.Dropout(0.25),
            _layers.Flatten(),
            _layers.Dense(128, activation="relu"),
            _layers.Dropout(0.5),
            _layers.Dense(10),
        ],
        name="mnist_cnn",
    )
    return _seeded(model, seed)


def mobile(seed: int = 0) -> Any:
    """MobileNet's blocks (Howard et al. 2017, section 3.1), small: x [32, 32, 3] in 0..1, 10 classes.

    GroupNormalization in place of BatchNormalization: no statistics to average over devices whose data differ.
    """
    x = inputs = tf.keras.Input((32, 32, 3))
    # No normalisation of the image itself: on a flat one the kernel's gradient would be a difference of equal sums.
    x = _layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    for width, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1)):
        x = _layers.SeparableConv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
        x = _layers.ReLU()(_layers.GroupNormalization(4)(x))
    outputs = _layers.Dense(10)(_layers.GlobalAveragePooling2D()(x))
    return _seeded(tf.keras.Model(inputs, outputs, name="mobile"), seed)


def har(seed: int = 0) -> Any:
    """Activities from motion sensors: x [128, 9] (2.56 s at 50 Hz, as in the UCI HAR data set), 6 classes."""
    model = tf.keras.Sequential(
        [
            _layers.InputLayer((128, 9)),
            _layers.Conv1D(32, 5, activation="relu"),
            _layers.Conv1D(32, 5, activation="relu"),
            _layers.MaxPooling1D(2),
            _layers.Conv1D(64, 5, activation="relu"),
            _layers.GlobalAveragePooling1D(),
            _layers.Dropout(0.3),
            _layers.Dense(6),
        ],
        name="har",
    )
    return _seeded(model, seed)


def head(seed: int = 0) -> Any:
    """A linear head on ``gradient_features``: x [28, 28, 1] in 0..1, 10 classes; its loss has one minimum."""
    inputs = tf.keras.Input((SIDE, SIDE, 1))
    outputs = _layers.Dense(10)(gradient_features(inputs))
    return _seeded(tf.keras.Model(inputs, outputs, name="head"), seed)


def private_head(seed: int = 0) -> Any:
    """``head`` on features of norm at most 1, so that one clip suits every image: x [28, 28, 1] in 0..1, 10 classes."""
    inputs = tf.keras.Input((SIDE, SIDE, 1))
    features = _layers.Rescaling(NUM_FEATURES**-0.5)(gradient_features(inputs))
    return _seeded(tf.keras.Model(inputs, _layers.Dense(10)(features), name="private_head"), seed)


def gru(seed: int = 0) -> Any:
    """A keyword spotter (Zhang et al. 2017, "Hello Edge", GRU at a stride of 40 ms): x [25, 10], 12 classes."""
    model = tf.keras.Sequential([_layers.InputLayer((25, 10)), _layers.GRU(64), _layers.Dense(12)], name="gru")
    return _seeded(model, seed)


ZOO: Final[Mapping[str, Callable[[int], Any]]] = {
    "cnn": mnist_cnn,
    "digits_cnn": digits_cnn,
    "digits_mlp": digits_mlp,
    "gru": gru,
    "har": har,
    "head": head,
    "mlp": mlp,
    "mnist_cnn": mnist_cnn,
    "mobile": mobile,
    "private-head": private_head,
}
"""Name -> builder, for the command line's ``zoo:NAME``; the same names as ``zoo_presets.ZOO_ENTRIES``."""


def _seeded(model: Any, seed: int) -> Any:
    """Glorot-uniform kernels (Glorot and Bengio 2010, equation 16), unit scales, zero biases, from numpy's PCG64."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        shape = weight.shape.as_list()
        name = weight.name.rpartition("/")[2]
        if name.startswith("gamma"):
            weight.assign(np.ones(shape, np.float32))
            continue
        if len(shape) == 1 or name.startswith("bias"):  # a GRU's bias has two axes
            weight.assign(np.zeros(shape, np.float32))
            continue
        # A depthwise kernel [kh, kw, in, multiplier] reads one channel at a time.
        num_in = 1 if name.startswith("depthwise") else shape[-2]
        limit = np.sqrt(6.0 / (int(np.prod(shape[:-2])) * (num_in + shape[-1])))
        weight.assign(rng.uniform(-limit, limit, shape).astype(np.float32))
    return model
