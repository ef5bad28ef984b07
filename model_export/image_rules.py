"""Rules of convolutions, pooling, padding and resizing, in one and two dimensions."""

from collections.abc import Mapping
from typing import Any, Final

import tensorflow as tf

from model_export.layer_operations import Conv2DTranspose, DepthwiseConv2D, GlobalMaxPool, Pad, UpSample
from model_export.operations import AveragePool, Conv2D, GlobalAveragePool, MaxPool, Operation, Reshape
from model_export.rule_parts import (
    LayerReading,
    Rule,
    activation_of,
    bias_of,
    pair_of,
    refuse,
    require_channels_last,
)

__all__ = ["IMAGE_RULES"]


def _convolution(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    before, padding = _padding_of(layer)
    if layer.groups != 1:
        refuse(layer, f"groups={layer.groups}", "Use groups=1.")
    convolution = Conv2D(
        kernel=reading.weight_position(layer.kernel),
        strides=pair_of(layer.strides),
        dilation=pair_of(layer.dilation_rate),
        padding=padding,
    )
    return [*before, convolution, *bias_of(reading), *activation_of(layer)]


def _depthwise(reading: LayerReading) -> list[Operation]:
    return [*_depthwise_operations(reading), *bias_of(reading), *activation_of(reading.layer)]


def _separable(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    pointwise = Conv2D(
        kernel=reading.weight_position(layer.pointwise_kernel), strides=(1, 1), dilation=(1, 1), padding="valid"
    )
    return [*_depthwise_operations(reading), pointwise, *bias_of(reading), *activation_of(layer)]


def _depthwise_operations(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    before, padding = _padding_of(layer)
    convolution = DepthwiseConv2D(
        kernel=reading.weight_position(layer.depthwise_kernel),
        strides=pair_of(layer.strides),
        dilation=pair_of(layer.dilation_rate),
        padding=padding,
    )
    return [*before, convolution]


def _transposed(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    require_channels_last(layer)
    if layer.output_padding is not None:
        refuse(layer, "output_padding is set", "Leave output_padding out, and pad the result with ZeroPadding.")
    if set(layer.dilation_rate) != {1}:
        refuse(layer, f"dilation_rate={layer.dilation_rate}", "Use dilation_rate=1.")
    convolution = Conv2DTranspose(
        kernel=reading.weight_position(layer.kernel), strides=pair_of(layer.strides), padding=layer.padding
    )
    return [convolution, *bias_of(reading), *activation_of(layer)]


def _padding_of(layer: Any) -> tuple[list[Operation], str]:
    """What pads before the convolution, and the convolution's own padding."""
    require_channels_last(layer)
    if layer.padding != "causal":
        return [], layer.padding
    # No step sees a later one: all of the padding is at the beginning.
    return [Pad(rows=(0, 0), cols=(layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0))], "valid"


def _max_pool(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    require_channels_last(layer)
    return [MaxPool(window=_pair(layer.pool_size), strides=_pair(layer.strides), padding=layer.padding)]


def _average_pool(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    require_channels_last(layer)
    return [AveragePool(window=_pair(layer.pool_size), strides=_pair(layer.strides), padding=layer.padding)]


def _pair(values: Any) -> tuple[int, int]:
    """As ``pair_of``, also for the bare number that a one-dimensional pool may hold."""
    return pair_of(values if isinstance(values, tuple | list) else (values,))


def _global_average_pool(reading: LayerReading) -> list[Operation]:
    require_channels_last(reading.layer)
    return [GlobalAveragePool(), *([Reshape()] if reading.layer.keepdims else [])]


def _global_max_pool(reading: LayerReading) -> list[Operation]:
    require_channels_last(reading.layer)
    return [GlobalMaxPool(), *([Reshape()] if reading.layer.keepdims else [])]


def _zero_padding(reading: LayerReading) -> list[Operation]:
    return [_pad(reading.layer, 1)]


def _cropping(reading: LayerReading) -> list[Operation]:
    cropping = reading.layer.cropping
    return [_pad(reading.layer, -1, cropping)]


def _pad(layer: Any, sign: int, amounts: Any = None) -> Pad:
    require_channels_last(layer)
    sides = layer.padding if amounts is None else amounts
    pairs = [tuple(sign * side for side in pair) for pair in (sides if isinstance(sides[0], tuple) else (sides,))]
    rows, cols = ((0, 0), pairs[0]) if len(pairs) == 1 else pairs
    return Pad(rows=(rows[0], rows[1]), cols=(cols[0], cols[1]))


def _up_sample(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    require_channels_last(layer)
    if getattr(layer, "interpolation", "nearest") != "nearest":
        refuse(layer, f"interpolation={layer.interpolation!r}", "Use interpolation='nearest', or Conv2DTranspose.")
    return [UpSample(size=_pair(layer.size))]


_layers = tf.keras.layers
IMAGE_RULES: Final[Mapping[type, Rule]] = {
    _layers.AveragePooling1D: _average_pool,
    _layers.AveragePooling2D: _average_pool,
    _layers.Conv1D: _convolution,
    _layers.Conv1DTranspose: _transposed,
    _layers.Conv2D: _convolution,
    _layers.Conv2DTranspose: _transposed,
    _layers.Cropping1D: _cropping,
    _layers.Cropping2D: _cropping,
    _layers.DepthwiseConv1D: _depthwise,
    _layers.DepthwiseConv2D: _depthwise,
    _layers.GlobalAveragePooling1D: _global_average_pool,
    _layers.GlobalAveragePooling2D: _global_average_pool,
    _layers.GlobalMaxPooling1D: _global_max_pool,
    _layers.GlobalMaxPooling2D: _global_max_pool,
    _layers.MaxPooling1D: _max_pool,
    _layers.MaxPooling2D: _max_pool,
    _layers.SeparableConv1D: _separable,
    _layers.SeparableConv2D: _separable,
    _layers.UpSampling1D: _up_sample,
    _layers.UpSampling2D: _up_sample,
    _layers.ZeroPadding1D: _zero_padding,
    _layers.ZeroPadding2D: _zero_padding,
}
