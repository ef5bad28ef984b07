"""What is read from a model file, and what conversion leaves out of it."""

import collections

import pytest
from ai_edge_litert import schema_py_generated as schema

from model_export.conversion import strip_initial_values
from model_export.file_ops import count_ops, op_versions

pytestmark = pytest.mark.tensorflow


def parsed(model):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(model), 0))


def test_the_counts_are_those_of_the_decoded_file_and_every_op_has_a_version(cnn_export):
    model = cnn_export.bundle.model
    root = parsed(model)
    assert sum(count_ops(model).values()) == sum(len(graph.operators) for graph in root.subgraphs)
    versions = op_versions(model)
    assert set(versions) == set(count_ops(model))
    assert all(version >= 1 for version in versions.values())
    assert versions["BATCH_MATMUL"] == max(
        code.version for code in root.operatorCodes if code.builtinCode == schema.BuiltinOperator.BATCH_MATMUL
    )


def test_equal_constants_are_kept_once_and_nothing_unused_is_kept(cnn_export):
    root = parsed(cnn_export.bundle.model)
    used = {tensor.buffer for graph in root.subgraphs for tensor in graph.tensors}
    public = {graph.tensors[i].buffer for graph in root.subgraphs for i in (*graph.inputs, *graph.outputs)}
    contents = collections.Counter(
        bytes(root.buffers[index].data)
        for index in used - public
        if root.buffers[index].data is not None and len(root.buffers[index].data)
    )
    assert contents
    assert max(contents.values()) == 1


def test_stripping_a_stripped_file_changes_nothing(cnn_export):
    model = cnn_export.bundle.model
    assert strip_initial_values(model) == model


def test_what_xnnpack_refuses_is_left_to_integers_and_small_tensors(mnist_export):
    refused = {"ARG_MAX", "ADD_N", "BROADCAST_TO", "EQUAL", "FULLY_CONNECTED", "GATHER", "GREATER", "GREATER_EQUAL", "ONE_HOT",
               "PADV2", "SELECT", "SELECT_V2"}  # fmt: skip
    assert not refused & set(count_ops(mnist_export.bundle.model))
    root = parsed(mnist_export.bundle.model)
    sizes = [
        graph.tensors[output].shape
        for graph in root.subgraphs
        for op in graph.operators
        if root.operatorCodes[op.opcodeIndex].builtinCode
        in (schema.BuiltinOperator.BITWISE_XOR, schema.BuiltinOperator.RIGHT_SHIFT, schema.BuiltinOperator.CAST)
        for output in op.outputs
    ]
    # The dropout hash runs over rows of its table, not over all 9216 units.
    assert sizes
    assert max(int(shape[-1]) for shape in sizes if len(shape)) < 1000
