"""The seam between rounds and aggregation: what an aggregator is given, what it keeps, and what it must do.

Two implementations pass the same contract tests: `coordinator.tff` (TFF's own computation, compiled) and
`coordinator.numpy_mean` (the yardstick). This module knows neither, nor TensorFlow.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.errors import StateMismatch, UpdateMismatch
from secure_sum.sealed_update import SealedUpdate
from wire_protocol.integer_updates import IntegerUpdate
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec
from wire_protocol.tensors import Tensors

__all__ = [
    "Aggregator",
    "ClientUpdate",
    "EvaluationAccumulator",
    "Leaf",
    "LeafSpec",
    "NumberedAggregator",
    "RoundAccumulator",
    "RoundResult",
    "SealedPart",
    "ServerState",
    "check_leaves",
    "check_tensors",
    "finalize_metrics",
]

Leaf = npt.NDArray[Any]
"""One array of a server state or an accumulator: float32, int32, int64, bool or ``S`` (strings)."""


class LeafSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name, dtype and shape of one leaf."""

    name: str
    """Its path in the aggregator's own structure, with slashes."""
    dtype: str
    """A numpy dtype's name (``float32``), or ``bytes`` for strings of any length."""
    shape: tuple[int, ...]

    def admits(self, leaf: Leaf) -> bool:
        """Whether an array is of this kind."""
        is_of_dtype = leaf.dtype.kind == "S" if self.dtype == "bytes" else leaf.dtype.name == self.dtype
        return is_of_dtype and leaf.shape == self.shape


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class SealedPart:
    """A device's update that nobody here can read."""

    device_id: str
    update: SealedUpdate


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ClientUpdate:
    """One device's contribution to a training round, admitted and decoded."""

    model_delta: Tensors
    """Trained minus received weights, in the plan's order; finite."""
    aggregation_weight: float
    """The update's weight in a weighted mean; an unweighted aggregator ignores it."""
    metrics: Metrics
    """Sums over the examples visited while training."""
    integers: IntegerUpdate | None = None
    """uint32 [d], modulo 2^32, of a private task; ``model_delta`` is empty then."""
    sealed: SealedPart | None = None
    """Of a confidential task, in the place of either."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.aggregation_weight) and self.aggregation_weight > 0):
            raise ValueError(f"aggregation_weight must be positive and finite, not {self.aggregation_weight}")
        if sum((bool(self.model_delta), self.integers is not None, self.sealed is not None)) != 1:
            raise ValueError("an update is a model_delta, or integers, or sealed")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ServerState:
    """Everything the server keeps from one committed round to the next.

    Opaque but for the weights: the rest (optimizer slots, clipping estimates) belongs to the aggregator that made it.
    """

    num_commits: int
    """Committed training rounds that led here; 0 for an initial state."""
    num_weights: int
    leaves: tuple[Leaf, ...]
    """The weights first, in the plan's order; then the aggregator's own arrays, in its own fixed order."""

    def __post_init__(self) -> None:
        if self.num_commits < 0 or not 1 <= self.num_weights <= len(self.leaves):
            raise ValueError(
                f"no server state: {self.num_commits} commits, {self.num_weights} weights, {len(self.leaves)} leaves"
            )

    @property
    def weights(self) -> Tensors:
        """The global model: float32 arrays in the plan's order."""
        return self.leaves[: self.num_weights]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RoundResult:
    """What a finished training round leaves behind."""

    state: ServerState
    metrics: Mapping[str, float]
    """``loss``, ``accuracy`` and ``weight_sum`` over the cohort's training; then the aggregator's own measurements."""


class RoundAccumulator(Protocol):
    """Folds the updates of one round as they arrive, in memory that does not grow with their number."""

    @property
    def num_folded(self) -> int:
        """Updates folded so far."""

    def fold(self, update: ClientUpdate) -> None:
        """Adds an update. The arrays may be read-only; they are not kept.

        Raises:
            UpdateMismatch: The shapes are not the model's.
            AccumulatorClosed: The round was finished.
        """

    def finish(self) -> RoundResult:
        """Closes the round and computes the next state.

        Raises:
            EmptyRound: Nothing was folded.
            AccumulatorClosed: The round was finished before.
        """

    def snapshot(self) -> tuple[Leaf, ...]:
        """The running sums, as arrays that later folds leave alone: what a checkpoint in mid-round stores.

        Raises:
            AccumulatorClosed: The round was finished.
        """

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot that an accumulator begun with the same state once took.

        Raises:
            StateMismatch: The arrays are not this aggregator's.
            AccumulatorClosed: The round was finished.
        """


class EvaluationAccumulator(Protocol):
    """Folds the metrics of an evaluation round."""

    @property
    def num_folded(self) -> int:
        """Reports folded so far."""

    def fold(self, metrics: Metrics) -> None:
        """Adds one device's sums.

        Raises:
            AccumulatorClosed: The round was finished.
        """

    def finish(self) -> Mapping[str, float]:
        """Closes the round: ``loss`` and ``accuracy`` per example over the whole cohort, and ``weight_sum``.

        Raises:
            EmptyRound: Nothing was folded.
            AccumulatorClosed: The round was finished before.
        """


class Aggregator(Protocol):
    """Turns a state and the updates of a cohort into the next state."""

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round.

        Raises:
            UpdateMismatch: The weights are not the model's.
        """

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state.

        Raises:
            StateMismatch: The state is not one of this aggregator's.
        """

    def begin(self, state: ServerState) -> RoundAccumulator:
        """Opens a training round.

        Raises:
            StateMismatch: The state is not one of this aggregator's.
        """

    def begin_evaluation(self) -> EvaluationAccumulator:
        """Opens an evaluation round."""


@runtime_checkable
class NumberedAggregator(Protocol):
    """An aggregator whose rounds depend on how many rounds lie between them, abandoned ones included."""

    def begin_round(self, state: ServerState, *, round_id: int) -> RoundAccumulator:
        """Opens a training round by its number.

        Raises:
            StateMismatch: The state is not one of this aggregator's, or a later round led to it.
        """


def finalize_metrics(loss_sum: float, num_correct: float, weight_sum: float) -> dict[str, float]:
    """Ratios of a cohort's sums; 0 where no example was visited."""
    divisor = weight_sum if weight_sum > 0 else 1.0
    return {"loss": loss_sum / divisor, "accuracy": num_correct / divisor, "weight_sum": weight_sum}


def check_tensors(tensors: tuple[Leaf, ...], specs: tuple[TensorSpec, ...]) -> None:
    """Checks that tensors have a model's shapes and are float32.

    Raises:
        UpdateMismatch: They are not; the message names the first that differs.
    """
    if len(tensors) != len(specs):
        raise UpdateMismatch(f"{len(tensors)} tensors; the model has {len(specs)}")
    for index, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
        if tensor.shape != spec.shape or tensor.dtype != np.float32:
            raise UpdateMismatch(f"w{index} is {tensor.dtype} {tensor.shape}; the model says float32 {spec.shape}")


def check_leaves(leaves: tuple[Leaf, ...], specs: tuple[LeafSpec, ...]) -> None:
    """Checks arrays against an aggregator's own list.

    Raises:
        StateMismatch: They differ; the message names the first that does.
    """
    if len(leaves) != len(specs):
        raise StateMismatch(f"{len(leaves)} arrays; this aggregator keeps {len(specs)}")
    for leaf, spec in zip(leaves, specs, strict=True):
        if not spec.admits(leaf):
            raise StateMismatch(f"{spec.name} is {leaf.dtype} {leaf.shape}; it should be {spec.dtype} {spec.shape}")
