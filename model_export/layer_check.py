"""Measures a row of ``layer_table``: its lowering, converted and run in LiteRT, against Keras."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from model_export.check_batches import draw_batch
from model_export.conversion import quiet_tensorflow
from model_export.file_ops import count_ops
from model_export.gradient_comparison import gradient_error, has_small_gradient
from model_export.keras_clone import FlatClone
from model_export.keras_graph import read_graph
from model_export.keras_weights import moving_statistics, travelling_weights
from model_export.layer_table import row_model
from model_export.lowering.forward import LoweredModel
from model_export.native_forward import native_logits
from model_export.operations import ModelGraph

__all__ = ["RowMeasurement", "measure_row"]

_BATCH_SIZE: Final = 3
_WEIGHT_SCALE: Final = 0.3
_Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RowMeasurement:
    """How far a row is from Keras.

    Each error is relative to the largest value of its tensor; see ``gradient_comparison`` for a gradient that is zero
    but for rounding.
    """

    output_error: float
    gradient_error: float
    """The largest over all weights, among them those before the tested layer."""
    native_error: float
    """Of the gradients of ``native_forward``, differentiated by TensorFlow."""
    op_counts: dict[str, int]
    """Ops of the forward and backward pass of the row's model."""
    num_partitions: int
    """Runs of ops that XNNPACK took; 1 where nothing between them was left to TFLite."""


def measure_row(name: str, *, seed: int = 0) -> RowMeasurement:
    """Measures one row.

    Args:
        name: A key of ``LAYER_ROWS``.
        seed: Of weights, examples and output gradients.
    """
    rng = np.random.default_rng(seed)
    model = row_model(name)
    variables = travelling_weights(model)
    weights = [(rng.standard_normal(w.shape) * _WEIGHT_SCALE).astype(np.float32) for w in variables]
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)
    graph = read_graph(model)
    x = draw_batch("random", graph, _BATCH_SIZE, rng).x
    dlogits = rng.standard_normal((_BATCH_SIZE, 3)).astype(np.float32)
    file = _convert(graph)
    got, num_partitions = _run(file, [x, dlogits, *weights])
    expected = _keras(model, x, dlogits)
    exact = _exact(model, x, dlogits) if has_small_gradient(_in_float64(expected[1:])) else None
    native = _native(graph, weights, x, dlogits)
    return RowMeasurement(
        output_error=_relative_error(got[:1], expected[:1]),
        gradient_error=_relative_error(got[1:], expected[1:], exact),
        native_error=max(_relative_error(native[:1], expected[:1]), _relative_error(native[1:], expected[1:], exact)),
        op_counts=count_ops(file),
        num_partitions=num_partitions,
    )


def _convert(graph: ModelGraph) -> bytes:
    """A file with one function: (x, dlogits, weights) to (logits, weight gradients)."""
    lowered = LoweredModel(graph, _BATCH_SIZE)

    def step(x: Any, dlogits: Any, *weights: Any) -> dict[str, Any]:
        stored = [_transposed(graph, index, weight) for index, weight in enumerate(weights)]
        run = lowered.forward(stored, x, None, tf.ones([_BATCH_SIZE]))
        gradients = run.weight_gradients(dlogits)
        of_keras = [
            tf.transpose(tf.reshape(g, g.shape[1:])) if i in graph.dense_kernels else g for i, g in enumerate(gradients)
        ]
        return {f"o{index:03d}": tensor for index, tensor in enumerate([run.logits, *of_keras])}

    function = tf.function(step, autograph=False)
    shapes = [[_BATCH_SIZE, *graph.input_shape], [_BATCH_SIZE, 3], *graph.weight_shapes]
    specs = [tf.TensorSpec(shape, tf.float32, f"i{index:03d}") for index, shape in enumerate(shapes)]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(*specs)], function)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.unfold_batchmatmul = False
    with quiet_tensorflow():
        file: bytes = converter.convert()
    return file


def _transposed(graph: ModelGraph, index: int, weight: Any) -> Any:
    return tf.reshape(tf.transpose(weight), [1, *weight.shape[::-1]]) if index in graph.dense_kernels else weight


def _run(file: bytes, inputs: Sequence[_Array]) -> tuple[list[_Array], int]:
    """The outputs in order, and into how many parts XNNPACK took the graph."""
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[int(detail["name"][1:])])
    interpreter.invoke()
    # The converter names them Identity, Identity_1, Identity_2 and so on.
    details = sorted(interpreter.get_output_details(), key=lambda detail: int(detail["name"].partition("_")[2] or 0))
    ops = [op["op_name"] for op in interpreter._get_ops_details()]  # noqa: SLF001 - there is no public list
    return [interpreter.get_tensor(detail["index"]) for detail in details], ops.count("DELEGATE")


def _keras(model: Any, x: _Array, dlogits: _Array) -> list[_Array]:
    statistics = moving_statistics(model)
    before = [statistic.numpy() for statistic in statistics]
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
    gradients = tape.gradient(logits, model.trainable_weights, output_gradients=tf.constant(dlogits))
    falls = [old - statistic.numpy() for old, statistic in zip(before, statistics, strict=True)]
    return [logits.numpy(), *(tf.convert_to_tensor(gradient).numpy() for gradient in gradients), *falls]


def _exact(model: Any, x: _Array, dlogits: _Array) -> list[npt.NDArray[np.float64]]:
    """Keras's gradients in float64, of the trainable weights alone."""
    exact = FlatClone(model, "float64")
    with tf.GradientTape() as tape:
        logits = exact.model(tf.constant(x, tf.float64), training=True)
    output_gradients = tf.constant(dlogits, tf.float64)
    gradients = tape.gradient(logits, exact.of(model.trainable_weights), output_gradients=output_gradients)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def _native(graph: ModelGraph, weights: Sequence[_Array], x: _Array, dlogits: _Array) -> list[_Array]:
    watched = [tf.constant(weight) for weight in weights]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        logits = native_logits(graph, watched, tf.constant(x), None, training=True)
    gradients = tape.gradient(logits, watched, output_gradients=tf.constant(dlogits))
    return [logits.numpy(), *(gradient.numpy() for gradient in gradients)]


def _relative_error(
    got: Sequence[_Array], expected: Sequence[_Array], exact: list[npt.NDArray[np.float64]] | None = None
) -> float:
    """``gradient_error``; infinity if anything is not finite or of another shape."""
    if exact is not None and len(exact) < len(expected):
        # What follows are moving statistics, which have no exact gradient.
        count = len(exact)
        return max(
            _relative_error(got[:count], expected[:count], exact), _relative_error(got[count:], expected[count:])
        )
    if [a.shape for a in got] != [b.shape for b in expected] or not all(np.isfinite(a).all() for a in got):
        return math.inf
    return gradient_error(_in_float64(got), _in_float64(expected), exact)


def _in_float64(arrays: Sequence[_Array]) -> list[npt.NDArray[np.float64]]:
    return [array.astype(np.float64) for array in arrays]
