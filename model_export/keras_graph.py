"""Reads a Keras model into a ``ModelGraph``."""

import dataclasses
from typing import Any, Final

import numpy as np
import tensorflow as tf

from model_export.errors import UnsupportedModel
from model_export.function_rules import FUNCTION
from model_export.keras_calls import LayerCall, follow_calls
from model_export.keras_loss import check_ending, compiled_loss
from model_export.keras_weights import frozen_variables, moving_statistics, travelling_weights
from model_export.layer_operations import DepthwiseConv2D, GlobalMaxPool, Pad, UpSample
from model_export.layer_rules import SUPPORTED_LAYERS, LayerReading, operations_of_layer
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
from model_export.rule_parts import Fork, refuse
from model_export.sequence_rules import ATTENTION_ARGUMENTS, attention_inputs

__all__ = ["read_graph"]

_NOTHING_SAID: Final = (("training", False), ("return_attention_scores", False))
"""Arguments of calls that need no refusal: the first is honoured, the second is the default."""


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Result:
    """Stands for a Keras tensor while the calls are followed."""

    node: int


class _Reader:
    """Follows the calls of a Keras model; one use each."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._travelling, self._frozen = travelling_weights(model), frozen_variables(model)
        self._weights = [*self._travelling, *self._frozen]
        self._positions = {weight.ref(): index for index, weight in enumerate(self._weights)}
        self._nodes: list[Node] = []
        self._num_dropouts = 0
        self._called: dict[int, Any] = {}
        self._input_readers: list[Any] = []

    def read(self, loss: LossSpec) -> ModelGraph:
        """Reads the whole model."""
        self._append(Input(), (), self._model.inputs[0].shape[1:])
        last = follow_calls(self._model, [_Result(node=0)], self._read_call)[0].node
        self._check_input_readers()
        self._check_all_is_used(last)
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

    def _read_call(self, call: LayerCall) -> _Result:
        layer = call.layer
        sources = tuple(result.node for result in _inputs_of(call))
        reading = LayerReading(
            layer=layer,
            weight_position=lambda weight: self._positions[weight.ref()],
            num_dropouts=self._num_dropouts,
            input_shapes=tuple(self._nodes[source].shape for source in sources),
            reads_examples=sources == (0,),
            arguments=call.args,
            named_arguments=call.kwargs,
            is_training=call.is_training,
            is_repeated=id(layer) in self._called,
        )
        self._called[id(layer)] = layer
        if 0 in sources:
            self._input_readers.append(layer)
        operations = operations_of_layer(reading)
        output_shape = _output_shape(call, reading.input_shapes) if operations else ()
        for operation in operations:
            if isinstance(operation, Fork):
                sources = tuple(self._append(branch, sources, shape) for branch, shape in operation.branches)
                continue
            self._num_dropouts += isinstance(operation, Dropout)
            sources = (self._append(operation, sources, self._shape_after(operation, sources, output_shape)),)
        return _Result(node=sources[0])

    def _check_all_is_used(self, last: int) -> None:
        """A weight that no gradient reaches could not be trained."""
        read = {source for node in self._nodes for source in node.inputs}
        reached = {weight.ref() for layer in self._called.values() for weight in layer.weights}
        unused = [weight.name for weight in self._travelling if weight.ref() not in reached]
        if unused or read != set(range(len(self._nodes))) - {last}:
            what = unused[0] if unused else "an output of a model inside it"
            raise UnsupportedModel(f"{what} has no part in the model's output; leave out what is not used")

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

    def _shape_after(self, operation: Operation, sources: tuple[int, ...], output_shape: Any) -> Any:
        """Shape of an operation's result: its layer's, but for some that another operation follows."""
        before = self._nodes[sources[0]].shape
        match operation:
            case GlobalAveragePool() | GlobalMaxPool():
                return before[-1:]
            case Reshape(shape=shape) if shape is not None:
                return shape
            case DepthwiseConv2D(kernel=kernel):
                return (*output_shape[:-1], before[-1] * self._weights[kernel].shape[-1])
            case Pad(cols=(left, right)) if len(before) == 2:  # noqa: PLR2004 - a sequence; of a causal convolution
                return (before[0] + left + right, before[1])
            case UpSample(size=size) if len(before) == 3:  # noqa: PLR2004 - a RepeatVector's image
                return (before[0] * size[0], before[1] * size[1], before[2])
        return output_shape

    def _append(self, operation: Operation, sources: tuple[int, ...], shape: Any) -> int:
        dimensions = tuple(shape)
        if any(size is None for size in dimensions):
            raise UnsupportedModel(f"an example's shape is not fixed: {dimensions}; give the Input layer a full shape")
        self._nodes.append(Node(operation=operation, inputs=sources, shape=dimensions))
        return len(self._nodes) - 1


def _output_shape(call: LayerCall, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[int | None, ...]:
    """Of one example. A model made for inputs of any size knows the shapes inside it only once it is called."""
    shape = tuple(call.output.shape[1:])
    if None not in shape:
        return shape
    if type(call.layer).__name__ == FUNCTION:
        is_elementwise = call.layer.symbol != "concat"
        return tuple(np.broadcast_shapes(*input_shapes)) if is_elementwise else shape
    given = [(None, *shape) for shape in input_shapes]
    return tuple(call.layer.compute_output_shape(given[0] if len(given) == 1 else given))[1:]


def _inputs_of(call: LayerCall) -> list[_Result]:
    """What a layer is called on; of an attention query, value and key.

    Raises:
        UnsupportedLayer: More is said in the call than the export can honour.
    """
    layer = call.layer
    if type(layer) not in SUPPORTED_LAYERS:  # a function, or about to be refused
        return [value for value in tf.nest.flatten((call.args, dict(call.kwargs))) if isinstance(value, _Result)]
    is_attention = type(layer) is tf.keras.layers.MultiHeadAttention
    known = ATTENTION_ARGUMENTS if is_attention else frozenset()
    given = sorted(
        name
        for name, value in call.kwargs.items()
        if name not in known and value is not None and (name, value) not in _NOTHING_SAID
    )
    if given:
        refuse(layer, f"is called with {', '.join(given)}", "Call it on its input alone.")
    inputs: list[Any] = attention_inputs(call) if is_attention else tf.nest.flatten(call.args[:1])
    if (len(call.args) > 1 and not is_attention) or not all(isinstance(value, _Result) for value in inputs):
        refuse(layer, "is called with more than its input, or on a constant", "Call it on its input alone.")
    return inputs


def _check_whole_model(model: Any) -> None:
    if not isinstance(model, tf.keras.Model):
        raise UnsupportedModel(f"{type(model).__name__} is not a Keras model")
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise UnsupportedModel("the model is not a graph of layers of known shape; give it an InputLayer")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedModel(f"{len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each is supported")
