"""Two-dimensional convolutions as batched matrix products.

``convolve`` gathers the taps of a window row once and multiplies once per kernel row; ``convolve_few_channels`` is for
a first layer, whose taps are too thin to be worth a product each; ``convolve_pointwise`` is a 1x1 kernel of stride 1.
See ``winograd`` for the 3x3 kernels that dominate small image models.
"""

from collections.abc import Sequence

import tensorflow as tf

from model_export.lowering.dense import LayerPullback
from model_export.lowering.phases import fit_to_windows, split_phases
from model_export.lowering.tensor_types import Tensor, concatenate, plus
from model_export.lowering.weight_gradients import Pieces
from model_export.lowering.windows import WindowAxis

__all__ = ["convolve", "convolve_few_channels", "convolve_pointwise", "convolve_transposed"]


def convolve(
    x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis, *, needs_dx: bool
) -> tuple[Tensor, LayerPullback]:
    """A convolution with any kernel size, stride, dilation and padding.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, O].
        rows: Windows along H.
        cols: Windows along W.
        needs_dx: Whether anything trainable lies before this layer.

    Returns:
        y [B, output rows, output cols, O], and a pullback giving (dx, dkernel).
    """
    x, unfit = fit_to_windows(x, rows, cols)
    phases, join = split_phases(x, rows.stride, cols.stride)
    gathered = _gather_rows(phases, rows, cols)
    batch, num_out, num_pixels = x.shape[0], kernel.shape[3], rows.output * cols.output
    y = _multiply_rows(gathered, kernel)

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        pixels = tf.reshape(dy, [batch, 1, num_pixels, num_out])
        dkernel = _kernel_gradient(pixels, gathered, kernel.shape.as_list())
        if not needs_dx:
            return None, dkernel
        return unfit(join(_phase_gradients(pixels, kernel, phases, rows, cols))), dkernel

    return tf.reshape(y, [batch, rows.output, cols.output, num_out]), pullback


def convolve_few_channels(
    x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis
) -> tuple[Tensor, LayerPullback]:
    """A first-layer convolution of few input channels: one matrix product, no gradient with respect to the image.

    Shapes as in ``convolve``; the dilation is 1.
    """
    x, _ = fit_to_windows(x, rows, cols)
    phases, _ = split_phases(x, rows.stride, cols.stride)
    batch, channels, num_out = x.shape[0], x.shape[3], kernel.shape[3]
    num_pixels = rows.output * cols.output
    planes = [_channels_first(phase) for phase in phases]
    patches = []
    for a in range(rows.window):
        for b in range(cols.window):
            (row_phase, i), (col_phase, j) = rows.tap(a), cols.tap(b)
            plane = planes[row_phase * cols.stride + col_phase]
            patch = tf.slice(plane, [0, 0, i, j], [batch, channels, rows.output, cols.output])
            patches.append(tf.reshape(patch, [batch, channels, num_pixels]))
    taps = concatenate(patches, 1)
    weights = tf.reshape(kernel, [1, -1, num_out])
    y = tf.reshape(tf.matmul(taps, weights, transpose_a=True), [batch, rows.output, cols.output, num_out])

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        per_image = tf.matmul(taps, tf.reshape(dy, [batch, num_pixels, num_out]))
        return None, Pieces(pieces=[per_image], assemble=lambda sums: tf.reshape(sums[0], kernel.shape))

    return y, pullback


def convolve_pointwise(x: Tensor, kernel: Tensor, *, needs_dx: bool) -> tuple[Tensor, LayerPullback]:
    """A 1x1 convolution of stride 1: a matrix product over all pixels. Shapes as in ``convolve``."""
    batch, height, width, channels = x.shape
    num_out = kernel.shape[3]
    pixels = tf.reshape(x, [1, batch * height * width, channels])
    weights = tf.reshape(kernel, [1, channels, num_out])
    y = tf.reshape(tf.matmul(pixels, weights), [batch, height, width, num_out])

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        dy_pixels = tf.reshape(dy, [1, batch * height * width, num_out])
        # An image at a time, then over the batch, as for a bias.
        of_images = tf.reshape(x, [batch, height * width, channels])
        dy_images = tf.reshape(dy, [batch, height * width, num_out])
        per_image = tf.matmul(of_images, dy_images, transpose_a=True)
        dkernel = Pieces(pieces=[per_image], assemble=lambda sums: tf.reshape(sums[0], kernel.shape))
        if not needs_dx:
            return None, dkernel
        return tf.reshape(tf.matmul(dy_pixels, weights, transpose_b=True), x.shape), dkernel

    return y, pullback


