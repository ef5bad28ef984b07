"""Reads a Keras model into a ``ModelGraph``."""

from typing import Any

import tensorflow as tf

from model_export.errors import UnsupportedModel
from model_export.keras_loss import check_ending, compiled_loss
from model_export.keras_weights import frozen_variables, moving_statistics, travelling_weights
from model_export.layer_operations import DepthwiseConv2D, GlobalMaxPool, UpSample
from model_export.layer_rules import LayerReading, operations_of_layer
from model_export.loss_spec import LossSpec
from model_export.operations import (
    Activation,
    Dropout,
    GlobalAveragePool,
    Input,
    ModelGraph,
    Node,
    Operation,
    Reshape,
)
from model_export.rule_parts import refuse
from model_export.sequence_rules import ATTENTION_ARGUMENTS, attention_inputs

__all__ = ["read_graph"]


def read_graph(model: Any, loss: LossSpec | None = None) -> ModelGraph:
    """Reads a Sequential or functional model.

    Args:
        model: A built ``tf.keras.Model`` of one input and one output [batch, num_classes].
        loss: What to train it on; if not given, what it was compiled with, or else sparse categorical cross-entropy.

    Raises:
        UnsupportedModel: Not such a model, or its loss is not supported or does not fit its output.
        UnsupportedLayer: A layer has no lowering.
    """
    _check_whole_model(model)
    compiled = compiled_loss(model) if loss is None else None
    spec, from_logits = compiled or (loss or LossSpec(), None)
    graph = _Reader(model).read(spec)
    _check_output(graph, is_default=loss is None and compiled is None)
    if not graph.num_trainable:
        raise UnsupportedModel("the model has no weights to train")
    check_ending(graph, from_logits=from_logits)
    return graph


def _check_output(graph: ModelGraph, *, is_default: bool) -> None:
    shape = graph.nodes[-1].shape
    if len(shape) != 1:
        raise UnsupportedModel(f"the model's output for one example has shape {shape}; expected (num_classes,)")
    if graph.loss.is_of_classes and shape[0] < 2:  # noqa: PLR2004 - a classifier has at least two classes
        remedy = "; name its loss (--loss) or compile the model with it" if is_default else ""
        raise UnsupportedModel(f"the model has one output; {graph.loss.name} needs one for each class{remedy}")


