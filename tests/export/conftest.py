"""Exports shared by the tests of this folder: each model is converted once."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

from model_export.exporter import ExportResult, build_export, export_model
from model_export.lite_model import LiteModel
from model_export.zoo import digits_cnn, digits_mlp, mnist_cnn

BATCH_SIZE = 8
LEARNING_RATE = 0.05


@pytest.fixture(scope="session")
def mlp_export(tmp_path_factory) -> ExportResult:
    """``digits_mlp`` with momentum; also written to a directory."""
    directory = tmp_path_factory.mktemp("mlp") / "bundle"
    return export_model(
        digits_mlp(), out_dir=directory, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, momentum=0.9
    )


@pytest.fixture(scope="session")
def cnn_export() -> ExportResult:
    return build_export(digits_cnn(), batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)


@pytest.fixture(scope="session")
def mnist_export() -> ExportResult:
    return build_export(mnist_cnn(), batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, num_epochs=2, seed=3)


def mixed_model():
    """A functional model of everything the zoo lacks, ending in softmax."""
    layers = tf.keras.layers
    x = inputs = tf.keras.Input((11, 9, 2))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = skip = layers.ReLU()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="tanh")(x)
    x = layers.Add()([x, skip])
    x = layers.Conv2D(4, 1, activation="sigmoid")(x)
    x = layers.AveragePooling2D(2, strides=1, padding="same")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Conv2D(6, 2, dilation_rate=2, padding="same")(x)
    x = layers.Activation("relu")(x)
    x = layers.Reshape((3, 18))(x)
    x = layers.Dense(5, activation="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(4)(x)
    outputs = layers.Softmax()(x)
    return tf.keras.Model(inputs, outputs)


@pytest.fixture(scope="session")
def mixed_export() -> ExportResult:
    tf.keras.utils.set_random_seed(5)
    return build_export(mixed_model(), batch_size=5, learning_rate=LEARNING_RATE, momentum=0.5)


@pytest.fixture(params=["mlp_export", "cnn_export", "mnist_export", "mixed_export"])
def any_export(request) -> ExportResult:
    return request.getfixturevalue(request.param)


@pytest.fixture
def mlp_file(mlp_export) -> LiteModel:
    return LiteModel(mlp_export.bundle.model)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
