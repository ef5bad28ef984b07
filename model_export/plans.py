"""The training plan of a model."""

from typing import NotRequired, TypedDict, Unpack

from model_export.operations import ModelGraph
from wire_protocol.errors import MalformedMessage
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan

__all__ = ["PlanFields", "plan_for_graph"]


class PlanFields(TypedDict):
    """What a plan says that the model does not; fields and defaults are those of ``TrainingPlan``."""

    batch_size: int
    learning_rate: float
    momentum: NotRequired[float]
    num_epochs: NotRequired[int]
    max_steps: NotRequired[int]
    min_examples: NotRequired[int]
    seed: NotRequired[int]


def plan_for_graph(graph: ModelGraph, **fields: Unpack[PlanFields]) -> TrainingPlan:
    """The plan that goes with a model.

    Args:
        graph: The model.
        **fields: See ``PlanFields``.

    Raises:
        MalformedMessage: A field is out of its range; names it.
    """
    try:
        plan = TrainingPlan(
            input_shape=graph.input_shape,
            num_classes=graph.num_classes,
            has_dropout=bool(graph.dropouts),
            weights=tuple(TensorSpec(shape=shape) for shape in graph.weight_shapes),
            **fields,
        )
    except ValueError as error:
        raise MalformedMessage(f"not a training plan: {error}") from error
    # msgspec checks ranges when it decodes, not when it constructs: a plan that no device can read must not be made.
    return decode_plan(encode_plan(plan))
