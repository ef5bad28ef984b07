"""Training a model file with LiteRT. The only module that imports ``ai_edge_litert``; it runs in the trainer's child.

Follows ``wire_protocol.model_contract``: ``restore``, then ``train`` for every step, then ``save``. The file holds no
weights and does not complain when ``train`` comes before ``restore``, so the order is kept here.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.errors import ContractViolation
from edge_client.local_training import Batch, StepSums, evaluate_locally, train_locally
from edge_client.training import Examples, TrainingJob, TrainingResult
from wire_protocol.model_contract import (
    ABSOLUTE_ERROR_SUM,
    DROPOUT_TICKET,
    EVALUATE,
    EXAMPLE_WEIGHT,
    LABEL,
    LEARNING_RATE,
    LOSS_SUM,
    NUM_CORRECT,
    PROXIMAL_MU,
    RESTORE,
    SAVE,
    TRAIN,
    WEIGHT_SUM,
    X,
    weight_name,
)
from wire_protocol.plan import REGRESSION_LOSSES, TrainingPlan
from wire_protocol.tensors import Tensors

__all__ = ["LiteRtTrainer", "check_contract"]

_Spec = tuple[tuple[int, ...], str]
_SUMS: Final = (LOSS_SUM, NUM_CORRECT, WEIGHT_SUM)


class LiteRtTrainer:
    """Trains ``.tflite`` files; keeps the last one loaded for the next round.

    Args:
        num_threads: Threads of one step. 1 is best on a busy device: every op ends in a barrier.
    """

    def __init__(self, *, num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._loaded: _LoadedModel | None = None

    def train(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Trains from the job's checkpoint.

        Raises:
            ContractViolation: The file cannot be loaded or is not what the plan says.
            DataError: The examples are too few or do not fit the plan.
            NonFiniteUpdate: Training diverged.
        """
        return train_locally(self._model(job), job, examples)

    def evaluate(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Evaluates the job's checkpoint. Raises as ``train`` does."""
        return evaluate_locally(self._model(job), job, examples)

    def _model(self, job: TrainingJob) -> "_LoadedModel":
        sha256 = hashlib.sha256(job.model).digest()
        if self._loaded is None or (self._loaded.sha256, self._loaded.plan) != (sha256, job.plan):
            self._loaded = None  # two interpreters at once would double the peak memory
            self._loaded = _LoadedModel(job.model, sha256=sha256, plan=job.plan, num_threads=self._num_threads)
        return self._loaded


class _LoadedModel:
    """One interpreter and the signature runners of one file."""

    def __init__(self, model: bytes, *, sha256: bytes, plan: TrainingPlan, num_threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.sha256 = sha256
        self.plan = plan
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=num_threads)
            signatures = self._interpreter.get_signature_list()
        except (ValueError, RuntimeError, TypeError) as error:
            raise ContractViolation(f"LiteRT cannot load the model file: {error}") from error
        absent = {TRAIN, EVALUATE, RESTORE, SAVE} - set(signatures)
        if absent:
            raise ContractViolation(f"the model file has no signature {', '.join(sorted(absent))}")
        self._runners = {
            name: self._interpreter.get_signature_runner(name) for name in (TRAIN, EVALUATE, RESTORE, SAVE)
        }
        check_contract({name: _inputs_and_outputs(runner) for name, runner in self._runners.items()}, plan)

    def restore(self, weights: Tensors) -> None:
        self._runners[RESTORE](**{weight_name(index): weight for index, weight in enumerate(weights)})

    def train_step(self, batch: Batch) -> StepSums:
        inputs = self._padded(batch)
        inputs[LEARNING_RATE] = np.array([self.plan.learning_rate], dtype=np.float32)
        if self.plan.proximal_mu:
            inputs[PROXIMAL_MU] = np.array([self.plan.proximal_mu], dtype=np.float32)
        if self.plan.has_dropout:
            inputs[DROPOUT_TICKET] = _pad(batch.tickets, self.plan.batch_size)
        return _sums(self._runners[TRAIN](**inputs))

    def evaluate_step(self, batch: Batch) -> StepSums:
        return _sums(self._runners[EVALUATE](**self._padded(batch)))

    def save(self) -> Tensors:
        saved = self._runners[SAVE]()
        return tuple(np.array(saved[weight_name(index)]) for index in range(len(self.plan.weights)))

    def _padded(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Fills a short batch up with zeros of weight 0, which change nothing."""
        size = self.plan.batch_size
        weight = np.ones(len(batch.y), dtype=np.float32)
        return {X: _pad(batch.x, size), LABEL: _pad(batch.y, size), EXAMPLE_WEIGHT: _pad(weight, size)}


def check_contract(found: Mapping[str, tuple[dict[str, _Spec], dict[str, _Spec]]], plan: TrainingPlan) -> None:
    """Checks the signatures of a model file against its plan, before anything runs.

    Args:
        found: Signature name -> (inputs, outputs), each name -> (shape, dtype name).
        plan: The plan that came with the file.

    Raises:
        ContractViolation: A tensor is missing, unknown, or of another shape or dtype; the message names it.
    """
    for name, (inputs, outputs) in _expected(plan).items():
        _compare(f"{name}'s input", found[name][0], inputs, complete=True)
        _compare(f"{name}'s output", found[name][1], outputs, complete=False)


def _expected(plan: TrainingPlan) -> dict[str, tuple[dict[str, _Spec], dict[str, _Spec]]]:
    size = plan.batch_size
    batch: dict[str, _Spec] = {
        X: ((size, *plan.input_shape), "float32"),
        LABEL: ((size, *plan.label_shape), plan.label_dtype),
        EXAMPLE_WEIGHT: ((size,), "float32"),
    }
    train: dict[str, _Spec] = {**batch, LEARNING_RATE: ((1,), "float32")}
    if plan.proximal_mu:
        train[PROXIMAL_MU] = ((1,), "float32")
    if plan.has_dropout:
        train[DROPOUT_TICKET] = ((size,), "int32")
    measured = (*_SUMS, ABSOLUTE_ERROR_SUM) if plan.loss in REGRESSION_LOSSES else _SUMS
    sums: dict[str, _Spec] = dict.fromkeys(measured, ((1,), "float32"))
    weights: dict[str, _Spec] = {
        weight_name(index): (spec.shape, spec.dtype) for index, spec in enumerate(plan.weights)
    }
    return {TRAIN: (train, sums), EVALUATE: (batch, sums), RESTORE: (weights, {}), SAVE: ({}, weights)}


def _compare(what: str, found: dict[str, _Spec], expected: dict[str, _Spec], *, complete: bool) -> None:
    for name, spec in expected.items():
        if found.get(name) != spec:
            raise ContractViolation(f"{what} {name} is {found.get(name)}; the plan says {spec}")
    unknown = sorted(set(found) - set(expected))
    if complete and unknown:
        raise ContractViolation(f"{what} {unknown[0]} is none that the plan knows")


def _inputs_and_outputs(runner: Any) -> tuple[dict[str, _Spec], dict[str, _Spec]]:
    return _specs(runner.get_input_details()), _specs(runner.get_output_details())


def _specs(details: Mapping[str, Any]) -> dict[str, _Spec]:
    return {
        name: (tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name)
        for name, detail in details.items()
    }


def _pad(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    if len(array) == size:
        return array
    padded = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    padded[: len(array)] = array
    return padded


def _sums(outputs: Mapping[str, npt.NDArray[np.float32]]) -> StepSums:
    loss_sum, num_correct, weight_sum = (float(outputs[name].reshape(-1)[0]) for name in _SUMS)
    return StepSums(loss_sum=loss_sum, num_correct=num_correct, weight_sum=weight_sum)