class _Reader:
    """Walks the Keras graph from its output; one use each."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._travelling, self._frozen = travelling_weights(model), frozen_variables(model)
        self._weights = [*self._travelling, *self._frozen]
        self._positions = {weight.ref(): index for index, weight in enumerate(self._weights)}
        self._nodes: list[Node] = []
        self._node_of_tensor: dict[tuple[int, int], int] = {}
        self._num_dropouts = 0
        self._input_readers: list[Any] = []

    def read(self, loss: LossSpec) -> ModelGraph:
        """Reads the whole model."""
        source = self._model.inputs[0]
        self._append(Input(), (), source.shape[1:])
        self._node_of_tensor[_key(source)] = 0
        last = self._visit(self._model.outputs[0])
        self._check_input_readers()
        ends_in = self._nodes[last].operation
        is_unread = isinstance(ends_in, Activation) and ends_in.name == loss.logit_activation
        return ModelGraph(
            nodes=tuple(self._nodes),
            logits=self._nodes[last].inputs[0] if is_unread else last,
            loss=loss,
            weight_shapes=tuple(tuple(weight.shape.as_list()) for weight in self._travelling),
            weight_names=tuple(weight.name for weight in self._travelling),
            num_statistics=len(moving_statistics(self._model)),
            frozen_weights=tuple(weight.numpy() for weight in self._frozen),
        )

    def _visit(self, tensor: Any) -> int:
        """The node of a Keras tensor; reads what lies before it first."""
        key = _key(tensor)
        if key not in self._node_of_tensor:
            layer, call_index, _ = tensor._keras_history  # noqa: SLF001 - Keras 2's only link from tensor to layer
            call = layer.inbound_nodes[call_index]
            _refuse_call_arguments(layer)
            sources = tuple(self._visit(source) for source in _inputs_of(layer, call))
            self._node_of_tensor[key] = self._read_layer(layer, sources, call)
        return self._node_of_tensor[key]

    def _read_layer(self, layer: Any, sources: tuple[int, ...], call: Any) -> int:
        reading = LayerReading(
            layer=layer,
            weight_position=lambda weight: self._positions[weight.ref()],
            num_dropouts=self._num_dropouts,
            input_shapes=tuple(self._nodes[source].shape for source in sources),
            reads_examples=sources == (0,),
            call_arguments=call.call_kwargs,
        )
        if 0 in sources:
            self._input_readers.append(layer)
        for operation in operations_of_layer(reading):
            self._num_dropouts += isinstance(operation, Dropout)
            sources = (self._append(operation, sources, self._shape_after(operation, sources, call.outputs)),)
        return sources[0]

    def _check_input_readers(self) -> None:
        """Inputs are token numbers for all that read them, or for none."""
        are_tokens = [type(layer) is tf.keras.layers.Embedding for layer in self._input_readers]
        if any(are_tokens) and not all(are_tokens):
            other = self._input_readers[are_tokens.index(False)]
            refuse(other, "reads token numbers, as an Embedding does", "Put an Embedding layer before it.")
        dtype = self._model.inputs[0].dtype
        if dtype != tf.float32 and not (any(are_tokens) and dtype.is_integer):
            raise UnsupportedModel(
                f"the input is {dtype.name}; only float32 is supported, and integers that an Embedding reads"
            )

    def _shape_after(self, operation: Operation, sources: tuple[int, ...], output: Any) -> Any:
        """Shape of an operation's result: its layer's, but for some that another operation follows."""
        before = self._nodes[sources[0]].shape
        match operation:
            case GlobalAveragePool() | GlobalMaxPool():
                return before[-1:]
            case Reshape(shape=shape) if shape is not None:
                return shape
            case DepthwiseConv2D(kernel=kernel):
                return (*output.shape[1:-1], before[-1] * self._weights[kernel].shape[-1])
            case UpSample(size=size) if len(before) == 3:  # noqa: PLR2004 - a RepeatVector's image
                return (before[0] * size[0], before[1] * size[1], before[2])
        return output.shape[1:]

    def _append(self, operation: Operation, sources: tuple[int, ...], shape: Any) -> int:
        dimensions = tuple(shape)
        if any(size is None for size in dimensions):
            raise UnsupportedModel(f"an example's shape is not fixed: {dimensions}; give the Input layer a full shape")
        self._nodes.append(Node(operation=operation, inputs=sources, shape=dimensions))
        return len(self._nodes) - 1


def _key(tensor: Any) -> tuple[int, int]:
    layer, call_index, _ = tensor._keras_history  # noqa: SLF001 - Keras 2's only link from tensor to layer
    return id(layer), call_index


def _inputs_of(layer: Any, call: Any) -> list[Any]:
    """The tensors that a layer is called on; of an attention query, value and key."""
    if type(layer) is tf.keras.layers.MultiHeadAttention:
        return attention_inputs(call)
    inputs: list[Any] = tf.nest.flatten(call.input_tensors)
    return inputs


def _refuse_call_arguments(layer: Any) -> None:
    """A mask or ``training=True`` given in the call would be lost."""
    known = ATTENTION_ARGUMENTS if type(layer) is tf.keras.layers.MultiHeadAttention else frozenset()
    for node in layer.inbound_nodes:
        given = sorted(
            name
            for name, value in node.call_kwargs.items()
            if name not in known and value is not None and (name, value) != ("return_attention_scores", False)
        )
        if given:
            refuse(layer, f"is called with {', '.join(given)}", "Call it on its input alone.")


def _check_whole_model(model: Any) -> None:
    if not isinstance(model, tf.keras.Model):
        raise UnsupportedModel(f"{type(model).__name__} is not a Keras model")
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise UnsupportedModel("the model is not a graph of layers of known shape; give it an InputLayer")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedModel(f"{len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each is supported")
