"""The loops of local training and evaluation, the same for every trainer: only the step differs."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_client.errors import NonFiniteUpdate
from edge_client.labels import Labels, labels_for
from edge_client.model_delta import compute_model_delta
from edge_client.training import Examples, TrainingJob, TrainingResult, check_examples, check_tokens
from wire_protocol.local_order import local_steps
from wire_protocol.messages import Metrics
from wire_protocol.tensors import Tensors

__all__ = ["Batch", "StepSums", "TrainableModel", "evaluate_locally", "train_locally"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The examples of one step; at most ``plan.batch_size`` of them, never padded here."""

    x: npt.NDArray[np.float32]
    """[n, *plan.input_shape]"""
    y: Labels
    """As the plan has them: int32 [n], or float32 [n, k]."""
    tickets: npt.NDArray[np.int32]
    """[n] dropout tickets; zeros in an evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepSums:
    """Sums over the examples of one step, before the step."""

    loss_sum: float
    num_correct: float
    weight_sum: float


class TrainableModel(Protocol):
    """Weights and the steps that change them. ``restore`` comes first."""

    def restore(self, weights: Tensors) -> None:
        """Sets the weights and resets the optimizer's slots."""

    def train_step(self, batch: Batch) -> StepSums:
        """One optimizer step on the mean loss of the batch."""

    def evaluate_step(self, batch: Batch) -> StepSums:
        """The sums, without a step."""

    def save(self) -> Tensors:
        """The weights."""


def train_locally(model: TrainableModel, job: TrainingJob, examples: Examples) -> TrainingResult:
    """Trains as the plan says: the steps of ``wire_protocol.local_order``, from the received checkpoint.

    Raises:
        DataError: The examples are too few or do not fit the plan.
        NonFiniteUpdate: A loss or a weight became NaN or infinite.
    """
    check_examples(job.plan, examples)
    began_at = time.perf_counter()
    model.restore(job.checkpoint)
    steps = local_steps(job.plan, num_examples=examples.num_examples, round_id=job.round_id, device_id=job.device_id)
    sums = [model.train_step(_batch(job, examples, step.indices, step.tickets)) for step in steps]
    model_delta = compute_model_delta(trained=model.save(), received=job.checkpoint)
    return _result(sums, examples, model_delta=model_delta, duration_s=time.perf_counter() - began_at)


def evaluate_locally(model: TrainableModel, job: TrainingJob, examples: Examples) -> TrainingResult:
    """Evaluates the received checkpoint on every local example once.

    Raises:
        DataError: The examples are too few or do not fit the plan.
        NonFiniteUpdate: The loss is NaN or infinite.
    """
    check_examples(job.plan, examples)
    began_at = time.perf_counter()
    model.restore(job.checkpoint)
    sums = [
        model.evaluate_step(_batch(job, examples, indices, np.zeros(len(indices), dtype=np.int32)))
        for indices in _in_order(examples.num_examples, job.plan.batch_size)
    ]
    return _result(sums, examples, model_delta=None, duration_s=time.perf_counter() - began_at)


def _in_order(num_examples: int, batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, num_examples, batch_size):
        yield np.arange(start, min(start + batch_size, num_examples), dtype=np.int64)


def _batch(
    job: TrainingJob, examples: Examples, indices: npt.NDArray[np.int64], tickets: npt.NDArray[np.int32]
) -> Batch:
    x = examples.inputs(indices).reshape(len(indices), *job.plan.input_shape)
    check_tokens(job.plan, x)
    return Batch(x=x, y=labels_for(job.plan, examples.labels[indices]), tickets=tickets)


def _result(
    sums: list[StepSums], examples: Examples, *, model_delta: Tensors | None, duration_s: float
) -> TrainingResult:
    loss_sum = math.fsum(step.loss_sum for step in sums)
    if not math.isfinite(loss_sum):
        raise NonFiniteUpdate("the loss became NaN or infinite")
    visits = math.fsum(step.weight_sum for step in sums)
    num_correct = math.fsum(step.num_correct for step in sums)
    return TrainingResult(
        model_delta=model_delta,
        num_examples=examples.num_examples,
        aggregation_weight=visits,
        metrics=Metrics(loss_sum=loss_sum, num_correct=num_correct, weight_sum=visits),
        duration_s=duration_s,
    )
