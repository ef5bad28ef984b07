"""Runs a compiled graph in this process: TensorFlow alone, no TFF, no worker process.

A pruned ``wrap_function`` costs 10 to 20 ms per call in Python; a ConcreteFunction traced around it about half a
millisecond. So every graph is wrapped once and called many times.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from coordinator.aggregation import Leaf
from coordinator.tff.server_artefact import CompiledGraph

__all__ = ["GraphFunction", "chain", "to_leaf"]

_serial = itertools.count()


class GraphFunction:
    """A compiled graph as a function of flat tensors.

    Args:
        graph: What to run.

    Attributes:
        pruned: The graph as a TensorFlow function, to be called while another function is traced.
        signature: Shapes and dtypes of its inputs.
    """

    def __init__(self, graph: CompiledGraph) -> None:
        graph_def = tf.compat.v1.GraphDef.FromString(graph.graph_def)
        _make_names_unique(graph_def, f"_flockwise{next(_serial)}")
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
        element = wrapped.graph.as_graph_element
        feeds = [element(name) for name in graph.feeds]
        self.pruned: Callable[..., Sequence[Any]] = wrapped.prune(feeds, [element(name) for name in graph.fetches])
        self.signature = [tf.TensorSpec(feed.shape, feed.dtype) for feed in feeds]
        self._function = tf.function(self.pruned, input_signature=self.signature).get_concrete_function()

    def __call__(self, *leaves: Any) -> tuple[Any, ...]:
        """Runs the graph.

        Args:
            *leaves: Tensors, arrays or (for a sequence) datasets.

        Returns:
            Flat eager tensors.
        """
        return tuple(self._function(*map(_to_tensor, leaves, self.signature)))


def chain(first: GraphFunction, second: GraphFunction, *, num_passed: int) -> Callable[..., tuple[Any, ...]]:
    """Fuses two graphs: ``second(*kept, *first(*arguments)[:num_passed])`` in one call, with nothing in between.

    Args:
        first: Its outputs beyond ``num_passed`` are dropped.
        second: Its last ``num_passed`` inputs come from ``first``.
        num_passed: How many tensors go from one to the other.

    Returns:
        A function of ``kept`` tensors, then the arguments of ``first``.
    """
    num_kept = len(second.signature) - num_passed

    def fused(*leaves: Any) -> Any:
        return second.pruned(*leaves[:num_kept], *first.pruned(*leaves[num_kept:])[:num_passed])

    signature = second.signature[:num_kept] + first.signature
    function = tf.function(fused, input_signature=signature).get_concrete_function()
    return lambda *leaves: tuple(function(*map(_to_tensor, leaves, signature)))


def to_leaf(tensor: Any) -> Leaf:
    """An eager tensor as an array of its own; strings become ``S`` arrays."""
    value = tensor.numpy()
    if tensor.dtype == tf.string:
        return np.asarray(value, dtype="S").reshape(tensor.shape)
    return np.asarray(value)


def _to_tensor(leaf: Any, spec: Any) -> Any:
    if isinstance(leaf, tf.Tensor):
        return leaf
    if isinstance(leaf, tf.data.Dataset):
        return tf.data.experimental.to_variant(leaf)
    return tf.convert_to_tensor(leaf, dtype=spec.dtype)


def _make_names_unique(graph_def: Any, suffix: str) -> None:
    """Renames functions and shared resources: the eager context has one namespace, and graphs repeat names."""
    library = graph_def.library
    renamed = {function.signature.name: function.signature.name + suffix for function in library.function}
    for function in library.function:
        function.signature.name = renamed[function.signature.name]
    for gradient in library.gradient:
        gradient.function_name = renamed.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = renamed.get(gradient.gradient_func, gradient.gradient_func)
    for node in itertools.chain(graph_def.node, *(function.node_def for function in library.function)):
        node.op = renamed.get(node.op, node.op)
        if "shared_name" in node.attr:
            node.attr["shared_name"].s = (node.attr["shared_name"].s or node.name.encode()) + suffix.encode()
        for value in node.attr.values():
            is_one = value.WhichOneof("value") == "func"
            for called in [value.func] if is_one else value.list.func:
                called.name = renamed.get(called.name, called.name)
    for function in library.function:
        for key in ("forward_function_name", "backward_function_name"):
            if key in function.attr:
                name = function.attr[key].s.decode()
                function.attr[key].s = renamed.get(name, name).encode()