def convolve_transposed(
    x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis, *, needs_dx: bool
) -> tuple[Tensor, LayerPullback]:
    """The transpose of ``convolve``: its input gradient forward, and the convolution itself backward.

    Args:
        x: [B, rows.output, cols.output, C].
        kernel: [kh, kw, O, C].
        rows: Windows along H of the *result*.
        cols: Windows along W of the result.
        needs_dx: Whether anything trainable lies before this layer.

    Returns:
        y [B, H, W, O], and a pullback giving (dx, dkernel).
    """
    batch, _, _, num_in = x.shape
    num_out = kernel.shape[2]
    pixels = tf.reshape(x, [batch, 1, rows.output * cols.output, num_in])
    # Zeros of the result's shape give the phases' shapes, and the pullbacks that put them together.
    blank, unfit = fit_to_windows(tf.zeros([batch, rows.size, cols.size, num_out]), rows, cols)
    phases, join = split_phases(blank, rows.stride, cols.stride)

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        fitted, _ = fit_to_windows(dy, rows, cols)
        gathered = _gather_rows(split_phases(fitted, rows.stride, cols.stride)[0], rows, cols)
        dkernel = _kernel_gradient(pixels, gathered, kernel.shape.as_list())
        dx = _multiply_rows(gathered, kernel) if needs_dx else None
        return (None if dx is None else tf.reshape(dx, x.shape)), dkernel

    return unfit(join(_phase_gradients(pixels, kernel, phases, rows, cols))), pullback


def _multiply_rows(gathered: Sequence[Tensor], kernel: Tensor) -> Tensor:
    """What each kernel row's taps give, added: [1, B, output pixels, O]."""
    y = None
    for a, row in enumerate(gathered):
        weights = tf.slice(kernel, [a, 0, 0, 0], [1, *kernel.shape[1:]])
        y = plus(y, tf.matmul(row, tf.reshape(weights, [1, 1, -1, kernel.shape[3]])))
    return y


def _channels_first(x: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    if channels == 1:  # a reshape is free, a transpose is not
        return tf.reshape(x, [batch, 1, height, width])
    return tf.transpose(x, [0, 3, 1, 2])


def _gather_rows(phases: Sequence[Tensor], rows: WindowAxis, cols: WindowAxis) -> list[Tensor]:
    """For each kernel row, what its taps read: [1, B, output pixels, kw * C]."""
    batch, height, _, channels = phases[0].shape
    num_pixels = rows.output * cols.output
    if rows.stride == cols.stride == 1:
        # The taps along W are gathered once for all image rows; a kernel row is then one slice of that.
        columns = [
            tf.reshape(
                tf.slice(phases[0], [0, 0, b * cols.dilation, 0], [batch, height, cols.output, channels]),
                [1, batch, height * cols.output, channels],
            )
            for b in range(cols.window)
        ]
        gathered = concatenate(columns, -1)
        size = [1, batch, num_pixels, cols.window * channels]
        return [tf.slice(gathered, [0, 0, a * rows.dilation * cols.output, 0], size) for a in range(rows.window)]
    size = [batch, rows.output, cols.output, channels]
    return [
        concatenate(
            [
                tf.reshape(tf.slice(phases[phase], [0, i, j, 0], size), [1, batch, num_pixels, channels])
                for phase, i, j in (_tap(rows, cols, a, b) for b in range(cols.window))
            ],
            -1,
        )
        for a in range(rows.window)
    ]


def _tap(rows: WindowAxis, cols: WindowAxis, a: int, b: int) -> tuple[int, int, int]:
    """Phase, row offset and column offset of kernel element (a, b)."""
    (row_phase, i), (col_phase, j) = rows.tap(a), cols.tap(b)
    return row_phase * cols.stride + col_phase, i, j


def _kernel_gradient(dy_pixels: Tensor, gathered: Sequence[Tensor], kernel_shape: list[int]) -> Pieces:
    """``dy_pixels`` [B, 1, pixels, O] against each kernel row's taps."""
    transposed = tf.transpose(dy_pixels, [1, 0, 3, 2])

    def assemble(sums: list[Tensor]) -> Tensor:
        return tf.reshape(concatenate([tf.transpose(row, [0, 2, 1]) for row in sums], 0), kernel_shape)

    return Pieces(pieces=[tf.matmul(transposed, row) for row in gathered], assemble=assemble, axis=1)


def _phase_gradients(
    dy_pixels: Tensor, kernel: Tensor, phases: Sequence[Tensor], rows: WindowAxis, cols: WindowAxis
) -> list[Tensor]:
    """Gradients of the phases: one product per kernel element, padded to its place and added."""
    sums: list[Tensor | None] = [None] * len(phases)
    batch, _, _, channels = phases[0].shape
    for a in range(rows.window):
        for b in range(cols.window):
            phase, i, j = _tap(rows, cols, a, b)
            weights = tf.slice(kernel, [a, b, 0, 0], [1, 1, *kernel.shape[2:]])
            product = tf.matmul(dy_pixels, weights, transpose_b=True)
            pads = [[i, rows.phase_size - rows.output - i], [j, cols.phase_size - cols.output - j]]
            image = tf.reshape(product, [batch, rows.output, cols.output, channels])
            sums[phase] = plus(sums[phase], tf.pad(image, [[0, 0], *pads, [0, 0]]))
    return [phase * 0.0 if total is None else total for phase, total in zip(phases, sums, strict=True)]
