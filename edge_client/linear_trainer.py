"""Softmax regression in numpy: the second real trainer, exact and without a model file.

For input ``x`` [n, d] (flattened), labels ``y``, weights ``W`` [d, c] and bias ``b`` [c], the loss is the mean over
the batch of ``-log softmax(x W + b)[y]``; its gradients are ``x^T (p - onehot(y)) / n`` and the column sums of
``(p - onehot(y)) / n`` (Bishop 2006, "Pattern Recognition and Machine Learning", section 4.3.4, eq. 4.109). The
optimizer is the plan's, in numpy (``numpy_optimizer``).

| edge case | what happens |
|---|---|
| logits of any size | the maximum is subtracted first: no overflow |
| a short last batch | its mean is over the examples it has |
| weights that diverge | `NonFiniteUpdate`; nothing leaves the device |
"""

import math

import numpy as np
import numpy.typing as npt

from edge_client.errors import ContractViolation
from edge_client.local_training import Batch, StepSums, evaluate_locally, train_locally
from edge_client.numpy_optimizer import NumpyOptimizer
from edge_client.training import Examples, TrainingJob, TrainingResult
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import Tensors

__all__ = ["LinearTrainer", "linear_weights", "softmax_loss_and_gradients"]

_Matrix = npt.NDArray[np.float32]


def linear_weights(*, input_shape: tuple[int, ...], num_classes: int) -> tuple[TensorSpec, TensorSpec]:
    """The weights of a softmax regression, as a plan lists them: kernel [d, c] and bias [c]."""
    return TensorSpec(shape=(math.prod(input_shape), num_classes)), TensorSpec(shape=(num_classes,))


def softmax_loss_and_gradients(
    kernel: _Matrix, bias: _Matrix, x: _Matrix, y: npt.NDArray[np.int32], *, clip: float | None = None
) -> tuple[StepSums, _Matrix, _Matrix]:
    """Loss sums and gradients of the mean loss.

    Args:
        kernel: [d, c] weights.
        bias: [c] weights.
        x: [n, d] inputs.
        y: [n] labels, 0 <= y < c.
        clip: Largest norm of one example's gradient over both weights; ``None``: any.

    Returns:
        The sums over the batch, the gradient of the mean loss by ``kernel`` [d, c], and by ``bias`` [c], in the
        dtype of the inputs.
    """
    rows = np.arange(len(y))
    # Diverging weights overflow here; the result is refused as not finite, once, and not by numpy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        logits = x @ kernel + bias
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        totals = exponentials.sum(axis=1, keepdims=True)
        losses = np.log(totals[:, 0]) - logits[rows, y]
        residual = exponentials / totals
        num_correct = float(np.count_nonzero(logits.argmax(axis=1) == y))
        residual[rows, y] -= 1
        if clip is not None:
            # An example's gradient by the kernel is x residual^T: its norm is the product of theirs.
            norms = np.sqrt((residual**2).sum(axis=1) * ((x**2).sum(axis=1) + 1))
            residual *= (clip / np.maximum(norms, clip))[:, None]
        residual /= len(y)
        sums = StepSums(loss_sum=float(losses.sum()), num_correct=num_correct, weight_sum=float(len(y)))
        return sums, x.T @ residual, residual.sum(axis=0)


class LinearTrainer:
    """Trains softmax regression; the job's model file is not looked at."""

    def train(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Trains from the job's checkpoint.

        Raises:
            ContractViolation: The plan's loss is another, or its weights are not a kernel [d, c] and a bias [c].
            DataError: The examples are too few or do not fit the plan.
            NonFiniteUpdate: Training diverged.
        """
        return train_locally(_SoftmaxRegression(job.plan), job, examples)

    def evaluate(self, job: TrainingJob, examples: Examples) -> TrainingResult:
        """Evaluates the job's checkpoint. Raises as ``train`` does."""
        return evaluate_locally(_SoftmaxRegression(job.plan), job, examples)


class _SoftmaxRegression:
    """Weights and optimizer of one job."""

    def __init__(self, plan: TrainingPlan) -> None:
        if plan.loss != "sparse_categorical_crossentropy":
            raise ContractViolation(
                f"the linear trainer knows softmax regression on class numbers alone, not the loss {plan.loss}; "
                "set training.trainer to litert"
            )
        if plan.weights != linear_weights(input_shape=plan.input_shape, num_classes=plan.num_classes):
            raise ContractViolation(
                f"the linear trainer needs weights [{math.prod(plan.input_shape)}, {plan.num_classes}] and "
                f"[{plan.num_classes}], not {[spec.shape for spec in plan.weights]}"
            )
        self._plan = plan
        self._weights: Tensors = ()
        self._optimizer = NumpyOptimizer(plan, ())

    def restore(self, weights: Tensors) -> None:
        self._weights = weights
        self._optimizer = NumpyOptimizer(self._plan, weights)

    def train_step(self, batch: Batch) -> StepSums:
        kernel, bias = self._weights
        x = batch.x.reshape(len(batch.y), -1)
        labels = np.asarray(batch.y, np.int32)
        sums, *gradients = softmax_loss_and_gradients(kernel, bias, x, labels, clip=self._plan.example_clip)
        self._weights = self._optimizer.step(self._weights, gradients)
        return sums

    def evaluate_step(self, batch: Batch) -> StepSums:
        kernel, bias = self._weights
        return softmax_loss_and_gradients(
            kernel, bias, batch.x.reshape(len(batch.y), -1), np.asarray(batch.y, np.int32)
        )[0]

    def save(self) -> Tensors:
        return self._weights
