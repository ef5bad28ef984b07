"""What a trainer is given and what it gives back; the seam between the session and whatever computes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_client.errors import (
    BudgetExceeded,
    ExampleMismatch,
    NonFiniteUpdate,
    PrivacyRefused,
    StorageError,
    TooFewExamples,
)
from edge_client.labels import Labels, check_labels
from wire_protocol.messages import Metrics, RoundKind, WithdrawalReason
from wire_protocol.plan import TrainingPlan
from wire_protocol.tensors import Tensors, encode_tensors

__all__ = [
    "ArrayExamples",
    "Examples",
    "Trainer",
    "TrainingJob",
    "TrainingResult",
    "check_examples",
    "check_tokens",
    "withdrawal_reason",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One assignment, ready to run."""

    kind: RoundKind
    plan: TrainingPlan
    model: bytes
    """The model file; a trainer that needs none (``linear_trainer``) ignores it."""
    checkpoint: Tensors
    """The received weights, in the order of ``plan.weights``."""
    round_id: int
    device_id: str
    nonce: bytes = b""
    """The assignment's: no other one, of whatever coordinator, has the same. The trainer needs and gets none."""
    clipping_norm: float | None = None
    """The round's clip, of a task whose clip adapts; None of any other. The trainer needs and gets none."""
    task_id: str = ""
    """The assignment's; for sealing."""
    plan_sha256: bytes = b""
    """Hash of the plan's bytes; for sealing."""
    roster: tuple[str, ...] = ()
    """Who takes part in a round with pairwise masks, ascending; for sealing."""
    sealing_blobs: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict, repr=False)
    """SHA-256 -> bytes of what the plan needs to seal an update; the trainer gets none of it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What came of a job."""

    model_delta: Tensors | None
    """trained - received, finite; None after an evaluation, and once it was made private."""
    private_update: bytes | None = None
    """The encoded integer update of a private task: what may leave the device."""
    num_examples: int
    """Size of the device's example store."""
    aggregation_weight: float
    """Example visits: each example counts once per epoch in which it was really seen."""
    metrics: Metrics
    duration_s: float

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError("a result needs at least one example")
        if not (math.isfinite(self.aggregation_weight) and self.aggregation_weight > 0):
            raise ValueError(f"aggregation_weight must be positive and finite, not {self.aggregation_weight}")
        if self.model_delta is not None and self.private_update is not None:
            raise ValueError("a private update takes the place of the model_delta, it does not go beside it")

    @property
    def encoded_update(self) -> bytes | None:
        """The bytes of the client update; None after an evaluation."""
        return encode_tensors(self.model_delta) if self.model_delta is not None else self.private_update


class Examples(Protocol):
    """The local examples, wherever they are."""

    @property
    def num_examples(self) -> int:
        """How many examples there are."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one stored input; its number of elements must be the plan's."""

    @property
    def labels(self) -> Labels:
        """The label of each example: class numbers int32 [num_examples], or numbers float32 [num_examples, k]."""

    def inputs(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """[len(indices), *input_shape] the inputs at these positions, scaled and copied."""


class ArrayExamples:
    """Examples in two arrays, which may be memory maps.

    Args:
        x: [n, ...] inputs, float32 or uint8.
        y: [n] class numbers, integer; or [n] or [n, k] numbers.
        scale: Inputs are multiplied by this (1/255 for images kept as bytes).

    Raises:
        ExampleMismatch: ``x`` and ``y`` are not of the same length, or ``y`` is no vector or table of numbers.
    """

    def __init__(
        self, *, x: npt.NDArray[np.float32] | npt.NDArray[np.uint8], y: npt.NDArray[Any], scale: float = 1.0
    ) -> None:
        if y.ndim not in (1, 2) or not (np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.floating)):
            raise ExampleMismatch(f"labels must be class numbers [n] or numbers [n, k], not {y.dtype} {y.shape}")
        if x.ndim < 2 or len(x) != len(y):  # noqa: PLR2004 - at least [n, features]
            raise ExampleMismatch(f"inputs {x.shape} and labels {y.shape} do not belong together")
        self._x = x
        is_classes = y.ndim == 1 and np.issubdtype(y.dtype, np.integer)
        self._labels: Labels = (
            np.asarray(y).astype(np.int32, copy=False)
            if is_classes
            else np.asarray(y).astype(np.float32, copy=False).reshape(len(y), -1)
        )
        self._scale = np.float32(scale)

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(self._labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._x.shape[1:])

    @property
    def labels(self) -> Labels:
        """The label of each example: class numbers int32 [num_examples], or numbers float32 [num_examples, k]."""
        return self._labels

    def inputs(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """[len(indices), *input_shape] the inputs at these positions, scaled and copied."""
        taken: npt.NDArray[np.float32] = np.asarray(self._x[indices], dtype=np.float32)
        return taken if self._scale == 1 else taken * self._scale


class Trainer(Protocol):
    """Runs jobs on examples. May keep what it compiled for the next job of the same model."""

    def train(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Trains from the job's checkpoint.

        Raises:
            DataError: The examples are too few or do not fit the plan.
            TrainingError: The model file is not what the plan says, or the result is not finite.
        """

    def evaluate(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Evaluates the job's checkpoint. Raises as ``train`` does."""


def check_examples(plan: TrainingPlan, examples: Examples) -> None:
    """Refuses examples that the plan's model cannot take, before anything is computed.

    Raises:
        TooFewExamples: Fewer than ``plan.min_examples``.
        ExampleMismatch: Another number of features, or labels that the plan's loss cannot take.
    """
    if examples.num_examples < plan.min_examples:
        raise TooFewExamples(f"{examples.num_examples} local examples; the plan asks for {plan.min_examples}")
    if math.prod(examples.input_shape) != math.prod(plan.input_shape):
        raise ExampleMismatch(f"local inputs are {examples.input_shape}; the model takes {plan.input_shape}")
    check_labels(plan, examples.labels)


def check_tokens(plan: TrainingPlan, x: npt.NDArray[np.float32]) -> None:
    """Refuses inputs of a step that are no token numbers, where the plan's model takes these.

    The model file would take the nearest token instead, and learn of it.

    Args:
        plan: Says how many tokens there are.
        x: [n, ...] inputs.

    Raises:
        ExampleMismatch: A number that is no token's; says which.
    """
    if not plan.num_tokens:
        return
    is_token = (x >= 0) & (x < plan.num_tokens) & (np.floor(x) == x)  # False for NaN
    if not is_token.all():
        wrong = float(x[~is_token][0])
        raise ExampleMismatch(
            f"a local input is {wrong:g}; the model takes token numbers, whole from 0 to {plan.num_tokens - 1}: "
            "number the text with the model's own vocabulary, and import it without a scale"
        )


def withdrawal_reason(error: Exception) -> WithdrawalReason:
    """What to tell the coordinator when a trainer raised ``error``."""
    match error:
        case TooFewExamples():
            return WithdrawalReason.TOO_FEW_EXAMPLES
        case ExampleMismatch():
            return WithdrawalReason.DATA_MISMATCH
        case BudgetExceeded() | PrivacyRefused() | StorageError():
            return WithdrawalReason.NOT_ELIGIBLE
        case NonFiniteUpdate():
            return WithdrawalReason.NON_FINITE_UPDATE
        case _:
            return WithdrawalReason.TRAINING_FAILED
