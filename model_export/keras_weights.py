"""Which of a Keras model's weights travel, and in what order."""

from typing import Any

import tensorflow as tf

from model_export.keras_calls import layers_of

__all__ = ["frozen_variables", "moving_statistics", "travelling_weights"]


def moving_statistics(model: Any) -> list[Any]:
    """Moving means and variances of the batch normalisations that train, in Keras order."""
    training = {
        id(layer): layer
        for layer, is_training in layers_of(model)
        if type(layer) is tf.keras.layers.BatchNormalization and layer.trainable and is_training
    }
    refs = {weight.ref() for layer in training.values() for weight in (layer.moving_mean, layer.moving_variance)}
    return [weight for weight in model.non_trainable_weights if weight.ref() in refs]


def travelling_weights(model: Any) -> list[Any]:
    """What a checkpoint holds: the trainable weights, then the moving statistics."""
    return [*model.trainable_weights, *moving_statistics(model)]


def frozen_variables(model: Any) -> list[Any]:
    """The rest: constants of the model file."""
    travelling = {weight.ref() for weight in travelling_weights(model)}
    return [weight for weight in model.non_trainable_weights if weight.ref() not in travelling]
