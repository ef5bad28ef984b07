"""Every optimizer that can be exported, against Keras: five steps of a small net, run in LiteRT.

``scripts/tables`` prints the rows into docs/reference/optimizers.md; tests/export holds them to ``MAX_ERROR``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from model_export.check_batches import CheckBatch
from model_export.conversion import convert
from model_export.keras_graph import read_graph
from model_export.keras_reference import KerasReference
from model_export.lite_model import LiteModel
from model_export.plans import PlanFields, plan_for_graph
from model_export.train_step import TrainStep
from model_export.zoo import digits_mlp
from wire_protocol.plan import TrainingPlan

__all__ = ["MAX_ERROR", "OPTIMIZERS", "OptimizerRow", "markdown", "measure_optimizer"]

MAX_ERROR: Final = 2e-6
NUM_STEPS: Final = 5
_BATCH_SIZE: Final = 8

OPTIMIZERS: Final[Mapping[str, dict[str, Any]]] = {
    "SGD": {"learning_rate": 0.05},
    "momentum 0.9": {"learning_rate": 0.05, "momentum": 0.9},
    "Nesterov 0.9": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"learning_rate": 1e-3, "optimizer": "adam"},
    "Adam, other constants": {
        "learning_rate": 1e-3, "optimizer": "adam", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4,
    },
    "AdamW 0.01": {"learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.01},
    "SGD + FedProx 0.1": {"learning_rate": 0.05, "proximal_mu": 0.1},
    "Nesterov + FedProx 0.1": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "proximal_mu": 0.1},
    "Adam + FedProx 0.1": {"learning_rate": 1e-3, "optimizer": "adam", "proximal_mu": 0.1},
    "AdamW + FedProx 1": {"learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.004, "proximal_mu": 1.0},
}  # fmt: skip
"""Name of the row -> plan fields."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRow:
    """How far five steps in LiteRT are from five in Keras."""

    name: str
    max_weight_error: float
    """Largest absolute difference of a weight after the steps."""
    max_moved: float
    """How far the weight that moved most has moved: what the error is to be judged against."""
    num_slots: int
    """Numbers that the file keeps per weight, beside the weight itself."""


def measure_optimizer(name: str) -> OptimizerRow:
    """Converts ``digits_mlp`` with one optimizer and trains it, the fourth batch short, in LiteRT and in Keras."""
    fields: PlanFields = {"batch_size": _BATCH_SIZE, **OPTIMIZERS[name]}  # type: ignore[typeddict-item]  # as listed above
    model = digits_mlp()
    graph = read_graph(model)
    plan = plan_for_graph(graph, **fields)
    weights = tuple(weight.numpy() for weight in model.trainable_weights)
    batches = _batches(plan)
    file = LiteModel(convert(TrainStep(graph, plan)))
    file.restore(weights)
    for batch in batches:
        file.train(batch, plan.learning_rate, proximal_mu=plan.proximal_mu)
    reference = KerasReference(model, graph)
    reference.set_weights(weights)
    expected = reference.train([batch.real_examples() for batch in batches], plan)
    return OptimizerRow(
        name=name,
        max_weight_error=max(float(np.abs(a - b).max()) for a, b in zip(file.save(), expected, strict=True)),
        max_moved=max(float(np.abs(a - b).max()) for a, b in zip(weights, expected, strict=True)),
        num_slots=_num_slots(plan),
    )


def _batches(plan: TrainingPlan) -> list[CheckBatch]:
    rng = np.random.default_rng(0)
    return [
        CheckBatch(
            x=rng.random((plan.batch_size, *plan.input_shape), np.float32),
            labels=rng.integers(0, plan.num_classes, plan.batch_size).astype(np.int32),
            tickets=np.zeros(plan.batch_size, np.int32),
            num_examples=5 if step == NUM_STEPS - 2 else plan.batch_size,
        )
        for step in range(NUM_STEPS)
    ]


def _num_slots(plan: TrainingPlan) -> int:
    of_rule = 2 if plan.optimizer != "sgd" else int(plan.momentum > 0)
    return of_rule + int(plan.proximal_mu > 0)


def markdown(rows: list[OptimizerRow]) -> str:
    """The rows as a Markdown table."""
    head = "| optimizer | largest weight difference after 5 steps | largest move of a weight | slots per weight |\n"
    return (
        head
        + "|---|---|---|---|\n"
        + "".join(
            f"| {row.name} | {row.max_weight_error:.0e} | {row.max_moved:.0e} | {row.num_slots} |\n" for row in rows
        )
    )
