"""Fixed features of small grey images: gradients by orientation, pooled by cell. Nothing in them is learnt.

Under differential privacy a small head on fixed features learns more than a large network, whose every weight gets
noise. 28 x 28 pixels become 392 numbers: 8 orientations in 7 x 7 triangular cells, normalised among neighbours, after
Dalal, Triggs 2005, "Histograms of oriented gradients", by convolutions and pointwise operations alone.

``model_export.gradient_features`` computes nearly the same as layers of a model file, which take the mean away and soften
the divisions (a test holds the two together). The published frontier was measured on these, which need no TensorFlow.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_FEATURES", "gradient_features"]

_SIDE: Final = 28
_CELLS: Final = 7
_STEP: Final = 4
_ORIENTATIONS: Final = 8
_CHUNK: Final = 2000
_LARGEST: Final = 0.5
_SOFTENING: Final = 0.5
_TINY: Final = 1e-6
NUM_FEATURES: Final = _ORIENTATIONS * _CELLS * _CELLS
"""Features of one image."""


def gradient_features(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[n, 392] features of [n, 28, 28] (or [n, 28, 28, 1]) images in [0, 1]; each row has norm 1, or is all zero."""
    chunks = range(0, len(images), _CHUNK)
    return np.concatenate([_features(images[start : start + _CHUNK].reshape(-1, _SIDE, _SIDE)) for start in chunks])


def _features(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    across, down = np.zeros_like(x), np.zeros_like(x)
    across[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    length = np.sqrt(across * across + down * down) + np.float32(_TINY)
    pooling = _triangles()
    pooled = []
    for angle in np.arange(_ORIENTATIONS) * (2 * np.pi / _ORIENTATIONS):
        along = np.maximum(0, across * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle)))
        pooled.append(pooling.T @ (along * (along / length) ** 2) @ pooling)
    cells = np.stack(pooled, axis=1)
    energy = np.pad((cells**2).sum(axis=1), ((0, 0), (1, 1), (1, 1)))
    around = sum(energy[:, i : i + _CELLS, j : j + _CELLS] for i in range(3) for j in range(3))
    features = np.minimum(cells / np.sqrt(around + _SOFTENING)[:, None], _LARGEST).reshape(len(x), -1)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    normalised: npt.NDArray[np.float32] = (features / (norms + _TINY)).astype(np.float32)
    return normalised


def _triangles() -> npt.NDArray[np.float32]:
    """[28, 7] how much each pixel of a row belongs to each cell."""
    centres = np.arange(_CELLS) * _STEP + _STEP / 2 - 0.5
    distance = np.abs(np.arange(_SIDE)[:, None] - centres[None])
    return np.maximum(0, 1 - distance / _STEP).astype(np.float32)
