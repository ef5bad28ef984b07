"""A model with its weights as constants, for inference alone: as float32, and quantised to int8.

Built from TensorFlow's own ops, not from the lowerings of training: a convolution with a constant kernel is CONV_2D,
the op that TFLite's kernels and its quantiser are made for.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.conversion import quiet_tensorflow, refuse_non_builtin_ops
from model_export.errors import FreezingRefused, UnsupportedOp
from model_export.file_ops import count_ops
from model_export.layer_operations import DepthwiseConv2D
from model_export.native_forward import native_logits
from model_export.native_layers import NATIVE_LAYERS, native_activation, on_image
from model_export.operations import Activation, ModelGraph
from wire_protocol import model_contract as contract

__all__ = ["FrozenModel"]


class FrozenModel:
    """Converts a graph with given weights.

    Args:
        graph: The model.
        weights: The travelling ones, in the plan's order and Keras's layout.
        batch_size: Examples per call of the files.
    """

    def __init__(self, graph: ModelGraph, weights: Sequence[npt.NDArray[np.float32]], batch_size: int) -> None:
        self._graph = graph
        self._weights = weights
        self._batch_size = batch_size

    def as_float(self) -> bytes:
        """A ``.tflite`` of builtin ops with one signature, ``infer``: ``x`` float32 [B, ...] -> ``output``.

        Raises:
            UnsupportedOp: An op has no TFLite builtin.
        """
        return self._convert(_as_it_is)

    def with_int8_weights(self) -> bytes:
        """The same with int8 weights (those of 1,024 numbers and more); everything else stays float32.

        Raises:
            UnsupportedOp: An op has no TFLite builtin.
        """
        return self._convert(_quantise_weights)

    def as_int8(self, examples: npt.NDArray[np.float32]) -> bytes:
        """The same, quantised as a whole: weights, input, output, and the values of all ops that can be are int8.

        Args:
            examples: [n, ...] typical inputs, which the ranges of all values are read from.

        Raises:
            FreezingRefused: The model cannot be quantised.
        """
        if self._graph.num_tokens:
            raise FreezingRefused("inputs are token numbers, which int8 cannot hold: use --int8 weights")

        def quantise(converter: Any) -> None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: self._batches(examples)
            converter.inference_input_type = converter.inference_output_type = tf.int8

        try:
            return self._convert(quantise)
        except UnsupportedOp as error:
            raise FreezingRefused(f"the model cannot be quantised as a whole: use --int8 weights ({error})") from error

    def _convert(self, configure: Callable[[Any], None]) -> bytes:
        module = tf.Module()
        spec = tf.TensorSpec([self._batch_size, *self._graph.input_shape], tf.float32, contract.X)
        signature = tf.function(self._infer, autograph=False).get_concrete_function(**{contract.X: spec})
        with tempfile.TemporaryDirectory() as directory, quiet_tensorflow():
            path = str(pathlib.Path(directory) / "saved_model")
            tf.saved_model.save(module, path, signatures={contract.INFER: signature})
            converter = tf.lite.TFLiteConverter.from_saved_model(path)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            converter.exclude_conversion_metadata = True
            configure(converter)
            try:
                model: bytes = converter.convert()
            except Exception as error:  # the converter raises several types, all meaning that an op has no builtin
                raise UnsupportedOp(f"the converter refused the model: {error}") from error
        refuse_non_builtin_ops(count_ops(model))
        return model

    def _infer(self, x: Any) -> dict[str, Any]:
        weights = [tf.constant(weight) for weight in self._weights]
        output = native_logits(self._graph, weights, x, None, layers=_LAYERS)
        if self._graph.output_activation is not None:
            output = native_activation(self._graph.output_activation, 0.0)(output)
        return {contract.OUTPUT: tf.reshape(output, [self._batch_size, self._graph.num_classes])}

    def _batches(self, examples: npt.NDArray[np.float32]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(examples), self._batch_size):
            # The last batch is filled up with the examples at hand.
            rows = np.arange(start, start + self._batch_size) % len(examples)
            yield {contract.X: examples[rows]}


def _as_it_is(_: Any) -> None:
    """Leaves a converter as it is."""


def _quantise_weights(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _depthwise(operation: DepthwiseConv2D, inputs: Sequence[Any], weights: Sequence[Any]) -> Any:
    """DEPTHWISE_CONV_2D where TensorFlow has it: with equal strides."""
    rows, cols = operation.strides
    if rows != cols or (rows != 1 and operation.dilation != (1, 1)):
        return NATIVE_LAYERS[DepthwiseConv2D](operation, inputs, weights)
    strides, padding = (1, rows, cols, 1), operation.padding.upper()
    return on_image(
        lambda x, kernel: tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=operation.dilation),
        inputs[0],
        weights[operation.kernel],
    )


def _activation(operation: Activation, inputs: Sequence[Any], _: Sequence[Any]) -> Any:
    """TensorFlow's own, but for softsign, which has no builtin."""
    if operation.name == "softsign":
        return inputs[0] / (1.0 + tf.abs(inputs[0]))
    return native_activation(operation.name, operation.parameter)(inputs[0])


_LAYERS: Final[Mapping[type, Callable[[Any, Sequence[Any], Sequence[Any]], Any]]] = {
    **NATIVE_LAYERS,
    Activation: _activation,
    DepthwiseConv2D: _depthwise,
}
