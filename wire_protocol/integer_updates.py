"""A private client update as bytes: one vector of unsigned 32-bit integers, all the model's weights one after another.

Behind them, with a clip that adapts, comes the bit of `wire_protocol.adaptive_clip`. The values are integers modulo 2^32: a clipped, rounded ``model_delta`` plus integer noise. Sums of them are taken
modulo 2^32 too, and read as signed numbers at the end (``decode_sum``).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from wire_protocol.errors import MalformedMessage, OversizedMessage, TensorMismatch
from wire_protocol.plan import TensorSpec
from wire_protocol.tensors import HEADER_ALLOWANCE_BYTES, Tensors

__all__ = [
    "IntegerUpdate",
    "decode_integer_update",
    "decode_sum",
    "encode_integer_update",
    "flatten_tensors",
    "max_integer_update_bytes",
    "num_elements",
    "split_vector",
]

IntegerUpdate = npt.NDArray[np.uint32]
"""[d] one device's contribution, modulo 2^32."""
_NAME = "u"
_WORD_BYTES = 4


def num_elements(specs: Sequence[TensorSpec]) -> int:
    """d: the numbers in all tensors together."""
    return sum(spec.num_elements for spec in specs)


def max_integer_update_bytes(length: int) -> int:
    """Most bytes that an encoded update of so many numbers may take."""
    return _WORD_BYTES * length + HEADER_ALLOWANCE_BYTES


def encode_integer_update(update: IntegerUpdate) -> bytes:
    """Encodes an update. The same update always gives the same bytes.

    Raises:
        TensorMismatch: Not a vector of uint32.
    """
    if update.dtype != np.uint32 or update.ndim != 1:
        raise TensorMismatch(f"an integer update is uint32 [d], not {update.dtype} {update.shape}")
    encoded: bytes = safetensors.numpy.save({_NAME: np.ascontiguousarray(update)})
    return encoded


def decode_integer_update(data: bytes, length: int) -> IntegerUpdate:
    """Decodes an update and checks its length; every value is a valid one.

    Args:
        data: The bytes.
        length: How many numbers it must hold: ``TrainingPlan.num_update_numbers``.

    Returns:
        uint32 [d]; may be a read-only view into ``data``.

    Raises:
        OversizedMessage: ``data`` is longer than this model's updates.
        MalformedMessage: Not a safetensors file.
        TensorMismatch: Not one uint32 vector of this length.
    """
    if len(data) > max_integer_update_bytes(length):
        raise OversizedMessage(
            f"{len(data)} bytes of update; this model's need at most {max_integer_update_bytes(length)}"
        )
    try:
        entries = {name: entry for name, entry in safetensors.deserialize(data)}  # type: ignore[no-untyped-call]  # noqa: C416
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"not a safetensors file: {error}") from error
    entry = entries.get(_NAME)
    if len(entries) != 1 or entry is None or entry["dtype"] != "U32" or tuple(entry["shape"]) != (length,):
        raise TensorMismatch(f"not one vector {_NAME!r} of {length} unsigned 32-bit integers")
    return np.frombuffer(entry["data"], dtype="<u4")


def decode_sum(total: IntegerUpdate) -> npt.NDArray[np.int64]:
    """Reads a sum modulo 2^32 as signed integers, which it is if no true sum leaves 32 bits."""
    signed: npt.NDArray[np.int64] = total.view(np.int32).astype(np.int64)
    return signed


def flatten_tensors(tensors: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """All numbers of a model in one vector [d], tensor by tensor, each in C order."""
    return np.concatenate([tensor.reshape(-1) for tensor in tensors])


def split_vector(vector: npt.NDArray[np.float32], specs: Sequence[TensorSpec]) -> Tensors:
    """The inverse of ``flatten_tensors``.

    Raises:
        TensorMismatch: The vector is not of the model's size.
    """
    if vector.shape != (num_elements(specs),):
        raise TensorMismatch(f"a vector {vector.shape} for a model of {num_elements(specs)} numbers")
    ends = np.cumsum([spec.num_elements for spec in specs])[:-1]
    return tuple(part.reshape(spec.shape) for part, spec in zip(np.split(vector, ends), specs, strict=True))
