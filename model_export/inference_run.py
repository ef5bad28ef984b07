"""Runs the ``infer`` of any ``.tflite`` file over many examples, and compares what two files answer."""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from wire_protocol import model_contract as contract
from wire_protocol.plan import REGRESSION_LOSSES, TrainingPlan

__all__ = ["Answers", "Quantisation", "answers_of", "infer_all", "quantisation_of", "trained_outputs"]

_Floats = npt.NDArray[np.float32]
_INT8: Final = np.iinfo(np.int8)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How int8 stands for a number: ``scale * (int8 - zero_point)``; a scale of 0 is a float32 tensor."""

    scale: float
    zero_point: int

    def encode(self, values: _Floats) -> npt.NDArray[Any]:
        """Numbers as the tensor holds them."""
        if not self.scale:
            return values
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, _INT8.min, _INT8.max), np.int8)

    def decode(self, values: npt.NDArray[Any]) -> _Floats:
        """The numbers that a tensor stands for."""
        if not self.scale:
            return values.astype(np.float32)
        return (np.float32(self.scale) * (values.astype(np.float32) - self.zero_point)).astype(np.float32)


def quantisation_of(model: bytes) -> tuple[Quantisation, Quantisation]:
    """Of a file's input and output."""
    runner = Interpreter(model_content=model).get_signature_runner(contract.INFER)
    return _quantisations(runner)


def _quantisations(runner: Any) -> tuple[Quantisation, Quantisation]:
    of_input = runner.get_input_details()[contract.X]["quantization"]
    of_output = runner.get_output_details()[contract.OUTPUT]["quantization"]
    first, last = (Quantisation(scale=float(pair[0]), zero_point=int(pair[1])) for pair in (of_input, of_output))
    return first, last


def infer_all(model: bytes, x: _Floats) -> _Floats:
    """The outputs [n, k] of an inference file for ``x`` [n, ...]; numbers in, numbers out, also if it is quantised."""
    runner = Interpreter(model_content=model, num_threads=1).get_signature_runner(contract.INFER)
    batch_size = int(runner.get_input_details()[contract.X]["shape"][0])
    of_input, of_output = _quantisations(runner)

    def infer(batch: _Floats) -> _Floats:
        return of_output.decode(runner(**{contract.X: of_input.encode(batch)})[contract.OUTPUT])

    return _in_batches(infer, x, batch_size)


def trained_outputs(model: bytes, plan: TrainingPlan, weights: tuple[_Floats, ...], x: _Floats) -> _Floats:
    """The outputs [n, k] of a trainable file with the given weights for ``x`` [n, ...]."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    restore = interpreter.get_signature_runner(contract.RESTORE)
    restore(**{contract.weight_name(index): weight for index, weight in enumerate(weights)})
    runner = interpreter.get_signature_runner(contract.INFER)
    return _in_batches(lambda batch: runner(**{contract.X: batch})[contract.OUTPUT], x, plan.batch_size)


def _in_batches(infer: Callable[[_Floats], _Floats], x: _Floats, batch_size: int) -> _Floats:
    outputs = []
    for start in range(0, len(x), batch_size):
        # A short batch is filled up, and what it fills is cut off again.
        rows = np.arange(start, start + batch_size) % len(x)
        outputs.append(infer(x[rows]).copy())
    return np.concatenate(outputs)[: len(x)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """What outputs say: one class per example, or k times yes or no."""

    given: npt.NDArray[Any]
    right: npt.NDArray[Any]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.mean(self.given == self.right))


def answers_of(output: _Floats, labels: npt.NDArray[Any], plan: TrainingPlan, *, threshold: float) -> Answers | None:
    """The answers in outputs [n, k]; ``None`` for a regression, which has none.

    Args:
        output: Logits or probabilities.
        labels: As the plan has them.
        plan: Its loss says what an answer is.
        threshold: Above it an output of ``binary_crossentropy`` is a yes.
    """
    if plan.loss in REGRESSION_LOSSES:
        return None
    if plan.loss == "binary_crossentropy":
        return Answers(given=output > threshold, right=labels > 0.5)  # noqa: PLR2004 - halfway between no and yes
    classes = labels if labels.ndim == 1 else labels.argmax(-1)
    return Answers(given=output.argmax(-1), right=classes)
