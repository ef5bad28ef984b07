"""Operations of the less common layers; see ``operations``, which joins them to the rest.

One-dimensional layers are these operations on values [B, length, channels], with a window and stride of 1 along an
axis that is not there.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

__all__ = [
    "Affine",
    "Attention",
    "BatchNorm",
    "Concatenate",
    "Conv2DTranspose",
    "DepthwiseConv2D",
    "Embedding",
    "GlobalMaxPool",
    "GroupNorm",
    "LayerNorm",
    "Merge",
    "MergeKind",
    "Pad",
    "Permute",
    "Recurrent",
    "RecurrentKind",
    "Standardize",
    "UpSample",
]

_Pair: TypeAlias = tuple[int, int]
RecurrentKind: TypeAlias = Literal["gru", "lstm", "simple"]
MergeKind: TypeAlias = Literal["average", "maximum", "minimum", "multiply", "subtract"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseConv2D:
    """Convolution of each channel on its own, with weight ``kernel`` [kh, kw, in, multiplier]."""

    kernel: int
    strides: _Pair
    dilation: _Pair
    padding: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conv2DTranspose:
    """The transpose of a convolution with weight ``kernel`` [kh, kw, out, in]."""

    kernel: int
    strides: _Pair
    padding: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Multi-head attention over sequences; inputs are query, value and key, as Keras orders them."""

    kernels: tuple[int, int, int, int]
    """Query, key and value [in, heads, size of a head], and output [heads, size of a head, out]."""
    biases: tuple[int, ...]
    """Of the four, [heads, size of a head] and [out]; empty: there are none."""
    is_causal: bool
    """Whether a position sees only itself and those before it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """Rows of weight ``table`` [num_tokens, dim], one for each token number of the input."""

    table: int
    num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerNorm:
    """Zero mean and unit variance over the last ``num_axes`` axes, then scale and shift."""

    gamma: int | None
    """Position of the scale, of the shape of those axes; ``None``: there is none."""
    beta: int | None
    """Position of the shift."""
    num_axes: int
    epsilon: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GroupNorm:
    """Zero mean and unit variance over all pixels and each group of channels, then scale and shift by channel."""

    gamma: int | None
    beta: int | None
    groups: int
    epsilon: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BatchNorm:
    """Zero mean and unit variance of each channel over the batch, or by moving statistics; then scale and shift."""

    gamma: int | None
    beta: int | None
    mean: int
    """Position of the moving mean [channels]."""
    variance: int
    """Position of the moving variance."""
    momentum: float
    """What a step leaves of the moving statistics."""
    epsilon: float
    is_training: bool
    """Whether training uses and follows the batch's statistics; a frozen layer never does."""
    has_correction: bool
    """Whether the moving variance follows the unbiased one (Bessel's), as Keras has it for images."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """``x * scale + offset`` with constants."""

    scale: float
    offset: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Standardize:
    """``(x - centre) / deviation`` with constants, as nested tuples of numbers that broadcast over the batch."""

    centre: Any
    deviation: Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Combines inputs elementwise, from left to right; axes of length 1 are broadcast."""

    kind: MergeKind


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Concatenate:
    """Joins inputs along ``axis``, counted with the batch axis."""

    axis: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GlobalMaxPool:
    """Maximum over all axes but the batch and the channels; ties share the gradient, as in Keras."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pad:
    """Zeros around an image, or, where negative, a crop."""

    rows: _Pair
    cols: _Pair


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UpSample:
    """Repeats every row and column."""

    size: _Pair


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Permute:
    """Reorders an example's axes, counted from 1."""

    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent:
    """A recurrent layer over [B, length, in], from a state of zeros; gates in Keras's order and with its activations."""

    kind: RecurrentKind
    kernel: int
    """[in, gates * units]"""
    recurrent: int
    """[units, gates * units]"""
    bias: int | None
    """[gates * units], for a GRU [2, gates * units]."""
    is_reversed: bool
    return_sequences: bool
    gives_in_order: bool = False
    """Whether a reversed sequence comes out in the order of time, as Bidirectional has it; otherwise as it was made."""
