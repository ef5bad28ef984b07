"""Rules of operators and functions that are applied to Keras tensors, such as ``x + y`` and ``tf.nn.relu(x)``.

Keras records each as a layer of a hidden class, with TensorFlow's name of the function. Arithmetic with numbers, merging and
activations are exported; the rest is refused with the layers that do the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf

from model_export.activation_functions import operations_of_function
from model_export.layer_operations import Affine, Concatenate, Merge
from model_export.operations import Activation, Add, Operation
from model_export.rule_parts import LayerReading, refuse, require_equal_ranks

__all__ = ["FUNCTION", "function_rule"]

FUNCTION: Final = "TFOpLambda"
"""The class that Keras gives such a layer."""

_ADVICE: Final = (
    "Exported are +, -, *, / with numbers, +, -, *, maximum and minimum of tensors, tf.concat and activations; for others"
    " use a layer."
)


_OF_TENSORS: Final[Mapping[str, Operation]] = {
    "__operators__.add": Add(),
    "math.add": Add(),
    "math.add_n": Add(),
    "math.maximum": Merge(kind="maximum"),
    "math.minimum": Merge(kind="minimum"),
    "math.multiply": Merge(kind="multiply"),
    "math.subtract": Merge(kind="subtract"),
}

_Operands: TypeAlias = Sequence[float | None]
"""Both operands of a function; ``None`` stands for the tensor."""


def _plus(operands: _Operands) -> Affine:
    return Affine(scale=1.0, offset=_constant(operands))


def _minus(operands: _Operands) -> Affine:
    is_subtrahend = operands[0] is not None
    return Affine(scale=-1.0 if is_subtrahend else 1.0, offset=_constant(operands) * (1.0 if is_subtrahend else -1.0))


def _over(operands: _Operands) -> Affine | None:
    return Affine(scale=1.0 / operands[1], offset=0.0) if operands[1] else None


def _constant(operands: _Operands) -> float:
    return next(operand for operand in operands if operand is not None)


_WITH_NUMBER: Final[Mapping[str, Callable[[_Operands], Affine | None]]] = {
    "__operators__.add": _plus,
    "math.add": _plus,
    "math.multiply": lambda operands: Affine(scale=_constant(operands), offset=0.0),
    "math.subtract": _minus,
    "math.truediv": _over,
}


def function_rule(reading: LayerReading) -> list[Operation]:
    """The operations of a function, from what it is and what it is called with.

    Raises:
        UnsupportedLayer: It has no lowering.
    """
    layer = reading.layer
    named = {name: value for name, value in reading.named_arguments.items() if name != "name" and value is not None}
    operands = tf.nest.flatten([*reading.arguments, *(named.pop(name) for name in ("x", "y") if name in named)])
    if layer.symbol == "concat":
        operation: Operation | None = _concatenation(reading, named)
    elif layer.symbol in _OF_TENSORS.keys() | _WITH_NUMBER.keys():
        operation = None if named else _arithmetic(reading, [_number(operand) for operand in operands])
    else:
        operation = _activation(layer.function, [*operands[1:], *named.values()])
    if operation is None:
        refuse(layer, f"{layer.symbol}, called as it is, has no lowering", _ADVICE)
    return [operation]


def _arithmetic(reading: LayerReading, operands: _Operands) -> Operation | None:
    symbol, num_tensors = reading.layer.symbol, len(reading.input_shapes)
    if num_tensors == len(operands):
        require_equal_ranks(reading)
        return _OF_TENSORS.get(symbol)
    is_pair = num_tensors == 1 and len(operands) == 2 and any(operand is not None for operand in operands)  # noqa: PLR2004 - a tensor and a number
    return _WITH_NUMBER[symbol](operands) if is_pair and symbol in _WITH_NUMBER else None


def _concatenation(reading: LayerReading, named: Mapping[str, Any]) -> Concatenate | None:
    values, axis = (
        (*reading.arguments, named.get("axis"))[:2] if "values" not in named else (named["values"], named["axis"])
    )
    axis = int(axis) % (1 + len(reading.input_shapes[0]))
    return Concatenate(axis=axis) if axis and len(tf.nest.flatten(values)) == len(reading.input_shapes) else None


def _activation(function: Any, options: Sequence[Any]) -> Activation | None:
    """An activation, with an option or none: gelu's form, leaky_relu's slope, softmax's axis."""
    operation = operations_of_function(function)
    if operation is None or not options:
        return operation
    match operation.name, options:
        case "gelu", [bool(is_approximate)]:
            return Activation(name="gelu_tanh") if is_approximate else operation
        case "leaky_relu", [float(slope)]:
            return Activation(name="leaky_relu", parameter=slope)
        case "softmax", [-1]:
            return operation
    return None


def _number(value: Any) -> float | None:
    """A constant that is one number; of anything else ``None``."""
    is_constant = isinstance(value, int | float | np.number) or (tf.is_tensor(value) and hasattr(value, "numpy"))
    return float(value) if is_constant and np.ndim(value) == 0 else None
