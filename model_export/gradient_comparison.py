"""How far gradients are from Keras's, and what that is measured against.

A tensor's error is relative to its own largest value, but to no less than a thousandth of the model's. For one kind of
tensor that says nothing: where the true gradient is zero (a bias that a normalisation takes out again, the key bias of
attention), what Keras and LiteRT give is rounding alone. That the truth is zero is not guessed from small numbers: Keras
says so itself, in float64, whose rounding is 2e-9 of float32's. LiteRT may then be off by ``_ROUNDINGS`` times what
Keras's own float32 is off by, and no more: a real gradient in such a place is orders of magnitude above it.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["gradient_error", "has_small_gradient"]

_FLOOR: Final = 1e-3
_ZERO: Final = 1e-11
"""A float64 gradient below this share of the model's largest is zero but for rounding."""
_ROUNDINGS: Final = 16.0
_ROUNDING_ERROR: Final = 1e-5
"""What ``_ROUNDINGS`` times Keras's own rounding is reported as: the usual tolerance."""

_Gradients = Sequence[npt.NDArray[np.float64]]


def gradient_error(gradients: _Gradients, expected: _Gradients, exact: _Gradients | None = None) -> float:
    """Largest relative difference of any tensor; NaN if there is one.

    Args:
        gradients: LiteRT's.
        expected: Keras's, in float32.
        exact: Keras's in float64, where it was asked (see ``has_small_gradient``).
    """
    errors = [
        float(np.abs(got - wanted).max()) / scale
        for got, wanted, scale in zip(gradients, expected, _scales(expected, exact), strict=True)
    ]
    return float(np.max(errors))  # unlike max(), NaN is passed on


def has_small_gradient(expected: _Gradients) -> bool:
    """Whether a tensor is so small that it may be zero but for rounding."""
    floor = _FLOOR * _largest(expected)
    return any(float(np.abs(gradient).max()) < floor for gradient in expected)


def _scales(expected: _Gradients, exact: _Gradients | None) -> list[float]:
    floor = max(_FLOOR * _largest(expected), float(np.finfo(np.float32).tiny))
    scales = [max(float(np.abs(gradient).max()), floor) for gradient in expected]
    if exact is None:
        return scales
    zero = _ZERO * _largest(exact)
    allowance = _ROUNDINGS / _ROUNDING_ERROR
    return [
        max(scale, allowance * float(np.abs(wanted - truth).max())) if float(np.abs(truth).max()) <= zero else scale
        for scale, wanted, truth in zip(scales, expected, exact, strict=True)
    ]


def _largest(gradients: Sequence[npt.NDArray[Any]]) -> float:
    return max(float(np.abs(gradient).max()) for gradient in gradients)
