"""The golden batch: a file of inputs and the outputs expected, and what a model's answers are worth against it."""

import dataclasses
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edge_client.errors import DataFormatError
from wire_protocol.release import GoldenBatch, ReleaseManifest
from wire_protocol.release_report import ReleaseFailure

__all__ = ["GoldenExamples", "compare_outputs", "decode_golden", "encode_golden"]

_INPUTS: Final = "inputs"
_OUTPUTS: Final = "outputs"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class GoldenExamples:
    """What goes in, and what should come out."""

    inputs: npt.NDArray[Any]
    """[n, ...] in the model's input dtype."""
    outputs: npt.NDArray[Any]
    """[n, ...] in the model's output dtype."""


def encode_golden(examples: GoldenExamples) -> bytes:
    """The file's bytes."""
    tensors = {
        _INPUTS: np.ascontiguousarray(examples.inputs),
        _OUTPUTS: np.ascontiguousarray(examples.outputs),
    }
    encoded: bytes = safetensors.numpy.save(tensors)
    return encoded


def decode_golden(data: bytes, manifest: ReleaseManifest) -> GoldenExamples:
    """Decodes a golden batch and checks that it is one for this model.

    Raises:
        DataFormatError: It is not.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise DataFormatError(f"not a golden batch: {error}") from error
    num = manifest.golden.num_examples
    for name, tensor in ((_INPUTS, manifest.input), (_OUTPUTS, manifest.output)):
        found = tensors.get(name)
        if found is None or found.dtype.name != tensor.dtype or found.shape != (num, *tensor.shape):
            raise DataFormatError(f"a golden batch needs {name} {tensor.dtype} {(num, *tensor.shape)}")
    return GoldenExamples(inputs=tensors[_INPUTS], outputs=tensors[_OUTPUTS])


def compare_outputs(
    outputs: npt.NDArray[Any], examples: GoldenExamples, golden: GoldenBatch
) -> tuple[float, float, ReleaseFailure | None]:
    """How far a model's answers are from the golden ones.

    Args:
        outputs: What the model gave, [n, ...] like the golden outputs.
        examples: The golden batch.
        golden: What is allowed.

    Returns:
        Largest absolute error; the share of examples whose largest output is the expected one (of a single output: that
        is within ``max_abs_error``); and what is wrong with it, None if nothing.
    """
    if outputs.shape != examples.outputs.shape or outputs.dtype != examples.outputs.dtype:
        return 0.0, 0.0, ReleaseFailure.WRONG_SHAPE
    if not np.isfinite(outputs).all():
        return 0.0, 0.0, ReleaseFailure.NON_FINITE
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    expected = examples.outputs.reshape(len(outputs), -1).astype(np.float64)
    errors = np.abs(flat - expected).max(axis=1)
    hits = errors <= golden.max_abs_error if flat.shape[1] == 1 else flat.argmax(axis=1) == expected.argmax(axis=1)
    max_error, agreement = float(errors.max()), float(np.mean(hits))
    if agreement < golden.min_agreement:
        return max_error, agreement, ReleaseFailure.INACCURATE
    if max_error > golden.max_abs_error:
        return max_error, agreement, ReleaseFailure.DEVIATES
    return max_error, agreement, None
