"""Draws check examples at which Keras's own gradient is stable; see ``parity`` for why."""

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

    def __init__(
        self, reference: KerasReference, graph: ModelGraph, batch_size: int, rng: np.random.Generator
    ) -> None:
        self._reference = reference
        self._graph = graph
        self._batch_size = batch_size
        self._rng = rng
        self.num_redrawn = 0
        self.num_kept_jumpy = 0

    def draw(self, kind: BatchKind, weights: _Weights) -> CheckBatch:
        """A batch of a kind, screened at ``weights``."""
        batch = draw_batch(kind, self._graph, self._batch_size, self._rng)
        for _ in range(_MAX_ROUNDS):
            jumpy = self._jumpy_examples(batch, weights)
            if not jumpy.any():
                return batch
            self.num_redrawn += int(jumpy.sum())
            fresh = draw_batch(kind, self._graph, self._batch_size, self._rng)
            batch = _replace(batch, fresh, jumpy)
        self.num_kept_jumpy += int(self._jumpy_examples(batch, weights).sum())
        return batch
