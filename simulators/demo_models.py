"""Which Keras model a demo trains on which data set."""

from typing import Any

from model_export.zoo import digits_cnn, digits_mlp, mnist_cnn
from simulators.datasets import Dataset
from simulators.errors import SimulationError

__all__ = ["demo_model"]


def demo_model(dataset_name: str, model_name: str, dataset: Dataset, *, seed: int) -> Any:
    """The model of a demo, with initial weights that follow from the seed.

    Raises:
        SimulationError: There is no such model for this data set.
    """
    match dataset_name, model_name:
        case "digits", "mlp":
            return digits_mlp(seed)
        case "digits", "cnn":
            return digits_cnn(seed)
        case "mnist", "cnn":
            return mnist_cnn(seed)
        case _, "linear":
            return _linear(int(dataset.x_train[0].size), dataset.num_classes, seed)
        case _:
            return _dense(int(dataset.x_train[0].size), dataset.num_classes, seed)


def _linear(num_features: int, num_classes: int, seed: int) -> Any:
    """Softmax regression: the small model that noise does not drown."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [layers.InputLayer((num_features,)), layers.Dense(num_classes, kernel_initializer="zeros")]
    )


def _dense(num_features: int, num_classes: int, seed: int) -> Any:
    """Two Dense layers for flat features (MNIST's pixels, a CSV file's columns)."""
    import tensorflow as tf

    if num_classes < 2:  # noqa: PLR2004 - a classifier tells at least two classes apart
        raise SimulationError("the data set has a single label; there is nothing to learn")
    tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [layers.InputLayer((num_features,)), layers.Dense(64, activation="relu"), layers.Dense(num_classes)]
    )
