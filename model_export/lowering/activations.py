"""Activations and their gradients."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor, positive_mask

__all__ = ["ACTIVATIONS", "PARAMETRIC", "relu", "sigmoid", "softmax", "tanh"]

_SELU_SCALE: Final = 1.0507009873554805
_SELU_ALPHA: Final = 1.6732632423543772
_SIX: Final = 6.0
_GELU_CUBE: Final = 0.044715
_GELU_SCALE: Final = math.sqrt(2 / math.pi)

# erf(x) = x P(x^2) / Q(x^2) on [-4, 4]; the coefficients of Eigen and XLA, highest power first, error below 3e-7.
_ERF_P: Final = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q: Final = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def relu(x: Tensor) -> tuple[Tensor, Pullback]:
    """max(x, 0). The gradient at 0 is 0, as in Keras."""
    y = tf.nn.relu(x)
    return y, lambda dy: dy * positive_mask(y)


def sigmoid(x: Tensor) -> tuple[Tensor, Pullback]:
    """1 / (1 + exp(-x))."""
    y = tf.sigmoid(x)
    return y, lambda dy: dy * (y * (1.0 - y))


def tanh(x: Tensor) -> tuple[Tensor, Pullback]:
    """Hyperbolic tangent."""
    y = tf.tanh(x)
    return y, lambda dy: dy * (1.0 - y * y)


def softmax(x: Tensor) -> tuple[Tensor, Pullback]:
    """Softmax over the last axis, shifted by the maximum so that exp cannot overflow."""
    exponentials = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    y = exponentials / tf.reduce_sum(exponentials, -1, keepdims=True)
    return y, lambda dy: y * (dy - tf.reduce_sum(dy * y, -1, keepdims=True))


def _swish(x: Tensor) -> tuple[Tensor, Pullback]:
    s = tf.sigmoid(x)
    y = x * s
    return y, lambda dy: dy * (s + y * (1.0 - s))


def _gelu(x: Tensor) -> tuple[Tensor, Pullback]:
    """The input times the normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415), not its tanh form."""
    cdf = 0.5 * (1.0 + _erf(x * math.sqrt(0.5)))
    density = tf.exp(x * x * -0.5) * (1.0 / math.sqrt(2 * math.pi))
    return x * cdf, lambda dy: dy * (cdf + x * density)


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Pullback]:
    """The tanh form of gelu (same source, section 2)."""
    square = x * x
    t = tf.tanh(x * (square * _GELU_CUBE + 1.0) * _GELU_SCALE)
    half = 0.5 * (1.0 + t)
    slope = (square * (3.0 * _GELU_CUBE) + 1.0) * _GELU_SCALE
    return x * half, lambda dy: dy * (half + 0.5 * x * (1.0 - t * t) * slope)


def _mish(x: Tensor) -> tuple[Tensor, Pullback]:
    """The input times tanh(softplus(x)) (Misra 2019, arXiv:1908.08681)."""
    positive, to_x = _softplus(x)
    t = tf.tanh(positive)
    return x * t, lambda dy: dy * t + to_x(dy * x * (1.0 - t * t))


def _softplus(x: Tensor) -> tuple[Tensor, Pullback]:
    y = tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(tf.abs(x) * -1.0))
    return y, lambda dy: dy * tf.sigmoid(x)


def _softsign(x: Tensor) -> tuple[Tensor, Pullback]:
    inverse = 1.0 / (1.0 + tf.abs(x))
    return x * inverse, lambda dy: dy * (inverse * inverse)


def _exponential(x: Tensor) -> tuple[Tensor, Pullback]:
    y = tf.exp(x)
    return y, lambda dy: dy * y


def _hard_sigmoid(x: Tensor) -> tuple[Tensor, Pullback]:
    y = tf.minimum(tf.nn.relu(x * 0.2 + 0.5), 1.0)
    return y, lambda dy: dy * (positive_mask(y) * positive_mask(1.0 - y) * 0.2)


def _selu(x: Tensor) -> tuple[Tensor, Pullback]:
    y, pullback = _elu(x, _SELU_ALPHA)
    return y * _SELU_SCALE, lambda dy: pullback(dy * _SELU_SCALE)


def _elu(x: Tensor, alpha: float) -> tuple[Tensor, Pullback]:
    positive = tf.nn.relu(x)
    exponential = tf.exp(tf.minimum(x, 0.0)) * alpha
    mask = positive_mask(positive)
    return positive + (exponential - alpha), lambda dy: dy * (mask + (1.0 - mask) * exponential)


def _leaky_relu(x: Tensor, slope: float) -> tuple[Tensor, Pullback]:
    y = tf.nn.leaky_relu(x, slope)
    return y, lambda dy: dy * (slope + (1.0 - slope) * positive_mask(tf.nn.relu(x)))


def _capped_relu(x: Tensor, cap: float) -> tuple[Tensor, Pullback]:
    y = tf.nn.relu6(x) if cap == _SIX else tf.minimum(tf.nn.relu(x), cap)
    return y, lambda dy: dy * (positive_mask(y) * positive_mask(cap - y))


def _erf(x: Tensor) -> Tensor:
    x = tf.maximum(tf.minimum(x, 4.0), -4.0)
    square = x * x
    return x * _polynomial(square, _ERF_P) / _polynomial(square, _ERF_Q)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's rule."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Pullback]]] = {
    "elu": lambda x: _elu(x, 1.0),
    "exponential": _exponential,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hard_sigmoid": _hard_sigmoid,
    "mish": _mish,
    "relu": relu,
    "selu": _selu,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "softplus": _softplus,
    "softsign": _softsign,
    "swish": _swish,
    "tanh": tanh,
}
"""Keras's name of the activation (of gelu's other form ours) -> its lowering."""

PARAMETRIC: Final[Mapping[str, Callable[[Tensor, float], tuple[Tensor, Pullback]]]] = {
    "capped_relu": _capped_relu,
    "leaky_relu": _leaky_relu,
    "scaled_elu": _elu,
}
"""Our name of an activation that has a parameter -> its lowering."""
