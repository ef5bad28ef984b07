"""Fixed gradient features of small grey images, as frozen layers of the model itself.

The features are those of histograms of oriented gradients (Dalal and Triggs 2005, section 6), softened so that layers
can compute them: 8 orientations, 7x7 cells of 8x8 pixels that overlap by half, blocks of 3x3 cells. A linear head on
them trains 3 930 numbers instead of a million, which is what noise and slow links ask for.

Three divisions by a norm are LayerNormalizations. It subtracts a mean and divides by a root mean square, so values
whose mean is zero by construction are divided by their norm alone:

* the derivatives along 8 directions: those along opposite ones cancel;
* a block of 3x3 cells: each value is there twice, once negated;
* the feature vector: here the mean is subtracted in earnest, which a linear head does not mind.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

__all__ = ["NUM_FEATURES", "SIDE", "gradient_features"]

SIDE: Final = 28
"""Height and width of the images."""
_ORIENTATIONS: Final = 8
_CELLS: Final = 7
_STRIDE: Final = SIDE // _CELLS
_BLOCK: Final = 3
NUM_FEATURES: Final = _ORIENTATIONS * _CELLS**2

_LEAST_GRADIENT: Final = 1e-6
"""Added to squared gradients of values in 0..1: below its root an orientation fades out."""
_LEAST_ENERGY: Final = 0.5
"""Added to the squared norm of a block: keeps an empty one from being blown up."""
_CAP: Final = 0.5
"""A normalised cell counts for no more than this."""

_Array = npt.NDArray[np.float32]
_layers = tf.keras.layers


def gradient_features(images: Any) -> Any:
    """The features of a Keras tensor.

    Args:
        images: [B, 28, 28, 1] grey values in 0..1.

    Returns:
        [B, 392], of mean 0 and variance 1 each example. Nothing in them trains.
    """
    derivatives = _frozen_convolution(_derivative_kernel(), images)
    # 8 directions: the mean of their squares is half the squared length of the gradient.
    unit = _layers.LayerNormalization(center=False, scale=False, epsilon=_LEAST_GRADIENT)(derivatives)
    cosine = _layers.ReLU()(_layers.Rescaling(np.sqrt(0.5))(unit))
    oriented = _layers.Multiply()([_layers.ReLU()(derivatives), cosine, cosine])
    cells = _frozen_convolution(_cell_kernel(), oriented, strides=_STRIDE)
    blocks = _frozen_convolution(_block_kernel(), cells)
    size = blocks.shape[-1]
    normalized = _layers.LayerNormalization(center=False, scale=False, epsilon=2 * _LEAST_ENERGY / size)(blocks)
    middle = _frozen_convolution(_middle_kernel(size), normalized)
    flat = _layers.Flatten()(_layers.ReLU(max_value=_CAP)(middle))
    return _layers.LayerNormalization(center=False, scale=False)(flat)


def _frozen_convolution(kernel: _Array, x: Any, *, strides: int = 1) -> Any:
    layer = _layers.Conv2D(
        kernel.shape[-1], kernel.shape[:2], strides=strides, padding="same", use_bias=False, trainable=False
    )
    y = layer(x)
    layer.set_weights([kernel])
    return y


def _derivative_kernel() -> _Array:
    """[3, 3, 1, 8]: central differences along directions 45 degrees apart."""
    kernel = np.zeros((3, 3, 1, _ORIENTATIONS))
    angles = 2 * np.pi * np.arange(_ORIENTATIONS) / _ORIENTATIONS
    kernel[1, 2, 0], kernel[1, 0, 0] = np.cos(angles), -np.cos(angles)
    kernel[2, 1, 0], kernel[0, 1, 0] = np.sin(angles), -np.sin(angles)
    return kernel.astype(np.float32)


def _cell_kernel() -> _Array:
    """[8, 8, 8, 8]: each orientation alone, weighted by a tent over the cell."""
    width = 2 * _STRIDE
    tent = 1 - np.abs(np.arange(width) - (width - 1) / 2) / _STRIDE
    window = np.outer(tent, tent)[:, :, None, None]
    return (window * np.eye(_ORIENTATIONS)).astype(np.float32)


def _block_kernel() -> _Array:
    """[3, 3, 8, 144]: gathers a block's 72 values, and their negatives."""
    size = _BLOCK**2 * _ORIENTATIONS
    gather = np.eye(size, dtype=np.float32).reshape(_BLOCK, _BLOCK, _ORIENTATIONS, size)
    return np.concatenate([gather, -gather], -1)


def _middle_kernel(size: int) -> _Array:
    """[1, 1, 144, 8]: the block's middle cell, over the block's norm."""
    first = _BLOCK**2 // 2 * _ORIENTATIONS
    kernel = np.zeros((size, _ORIENTATIONS))
    kernel[first : first + _ORIENTATIONS] = np.eye(_ORIENTATIONS) / np.sqrt(size / 2)
    return kernel[None, None].astype(np.float32)
