"""The training plan of a model."""

from typing import Literal, NotRequired, TypedDict, Unpack

import msgspec

from model_export.example_clipping import refuse_unclippable
from model_export.operations import ModelGraph
from wire_protocol.errors import MalformedMessage
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan

__all__ = ["PlanFields", "plain_sgd_twin", "plan_for_graph", "shows_gradients"]


class PlanFields(TypedDict):
    """What a plan says that the model does not; fields and defaults are those of ``TrainingPlan``."""

    batch_size: int
    learning_rate: float
    optimizer: NotRequired[Literal["sgd", "adam", "adamw"]]
    momentum: NotRequired[float]
    nesterov: NotRequired[bool]
    beta_1: NotRequired[float]
    beta_2: NotRequired[float]
    epsilon: NotRequired[float]
    weight_decay: NotRequired[float]
    proximal_mu: NotRequired[float]
    num_epochs: NotRequired[int]
    max_steps: NotRequired[int]
    min_examples: NotRequired[int]
    per_example_clipping_norm: NotRequired[float]
    seed: NotRequired[int]


def plan_for_graph(graph: ModelGraph, **fields: Unpack[PlanFields]) -> TrainingPlan:
    """The plan that goes with a model.

    Args:
        graph: The model.
        **fields: See ``PlanFields``.

    Raises:
        MalformedMessage: A field is out of its range; names it.
        UnsupportedModel: An example's gradient cannot be clipped in this model; names the layer.
    """
    if "per_example_clipping_norm" in fields:
        refuse_unclippable(graph)
    try:
        plan = TrainingPlan(
            input_shape=graph.input_shape,
            num_classes=graph.num_classes,
            loss=graph.loss.name,
            huber_delta=graph.loss.huber_delta,
            has_dropout=bool(graph.dropouts),
            num_tokens=graph.num_tokens,
            weights=tuple(TensorSpec(shape=shape) for shape in graph.weight_shapes),
            num_statistics=graph.num_statistics,
            **fields,
        )
    except ValueError as error:
        raise MalformedMessage(f"not a training plan: {error}") from error
    # msgspec checks ranges when it decodes, not when it constructs: a plan that no device can read must not be made.
    return decode_plan(encode_plan(plan))


def shows_gradients(plan: TrainingPlan) -> bool:
    """Whether a first step from fresh slots is ``learning_rate * gradient``, so that the gradient can be read off."""
    return plan.optimizer == "sgd" and not plan.nesterov


def plain_sgd_twin(plan: TrainingPlan) -> TrainingPlan:
    """The same plan with plain SGD."""
    return msgspec.structs.replace(plan, optimizer="sgd", momentum=0.0, nesterov=False, weight_decay=0.0)
