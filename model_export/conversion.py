"""From a ``TrainStep`` to the bytes of a ``.tflite`` file of builtin ops that holds no weights."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flatbuffers
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from model_export.errors import UnsupportedOp
from model_export.file_ops import FILE_IDENTIFIER, count_ops, op_name
from model_export.train_step import TrainStep
from wire_protocol.model_contract import SIGNATURES

__all__ = ["convert", "quiet_tensorflow", "refuse_non_builtin_ops", "strip_initial_values"]


def convert(step: TrainStep, *, signatures: Sequence[str] = SIGNATURES) -> bytes:
    """Converts a training step.

    Args:
        step: What to convert.
        signatures: Those of the file.

    Returns:
        A model file of builtin ops only, without the variables' initial values.

    Raises:
        UnsupportedOp: An op has no TFLite builtin.
    """
    with tempfile.TemporaryDirectory() as directory, quiet_tensorflow():
        path = str(pathlib.Path(directory) / "saved_model")
        tf.saved_model.save(step, path, signatures=step.signatures(signatures))
        converter = tf.lite.TFLiteConverter.from_saved_model(path)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        # Unfolded, a product of two activations becomes FULLY_CONNECTED, which XNNPACK refuses (rule R1).
        converter.unfold_batchmatmul = False
        converter.exclude_conversion_metadata = True  # the certificate says as much, and it costs another decoding
        # The converter's last pass decodes the file three times in Python, only to share equal constants: a fifth of
        # an export. strip_initial_values decodes it once for both.
        converter._optimize_tflite_model = lambda model, *_, **__: model  # noqa: SLF001 - no option turns it off
        try:
            converted = converter.convert()
        except Exception as error:  # the converter raises several types, all meaning that an op has no builtin
            raise UnsupportedOp(f"the converter refused the training step: {error}") from error
    model = strip_initial_values(converted)
    refuse_non_builtin_ops(count_ops(model))
    return model


def strip_initial_values(model: bytes) -> bytes:
    """Removes the op that initialises the variables and the values it reads, and keeps equal constants once.

    The file then holds the program only. LiteRT does not notice a missing ``restore``: before it, variables hold
    whatever was in memory, which ``train`` and ``evaluate`` turn into NaN and ``save`` hands out. Whoever runs the file
    must call ``restore`` first.
    """
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(model), 0))
    names = [op_name(code) for code in parsed.operatorCodes]
    initialisers = set()
    for graph in parsed.subgraphs:
        for op in graph.operators:
            if names[op.opcodeIndex] == "CALL_ONCE":
                initialisers.add(op.builtinOptions.initSubgraphIndex)
        graph.operators = [op for op in graph.operators if names[op.opcodeIndex] != "CALL_ONCE"]
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
    _share_equal_constants(parsed)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parsed.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def _share_equal_constants(parsed: Any) -> None:
    """Points tensors of equal contents to one buffer; but for a signature's own inputs and outputs."""
    first: dict[bytes, int] = {}
    for graph in parsed.subgraphs:
        public = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            data = parsed.buffers[tensor.buffer].data
            if index in public or data is None or not len(data):
                continue
            tensor.buffer = first.setdefault(bytes(data), tensor.buffer)
    used = {tensor.buffer for graph in parsed.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in parsed.metadata or ()}
    for index, buffer in enumerate(parsed.buffers):
        if index not in used:
            buffer.data = None


def refuse_non_builtin_ops(op_counts: Mapping[str, int]) -> None:
    """Refuses Flex (TensorFlow select) and custom ops.

    Raises:
        UnsupportedOp: There is one; names them all.
    """
    refused = [name for name in op_counts if name.startswith("CUSTOM:")]
    if refused:
        raise UnsupportedOp(f"the file holds ops that are not TFLite builtins: {', '.join(refused)}")


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
