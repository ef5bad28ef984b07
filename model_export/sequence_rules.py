"""Rules of layers for text and other sequences."""

from collections.abc import Mapping
from typing import Final

import tensorflow as tf

from model_export.layer_operations import Embedding
from model_export.operations import Operation
from model_export.rule_parts import LayerReading, Rule, refuse

__all__ = ["SEQUENCE_RULES"]

_MAX_TOKENS: Final = 2**24
_MAX_INPUT_AXES: Final = 2


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


SEQUENCE_RULES: Final[Mapping[type, Rule]] = {tf.keras.layers.Embedding: _embedding}
