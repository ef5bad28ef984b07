"""Keras's losses: which one a model was compiled with, and the objects that the parity check compares with."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.errors import UnsupportedModel
from model_export.loss_spec import LossSpec
from model_export.operations import ModelGraph
from wire_protocol.plan import LossName

__all__ = ["check_ending", "compiled_loss", "keras_absolute_errors", "keras_loss", "keras_share_correct"]

_NAMES: Final[Mapping[str, LossName]] = {
    "BinaryCrossentropy": "binary_crossentropy",
    "CategoricalCrossentropy": "categorical_crossentropy",
    "Huber": "huber",
    "MAE": "mean_absolute_error",
    "MSE": "mean_squared_error",
    "MeanAbsoluteError": "mean_absolute_error",
    "MeanSquaredError": "mean_squared_error",
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "binary_crossentropy": "binary_crossentropy",
    "categorical_crossentropy": "categorical_crossentropy",
    "huber": "huber",
    "huber_loss": "huber",
    "mae": "mean_absolute_error",
    "mean_absolute_error": "mean_absolute_error",
    "mean_squared_error": "mean_squared_error",
    "mse": "mean_squared_error",
    "sparse_categorical_crossentropy": "sparse_categorical_crossentropy",
}
"""What Keras's users write, and what Keras calls its classes and functions -> our name."""

_DEFAULTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "axis": (-1,),
    "ignore_class": (None,),
    "label_smoothing": (0, 0.0),
    "reduction": ("auto", "sum_over_batch_size"),
}
"""Options of Keras's loss classes -> the values that are supported."""


def compiled_loss(model: Any) -> tuple[LossSpec, bool] | None:
    """The loss that a model was compiled with, and whether it was told that the output is logits; ``None``: not compiled.

    Raises:
        UnsupportedModel: Another loss, or an option of it that is not supported.
    """
    loss = getattr(model, "loss", None)
    if loss is None:
        return None
    spoken = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = _NAMES.get(spoken)
    if name is None or (not isinstance(loss, str | tf.keras.losses.Loss) and not _is_of_keras(loss)):
        known = ", ".join(sorted(set(_NAMES.values())))
        raise UnsupportedModel(f"compiled with loss {spoken!r}; supported are: {known}")
    options = loss.get_config() if isinstance(loss, tf.keras.losses.Loss) else {}
    for option, allowed in _DEFAULTS.items():
        if options.get(option, allowed[0]) not in allowed:
            raise UnsupportedModel(f"compiled with {spoken} and {option}={options[option]!r}; use {allowed[0]!r}")
    delta = float(options.get("delta", 1.0)) if name == "huber" else 1.0
    return LossSpec(name=name, huber_delta=delta), bool(options.get("from_logits"))


def _is_of_keras(function: Any) -> bool:
    return getattr(tf.keras.losses, getattr(function, "__name__", ""), None) is function


def check_ending(graph: ModelGraph, *, from_logits: bool | None) -> None:
    """Refuses a model whose last activation and loss do not belong together.

    Args:
        graph: The model and its loss.
        from_logits: What the compiled loss was told of the output; ``None``: nothing.

    Raises:
        UnsupportedModel: They do not.
    """
    activation = graph.loss.logit_activation
    if activation is None:
        return
    other = "sigmoid" if activation == "softmax" else "softmax"
    if getattr(graph.nodes[-1].operation, "name", None) == other:
        raise UnsupportedModel(
            f"the model ends in {other}; for {graph.loss.name} end it in {activation}, or in nothing"
        )
    if from_logits is not None and from_logits == (graph.output_activation is not None):
        ending = "ends in" if graph.output_activation else "does not end in"
        raise UnsupportedModel(f"the model {ending} {activation}, but its loss was compiled with {from_logits=}")


def keras_loss(graph: ModelGraph, reduction: str) -> Any:
    """Keras's own loss object for a model."""
    losses = tf.keras.losses
    from_logits = graph.output_activation is None
    match graph.loss.name:
        case "sparse_categorical_crossentropy":
            return losses.SparseCategoricalCrossentropy(from_logits=from_logits, reduction=reduction)
        case "categorical_crossentropy":
            return losses.CategoricalCrossentropy(from_logits=from_logits, reduction=reduction)
        case "binary_crossentropy":
            return losses.BinaryCrossentropy(from_logits=from_logits, reduction=reduction)
        case "mean_squared_error":
            return losses.MeanSquaredError(reduction=reduction)
        case "mean_absolute_error":
            return losses.MeanAbsoluteError(reduction=reduction)
        case _:
            return losses.Huber(graph.loss.huber_delta, reduction=reduction)


def keras_share_correct(graph: ModelGraph, labels: npt.NDArray[Any], output: npt.NDArray[np.float32]) -> Any:
    """[n] what Keras's accuracy metrics give each example; 0 of a regression."""
    metrics = tf.keras.metrics
    match graph.loss.name:
        case "sparse_categorical_crossentropy":
            return metrics.sparse_categorical_accuracy(labels, output).numpy()
        case "categorical_crossentropy":
            return metrics.categorical_accuracy(labels, output).numpy()
        case "binary_crossentropy":
            threshold = 0.0 if graph.output_activation is None else 0.5
            return metrics.binary_accuracy(labels, output, threshold=threshold).numpy()
        case _:
            return np.zeros(len(labels), np.float32)


def keras_absolute_errors(graph: ModelGraph, labels: npt.NDArray[Any], output: npt.NDArray[np.float32]) -> Any:
    """[n] Keras's mean absolute error of each example; 0 unless it is a regression."""
    if not graph.loss.is_regression:
        return np.zeros(len(labels), np.float32)
    return tf.keras.metrics.mean_absolute_error(labels, output).numpy()
