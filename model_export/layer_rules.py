"""Which Keras layers can be exported, and the operations each becomes.

A layer is looked up by its exact class, so that a subclass with other behaviour is refused rather than mistaken for
its base. Anything a rule does not check is an option that changes nothing (names, initialisers).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf

from model_export.activation_functions import operations_of_activation
from model_export.function_rules import FUNCTION, function_rule
from model_export.image_rules import IMAGE_RULES
from model_export.layer_operations import (
    Affine,
    BatchNorm,
    Concatenate,
    GroupNorm,
    LayerNorm,
    Merge,
    MergeKind,
    Permute,
    Recurrent,
    RecurrentKind,
    Standardize,
    UpSample,
)
from model_export.operations import Activation, Add, Dense, Dropout, Operation, Reshape
from model_export.remedies import remedy_for
from model_export.rule_parts import (
    Fork,
    LayerReading,
    Rule,
    activation_of,
    bias_of,
    refuse,
    require_channels_last,
    require_equal_ranks,
)
from model_export.sequence_rules import SEQUENCE_RULES

__all__ = ["SUPPORTED_LAYERS", "LayerReading", "operations_of_layer"]

_MAX_NORMALIZED_AXES: Final = 3
_PARTS: Final = ("kernel", "bias", "depthwise", "pointwise", "embeddings", "gamma", "beta")
_REGULARIZED: Final = (
    *(f"{part}_{kind}" for part in _PARTS for kind in ("regularizer", "constraint")),
    "activity_regularizer",
)


def operations_of_layer(reading: LayerReading) -> Sequence[Operation | Fork]:
    """The operations, applied one after the other, that make up a layer.

    Raises:
        UnsupportedLayer: The layer, or an option of it, has no lowering; names the layer and what to use.
    """
    layer = reading.layer
    rule = function_rule if type(layer).__name__ == FUNCTION else _RULES.get(type(layer))
    if rule is None:
        supported = ", ".join(sorted(kind.__name__ for kind in _RULES))
        refuse(layer, "has no lowering", remedy_for(type(layer).__name__) or f"Supported layers: {supported}.")
    if layer.compute_dtype != "float32":
        refuse(layer, f"computes in {layer.compute_dtype}", "Build the model in float32.")
    for option in _REGULARIZED:
        if getattr(layer, option, None) is not None:
            refuse(layer, f"has a {option}", f"Build the layer without {option}: it is not part of the training step.")
    return rule(reading)


def _dense(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    product = Dense(kernel=reading.weight_position(layer.kernel))
    return [product, *bias_of(reading), *activation_of(layer)]


def _flatten(reading: LayerReading) -> list[Operation]:
    require_channels_last(reading.layer)
    return [Reshape()]


def _activation_layer(reading: LayerReading) -> list[Operation]:
    operations = operations_of_activation(reading.layer)
    if operations is None:
        refuse(
            reading.layer,
            "threshold, or max_value together with negative_slope, is set",
            "Use one of the latter two.",
        )
    return operations


def _softmax(reading: LayerReading) -> list[Operation]:
    if reading.layer.axis != -1:
        refuse(reading.layer, f"axis={reading.layer.axis}", "Use axis=-1.")
    return [Activation(name="softmax")]


def _dropout(reading: LayerReading, *, is_spatial: bool = False) -> list[Operation]:
    layer = reading.layer
    if not layer.rate or not reading.is_training:
        return []
    require_channels_last(layer)
    if layer.noise_shape is not None or layer.seed is not None:
        refuse(layer, "noise_shape or seed is set", "Leave both out: masks are drawn from dropout tickets.")
    if reading.is_repeated:
        refuse(layer, "is used more than once", "Use one Dropout layer per place: each has masks of its own.")
    return [Dropout(index=reading.num_dropouts, rate=float(layer.rate), is_spatial=is_spatial)]


_spatial_dropout: Final = functools.partial(_dropout, is_spatial=True)


def _normalization(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    if layer.invert:
        refuse(layer, "invert=True", "Use Rescaling, or invert=False.")
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, np.float32)), np.float32(tf.keras.backend.epsilon()))
    mean = np.asarray(layer.mean, np.float32)
    return [Standardize(centre=_as_nested(mean), deviation=_as_nested(deviation))]


def _as_nested(array: Any) -> Any:
    """[1, ..., C] as nested tuples, so that the operation stays a value."""
    return tuple(map(_as_nested, array)) if getattr(array, "ndim", 0) else float(array)


def _add(reading: LayerReading) -> list[Operation]:
    require_equal_ranks(reading)
    return [Add()]


def _merge(kind: MergeKind, reading: LayerReading) -> list[Operation]:
    require_equal_ranks(reading)
    return [Merge(kind=kind)]


def _concatenate(reading: LayerReading) -> list[Operation]:
    axis = reading.layer.axis % (1 + len(reading.input_shapes[0]))
    if not axis:
        refuse(reading.layer, "axis=0 joins examples", "Use an axis of the examples: axis=-1, or from 1.")
    return [Concatenate(axis=axis)]


def _layer_norm(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    rank = 1 + len(reading.input_shapes[0])
    axes = sorted(axis % rank for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    if axes != list(range(rank - len(axes), rank)):
        refuse(layer, f"axis={layer.axis}", "Normalize the last axes, for example axis=-1.")
    return [
        LayerNorm(
            gamma=_optional(reading, layer.gamma),
            beta=_optional(reading, layer.beta),
            num_axes=len(axes),
            epsilon=layer.epsilon,
        )
    ]


def _group_norm(reading: LayerReading) -> list[Operation]:
    layer, channels = reading.layer, reading.input_shapes[0][-1]
    if layer.axis % (1 + len(reading.input_shapes[0])) != len(reading.input_shapes[0]):
        refuse(layer, f"axis={layer.axis}", "Use axis=-1.")
    return [
        GroupNorm(
            gamma=_optional(reading, layer.gamma),
            beta=_optional(reading, layer.beta),
            groups=channels if layer.groups == -1 else layer.groups,
            epsilon=layer.epsilon,
        )
    ]


def _batch_norm(reading: LayerReading) -> list[Operation]:
    layer, shape = reading.layer, reading.input_shapes[0]
    if list(layer.axis) != [len(shape)] or len(shape) > _MAX_NORMALIZED_AXES:
        refuse(layer, f"axis={list(layer.axis)} of {1 + len(shape)} axes", "Use axis=-1, on images or less.")
    if getattr(layer, "synchronized", False):
        refuse(layer, "synchronized=True", "Use synchronized=False: a device trains alone.")
    if layer.trainable and reading.is_repeated:
        refuse(
            layer, "is used more than once", "Use one BatchNormalization per place: each follows its own statistics."
        )
    return [
        BatchNorm(
            gamma=_optional(reading, layer.gamma),
            beta=_optional(reading, layer.beta),
            mean=reading.weight_position(layer.moving_mean),
            variance=reading.weight_position(layer.moving_variance),
            momentum=float(layer.momentum),
            epsilon=layer.epsilon,
            is_training=layer.trainable and reading.is_training,
            has_correction=bool(layer.fused),
        )
    ]


def _recurrent(kind: RecurrentKind, reading: LayerReading) -> list[Recurrent]:
    layer = reading.layer
    cell = layer.cell
    if len(reading.input_shapes) > 1 or layer.return_state or layer.stateful:
        refuse(layer, "takes or gives a state", "Use it on a sequence alone: its state starts at zero.")
    if layer.dropout or layer.recurrent_dropout:
        refuse(layer, "dropout or recurrent_dropout is set", "Put a Dropout layer before it.")
    if layer.activation is not tf.keras.activations.tanh:
        refuse(layer, "activation is not tanh", "Use activation='tanh', the default.")
    if kind != "simple" and layer.recurrent_activation is not tf.keras.activations.sigmoid:
        refuse(layer, "recurrent_activation is not sigmoid", "Use recurrent_activation='sigmoid', the default.")
    if kind == "gru" and not layer.reset_after:
        refuse(layer, "reset_after=False", "Use reset_after=True, the default.")
    if layer.time_major:
        refuse(layer, "time_major=True", "Use time_major=False, the default.")
    for option in ("kernel", "recurrent", "bias"):
        if getattr(cell, f"{option}_regularizer") is not None or getattr(cell, f"{option}_constraint") is not None:
            refuse(layer, f"has a {option} regularizer or constraint", "Build the layer without it.")
    return [
        Recurrent(
            kind=kind,
            kernel=reading.weight_position(cell.kernel),
            recurrent=reading.weight_position(cell.recurrent_kernel),
            bias=_optional(reading, cell.bias),
            is_reversed=bool(layer.go_backwards),
            return_sequences=layer.return_sequences,
        )
    ]


def _bidirectional(reading: LayerReading) -> Sequence[Operation | Fork]:
    layer = reading.layer
    if layer.merge_mode not in _MERGES:
        refuse(layer, f"merge_mode={layer.merge_mode!r}", f"Use one of: {', '.join(_MERGES)}.")
    branches = []
    for part in (layer.forward_layer, layer.backward_layer):
        kind = _RECURRENT.get(type(part))
        if kind is None or part.go_backwards != (part is layer.backward_layer):
            refuse(layer, f"wraps {type(part).__name__}", "Wrap a GRU, LSTM or SimpleRNN without go_backwards.")
        (operation,) = _recurrent(kind, dataclasses.replace(reading, layer=part))
        shape = (part.units,) if not part.return_sequences else (reading.input_shapes[0][0], part.units)
        branches.append((dataclasses.replace(operation, gives_in_order=True), shape))
    joined = _MERGES[layer.merge_mode] or Concatenate(axis=len(branches[0][1]))
    return [Fork(branches=tuple(branches)), joined]


_MERGES: Final[Mapping[str, Operation | None]] = {
    "concat": None,
    "sum": Add(),
    "mul": Merge(kind="multiply"),
    "ave": Merge(kind="average"),
}


def _optional(reading: LayerReading, weight: Any) -> int | None:
    return None if weight is None else reading.weight_position(weight)


def _repeat_vector(reading: LayerReading) -> list[Operation]:
    # [B, C] as an image of one pixel, whose rows are then repeated.
    return [Reshape(shape=(1, 1, reading.input_shapes[0][0])), UpSample(size=(1, reading.layer.n)), Reshape()]


_layers = tf.keras.layers
_RECURRENT: Final[Mapping[type, RecurrentKind]] = {
    _layers.GRU: "gru",
    _layers.LSTM: "lstm",
    _layers.SimpleRNN: "simple",
}
_RULES: Final[Mapping[type, Rule]] = {
    **IMAGE_RULES,
    **SEQUENCE_RULES,
    **{layer: functools.partial(_recurrent, kind) for layer, kind in _RECURRENT.items()},
    _layers.Activation: lambda reading: activation_of(reading.layer),
    _layers.Add: _add,
    _layers.Average: functools.partial(_merge, "average"),
    _layers.BatchNormalization: _batch_norm,
    _layers.Bidirectional: _bidirectional,
    _layers.Concatenate: _concatenate,
    _layers.Dense: _dense,
    _layers.Dropout: _dropout,
    _layers.ELU: _activation_layer,
    _layers.Flatten: _flatten,
    _layers.GroupNormalization: _group_norm,
    _layers.Identity: lambda _: [],
    _layers.LayerNormalization: _layer_norm,
    _layers.LeakyReLU: _activation_layer,
    _layers.Maximum: functools.partial(_merge, "maximum"),
    _layers.Minimum: functools.partial(_merge, "minimum"),
    _layers.Multiply: functools.partial(_merge, "multiply"),
    _layers.Normalization: _normalization,
    _layers.Permute: lambda reading: [Permute(order=tuple(reading.layer.dims))],
    _layers.ReLU: _activation_layer,
    _layers.RepeatVector: _repeat_vector,
    _layers.Rescaling: lambda reading: [Affine(scale=float(reading.layer.scale), offset=float(reading.layer.offset))],
    _layers.Reshape: lambda _: [Reshape()],
    _layers.Softmax: _softmax,
    _layers.SpatialDropout1D: _spatial_dropout,
    _layers.SpatialDropout2D: _spatial_dropout,
    _layers.Subtract: functools.partial(_merge, "subtract"),
}

SUPPORTED_LAYERS: Final = frozenset(_RULES)
"""The Keras classes that can be exported."""
