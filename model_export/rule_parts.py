"""What the rules of all layers share: reading a layer, its bias and activation, and refusing it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from model_export.activation_functions import ACTIVATION_NAMES, TANH_GELU, operations_of_activation
from model_export.errors import UnsupportedLayer
from model_export.operations import Bias, Operation

__all__ = [
    "Fork",
    "LayerReading",
    "Rule",
    "activation_of",
    "bias_of",
    "pair_of",
    "refuse",
    "require_channels_last",
    "require_equal_ranks",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerReading:
    """What a rule may read: the layer, and where its weights stand in Keras order."""

    layer: Any
    weight_position: Callable[[Any], int]
    num_dropouts: int
    """Dropout layers met before this one."""
    input_shapes: tuple[tuple[int, ...], ...]
    """Shape of each input for one example."""
    reads_examples: bool
    """Whether its only input is the model's."""
    arguments: tuple[Any, ...] = ()
    """What the layer is called with; something that is no number stands for each of its inputs."""
    named_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_training: bool = True
    """False where the layer, or a model that holds it, is called with ``training=False``."""
    is_repeated: bool = False
    """Whether the layer was called before."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """Operations that read the same value beside one another; the operation that follows reads all their results."""

    branches: tuple[tuple[Operation, tuple[int, ...]], ...]
    """Each with the shape of its result for one example."""


Rule: TypeAlias = Callable[[LayerReading], Sequence[Operation | Fork]]
"""The operations of a layer, one after the other."""


def bias_of(reading: LayerReading) -> list[Operation]:
    """The addition of the layer's bias, if it has one."""
    layer = reading.layer
    return [Bias(bias=reading.weight_position(layer.bias))] if layer.use_bias else []


def activation_of(layer: Any) -> list[Operation]:
    """The layer's ``activation``: one of the functions of Keras and TensorFlow, or a layer."""
    function = layer.activation
    operations = operations_of_activation(function)
    if operations is None:
        name = getattr(function, "__name__", str(function))
        refuse(layer, f"activation {name!r} has no lowering", f"Use one of: {', '.join(ACTIVATION_NAMES)}. {TANH_GELU}")
    return operations


def require_channels_last(layer: Any) -> None:
    """Refuses ``channels_first``."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        refuse(layer, f"data_format={layer.data_format!r}", "Use data_format='channels_last'.")


def require_equal_ranks(reading: LayerReading) -> None:
    """Refuses a merge whose inputs would be broadcast along axes that one of them lacks."""
    if len({len(shape) for shape in reading.input_shapes}) > 1:
        refuse(reading.layer, "its inputs have different numbers of axes", "Put a Reshape layer before it.")


def pair_of(values: Any) -> tuple[int, int]:
    """Two numbers of a two-dimensional layer, or the one of a one-dimensional layer behind a 1."""
    numbers = tuple(values)
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def refuse(layer: Any, problem: str, instead: str) -> NoReturn:
    """Refuses a layer by name.

    Raises:
        UnsupportedLayer: Always.
    """
    raise UnsupportedLayer(layer_name=layer.name, layer_type=type(layer).__name__, problem=problem, instead=instead)
