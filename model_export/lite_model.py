"""Runs an exported file in LiteRT, as a device does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from model_export.check_batches import CheckBatch
from wire_protocol import model_contract as contract

__all__ = ["BatchFigures", "LiteModel"]

BatchFigures = tuple[float, float, float]
"""loss_sum, num_correct, weight_sum."""


class LiteModel:
    """A model file, loaded.

    Args:
        model: The file's bytes.
        num_threads: Threads LiteRT may use.
    """

    def __init__(self, model: bytes, *, num_threads: int = 1) -> None:
        self._interpreter = Interpreter(model_content=model, num_threads=num_threads)
        self._runners: dict[str, Any] = {
            name: self._interpreter.get_signature_runner(name) for name in self._interpreter.get_signature_list()
        }
        self.absolute_error_sum = 0.0
        """Of the batch that was trained or evaluated last; 0 for a file that gives none."""

    def input_ranks(self) -> dict[str, dict[str, int]]:
        """Rank of every input of every signature."""
        return {
            signature: {name: len(detail["shape"]) for name, detail in runner.get_input_details().items()}
            for signature, runner in self._runners.items()
        }

    def restore(self, weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Sets the weights, in Keras order, and resets the optimizer's slots."""
        self._runners[contract.RESTORE](**{contract.weight_name(i): weight for i, weight in enumerate(weights)})

    def save(self) -> tuple[npt.NDArray[np.float32], ...]:
        """The weights, in Keras order."""
        saved = self._runners[contract.SAVE]()
        return tuple(saved[contract.weight_name(index)].copy() for index in range(len(saved)))

    def train(self, batch: CheckBatch, learning_rate: float, *, proximal_mu: float = 0.0) -> BatchFigures:
        """Takes one optimizer step; the figures are from before it. A file without the term ignores its ``mu``."""
        inputs = _scored_inputs(batch)
        inputs[contract.LEARNING_RATE] = np.array([learning_rate], np.float32)
        taken = self._runners[contract.TRAIN].get_input_details()
        if contract.PROXIMAL_MU in taken:
            inputs[contract.PROXIMAL_MU] = np.array([proximal_mu], np.float32)
        if contract.DROPOUT_TICKET in taken:
            inputs[contract.DROPOUT_TICKET] = batch.tickets
        return self._figures(self._runners[contract.TRAIN](**inputs))

    def evaluate(self, batch: CheckBatch) -> BatchFigures:
        """The figures of a batch, without dropout and without a step."""
        return self._figures(self._runners[contract.EVALUATE](**_scored_inputs(batch)))

    def infer(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The model's output [B, num_classes]."""
        output: npt.NDArray[np.float32] = self._runners[contract.INFER](**{contract.X: x})[contract.OUTPUT]
        return output

    def _figures(self, outputs: dict[str, npt.NDArray[np.float32]]) -> BatchFigures:
        loss_sum, num_correct, weight_sum = (
            float(outputs[name][0]) for name in (contract.LOSS_SUM, contract.NUM_CORRECT, contract.WEIGHT_SUM)
        )
        errors = outputs.get(contract.ABSOLUTE_ERROR_SUM)
        self.absolute_error_sum = 0.0 if errors is None else float(errors[0])
        return loss_sum, num_correct, weight_sum


def _scored_inputs(batch: CheckBatch) -> dict[str, npt.NDArray[Any]]:
    return {contract.X: batch.x, contract.LABEL: batch.labels, contract.EXAMPLE_WEIGHT: batch.example_weight}
