"""A model as plain values: operations over numbered nodes, free of Keras and TensorFlow.

Both forward passes read this graph: ``lowering.forward`` (what goes into the file) and ``native_forward`` (what the
simulation runs). Weights are named by their position in Keras order.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from model_export.layer_operations import (
    Affine,
    Attention,
    BatchNorm,
    Concatenate,
    Conv2DTranspose,
    DepthwiseConv2D,
    Embedding,
    GlobalMaxPool,
    GroupNorm,
    LayerNorm,
    Merge,
    Pad,
    Permute,
    Recurrent,
    Standardize,
    UpSample,
)
from model_export.loss_spec import LogitActivation, LossSpec

__all__ = [
    "Activation",
    "Add",
    "AveragePool",
    "Bias",
    "Conv2D",
    "Conv2DMaxPool",
    "Dense",
    "Dropout",
    "GlobalAveragePool",
    "Input",
    "MaxPool",
    "ModelGraph",
    "Node",
    "Operation",
    "Reshape",
    "weights_of",
]

_Pair: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """The examples."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """Matrix product with weight ``kernel`` [in, out]."""

    kernel: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conv2D:
    """Convolution with weight ``kernel`` [kh, kw, in, out]."""

    kernel: int
    strides: _Pair
    dilation: _Pair
    padding: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bias:
    """Adds weight ``bias`` [channels]."""

    bias: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """An elementwise activation, or softmax over the last axis."""

    name: str
    parameter: float = 0.0
    """Slope, scale or cap of those in ``lowering.activations.PARAMETRIC``."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaxPool:
    """Maximum over windows."""

    window: _Pair
    strides: _Pair
    padding: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conv2DMaxPool:
    """A convolution and the max-pool that alone reads it; made by ``lowering.fusion`` only."""

    convolution: Conv2D
    pool: MaxPool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AveragePool:
    """Mean over windows, padding not counted."""

    window: _Pair
    strides: _Pair
    padding: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GlobalAveragePool:
    """Mean over all axes but the batch and the channels."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reshape:
    """Reshapes each example to the node's shape (also Flatten)."""

    shape: tuple[int, ...] | None = None
    """Where the node's shape is not that of its layer's output."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dropout:
    """Inverted dropout; ``index`` counts the model's dropout layers from 0 and seeds their masks apart."""

    index: int
    rate: float
    is_spatial: bool = False
    """Whether whole channels are dropped: one decision for all pixels of one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Add:
    """Sum of two or more inputs of the same shape."""


Operation: TypeAlias = (
    Input
    | Dense
    | Conv2D
    | Conv2DMaxPool
    | Bias
    | Activation
    | MaxPool
    | AveragePool
    | GlobalAveragePool
    | Reshape
    | Dropout
    | Add
    | DepthwiseConv2D
    | Conv2DTranspose
    | Attention
    | Embedding
    | LayerNorm
    | GroupNorm
    | BatchNorm
    | Affine
    | Standardize
    | Merge
    | Concatenate
    | GlobalMaxPool
    | Pad
    | UpSample
    | Permute
    | Recurrent
)


_WEIGHT_FIELDS = ("kernel", "table", "recurrent", "bias", "gamma", "beta", "mean", "variance")
"""Fields of operations that hold the position of a weight."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One operation, applied to earlier nodes."""

    operation: Operation
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    """Shape of the result for one example."""

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Of a dropout: shape of one example's mask."""
        is_spatial = isinstance(self.operation, Dropout) and self.operation.is_spatial
        return (*(1 for _ in self.shape[:-1]), self.shape[-1]) if is_spatial else self.shape


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelGraph:
    """A whole model.

    ``nodes`` are in order of evaluation: node 0 is the input, every node reads earlier ones. ``logits`` is the node
    whose values the loss reads; it is the last one, or, where that is the softmax or sigmoid of a cross-entropy, the
    one before it.
    """

    nodes: tuple[Node, ...]
    logits: int
    loss: LossSpec = dataclasses.field(default_factory=LossSpec)
    weight_shapes: tuple[tuple[int, ...], ...]
    """Of the weights that travel: those of the plan, at positions 0 .. N-1."""
    num_statistics: int = 0
    """How many of them, the last ones, are moving statistics: they follow the batches, no gradient reaches them."""
    weight_names: tuple[str, ...]
    frozen_weights: tuple[npt.NDArray[np.float32], ...] = ()
    """Values of the weights that stay as they are, at positions N and on: constants of the file."""

    def weight_shape(self, position: int) -> tuple[int, ...]:
        """Shape of the weight at a position, travelling or frozen."""
        num_travelling = len(self.weight_shapes)
        if position < num_travelling:
            return self.weight_shapes[position]
        return self.frozen_weights[position - num_travelling].shape

    @property
    def num_trainable(self) -> int:
        """How many weights a gradient trains: those at positions 0 .. T-1."""
        return len(self.weight_shapes) - self.num_statistics

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.nodes[0].shape

    @property
    def num_tokens(self) -> int:
        """How many token numbers an input may be, from 0; 0: inputs are not token numbers."""
        tables = [node.operation.num_tokens for node in self.nodes if isinstance(node.operation, Embedding)]
        return min(tables, default=0)

    @property
    def num_classes(self) -> int:
        """Length of one example's scores."""
        return self.nodes[-1].shape[0]

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the model's output is probabilities of classes."""
        return self.output_activation == "softmax"

    @property
    def output_activation(self) -> LogitActivation | None:
        """What makes the output from the node that the loss reads; ``None``: that is the output."""
        return None if self.logits == len(self.nodes) - 1 else self.loss.logit_activation

    @property
    def dropout_nodes(self) -> tuple[Node, ...]:
        """The nodes of ``dropouts``."""
        return tuple(node for node in self.nodes if isinstance(node.operation, Dropout))

    @property
    def dropouts(self) -> tuple[Dropout, ...]:
        """The dropout operations, by index."""
        return tuple(node.operation for node in self.nodes if isinstance(node.operation, Dropout))

    @property
    def dense_kernels(self) -> frozenset[int]:
        """Positions of the weights that are kernels of Dense layers."""
        return frozenset(node.operation.kernel for node in self.nodes if isinstance(node.operation, Dense))

    def num_consumers(self) -> tuple[int, ...]:
        """For each node, how often it is read; the last one is read once more, as the result."""
        counts = [0] * len(self.nodes)
        for node in self.nodes:
            for source in node.inputs:
                counts[source] += 1
        counts[-1] += 1
        return tuple(counts)

    def reaches_weights(self) -> tuple[bool, ...]:
        """For each node, whether anything trainable lies at or before it: whether its gradient is wanted."""
        reached: list[bool] = []
        for node in self.nodes:
            own = any(position < len(self.weight_shapes) for position in weights_of(node.operation))
            reached.append(own or any(reached[source] for source in node.inputs))
        return tuple(reached)


def weights_of(operation: Operation) -> tuple[int, ...]:
    """Positions of the weights that an operation reads."""
    if isinstance(operation, Conv2DMaxPool):
        return weights_of(operation.convolution)
    if isinstance(operation, Attention):
        return (*operation.kernels, *operation.biases)
    positions = (getattr(operation, name, None) for name in _WEIGHT_FIELDS)
    return tuple(position for position in positions if position is not None)
