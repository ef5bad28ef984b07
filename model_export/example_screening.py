"""Draws check examples at which Keras's own gradient is stable; see ``parity`` for why."""

import dataclasses

import numpy as np
import numpy.typing as npt

from model_export.check_batches import BatchKind, CheckBatch, draw_batch
from model_export.keras_reference import KerasReference
from model_export.operations import ModelGraph

__all__ = ["ScreenedBatches"]

_Weights = tuple[npt.NDArray[np.float32], ...]

_NUDGE = 1e-6
"""How far weights are moved, relative to their tensor's root mean square: several roundings."""
_NUM_DIRECTIONS = 2
_JUMP = 1e-4
"""A gradient that moves by this share of its largest value under a nudge has jumped: smoothly it moves about 1e-6."""
_MAX_ROUNDS = 4


class ScreenedBatches:
    """Draws batches and replaces their jumpy examples.

    Args:
        reference: Keras, the only judge; its weights are changed.
        graph: The model, read.
        batch_size: B.
        rng: Draws examples and nudges.
    """

    def __init__(self, reference: KerasReference, graph: ModelGraph, batch_size: int, rng: np.random.Generator) -> None:
        self._reference = reference
        self._graph = graph
        self._batch_size = batch_size
        self._rng = rng
        self.num_redrawn = 0
        self.num_kept_jumpy = 0

    def draw(self, kind: BatchKind, weights: _Weights) -> CheckBatch:
        """A batch of a kind, screened at ``weights``."""
        batch = draw_batch(kind, self._graph, self._batch_size, self._rng)
        jumpy = self._jumpy_examples(batch, weights)
        for _ in range(_MAX_ROUNDS):
            if not jumpy.any():
                return batch
            self.num_redrawn += int(jumpy.sum())
            fresh = draw_batch(kind, self._graph, self._batch_size, self._rng)
            batch = _replace(batch, fresh, jumpy)
            # The others have passed.
            jumpy[jumpy] = self._jumpy_examples(batch.take(np.flatnonzero(jumpy)), weights)
        self.num_kept_jumpy += int(jumpy.sum())
        return batch

    def _jumpy_examples(self, batch: CheckBatch, weights: _Weights) -> npt.NDArray[np.bool_]:
        """[n] whether an example's gradient jumps."""
        base = self._input_gradients(batch, weights)
        jumpy = np.zeros(len(batch.x), np.bool_)
        for _ in range(_NUM_DIRECTIONS):
            nudges = [_nudge(weight, self._rng) for weight in weights]
            # Both signs: whichever way a near tie leans, one of them tips it.
            for sign in (np.float32(1), np.float32(-1)):
                moved = tuple(weight + sign * nudge for weight, nudge in zip(weights, nudges, strict=True))
                jumpy |= _has_jumped(base, self._input_gradients(batch, moved))
        return jumpy

    def _input_gradients(self, batch: CheckBatch, weights: _Weights) -> npt.NDArray[np.float32]:
        """[n, values]: one example's gradient tells of every kink on its way, and a batch gives them all at once."""
        self._reference.set_weights(weights)
        return self._reference.input_gradients(batch).reshape(len(batch.x), -1)


def _nudge(weight: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    signs = rng.integers(0, 2, weight.shape) * 2 - 1
    root_mean_square = np.sqrt(np.mean(weight.astype(np.float64) ** 2))
    return np.asarray(signs * _NUDGE * root_mean_square, np.float32)


def _has_jumped(base: npt.NDArray[np.float32], moved: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """[B] whether an example's gradient differs by more than ``_JUMP`` of its largest value."""
    jumped: npt.NDArray[np.bool_] = np.abs(moved - base).max(1) > _JUMP * np.abs(base).max(1)
    return jumped


def _replace(batch: CheckBatch, fresh: CheckBatch, where: npt.NDArray[np.bool_]) -> CheckBatch:
    """``batch`` with the examples at ``where`` taken from ``fresh``."""
    x, labels = batch.x.copy(), batch.labels.copy()
    x[where], labels[where] = fresh.x[where], fresh.labels[where]
    return dataclasses.replace(
        batch,
        x=x,
        labels=labels,
        tickets=np.where(where, fresh.tickets, batch.tickets),
    )
