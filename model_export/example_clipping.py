"""Which models' examples have gradients of their own that a step can clip, and what to do about the others."""

from collections import Counter
from typing import Final

from model_export.errors import UnsupportedLayer
from model_export.layer_operations import BatchNorm, Conv2DTranspose, DepthwiseConv2D, GroupNorm, LayerNorm
from model_export.operations import Bias, Conv2D, Dense, ModelGraph, Operation, weights_of

__all__ = ["refuse_unclippable"]

_CLIPPED: Final = (Bias, Conv2D, Conv2DTranspose, Dense, DepthwiseConv2D, GroupNorm, LayerNorm)
_WITHOUT: Final = "or export without --per-example-clip."


def refuse_unclippable(graph: ModelGraph) -> None:
    """Refuses a model in which an example's gradient cannot be clipped.

    Raises:
        UnsupportedLayer: A layer mixes the examples of a batch, is used more than once, or has no rule.
    """
    uses = Counter(position for node in graph.nodes for position in weights_of(node.operation))
    for node in graph.nodes:
        positions = weights_of(node.operation)
        is_trained = any(position < graph.num_trainable for position in positions)
        if isinstance(node.operation, BatchNorm) and node.operation.is_training:
            _refuse(
                graph,
                node.operation,
                "normalises by the statistics of the whole batch, so that no example has a gradient of its own",
                f"Use LayerNormalization or GroupNormalization, freeze it, {_WITHOUT}",
            )
        elif is_trained and not isinstance(node.operation, _CLIPPED):
            _refuse(
                graph,
                node.operation,
                "has no rule yet for the gradients of single examples",
                f"Use Dense or convolutions, freeze it, {_WITHOUT}",
            )
        elif is_trained and max(uses[position] for position in positions) > 1:
            _refuse(
                graph,
                node.operation,
                "is used more than once: the norm of an example's gradient is not known from its uses",
                f"Use a layer for each, {_WITHOUT}",
            )


def _refuse(graph: ModelGraph, operation: Operation, problem: str, instead: str) -> None:
    names = [*graph.weight_names, *("" for _ in graph.frozen_weights)]
    name = next((names[position] for position in weights_of(operation) if names[position]), "")
    raise UnsupportedLayer(
        layer_name=name.rpartition("/")[0], layer_type=type(operation).__name__, problem=problem, instead=instead
    )
