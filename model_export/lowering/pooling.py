"""Pooling layers.

The gradient of a maximum goes to the *first* maximum of a window in row-major order, as TensorFlow's MaxPoolGrad
does. Sending it to every tied maximum looks right on random data and is wrong on real images: flat regions tie.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.lowering.phases import fit_to_windows, split_phases
from model_export.lowering.tensor_types import Pullback, Tensor, plus, positive_mask
from model_export.lowering.windows import WindowAxis

__all__ = [
    "average_pool",
    "first_maximum_gradients",
    "global_average_pool",
    "global_max_pool",
    "max_of_phases",
    "max_pool",
    "read_taps",
    "write_taps",
]

_LOWEST = -1e30
"""Padding that never is a maximum, and whose difference to any activation is finite."""

_Taps: TypeAlias = list[tuple[int, int, int]]


def max_pool(x: Tensor, rows: WindowAxis, cols: WindowAxis) -> tuple[Tensor, Pullback]:
    """Max pooling with any window, stride and padding.

    Args:
        x: [B, H, W, C].
        rows: Windows along H.
        cols: Windows along W.
    """
    x, unfit = fit_to_windows(x, rows, cols, _LOWEST)
    phases, join = split_phases(x, rows.stride, cols.stride)
    values, taps = read_taps(phases, rows, cols)
    y = values[0]
    for value in values[1:]:
        y = tf.maximum(y, value)

    def pullback(dy: Tensor) -> Tensor:
        return unfit(join(write_taps(first_maximum_gradients(dy, y, values), taps, phases, rows, cols)))

    return y, pullback


def max_of_phases(phases: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Elementwise maximum of the four phases: a 2x2 max-pool whose windows lie there already."""
    y = tf.maximum(tf.maximum(phases[0], phases[1]), tf.maximum(phases[2], phases[3]))
    return y, lambda dy: first_maximum_gradients(dy, y, phases)


def first_maximum_gradients(dy: Tensor, y: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """Splits ``dy`` over ``values``, of which ``y`` is the maximum: all of it to the first that equals ``y``."""
    gradients = []
    for value in values[:-1]:
        passed_on = dy * positive_mask(y - value)
        gradients.append(dy - passed_on)
        dy = passed_on
    return [*gradients, dy]


def average_pool(x: Tensor, rows: WindowAxis, cols: WindowAxis) -> tuple[Tensor, Pullback]:
    """Average pooling; padding is not counted in the average, as in TensorFlow.

    Args:
        x: [B, H, W, C].
        rows: Windows along H.
        cols: Windows along W.
    """
    x, unfit = fit_to_windows(x, rows, cols)
    phases, join = split_phases(x, rows.stride, cols.stride)
    values, taps = read_taps(phases, rows, cols)
    weight = tf.constant(np.outer(1.0 / _tap_counts(rows), 1.0 / _tap_counts(cols))[None, :, :, None], tf.float32)
    total = values[0]
    for value in values[1:]:
        total = total + value

    def pullback(dy: Tensor) -> Tensor:
        scaled = dy * weight
        return unfit(join(write_taps([scaled] * len(taps), taps, phases, rows, cols)))

    return total * weight, pullback


def global_average_pool(x: Tensor) -> tuple[Tensor, Pullback]:
    """Mean over all axes but the first and the last: [B, ..., C] -> [B, C]."""
    axes, kept = _inner_axes(x)
    size = math.prod(x.shape[1:-1])
    # Adding to x * 0 broadcasts inside XNNPACK; BROADCAST_TO would leave it.
    return tf.reduce_mean(x, axes), lambda dy: x * 0.0 + tf.reshape(dy * (1.0 / size), kept)


def global_max_pool(x: Tensor) -> tuple[Tensor, Pullback]:
    """Maximum over all axes but the first and the last; tied maxima share the gradient, as in ``tf.reduce_max``."""
    axes, kept = _inner_axes(x)
    y = tf.reduce_max(x, axes)

    def pullback(dy: Tensor) -> Tensor:
        chosen = 1.0 - positive_mask(tf.reshape(y, kept) - x)
        return chosen * (tf.reshape(dy, kept) / tf.reduce_sum(chosen, axes, keepdims=True))

    return y, pullback


def _inner_axes(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes between the first and the last, and the shape of ``x`` after a reduction that keeps them."""
    rank = len(x.shape)
    return list(range(1, rank - 1)), [x.shape[0], *[1] * (rank - 2), x.shape[-1]]


def read_taps(phases: list[Tensor], rows: WindowAxis, cols: WindowAxis) -> tuple[list[Tensor], _Taps]:
    """What each tap of the windows reads, [B, output rows, output cols, C], in row-major order."""
    taps = []
    for a in range(rows.window):
        for b in range(cols.window):
            (row_phase, row_offset), (col_phase, col_offset) = rows.tap(a), cols.tap(b)
            taps.append((row_phase * cols.stride + col_phase, row_offset, col_offset))
    batch, _, _, channels = phases[0].shape
    size = [batch, rows.output, cols.output, channels]
    whole = phases[0].shape.as_list() == size
    return [phases[p] if whole else tf.slice(phases[p], [0, i, j, 0], size) for p, i, j in taps], taps


def write_taps(
    gradients: Sequence[Tensor], taps: _Taps, phases: list[Tensor], rows: WindowAxis, cols: WindowAxis
) -> list[Tensor]:
    """The transpose of ``read_taps``: sums the taps' gradients into gradients of the phases."""
    sums: list[Tensor | None] = [None] * len(phases)
    for gradient, (phase, i, j) in zip(gradients, taps, strict=True):
        after = (rows.phase_size - rows.output - i, cols.phase_size - cols.output - j)
        whole = not any((i, j, *after))
        padded = gradient if whole else tf.pad(gradient, [[0, 0], [i, after[0]], [j, after[1]], [0, 0]])
        sums[phase] = plus(sums[phase], padded)
    return [phase * 0.0 if total is None else total for phase, total in zip(phases, sums, strict=True)]


def _tap_counts(axis: WindowAxis) -> npt.NDArray[np.float64]:
    """How many taps of each window fall inside the unpadded axis."""
    starts = np.arange(axis.output)[:, None] * axis.stride - axis.pad_before
    positions = starts + np.arange(axis.window)[None, :]
    inside = (positions >= 0) & (positions < axis.size)
    return np.asarray(inside.sum(axis=1), np.float64)
