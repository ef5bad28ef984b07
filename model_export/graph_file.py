"""A model's graph as a file of the bundle: what an inference file is built from, without Keras and its model file.

JSON. Each node names its operation and that operation's settings; the values of frozen weights, which are part of the
model and not of a checkpoint, are float32, little-endian, in base64.
"""

import dataclasses
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from model_export.errors import ExportError, UnreadableGraph
from model_export.loss_spec import LossSpec
from model_export.operations import ModelGraph, Node, Operation
from wire_protocol.plan import LossName

__all__ = ["decode_graph", "encode_graph"]

_OPERATIONS: Final[dict[str, type]] = {kind.__name__: kind for kind in get_args(Operation)}


class _Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    operation: str
    settings: dict[str, Any]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


class _FrozenWeight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    shape: tuple[int, ...]
    data: bytes


class _Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1] = 1
    nodes: tuple[_Node, ...]
    logits: int
    loss: LossName
    huber_delta: float
    weight_shapes: tuple[tuple[int, ...], ...]
    num_statistics: int
    weight_names: tuple[str, ...]
    frozen_weights: tuple[_FrozenWeight, ...]


def encode_graph(graph: ModelGraph) -> bytes:
    """Encodes a graph. The same graph always gives the same bytes."""
    nodes = (
        _Node(
            operation=type(node.operation).__name__,
            settings=dataclasses.asdict(node.operation),
            inputs=node.inputs,
            shape=node.shape,
        )
        for node in graph.nodes
    )
    return (
        msgspec.json.encode(
            _Graph(
                nodes=tuple(nodes),
                logits=graph.logits,
                loss=graph.loss.name,
                huber_delta=graph.loss.huber_delta,
                weight_shapes=graph.weight_shapes,
                num_statistics=graph.num_statistics,
                weight_names=graph.weight_names,
                frozen_weights=tuple(map(_encode_weight, graph.frozen_weights)),
            )
        )
        + b"\n"
    )


def decode_graph(data: bytes) -> ModelGraph:
    """Reads what ``encode_graph`` wrote.

    That it belongs to a model file is not seen here: whoever builds from it compares outputs.

    Raises:
        UnreadableGraph: Not a graph, or one of a later version of Flockwise.
    """
    try:
        file = msgspec.json.decode(data, type=_Graph)
        graph = ModelGraph(
            nodes=tuple(map(_decode_node, file.nodes)),
            logits=file.logits,
            loss=LossSpec(name=file.loss, huber_delta=file.huber_delta),
            weight_shapes=file.weight_shapes,
            num_statistics=file.num_statistics,
            weight_names=file.weight_names,
            frozen_weights=tuple(map(_decode_weight, file.frozen_weights)),
        )
    except (msgspec.MsgspecError, ExportError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnreadableGraph(f"not a model's graph: {error}") from error
    _refuse_loose_ends(graph)
    return graph


def _refuse_loose_ends(graph: ModelGraph) -> None:
    num_nodes = len(graph.nodes)
    for position, node in enumerate(graph.nodes):
        if not all(0 <= source < position for source in node.inputs) or (position > 0) != bool(node.inputs):
            raise UnreadableGraph(f"not a model's graph: node {position} reads nodes {node.inputs}")
    if not num_nodes or graph.logits not in (num_nodes - 1, num_nodes - 2) or graph.logits < 0:
        raise UnreadableGraph(f"not a model's graph: logits at node {graph.logits} of {num_nodes}")


def _decode_node(node: _Node) -> Node:
    kind = _OPERATIONS.get(node.operation)
    if kind is None:
        raise UnreadableGraph(f"unknown operation {node.operation[:40]!r}")
    # A constant of `Standardize` is nested tuples; JSON has lists.
    settings = {name: _as_tuples(value) for name, value in node.settings.items()}
    operation: Any = msgspec.convert(settings, type=kind)
    return Node(operation=operation, inputs=node.inputs, shape=node.shape)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _encode_weight(weight: npt.NDArray[np.float32]) -> _FrozenWeight:
    return _FrozenWeight(shape=weight.shape, data=np.ascontiguousarray(weight, "<f4").tobytes())


def _decode_weight(weight: _FrozenWeight) -> npt.NDArray[np.float32]:
    return np.frombuffer(weight.data, "<f4").reshape(weight.shape)
