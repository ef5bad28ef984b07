"""From TFF's world to flat tensors: a TFF computation's graph, and its structures taken apart and put together."""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from coordinator.aggregation import LeafSpec
from coordinator.tff.server_artefact import CompiledGraph

__all__ = ["compiled_graph", "flatten", "is_tensorflow", "leaf_specs", "leaf_types", "unflatten"]


def is_tensorflow(computation: tff.Computation) -> bool:
    """Whether a computation is one TensorFlow graph, rather than a federated composition."""
    proto = tff.framework.ConcreteComputation.get_proto(computation)
    return bool(proto.WhichOneof("computation") == "tensorflow")


def compiled_graph(computation: tff.Computation) -> CompiledGraph:
    """Takes the graph out of a TensorFlow computation.

    Args:
        computation: One for which `is_tensorflow` holds, without variables.

    Raises:
        ValueError: It is federated, or its graph needs an initialization step.
    """
    if not is_tensorflow(computation):
        raise ValueError(f"not a TensorFlow computation: {computation.type_signature}")
    graph = tff.framework.ConcreteComputation.get_proto(computation).tensorflow
    if graph.initialize_op:
        raise ValueError("the graph has variables to initialize; write the model as a pure function of its weights")
    graph_def = tf.compat.v1.GraphDef()
    graph.graph_def.Unpack(graph_def)
    feeds = tuple(_tensor_names(graph.parameter)) if graph.HasField("parameter") else ()
    return CompiledGraph(
        graph_def=graph_def.SerializeToString(deterministic=True),
        feeds=feeds,
        fetches=tuple(_tensor_names(graph.result)),
    )


def _tensor_names(binding: Any) -> Iterator[str]:
    which = binding.WhichOneof("binding")
    if which == "tensor":
        yield binding.tensor.tensor_name
    elif which == "sequence":
        yield binding.sequence.variant_tensor_name
    elif which == "struct":
        for element in binding.struct.element:
            yield from _tensor_names(element)


def leaf_types(type_spec: tff.Type, path: str = "") -> Iterator[tuple[str, tff.Type]]:
    """Yields (path, type) of a type's leaves, in TFF's order; unnamed elements are numbered."""
    if isinstance(type_spec, tff.FederatedType):
        yield from leaf_types(type_spec.member, path)
    elif isinstance(type_spec, tff.StructType):
        for index, (name, element) in enumerate(tff.structure.iter_elements(type_spec)):
            key = str(index) if name is None else name
            yield from leaf_types(element, f"{path}/{key}" if path else key)
    else:
        yield path, type_spec


def leaf_specs(type_spec: tff.Type) -> tuple[LeafSpec, ...]:
    """Names, dtypes and shapes of a type's tensors.

    Raises:
        ValueError: A tensor's shape is not fully known.
    """
    specs: list[LeafSpec] = []
    for path, leaf in leaf_types(type_spec):
        if leaf.shape is None or None in leaf.shape:
            raise ValueError(f"{path} has no fixed shape: {leaf}")
        dtype = tf.dtypes.as_dtype(leaf.dtype)
        specs.append(
            LeafSpec(name=path, dtype="bytes" if dtype == tf.string else dtype.name, shape=tuple(map(int, leaf.shape)))
        )
    return tuple(specs)


def flatten(value: Any, type_spec: tff.Type) -> list[Any]:
    """A Python structure as a flat list of leaves, in the order of its TFF type.

    Raises:
        TypeError: The structure does not fit the type.
    """
    if isinstance(type_spec, tff.FederatedType):
        return flatten(value, type_spec.member)
    if not isinstance(type_spec, tff.StructType):
        return [value]
    names = [name for name, _ in tff.structure.iter_elements(type_spec)]
    # dict keys come in any order, a named tuple's fields in the type's own.
    values = [value[name] for name in names] if isinstance(value, Mapping) else list(value)
    if len(values) != len(names):
        raise TypeError(f"{len(values)} values for {type_spec}")
    leaves: list[Any] = []
    for element, (_, element_type) in zip(values, tff.structure.iter_elements(type_spec), strict=True):
        leaves.extend(flatten(element, element_type))
    return leaves


def unflatten(leaves: Iterator[Any], type_spec: tff.Type) -> Any:
    """Puts leaves back into the Python containers that a TFF type remembers."""
    if isinstance(type_spec, tff.FederatedType):
        return unflatten(leaves, type_spec.member)
    if not isinstance(type_spec, tff.StructType):
        return next(leaves)
    elements = [(name, unflatten(leaves, element)) for name, element in tff.structure.iter_elements(type_spec)]
    is_named = bool(elements) and all(name is not None for name, _ in elements)
    container: Callable[..., Any] | None = getattr(type_spec, "python_container", None)
    if container is None:
        return collections.OrderedDict(elements) if is_named else tuple(value for _, value in elements)
    if hasattr(container, "_fields"):
        return container(**dict(elements))
    return container(elements) if is_named else container(value for _, value in elements)
