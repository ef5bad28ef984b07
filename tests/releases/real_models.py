"""Real ``.tflite`` files with an ``infer`` signature: good ones, and every kind of bad one."""

import copy
import dataclasses

import numpy as np

__all__ = ["BadModels", "build_model", "crashing_model"]


@dataclasses.dataclass(frozen=True)
class BadModels:
    good: bytes
    nan: bytes
    wrong_shape: bytes
    slow: bytes
    crashing: bytes
    garbage: bytes = b"not a flatbuffer at all" * 100


def build_model(*, seed: int = 0, num_outputs: int = 10, scale: float = 1.0, work: int = 0) -> bytes:
    """softmax(x @ w), x [1, 64]; ``work`` more matrix products of 512 x 512 before the answer."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    kernel = tf.constant((rng.standard_normal((64, num_outputs)) * scale).astype(np.float32))
    heavy = tf.constant((rng.standard_normal((512, 512)) / 512).astype(np.float32))

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 64), tf.float32, name="x")])
        def infer(self, x):
            filler = tf.zeros((512, 512)) + x[0, 0]
            for _ in range(work):
                filler = tf.matmul(filler, heavy)
            extra = tf.reduce_sum(filler) * 0.0 if work else 0.0
            return {"output": tf.nn.softmax(tf.matmul(x, kernel)) + extra}

    module = Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.infer.get_concrete_function()], module)
    converter._experimental_lower_tensor_list_ops = False
    return _with_signature(converter.convert())


def _with_signature(model: bytes) -> bytes:
    """Names the signature ``infer``, as the freezer does."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    graph = parsed.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = b"infer"
    signature.subgraphIndex = 0
    signature.inputs = [_tensor_map(schema, b"x", int(graph.inputs[0]))]
    signature.outputs = [_tensor_map(schema, b"output", int(graph.outputs[0]))]
    parsed.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor_map(schema, name: bytes, index: int):
    found = schema.TensorMapT()
    found.name = name
    found.tensorIndex = index
    return found


def crashing_model(good: bytes) -> bytes:
    """A file that loads, and kills the interpreter's process: its only subgraph runs itself, without an end."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(good, 0))
    graph = parsed.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.IF
    code.deprecatedBuiltinCode = schema.BuiltinOperator.IF
    code.version = 1
    parsed.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(parsed.operatorCodes) - 1
    condition = schema.TensorT()
    condition.name, condition.type, condition.shape = b"always", schema.TensorType.BOOL, [1]
    yes = schema.BufferT()
    yes.data = [1]
    parsed.buffers.append(yes)
    condition.buffer = len(parsed.buffers) - 1
    graph.tensors.append(condition)
    operator.inputs = [len(graph.tensors) - 1, int(graph.inputs[0])]
    own = copy.copy(graph.tensors[int(graph.inputs[0])])
    own.name = b"its_own_output"
    own.buffer = 0
    graph.tensors.append(own)
    operator.outputs = [len(graph.tensors) - 1]
    operator.builtinOptionsType = schema.BuiltinOptions.IfOptions
    options = schema.IfOptionsT()
    options.thenSubgraphIndex = 0
    options.elseSubgraphIndex = 0
    operator.builtinOptions = options
    graph.operators.insert(0, operator)
    builder = flatbuffers.Builder(1024)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return bytes(builder.Output())
