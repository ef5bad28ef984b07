"""A Keras model as calls of its layers, one after the other, with the models inside it opened.

A ``Model`` or ``Sequential`` that is used as a layer is followed into: what comes out are the calls of plain layers, as if
they had been applied one by one. The values that pass between them are the caller's: numbers of nodes where a model is
read, Keras tensors where it is built anew.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import tensorflow as tf

from model_export.rule_parts import refuse

__all__ = ["LayerCall", "follow_calls", "layers_of"]

_Value = TypeVar("_Value")
_OFF: Final = ("training", False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerCall:
    """One call of a layer."""

    layer: Any
    args: tuple[Any, ...]
    """As the layer was called, with values in place of Keras tensors."""
    kwargs: Mapping[str, Any]
    output: Any
    """The Keras tensor that the call gave, or the first of several."""
    is_training: bool
    """False where ``training=False`` was said, to this layer or to a model that holds it."""


def follow_calls(
    model: Any, inputs: Sequence[_Value], apply: Callable[[LayerCall], _Value], *, is_training: bool = True
) -> list[_Value]:
    """Applies a function to every call that leads to a model's outputs, in order.

    Args:
        model: A model of known layers.
        inputs: Values in place of its inputs.
        apply: Gives the value of a call.
        is_training: Whether the model itself is called in training.

    Returns:
        The values of its outputs.

    Raises:
        UnsupportedLayer: A model inside it is called in a way that cannot be followed.
    """
    values: dict[str, list[_Value]] = {}

    def keep(tensor: Any, value: _Value) -> None:
        # Keras takes a value from the list each time that it is read.
        values[str(id(tensor))] = [value] * model._tensor_usage_count[str(id(tensor))]  # noqa: SLF001 - no public name

    for tensor, value in zip(model.inputs, inputs, strict=True):
        keep(tensor, value)
    for node in _nodes_of(model):
        args, kwargs = node.map_arguments(values)
        outputs = tf.nest.flatten(node.outputs)
        call = LayerCall(
            layer=node.layer,
            args=tuple(args),
            kwargs=kwargs,
            output=outputs[0],
            is_training=is_training and not _is_without_training(node),
        )
        given = _open(call, apply) if isinstance(node.layer, tf.keras.Model) else [apply(call)] * len(outputs)
        for tensor, value in zip(outputs, given, strict=True):
            keep(tensor, value)
    return [values[str(id(tensor))].pop() for tensor in model.outputs]


def layers_of(model: Any, *, is_training: bool = True) -> Iterator[tuple[Any, bool]]:
    """The layer of every call, and whether it is called in training."""
    for node in _nodes_of(model):
        mode = is_training and not _is_without_training(node)
        if type(node.layer) in _plain_models():
            yield from layers_of(node.layer, is_training=mode)
        else:
            yield node.layer, mode


def _nodes_of(model: Any) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):  # noqa: SLF001 - Keras 2 has no public name for it
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)  # noqa: SLF001 - as above


def _is_without_training(node: Any) -> bool:
    return node.call_kwargs.get("training") is False


def _open(call: LayerCall, apply: Callable[[LayerCall], _Value]) -> list[_Value]:
    inner = call.layer
    if type(inner) not in _plain_models() or not getattr(inner, "inputs", None):
        refuse(
            inner, "is a model with code of its own", "Build it as a functional or Sequential model of exported layers."
        )
    given = sorted(name for name, value in call.kwargs.items() if value is not None and (name, value) != _OFF)
    if len(call.args) != 1 or isinstance(call.args[0], dict) or given:
        what = ", ".join(given) or "more than a list of its inputs"
        refuse(inner, f"is called with {what}", "Call it on its inputs, and with training=False or nothing.")
    return follow_calls(inner, tf.nest.flatten(call.args[0]), apply, is_training=call.is_training)


@functools.cache
def _plain_models() -> tuple[type, ...]:
    """The exact classes whose layers are all there is to them; a subclass may do anything.

    Asked for when it is needed: the first one has no public name, and building one settles TensorFlow's threads.
    """
    return type(tf.keras.Model(*2 * [tf.keras.Input(())])), tf.keras.Sequential
