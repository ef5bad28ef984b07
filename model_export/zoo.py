"""Models for demonstrations and tests, with initial weights that depend on the seed alone."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import tensorflow as tf

__all__ = ["ZOO", "digits_cnn", "digits_mlp", "mnist_cnn"]

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


ZOO: Final[Mapping[str, Callable[[int], Any]]] = {
    "digits_cnn": digits_cnn,
    "digits_mlp": digits_mlp,
    "mnist_cnn": mnist_cnn,
}
"""Name -> builder, for the command line's ``zoo:NAME``."""


def _seeded(model: Any, seed: int) -> Any:
    """Glorot-uniform kernels (Glorot and Bengio 2010, equation 16) and zero biases, from numpy's PCG64."""
    rng = np.random.default_rng(seed)
    weights = []
    for weight in model.trainable_weights:
        shape = weight.shape.as_list()
        if len(shape) == 1:
            weights.append(np.zeros(shape, np.float32))
            continue
        receptive_field = int(np.prod(shape[:-2]))
        limit = np.sqrt(6.0 / (receptive_field * (shape[-2] + shape[-1])))
        weights.append(rng.uniform(-limit, limit, shape).astype(np.float32))
    model.set_weights(weights)
    return model
