"""Rules of layers for text and other sequences."""

from collections.abc import Mapping
from typing import Any, Final

import tensorflow as tf

from model_export.layer_operations import Attention, Embedding
from model_export.operations import Operation
from model_export.rule_parts import LayerReading, Rule, refuse

__all__ = ["ATTENTION_ARGUMENTS", "SEQUENCE_RULES", "attention_inputs"]

ATTENTION_ARGUMENTS: Final = frozenset({"query", "value", "key", "use_causal_mask"})
"""What an attention may be called with by name."""

_MAX_TOKENS: Final = 2**24
_MAX_INPUT_AXES: Final = 2
_MAX_POSITIONAL: Final = 3
_SEQUENCE_AXES: Final = 2
_KERNEL_RANK: Final = 3


def _embedding(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    if layer.mask_zero:
        refuse(layer, "mask_zero=True", "Use mask_zero=False, and sequences of one length: masks are not carried.")
    if not reading.reads_examples:
        refuse(layer, "does not read the model's input", "Make Embedding the first layer.")
    if len(reading.input_shapes[0]) > _MAX_INPUT_AXES:
        refuse(layer, f"reads {len(reading.input_shapes[0])} axes", "Use examples of one or two axes.")
    if not 1 <= layer.input_dim <= _MAX_TOKENS:
        refuse(layer, f"input_dim={layer.input_dim}", f"Use at most {_MAX_TOKENS} tokens: float32 holds no more apart.")
    return [Embedding(table=reading.weight_position(layer.embeddings), num_tokens=layer.input_dim)]


def attention_inputs(call: Any) -> list[Any]:
    """Query, value and key of a call of MultiHeadAttention; a key that is not given is the value."""
    given = {**dict(zip(("query", "value", "key"), call.args, strict=False)), **call.kwargs}
    key = given.get("key")
    return [given["query"], given["value"], given["value"] if key is None else key]


def _attention(reading: LayerReading) -> list[Operation]:
    layer = reading.layer
    _refuse_attention_options(reading)
    parts = [getattr(layer, f"_{name}_dense") for name in ("query", "key", "value", "output")]
    biases = tuple(reading.weight_position(part.bias) for part in parts) if layer._use_bias else ()  # noqa: SLF001
    query, key, value, output = (reading.weight_position(part.kernel) for part in parts)
    is_causal = bool(reading.named_arguments.get("use_causal_mask"))
    return [Attention(kernels=(query, key, value, output), biases=biases, is_causal=is_causal)]


def _refuse_attention_options(reading: LayerReading) -> None:
    layer = reading.layer
    options = layer.get_config()
    if any(argument is not None for argument in reading.arguments[_MAX_POSITIONAL:]):
        refuse(layer, "is called with an attention mask", "Leave it out, or use use_causal_mask=True.")
    if options["dropout"]:
        refuse(layer, f"dropout={options['dropout']}", "Put a Dropout layer after it.")
    if any(len(shape) != _SEQUENCE_AXES for shape in reading.input_shapes):
        refuse(
            layer, f"reads shapes {reading.input_shapes}", "Use sequences [length, channels]: put Reshape before it."
        )
    if {axis % (1 + _SEQUENCE_AXES) for axis in layer._attention_axes or (1,)} != {1}:  # noqa: SLF001 - Keras has no public name for it
        refuse(layer, f"attention_axes={options['attention_axes']}", "Leave it out: positions attend to positions.")
    if layer._output_dense.kernel.shape.rank != _KERNEL_RANK:  # noqa: SLF001 - Keras has no public name for it
        refuse(layer, f"output_shape={options['output_shape']}", "Use one number, and a Reshape layer after it.")
    given = sorted(name for name, value in options.items() if name.endswith(("regularizer", "constraint")) and value)
    if given:
        refuse(layer, f"has a {given[0]}", f"Build the layer without {given[0]}: it is not part of the training step.")


SEQUENCE_RULES: Final[Mapping[type, Rule]] = {
    tf.keras.layers.Embedding: _embedding,
    tf.keras.layers.MultiHeadAttention: _attention,
}
