"""Which activations can be exported: functions of Keras and TensorFlow, and layers that stand for one."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import tensorflow as tf

from model_export.operations import Activation, Operation

__all__ = ["ACTIVATION_NAMES", "TANH_GELU", "operations_of_activation", "operations_of_function"]

ACTIVATION_NAMES: Final = (
    "linear", "elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "mish", "relu", "relu6", "selu", "sigmoid",
    "softmax", "softplus", "softsign", "swish", "tanh",
)  # fmt: skip
"""What a Keras layer's ``activation`` may be called."""

TANH_GELU: Final = (
    "For the tanh form of gelu call tf.keras.activations.gelu(x, approximate=True) on the layer's output."
)

_DEFAULT_SLOPE: Final = 0.2
"""Of ``tf.nn.leaky_relu``, which Keras takes for "leaky_relu"."""

_relu6: Final = Activation(name="capped_relu", parameter=6.0)
_nn: Final = tf.nn
_FUNCTIONS: Final[tuple[tuple[Callable[..., Any], Activation], ...]] = (
    *(
        (getattr(tf.keras.activations, name), Activation(name=name))
        for name in ACTIVATION_NAMES
        if name not in ("linear", "leaky_relu", "relu6")
    ),
    (_nn.elu, Activation(name="elu")),
    (tf.exp, Activation(name="exponential")),
    (_nn.gelu, Activation(name="gelu")),
    (_nn.leaky_relu, Activation(name="leaky_relu", parameter=_DEFAULT_SLOPE)),
    (_nn.relu, Activation(name="relu")),
    (_nn.relu6, _relu6),
    (_nn.selu, Activation(name="selu")),
    (tf.sigmoid, Activation(name="sigmoid")),
    (_nn.silu, Activation(name="swish")),
    (_nn.softmax, Activation(name="softmax")),
    (tf.math.softplus, Activation(name="softplus")),
    (_nn.softsign, Activation(name="softsign")),
    (tf.tanh, Activation(name="tanh")),
)


def operations_of_activation(activation: Any) -> list[Operation] | None:
    """The operations of a layer's ``activation``, or of an activation layer.

    Args:
        activation: ``None``, a function, or a ReLU, LeakyReLU or ELU layer.

    Returns:
        None or one; ``None`` if there is no lowering.
    """
    if activation in (None, tf.keras.activations.linear):
        return []
    of_layer = _LAYERS.get(type(activation))
    known = of_layer(activation) if of_layer else operations_of_function(activation)
    return None if known is None else [known]


def operations_of_function(function: Any) -> Activation | None:
    """The operation of a function, by the function itself: one that only bears its name is not taken for it."""
    return next((operation for known, operation in _FUNCTIONS if known is function), None)


def _relu(layer: Any) -> Activation | None:
    if layer.threshold or (layer.max_value is not None and layer.negative_slope):
        return None
    if layer.max_value is not None:
        return Activation(name="capped_relu", parameter=float(layer.max_value))
    return _leaky(layer.negative_slope) if layer.negative_slope else Activation(name="relu")


def _leaky(slope: Any) -> Activation:
    return Activation(name="leaky_relu", parameter=float(slope))


_LAYERS: Final[Mapping[type, Callable[[Any], Activation | None]]] = {
    tf.keras.layers.ELU: lambda layer: Activation(name="scaled_elu", parameter=float(layer.alpha)),
    tf.keras.layers.LeakyReLU: lambda layer: _leaky(layer.alpha),
    tf.keras.layers.ReLU: _relu,
}
