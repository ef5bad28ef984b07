"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1: an output tile of 2x2 pixels is
``A^T [(G g G^T) * (B^T d B)] A``, 16 multiplications per tile instead of 36; the transposed formulas give both
gradients at the same cost. Row 3 of ``G`` is negated against the paper (and row 3 of ``B^T`` and the last column of
``A^T`` with it), so that no NEG is needed in the gradient.

The four pixels of a tile are the four phases of the output image, so ``convolve_phases`` gives phases: a 2x2 max-pool
takes its maximum over them directly, and only where there is none are they interleaved to an image.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import tensorflow as tf

from model_export.lowering.dense import LayerPullback
from model_export.lowering.phases import interleave, pad_image, split_phases
from model_export.lowering.pooling import max_of_phases
from model_export.lowering.tensor_types import Tensor, concatenate
from model_export.lowering.weight_gradients import Pieces
from model_export.lowering.windows import WindowAxis

__all__ = ["MIN_CHANNELS", "convolve_phases", "convolve_winograd", "convolve_winograd_max_pool"]

MIN_CHANNELS: Final = 8
"""Below this many channels on either side the transforms cost more than they save."""

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]], np.float32)
_FILTER_TRANSFORM = np.kron(_G, _G)[None].astype(np.float32)
"""[1, 16, 9]: the filter transform as one matrix product."""

_FOUR = range(4)
_PhasesPullback: TypeAlias = Callable[[Sequence[Tensor]], tuple[Tensor | None, Pieces]]


