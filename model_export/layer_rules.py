"""Which Keras layers can be exported, and the operations each becomes.

A layer is looked up by its exact class, so that a subclass with other behaviour is refused rather than mistaken for
its base. Anything a rule does not check is an option that changes nothing (names, initialisers).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import tensorflow as tf

from model_export.errors import UnsupportedLayer
from model_export.lowering.activations import ACTIVATIONS
from model_export.operations import (
    Activation,
    Add,
    AveragePool,
    Bias,
    Conv2D,
    Dense,
    Dropout,
    GlobalAveragePool,
    MaxPool,
    Operation,
    Reshape,
)

__all__ = ["LayerReading", "operations_of_layer"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerReading:
    """What a rule may read: the layer, and where its weights stand in Keras order."""

    layer: Any
    weight_position: Callable[[Any], int]
    num_dropouts: int
    """Dropout layers met before this one."""


_Rule: TypeAlias = Callable[[LayerReading], list[Operation]]

_INSTEAD: Final[Mapping[str, str]] = {
    "BatchNormalization": "Remove it: its moving averages are not trained and would see a batch's padding.",
    "Functional": "Apply the inner model's layers one by one instead of nesting the model.",
    "LeakyReLU": "Use ReLU.",
    "PReLU": "Use ReLU.",
    "Sequential": "Add the inner model's layers one by one instead of nesting the model.",
    "SpatialDropout2D": "Use Dropout.",
}
_REGULARIZED: Final = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def operations_of_layer(reading: LayerReading) -> list[Operation]:
    """The operations, applied one after the other, that make up a layer.

    Raises:
        UnsupportedLayer: The layer, or an option of it, has no lowering; names the layer and what to use.
    """
    layer = reading.layer
    rule = _RULES.get(type(layer))
    if rule is None:
        supported = ", ".join(sorted(kind.__name__ for kind in _RULES))
        _refuse(layer, "has no lowering", _INSTEAD.get(type(layer).__name__, f"Supported layers: {supported}."))
    if layer.compute_dtype != "float32":
        _refuse(layer, f"computes in {layer.compute_dtype}", "Build the model in float32.")
    for option in _REGULARIZED:
        if getattr(layer, option, None) is not None:
            _refuse(layer, f"has a {option}", f"Build the layer without {option}: it is not part of the training step.")
    return rule(reading)


def _dense(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    product = Dense(kernel=reading.weight_position(layer.kernel))
    return [product, *_bias(reading), *_activation(layer)]


def _conv2d(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    _require_channels_last(layer)
    if layer.groups != 1:
        _refuse(layer, f"groups={layer.groups}", "Use groups=1.")
    convolution = Conv2D(
        kernel=reading.weight_position(layer.kernel),
        strides=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        padding=layer.padding,
    )
    return [convolution, *_bias(reading), *_activation(layer)]


def _max_pool(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    _require_channels_last(layer)
    return [MaxPool(window=tuple(layer.pool_size), strides=tuple(layer.strides), padding=layer.padding)]


def _average_pool(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    _require_channels_last(layer)
    return [AveragePool(window=tuple(layer.pool_size), strides=tuple(layer.strides), padding=layer.padding)]


def _global_average_pool(reading: LayerReading) -> list[Operation]:
    _require_channels_last(reading.layer)
    if not reading.layer.keepdims:
        return [GlobalAveragePool()]
    return [GlobalAveragePool(), Reshape()]


def _flatten(reading: LayerReading) -> list[Operation]:
    _require_channels_last(reading.layer)
    return [Reshape()]


def _relu(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        _refuse(layer, "max_value, negative_slope or threshold is set", "Use a plain ReLU().")
    return [Activation(name="relu")]


def _softmax(reading: LayerReading) -> list[Operation]:
    if reading.layer.axis != -1:
        _refuse(reading.layer, f"axis={reading.layer.axis}", "Use axis=-1.")
    return [Activation(name="softmax")]


def _dropout(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    if layer.noise_shape is not None or layer.seed is not None:
        _refuse(layer, "noise_shape or seed is set", "Leave both out: masks are drawn from dropout tickets.")
    if len(layer.inbound_nodes) > 1:
        _refuse(layer, "is used more than once", "Use one Dropout layer per place: each has masks of its own.")
    if not layer.rate:
        return []
    return [Dropout(index=reading.num_dropouts, rate=float(layer.rate), layer_name=layer.name)]


def _bias(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    return [Bias(bias=reading.weight_position(layer.bias))] if layer.use_bias else []


def _activation(layer: Any) -> list[Operation]:
    function = layer.activation
    name = getattr(function, "__name__", str(function))
    if function in (None, tf.keras.activations.linear):
        return []
    if name not in ACTIVATIONS or function is not getattr(tf.keras.activations, name):
        _refuse(layer, f"activation {name!r} has no lowering", f"Use one of: linear, {', '.join(sorted(ACTIVATIONS))}.")
    return [Activation(name=name)]


def _require_channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        _refuse(layer, f"data_format={layer.data_format!r}", "Use data_format='channels_last'.")


def _refuse(layer: Any, problem: str, instead: str) -> NoReturn:
    raise UnsupportedLayer(layer_name=layer.name, layer_type=type(layer).__name__, problem=problem, instead=instead)


_layers = tf.keras.layers
_RULES: Final[Mapping[type, _Rule]] = {
    _layers.Activation: lambda reading: _activation(reading.layer),
    _layers.Add: lambda _: [Add()],
    _layers.AveragePooling2D: _average_pool,
    _layers.Conv2D: _conv2d,
    _layers.Dense: _dense,
    _layers.Dropout: _dropout,
    _layers.Flatten: _flatten,
    _layers.GlobalAveragePooling2D: _global_average_pool,
    _layers.MaxPooling2D: _max_pool,
    _layers.ReLU: _relu,
    _layers.Reshape: lambda _: [Reshape()],
    _layers.Softmax: _softmax,
}
