"""Checkpoints and client updates as bytes: safetensors, checked against the plan before anything is computed.

A file holds the tensors ``w0 .. wN`` of a plan, float32, little-endian, nothing else and no metadata. The size is
checked first, the header next, values last; no number is read before shapes and dtypes are known to be right.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from wire_protocol.errors import MalformedMessage, NonFiniteTensor, OversizedMessage, TensorMismatch
from wire_protocol.model_contract import weight_name
from wire_protocol.plan import TensorSpec

__all__ = ["HEADER_ALLOWANCE_BYTES", "Tensors", "decode_tensors", "encode_tensors", "max_encoded_bytes"]

Tensors = tuple[npt.NDArray[np.float32], ...]
"""Weights or a ``model_delta``: one float32 array per entry of ``TrainingPlan.weights``, in that order."""

HEADER_ALLOWANCE_BYTES = 256
"""Header bytes allowed per tensor: name, dtype, shape and offsets, generously."""


def max_encoded_bytes(specs: Sequence[TensorSpec]) -> int:
    """Most bytes that tensors of these specs may take when encoded."""
    return sum(spec.num_bytes for spec in specs) + HEADER_ALLOWANCE_BYTES * (len(specs) + 1)


def encode_tensors(tensors: Sequence[npt.NDArray[np.float32]]) -> bytes:
    """Encodes tensors ``w0 .. wN`` in order. The same tensors always give the same bytes.

    Raises:
        TensorMismatch: A tensor is not float32.
    """
    named: dict[str, npt.NDArray[np.float32]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.dtype != np.float32:
            raise TensorMismatch(f"{weight_name(index)} is {tensor.dtype}; only float32 goes on the wire")
        named[weight_name(index)] = np.asarray(tensor, order="C")
    encoded: bytes = safetensors.numpy.save(named)
    return encoded


def decode_tensors(data: bytes, specs: Sequence[TensorSpec]) -> Tensors:
    """Decodes tensors and checks them against their specs.

    Args:
        data: What ``encode_tensors`` produced, possibly on a hostile machine.
        specs: The plan's weights.

    Returns:
        Arrays in the order of ``specs``; they may be read-only views into ``data``.

    Raises:
        OversizedMessage: ``data`` is longer than these specs can need.
        MalformedMessage: Not a safetensors file.
        TensorMismatch: Names, dtypes or shapes differ from ``specs``.
        NonFiniteTensor: A value is NaN or infinite.
    """
    if len(data) > max_encoded_bytes(specs):
        raise OversizedMessage(f"{len(data)} bytes of tensors; the plan's need at most {max_encoded_bytes(specs)}")
    try:
        raw_entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        entries = {name: (entry["dtype"], entry["shape"], entry["data"]) for name, entry in raw_entries}
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"not a safetensors file: {error}") from error
    expected = [weight_name(index) for index in range(len(specs))]
    if sorted(entries) != sorted(expected):
        raise TensorMismatch(f"tensors {sorted(entries)[:8]} are not the plan's w0 .. w{len(specs) - 1}")
    tensors: list[npt.NDArray[np.float32]] = []
    for name, spec in zip(expected, specs, strict=True):
        dtype, shape, raw = entries[name]
        if dtype != "F32" or tuple(shape) != spec.shape:
            raise TensorMismatch(f"{name} is {dtype} {tuple(shape)}; the plan says F32 {spec.shape}")
        tensor = np.frombuffer(raw, dtype="<f4").reshape(spec.shape)
        if not np.isfinite(tensor).all():
            raise NonFiniteTensor(f"{name} holds NaN or infinity")
        tensors.append(tensor)
    return tuple(tensors)