def convolve_winograd(
    x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis, *, needs_dx: bool
) -> tuple[Tensor, LayerPullback]:
    """A 3x3 convolution of stride 1; arguments and results as in ``convolution.convolve``."""
    odd_rows, odd_cols = rows.output % 2, cols.output % 2
    padded, unpad = pad_image(
        x, (rows.pad_before, rows.pad_after + odd_rows), (cols.pad_before, cols.pad_after + odd_cols)
    )
    flat, phases_pullback = convolve_phases(padded, kernel, needs_dx=needs_dx)
    shape = [x.shape[0], (rows.output + odd_rows) // 2, (cols.output + odd_cols) // 2, kernel.shape[3]]
    image = interleave([tf.reshape(phase, shape) for phase in flat], 2, 2)
    y, uncrop = pad_image(image, (0, -odd_rows), (0, -odd_cols))

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        dys, _ = split_phases(uncrop(dy), 2, 2)
        dx, dkernel = phases_pullback([tf.reshape(d, flat[0].shape) for d in dys])
        return (None if dx is None else unpad(dx)), dkernel

    return y, pullback


def convolve_winograd_max_pool(
    x: Tensor, kernel: Tensor, rows: WindowAxis, cols: WindowAxis, *, needs_dx: bool
) -> tuple[Tensor, LayerPullback]:
    """A 3x3 convolution of stride 1 followed by a 2x2 max-pool of stride 2 that drops an odd last row and column.

    Arguments as in ``convolution.convolve``; y is [B, output rows // 2, output cols // 2, O].
    """
    odd_rows, odd_cols = rows.output % 2, cols.output % 2
    padded, unpad = pad_image(
        x, (rows.pad_before, rows.pad_after - odd_rows), (cols.pad_before, cols.pad_after - odd_cols)
    )
    flat, phases_pullback = convolve_phases(padded, kernel, needs_dx=needs_dx)
    pooled, pool_pullback = max_of_phases(flat)
    y = tf.reshape(pooled, [x.shape[0], rows.output // 2, cols.output // 2, kernel.shape[3]])

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        dx, dkernel = phases_pullback(pool_pullback(tf.reshape(dy, pooled.shape)))
        return (None if dx is None else unpad(dx)), dkernel

    return y, pullback


def convolve_phases(x: Tensor, kernel: Tensor, *, needs_dx: bool) -> tuple[list[Tensor], _PhasesPullback]:
    """An unpadded 3x3 convolution of an image of even height and width, as the four phases of its output.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, O].
        needs_dx: Whether anything trainable lies before this layer.

    Returns:
        Phases [1, B, tiles, O] with tiles = (H/2 - 1) * (W/2 - 1), row-major, and a pullback from their gradients.
    """
    filters = _transform_filter(kernel)
    inputs = _transform_input(x)
    phases = _transform_output([tf.matmul(v, u) for v, u in zip(inputs, filters, strict=True)])

    def pullback(dys: Sequence[Tensor]) -> tuple[Tensor | None, Pieces]:
        batch, tiles, num_out = phases[0].shape[1:]
        # The transpose comes before the transform: four transposes instead of sixteen.
        turned = [tf.transpose(tf.reshape(dy, [batch, 1, tiles, num_out]), [1, 0, 3, 2]) for dy in dys]
        dkernel = _filter_gradient(_transpose_output(turned), inputs, kernel.shape.as_list())
        if not needs_dx:
            return None, dkernel
        products = [tf.matmul(m, u, transpose_b=True) for m, u in zip(_transpose_output(dys), filters, strict=True)]
        return _transpose_input(products, x.shape.as_list()), dkernel

    return phases, pullback


def _transform_filter(kernel: Tensor) -> list[Tensor]:
    """G g G^T: [3, 3, C, O] -> 16 of [1, 1, C, O]."""
    channels, num_out = kernel.shape[2:]
    transformed = tf.matmul(_FILTER_TRANSFORM, tf.reshape(kernel, [1, 9, channels * num_out]))
    stacked = tf.reshape(transformed, [16, channels, num_out])
    return [
        tf.reshape(tf.slice(stacked, [k, 0, 0], [1, channels, num_out]), [1, 1, channels, num_out]) for k in range(16)
    ]


def _filter_gradient(turned: Sequence[Tensor], inputs: Sequence[Tensor], kernel_shape: list[int]) -> Pieces:
    """The transpose of ``_transform_filter``, after the products with the transformed inputs."""
    channels, num_out = kernel_shape[2:]

    def assemble(sums: list[Tensor]) -> Tensor:
        per_element = [tf.reshape(tf.transpose(total, [0, 2, 1]), [1, 1, channels * num_out]) for total in sums]
        transposed = np.ascontiguousarray(_FILTER_TRANSFORM.transpose(0, 2, 1))
        return tf.reshape(tf.matmul(transposed, concatenate(per_element, 1)), kernel_shape)

    products = [tf.matmul(m, v) for m, v in zip(turned, inputs, strict=True)]
    return Pieces(pieces=products, assemble=assemble, axis=1, unmix=_transpose_filter)


def _transpose_filter(products: Sequence[Tensor]) -> list[Tensor]:
    """G^T m G by sums: 16 products -> the nine elements of the kernel."""
    by_row = [_combine_filter(products[4 * i : 4 * i + 4]) for i in _FOUR]
    return [element for b in range(3) for element in _combine_filter([row[b] for row in by_row])]


def _combine_filter(m: Sequence[Tensor]) -> list[Tensor]:
    """G^T along one axis."""
    half = (m[1] + m[2]) * 0.5
    return [m[0] + half, (m[1] - m[2]) * 0.5, half - m[3]]


def _transform_input(x: Tensor) -> list[Tensor]:
    """B^T d B: [B, H, W, C] -> 16 of [1, B, tiles, C], overlapping 4x4 tiles read as slices of a reshape."""
    batch, height, width, channels = x.shape
    half = width // 2
    tile_rows, tile_cols = height // 2 - 1, half - 1
    # Axis 2 is (row parity, column pair), axis 3 is (column parity, channel).
    pairs = tf.reshape(x, [batch, height // 2, width, 2 * channels])
    row_size = [batch, tile_rows, half, 2 * channels]
    tile_size = [batch, tile_rows, tile_cols, channels]
    by_row = _combine_input(
        [tf.slice(pairs, [0, pair, parity * half, 0], row_size) for pair in (0, 1) for parity in (0, 1)]
    )
    transformed: list[Tensor] = []
    for row in by_row:
        taps = [tf.slice(row, [0, 0, pair, parity * channels], tile_size) for pair in (0, 1) for parity in (0, 1)]
        transformed += [tf.reshape(v, [1, batch, tile_rows * tile_cols, channels]) for v in _combine_input(taps)]
    return transformed


def _transpose_input(products: Sequence[Tensor], image_shape: list[int]) -> Tensor:
    """The transpose of ``_transform_input``: 16 of [1, B, tiles, C] -> [B, H, W, C]."""
    batch, height, width, channels = image_shape
    half = width // 2
    tile_rows, tile_cols = height // 2 - 1, half - 1
    by_row = [
        _spread([tf.reshape(t, [batch, tile_rows, tile_cols, channels]) for t in products[4 * i : 4 * i + 4]], 2, 3)
        for i in _FOUR
    ]
    pairs = _spread([tf.reshape(t, [batch, tile_rows, half, 2 * channels]) for t in by_row], 1, 2)
    return tf.reshape(pairs, image_shape)


def _combine_input(taps: Sequence[Tensor]) -> list[Tensor]:
    """B^T along one axis."""
    x0, x1, x2, x3 = taps
    return [x0 - x2, x1 + x2, x2 - x1, x1 - x3]


def _spread(parts: Sequence[Tensor], axis: int, join: int) -> Tensor:
    """The transpose of ``_combine_input`` and of the overlapping reads along ``axis``; parities meet at ``join``."""
    v0, v1, v2, v3 = parts

    def shifted(value: Tensor, before: int, after: int) -> Tensor:
        return tf.pad(value, [[before, after] if i == axis else [0, 0] for i in _FOUR])

    even = shifted(v0, 0, 1) + shifted((v1 + v2) - v0, 1, 0)
    odd = shifted((v1 - v2) + v3, 0, 1) - shifted(v3, 1, 0)
    return tf.concat([even, odd], join)


def _transform_output(products: Sequence[Tensor]) -> list[Tensor]:
    """A^T m A: 16 products -> the four phases."""
    by_row = [_combine_output(products[4 * i : 4 * i + 4]) for i in _FOUR]
    left = _combine_output([row[0] for row in by_row])
    right = _combine_output([row[1] for row in by_row])
    return [left[0], right[0], left[1], right[1]]


def _transpose_output(dys: Sequence[Tensor]) -> list[Tensor]:
    """The transpose of ``_transform_output``: gradients of the four phases -> of the 16 products."""
    left = _spread_output(dys[0], dys[2])
    right = _spread_output(dys[1], dys[3])
    return [tensor for i in _FOUR for tensor in _spread_output(left[i], right[i])]


def _combine_output(m: Sequence[Tensor]) -> list[Tensor]:
    """A^T along one axis."""
    total, difference = m[1] + m[2], m[1] - m[2]
    return [m[0] + total, difference + m[3]]


def _spread_output(d0: Tensor, d1: Tensor) -> list[Tensor]:
    """A along one axis."""
    return [d0, d0 + d1, d0 - d1, d1]
