"""Batches on which an exported file is compared with Keras: what real data does and random data does not.

Each kind has its reason. ``random``: every path is taken. ``flat``: windows whose values tie, as on any image with a
plain background; a max-pool gradient that is wrong on ties is right on random data. ``partial``: fewer real examples
than the batch holds; the padding carries garbage, to prove that weight 0 hides it.
"""

import dataclasses
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from model_export.operations import ModelGraph

__all__ = ["KINDS", "BatchKind", "CheckBatch", "draw_batch"]

BatchKind: TypeAlias = Literal["random", "flat", "partial"]
KINDS: Final[tuple[BatchKind, ...]] = ("random", "flat", "partial")

_MAX_DISTINCT: Final = 32
"""A larger batch repeats its examples. Random labels' gradients cancel in the mean as their number grows, while the
rounding errors of both sides do not: the same error would look larger, relative to a smaller gradient."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckBatch:
    """One batch of B examples, of which the first ``num_examples`` count."""

    x: npt.NDArray[np.float32]
    """[B, ...]."""
    labels: npt.NDArray[Any]
    """int32 [B] class numbers, or float32 [B, k], as the loss wants them."""
    tickets: npt.NDArray[np.int32]
    """[B] dropout tickets."""
    num_examples: int

    @property
    def example_weight(self) -> npt.NDArray[np.float32]:
        """[B]: 1 for the examples that count, 0 for padding."""
        return (np.arange(len(self.x)) < self.num_examples).astype(np.float32)

    def take(self, positions: npt.NDArray[np.int64]) -> "CheckBatch":
        """The examples at ``positions``, all of which count."""
        return CheckBatch(
            x=self.x[positions],
            labels=self.labels[positions],
            tickets=self.tickets[positions],
            num_examples=len(positions),
        )

    def real_examples(self) -> "CheckBatch":
        """The batch without its padding."""
        return self.take(np.arange(self.num_examples))


def draw_batch(kind: BatchKind, graph: ModelGraph, batch_size: int, rng: np.random.Generator) -> CheckBatch:
    """Draws a batch of a kind."""
    if graph.num_tokens:
        draw = _repeated_tokens if kind == "flat" else _random_tokens
    else:
        draw = _flat_examples if kind == "flat" else _random_examples
    count = min(batch_size, _MAX_DISTINCT)
    repeated = np.arange(batch_size) % count
    return CheckBatch(
        x=draw(graph, count, rng)[repeated],
        labels=_labels(graph, count, rng)[repeated],
        tickets=rng.integers(0, 2**31, count).astype(np.int32)[repeated],
        num_examples=max(1, batch_size * 3 // 4) if kind == "partial" else batch_size,
    )


def _labels(graph: ModelGraph, count: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    shape = (count, graph.num_classes)
    if graph.loss.is_regression:
        return rng.standard_normal(shape).astype(np.float32)
    if graph.loss.name == "binary_crossentropy":
        return rng.integers(0, 2, shape).astype(np.float32)
    classes = rng.integers(0, graph.num_classes, count).astype(np.int32)
    if graph.loss.name == "sparse_categorical_crossentropy":
        return classes
    one_hot: npt.NDArray[np.float32] = np.eye(graph.num_classes, dtype=np.float32)[classes]
    return one_hot


def _random_examples(graph: ModelGraph, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.standard_normal((count, *graph.input_shape)).astype(np.float32)


def _random_tokens(graph: ModelGraph, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.integers(0, graph.num_tokens, (count, *graph.input_shape)).astype(np.float32)


def _repeated_tokens(graph: ModelGraph, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The first and the last token number alone: gradients of a row meet."""
    return rng.choice(np.array([0, graph.num_tokens - 1], np.float32), (count, *graph.input_shape))


def _flat_examples(graph: ModelGraph, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Constant background with a constant box, and for inputs that are no images few distinct values."""
    shape = (count, *graph.input_shape)
    image_rank = 4  # [batch, height, width, channels]
    if len(shape) != image_rank:
        return rng.integers(0, 3, shape).astype(np.float32) / 2
    x = np.zeros(shape, np.float32)
    x += rng.choice(np.array([0.0, 0.5], np.float32), (count, 1, 1, 1))
    height, width = shape[1:3]
    for image in x:
        top, left = rng.integers(0, max(height // 2, 1)), rng.integers(0, max(width // 2, 1))
        image[top : top + height // 2, left : left + width // 2] = rng.choice(np.array([0.25, 1.0], np.float32))
    return x
