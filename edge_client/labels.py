"""Labels as a plan's model takes them, and the refusal of those that it cannot take."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.errors import ExampleMismatch
from wire_protocol.plan import REGRESSION_LOSSES, TrainingPlan

__all__ = ["Labels", "check_labels", "labels_for"]

Labels = npt.NDArray[np.int32] | npt.NDArray[np.float32]
"""Class numbers int32 [n], or numbers float32 [n, k]."""

_SUM_TOLERANCE = 1e-3
"""How far a row of class probabilities may be from 1: a thousand roundings of a float16."""


def labels_for(plan: TrainingPlan, labels: Labels) -> Labels:
    """Labels in the plan's dtype and shape: class numbers also serve where one number per example is wanted.

    Args:
        plan: Says what a label is.
        labels: Of some examples, as ``Examples.labels`` has them; they passed ``check_labels``.
    """
    if labels.dtype == plan.label_dtype:
        return labels
    converted: npt.NDArray[np.float32] = labels.astype(np.float32).reshape(len(labels), 1)
    return converted


def check_labels(plan: TrainingPlan, labels: Labels) -> None:
    """Refuses labels that the plan's loss cannot take.

    Raises:
        ExampleMismatch: Another kind or number of them, or values out of their range; says what the model takes.
    """
    if plan.loss == "sparse_categorical_crossentropy":
        if not _are_classes(labels):
            raise ExampleMismatch(f"local labels are numbers {list(labels.shape[1:])}; the model takes class numbers")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= plan.num_classes:
            known = f"classes 0 to {plan.num_classes - 1}"
            raise ExampleMismatch(f"local labels run from {low} to {high}; the model knows {known}")
        return
    width = 1 if _are_classes(labels) else labels.shape[1]
    if width != plan.num_classes:
        kind = "class numbers" if _are_classes(labels) else f"{width} numbers"
        raise ExampleMismatch(
            f"local labels are {kind}; the model takes {plan.num_classes} numbers per example ({plan.loss})"
        )
    _check_range(plan, labels)


def _are_classes(labels: npt.NDArray[Any]) -> bool:
    return labels.ndim == 1


def _check_range(plan: TrainingPlan, labels: Labels) -> None:
    low, high = float(labels.min()), float(labels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ExampleMismatch("a local label is NaN or infinite")
    if plan.loss in REGRESSION_LOSSES:
        return
    if low < 0 or high > 1:
        raise ExampleMismatch(f"local labels run from {low:g} to {high:g}; {plan.loss} takes 0 to 1")
    if plan.loss == "categorical_crossentropy" and np.abs(labels.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
        raise ExampleMismatch(f"a local label does not sum to 1; {plan.loss} takes one-hot rows or probabilities")
