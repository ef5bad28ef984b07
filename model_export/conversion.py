"""From a ``TrainStep`` to the bytes of a ``.tflite`` file of builtin ops that holds no weights."""

import collections
import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import flatbuffers
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from model_export.errors import UnsupportedOp
from model_export.train_step import TrainStep

__all__ = ["convert", "count_ops", "quiet_tensorflow", "refuse_non_builtin_ops", "strip_initial_values"]

_FILE_IDENTIFIER = b"TFL3"
_OP_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def convert(step: TrainStep) -> bytes:
    """Converts a training step.

    Returns:
        A model file with the five signatures, of builtin ops only, without the variables' initial values.

    Raises:
        UnsupportedOp: An op has no TFLite builtin.
    """
    with tempfile.TemporaryDirectory() as directory, quiet_tensorflow():
        path = str(pathlib.Path(directory) / "saved_model")
        tf.saved_model.save(step, path, signatures=step.signatures())
        converter = tf.lite.TFLiteConverter.from_saved_model(path)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        # Unfolded, a product of two activations becomes FULLY_CONNECTED, which XNNPACK refuses (rule R1).
        converter.unfold_batchmatmul = False
        try:
            converted = converter.convert()
        except Exception as error:  # the converter raises several types, all meaning that an op has no builtin
            raise UnsupportedOp(f"the converter refused the training step: {error}") from error
    model = strip_initial_values(converted)
    refuse_non_builtin_ops(count_ops(model))
    return model


def strip_initial_values(model: bytes) -> bytes:
    """Removes the op that initialises the variables, and the values it reads.

    The file then holds the program only. LiteRT does not notice a missing ``restore``: before it, variables hold
    whatever was in memory, which ``train`` and ``evaluate`` turn into NaN and ``save`` hands out. Whoever runs the file
    must call ``restore`` first.
    """
    parsed = _parse(model)
    initialisers = set()
    for graph in parsed.subgraphs:
        for op in graph.operators:
            if _op_name(parsed, op) == "CALL_ONCE":
                initialisers.add(op.builtinOptions.initSubgraphIndex)
        graph.operators = [op for op in graph.operators if _op_name(parsed, op) != "CALL_ONCE"]
    still_read = {
        tensor.buffer
        for index, graph in enumerate(parsed.subgraphs)
        if index not in initialisers
        for tensor in graph.tensors
    }
    for index in initialisers:
        parsed.subgraphs[index].operators = []
        for tensor in parsed.subgraphs[index].tensors:
            if tensor.buffer not in still_read:
                parsed.buffers[tensor.buffer].data = None
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parsed.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def count_ops(model: bytes) -> dict[str, int]:
    """How often each op occurs in a model file, over all subgraphs; a custom op is named ``CUSTOM:<its name>``."""
    parsed = _parse(model)
    counts = collections.Counter(_op_name(parsed, op) for graph in parsed.subgraphs for op in graph.operators)
    return dict(sorted(counts.items()))


def refuse_non_builtin_ops(op_counts: Mapping[str, int]) -> None:
    """Refuses Flex (TensorFlow select) and custom ops.

    Raises:
        UnsupportedOp: There is one; names them all.
    """
    refused = [name for name in op_counts if name.startswith("CUSTOM:")]
    if refused:
        raise UnsupportedOp(f"the file holds ops that are not TFLite builtins: {', '.join(refused)}")


def _parse(model: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(model), 0))


def _op_name(parsed: Any, op: Any) -> str:
    code = parsed.operatorCodes[op.opcodeIndex]
    name: str = _OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM:{code.customCode.decode()}" if name == "CUSTOM" else name


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Holds back TensorFlow's notes on saving untraced functions; errors still pass."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
