"""Compares an exported file, run in LiteRT, with Keras.

Every comparison starts from equal weights. Gradients are read from the file itself: one step at a learning rate so
large that the weights' own digits do not blur the difference, ``(before - after) / learning_rate``; a power of two
divides out exactly.

Near a kink (a ReLU input or a max-pool pair that ties within a rounding) the gradient is not defined to any
tolerance: Keras differs from Keras when its weights move by one rounding. Check examples near one are therefore
redrawn, judged by Keras alone before LiteRT has run, and counted in the certificate.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_export.certificate import CheckedCase, SignatureError, Tolerances
from model_export.check_batches import KINDS, CheckBatch
from model_export.errors import ParityRefused
from model_export.example_screening import ScreenedBatches
from model_export.gradient_comparison import gradient_error, has_small_gradient
from model_export.keras_reference import KerasReference
from model_export.lite_model import LiteModel
from model_export.operations import ModelGraph
from model_export.signature_errors import SignatureErrors
from wire_protocol import model_contract as contract
from wire_protocol.plan import TrainingPlan

__all__ = [
    "GRADIENT_PROBE_LEARNING_RATE",
    "CheckedFiles",
    "ParityReport",
    "check_parity",
    "refuse_violations",
]

GRADIENT_PROBE_LEARNING_RATE: Final = 2.0**14
_SEVERAL_STEPS: Final = 3
_BLUR: Final = 0.05
_LOSSES: Final = (
    (contract.EVALUATE, "mean loss", 0),
    (contract.TRAIN, "mean loss", 1),
    (contract.EVALUATE, "mean absolute error", 2),
)

_Weights = tuple[npt.NDArray[np.float32], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckedFiles:
    """What is compared with Keras."""

    trained: LiteModel
    """The exported file."""
    gradient_probe: LiteModel
    """The file whose first step shows the gradient; the same one if its optimizer does."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """What was compared, and how it came out."""

    cases: tuple[CheckedCase, ...]
    signature_errors: tuple[SignatureError, ...] = ()
    num_redrawn_examples: int
    num_kept_jumpy_examples: int


def check_parity(
    files: CheckedFiles, reference: KerasReference, graph: ModelGraph, plan: TrainingPlan, initial: _Weights
) -> ParityReport:
    """Compares losses, gradients, weights after a step, and outputs.

    Args:
        files: The exported file, and whatever shows its gradient.
        reference: The Keras model.
        graph: The model, read.
        plan: Its optimizer and learning rate are those compared.
        initial: The initial weights that travel.
    """
    rng = np.random.default_rng(plan.seed)
    batches = ScreenedBatches(reference, graph, plan.batch_size, rng)
    # Zero biases would hide a wrong bias: all but the first comparison are made from blurred weights.
    blurred = tuple((weight + _BLUR * rng.standard_normal(weight.shape)).astype(np.float32) for weight in initial)
    # A moving variance must stay above 0; a moving mean may be anything.
    blurred = (*blurred[: graph.num_trainable], *(np.abs(weight) for weight in blurred[graph.num_trainable :]))
    comparison = _Comparison(files=files, reference=reference, plan=plan)
    cases = []
    if plan.momentum or plan.optimizer != "sgd" or plan.proximal_mu:
        cases.append(comparison.several_steps(batches, blurred))
    cases.append(comparison.one_step("random, initial weights", batches.draw("random", initial), initial))
    cases += [comparison.one_step(f"{kind}, blurred weights", batches.draw(kind, blurred), blurred) for kind in KINDS]
    return ParityReport(
        cases=tuple(cases),
        signature_errors=comparison.errors.entries(),
        num_redrawn_examples=batches.num_redrawn,
        num_kept_jumpy_examples=batches.num_kept_jumpy,
    )


def refuse_violations(report: ParityReport, tolerances: Tolerances) -> None:
    """Refuses a file that leaves Keras by more than the tolerances.

    Raises:
        ParityRefused: Names every quantity that failed, in which case, by how much.
    """
    violations = [
        f"{case.name}: {quantity} off by {error:.3g}, tolerance {allowed:.3g}"
        for case in report.cases
        for quantity, error, allowed in (
            ("loss", case.loss_error, tolerances.loss),
            ("gradient", case.gradient_error, tolerances.gradient),
            ("weights", case.weight_error, tolerances.weight),
            ("output", case.output_error, tolerances.output),
            ("num_correct", case.num_correct_difference, 0.0),
        )
        if not error <= allowed  # not the same as >: a NaN is refused
    ]
    if violations:
        raise ParityRefused(tuple(violations))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    files: CheckedFiles
    reference: KerasReference
    plan: TrainingPlan
    errors: SignatureErrors = dataclasses.field(default_factory=SignatureErrors)

    def one_step(self, name: str, batch: CheckBatch, weights: _Weights) -> CheckedCase:
        """Compares everything for one batch; also proves that ``restore`` resets the slots."""
        real = batch.real_examples()
        self.reference.set_weights(weights)
        keras_eval_loss, keras_correct, keras_output = self.reference.evaluate(real)
        keras_loss, keras_gradients = self.reference.gradients(real)
        exact = self.reference.exact_gradients(real) if has_small_gradient(keras_gradients) else None
        lite, probe = self.files.trained, self.files.gradient_probe
        lite.restore(weights)
        self.errors.note(contract.SAVE, "weights that restore set", lite.save(), weights)
        output = lite.infer(batch.x)[: batch.num_examples]
        eval_loss, num_correct, _ = lite.evaluate(batch)
        absolute_error = lite.absolute_error_sum
        train_loss, _, weight_sum = lite.train(batch, self.plan.learning_rate, proximal_mu=self.plan.proximal_mu)
        probe.restore(weights)
        probe.train(batch, GRADIENT_PROBE_LEARNING_RATE)
        after = probe.save()
        gradients = [
            (before.astype(np.float64) - moved) / GRADIENT_PROBE_LEARNING_RATE
            for before, moved in zip(weights, after, strict=True)
        ]
        losses = np.array([eval_loss, train_loss, absolute_error]) / weight_sum
        keras_error = self.reference.absolute_error_sum(real)
        keras_losses = np.array([keras_eval_loss, keras_loss, keras_error]) / batch.num_examples
        error = gradient_error(gradients[: len(keras_gradients)], keras_gradients, exact)
        self.errors.note(contract.INFER, "output", [output], [keras_output])
        for signature, quantity, index in _LOSSES[: 3 if keras_error else 2]:
            self.errors.note(signature, quantity, [losses[index]], [keras_losses[index]])
        self.errors.note(contract.TRAIN, "gradient", gradients[: len(keras_gradients)], keras_gradients, relative=error)
        return CheckedCase(
            name=name,
            num_examples=batch.num_examples,
            num_steps=1,
            loss_error=float(np.max(np.abs(losses - keras_losses) / np.maximum(1.0, keras_losses))),
            gradient_error=error,
            weight_error=self._weight_error([batch], weights, self.reference.begin_training(self.plan, weights)(real)),
            output_error=_largest_difference(output, keras_output) / max(1.0, float(np.abs(keras_output).max())),
            num_correct_difference=abs(num_correct - keras_correct),
        )

    def several_steps(self, batches: ScreenedBatches, weights: _Weights) -> CheckedCase:
        """Compares the weights after steps without a ``restore`` between: the slots' and the anchor's work."""
        drawn: list[CheckBatch] = []
        reached = weights
        step = self.reference.begin_training(self.plan, weights)
        for _ in range(_SEVERAL_STEPS):
            # Each batch is screened where it will be used.
            drawn.append(batches.draw("random", reached))
            reached = step(drawn[-1].real_examples())
        return CheckedCase(
            name="several steps, blurred weights",
            num_examples=sum(batch.num_examples for batch in drawn),
            num_steps=len(drawn),
            loss_error=0.0,
            gradient_error=0.0,
            weight_error=self._weight_error(drawn, weights, reached),
            output_error=0.0,
            num_correct_difference=0.0,
        )

    def _weight_error(self, batches: Sequence[CheckBatch], weights: _Weights, expected: _Weights) -> float:
        lite = self.files.trained
        lite.restore(weights)
        for batch in batches:
            lite.train(batch, self.plan.learning_rate, proximal_mu=self.plan.proximal_mu)
        reached = lite.save()
        steps = "a step" if len(batches) == 1 else "several steps"
        self.errors.note(contract.TRAIN, f"weights after {steps}", reached, expected)
        return float(np.max([_largest_difference(a, b) for a, b in zip(reached, expected, strict=True)]))


def _largest_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())
