"""Depthwise convolutions as shifted multiply-adds: DEPTHWISE_CONV_2D with a variable filter leaves XNNPACK (R1)."""

import tensorflow as tf

from model_export.lowering.dense import LayerPullback
from model_export.lowering.phases import fit_to_windows, split_phases
from model_export.lowering.pooling import read_taps, write_taps
from model_export.lowering.tensor_types import Pullback, Tensor, concatenate, plus
from model_export.lowering.weight_gradients import Pieces
from model_export.lowering.windows import WindowAxis

__all__ = ["convolve_depthwise"]


def convolve_depthwise(x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis) -> tuple[Tensor, LayerPullback]:
    """Convolves each channel on its own.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, M].
        rows: Windows along H.
        cols: Windows along W.

    Returns:
        y [B, output rows, output cols, C * M], and a pullback giving (dx, dkernel).
    """
    multiplier = kernel.shape[3]
    repeated, unrepeat = _repeat_channels(x, multiplier)
    fitted, unfit = fit_to_windows(repeated, rows, cols)
    phases, join = split_phases(fitted, rows.stride, cols.stride)
    values, taps = read_taps(phases, rows, cols)
    channels = x.shape[3] * multiplier
    flat = tf.reshape(kernel, [rows.window * cols.window, 1, 1, channels])
    factors = [tf.slice(flat, [index, 0, 0, 0], [1, 1, 1, channels]) for index in range(len(taps))]
    y = None
    for value, factor in zip(values, factors, strict=True):
        y = plus(y, value * factor)

    def pullback(dy: Tensor) -> tuple[Tensor, Pieces]:
        # An image at a time, then over the batch, as for a bias.
        per_tap = [tf.reduce_sum(value * dy, [1, 2], keepdims=True) for value in values]
        dkernel = Pieces(pieces=per_tap, assemble=lambda sums: tf.reshape(concatenate(sums, 0), kernel.shape))
        dphases = write_taps([dy * factor for factor in factors], taps, phases, rows, cols)
        return unrepeat(unfit(join(dphases))), dkernel

    return y, pullback


def _repeat_channels(x: Tensor, times: int) -> tuple[Tensor, Pullback]:
    """Each channel ``times`` over, side by side."""
    if times == 1:
        return x, lambda dy: dy
    batch, height, width, channels = x.shape
    column = tf.reshape(x, [batch, height * width, channels, 1])
    copies = concatenate([column] * times, 3)

    def pullback(dy: Tensor) -> Tensor:
        return tf.reshape(tf.reduce_sum(tf.reshape(dy, copies.shape), 3), x.shape)

    return tf.reshape(copies, [batch, height, width, channels * times]), pullback
