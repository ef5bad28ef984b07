"""The training plan of a model."""

from model_export.operations import ModelGraph
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan

__all__ = ["plan_for_graph"]


def plan_for_graph(
    graph: ModelGraph,
    *,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.0,
    num_epochs: int = 1,
    max_steps: int = 0,
    min_examples: int = 1,
    seed: int = 0,
) -> TrainingPlan:
    """The plan that goes with a model; the arguments are the plan's fields of the same names."""
    plan = TrainingPlan(
        batch_size=batch_size,
        num_epochs=num_epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        momentum=momentum,
        input_shape=graph.input_shape,
        num_classes=graph.num_classes,
        has_dropout=bool(graph.dropouts),
        weights=tuple(TensorSpec(shape=shape) for shape in graph.weight_shapes),
        seed=seed,
        min_examples=min_examples,
    )
    # msgspec checks ranges when it decodes, not when it constructs: a plan nobody can read must not be made.
    return decode_plan(encode_plan(plan))
