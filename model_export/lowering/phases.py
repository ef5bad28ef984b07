"""Padding, cropping, and the split of an image into phases: strides without strided slices (R3).

Phase (i, j) of an image for strides (s, t) is ``x[:, i::s, j::t]``. A reshape to [B*h, s, w, t*C] puts every phase in
one stride-1 slice, which XNNPACK runs and whose gradient is an interleave.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor, concatenate
from model_export.lowering.windows import WindowAxis

__all__ = ["PhasesPullback", "fit_to_windows", "interleave", "pad_image", "split_phases"]

PhasesPullback: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""Gradients with respect to the phases, row-major -> gradient with respect to the image."""


def pad_image(x: Tensor, rows: tuple[int, int], cols: tuple[int, int], value: float = 0.0) -> tuple[Tensor, Pullback]:
    """Pads (positive amounts) or crops (negative) an image.

    Args:
        x: [B, H, W, C].
        rows: Rows to add above and below.
        cols: Columns to add left and right.
        value: What to pad with.
    """
    if not any((*rows, *cols)):
        return x, lambda dy: dy
    pads = [[0, 0], [max(rows[0], 0), max(rows[1], 0)], [max(cols[0], 0), max(cols[1], 0)], [0, 0]]
    crops = [[0, 0], [max(-rows[0], 0), max(-rows[1], 0)], [max(-cols[0], 0), max(-cols[1], 0)], [0, 0]]

    def pullback(dy: Tensor) -> Tensor:
        return _crop_then_pad(dy, pads, crops, 0.0)

    return _crop_then_pad(x, crops, pads, value), pullback


def fit_to_windows(x: Tensor, rows: WindowAxis, cols: WindowAxis, value: float = 0.0) -> tuple[Tensor, Pullback]:
    """Pads or crops ``x`` [B, H, W, C] to exactly what the windows read, a multiple of the strides."""
    return pad_image(x, (rows.pad_before, rows.pad_after), (cols.pad_before, cols.pad_after), value)


def split_phases(x: Tensor, row_stride: int, col_stride: int) -> tuple[list[Tensor], PhasesPullback]:
    """Splits an image into its phases.

    Args:
        x: [B, H, W, C]; H and W are multiples of the strides.
        row_stride: Phases along H.
        col_stride: Phases along W.

    Returns:
        The phases [B, H/row_stride, W/col_stride, C], row-major, and a pullback from their gradients.
    """
    if row_stride == col_stride == 1:
        return [x], lambda dys: dys[0]
    batch, height, width, channels = x.shape
    h, w = height // row_stride, width // col_stride
    rows = tf.reshape(x, [batch * h, row_stride, w, col_stride * channels])
    phases = [
        tf.reshape(tf.slice(rows, [0, i, 0, j * channels], [batch * h, 1, w, channels]), [batch, h, w, channels])
        for i in range(row_stride)
        for j in range(col_stride)
    ]
    return phases, lambda dys: interleave(dys, row_stride, col_stride)


def interleave(phases: Sequence[Tensor], row_stride: int, col_stride: int) -> Tensor:
    """The image whose phases, row-major, are ``phases`` [B, h, w, C] each."""
    batch, h, w, channels = phases[0].shape
    flat = [tf.reshape(phase, [batch * h, 1, w, channels]) for phase in phases]
    rows = [concatenate(flat[i * col_stride : (i + 1) * col_stride], 3) for i in range(row_stride)]
    return tf.reshape(concatenate(rows, 1), [batch, h * row_stride, w * col_stride, channels])


def _crop_then_pad(x: Tensor, crops: list[list[int]], pads: list[list[int]], value: float) -> Tensor:
    if any(map(sum, crops)):
        begin = [before for before, _ in crops]
        x = tf.slice(x, begin, [n - before - after for n, (before, after) in zip(x.shape, crops, strict=True)])
    return tf.pad(x, pads, constant_values=value) if any(map(sum, pads)) else x
