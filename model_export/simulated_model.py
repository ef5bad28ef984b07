"""The model a simulation trains: the same plan, weights, loss and dropout masks as the exported file."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.loss_spec import LossSpec
from model_export.lowering.tensor_types import Tensor
from model_export.native_forward import native_logits
from model_export.native_losses import native_losses
from model_export.plans import PlanFields, plan_for_graph
from wire_protocol.plan import TrainingPlan

__all__ = ["SimulatedModel"]


class SimulatedModel:
    """A Keras model as pure functions of its weights, in TensorFlow's own ops.

    The output is always what the loss reads: for a cross-entropy of a model that ends in softmax or sigmoid, what goes
    into it. Keras reads the loss from there too (see ``keras_reference``), so nothing is clipped, and the class of the
    largest logit is that of the largest probability.

    Args:
        model: A Keras model that can be exported.
        loss: As ``export_model`` has it.
        **plan_fields: See ``PlanFields``.

    Raises:
        UnsupportedModel: The model, or one of its layers, cannot be exported.
        MalformedMessage: A plan field is out of its range (``wire_protocol.errors``).
    """

    def __init__(self, model: Any, *, loss: LossSpec | None = None, **plan_fields: Unpack[PlanFields]) -> None:
        self._graph = read_graph(model, loss)
        self._initial = tuple(weight.numpy().astype(np.float32) for weight in travelling_weights(model))
        self.plan: TrainingPlan = plan_for_graph(self._graph, **plan_fields)
        """The plan that ``export_model`` would write for the same arguments."""

    def initial_weights(self) -> tuple[npt.NDArray[np.float32], ...]:
        """The weights as they were when this was built, in Keras order."""
        return tuple(weight.copy() for weight in self._initial)

    def predict(self, weights: Sequence[Tensor], x: Tensor, tickets: Tensor | None, training: bool) -> Tensor:  # noqa: FBT001 - the simulation calls it so
        """The model's logits.

        Args:
            weights: In Keras order and layout.
            x: [n, ...] float32; n may be unknown.
            tickets: [n] int32 dropout tickets; may be ``None`` if not training or without dropout.
            training: Whether dropout is on and batch normalisation uses the batch's statistics.

        Returns:
            [n, num_classes] float32.

        Raises:
            ValueError: Training a model with dropout without tickets.
        """
        if training and tickets is None and self.plan.has_dropout:
            raise ValueError("this model has dropout: training needs one ticket per example")
        return native_logits(self._graph, weights, x, tickets if training else None, training=training)

    def example_loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Loss of each example.

        Args:
            output: [n, num_classes], what ``predict`` returned.
            y: Labels as the plan has them: int32 [n] or float32 [n, num_classes].

        Returns:
            [n] float32.
        """
        return native_losses(self._graph.loss, output, y)
